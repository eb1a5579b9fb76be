"""From prompt tokens to new tokens: prefill, then one token at a time through the cache."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from awq2trt.errors import UsageError
from awq2trt.models.vision.prepared import PreparedImage
from awq2trt.runtime.backend import Backend, ChoosingBackend, SeeingBackend
from awq2trt.runtime.sampling import Sampler


def generate(
    backend: Backend,
    prompt: Sequence[int],
    sampler: Sampler,
    *,
    stop_tokens: Collection[int] = (),
    max_new_tokens: int | None = None,
    images: Sequence[PreparedImage] = (),
) -> Iterator[int]:
    """Continues a prompt in a new conversation.

    It ends at a stop token, which is not part of the answer, after `max_new_tokens`, or when the cache is full.

    Args:
        backend: The model.
        prompt: At least one token.
        sampler: Chooses tokens.
        stop_tokens: Tokens that end the answer.
        max_new_tokens: None for as many as the cache holds.
        images: Prepared images, whose tokens are in the prompt.

    Raises:
        UsageError: The prompt is empty, or longer than the cache; or the backend cannot be shown images.
    """
    _check_prompt(prompt, backend.capacity)
    backend.reset()
    if images:
        _show(backend, images)
    sampler.see(prompt)
    # The last chosen token is never written to the cache, hence one more than there are free slots.
    room = backend.capacity - len(prompt) + 1
    count = room if max_new_tokens is None else min(room, max_new_tokens)
    appended = prompt
    for _ in range(count):
        token = _next_token(backend, appended, sampler)
        if token in stop_tokens:
            return
        yield token
        appended = [token]


def _show(backend: Backend, images: Sequence[PreparedImage]) -> None:
    if not isinstance(backend, SeeingBackend):
        raise UsageError(
            "what runs this model cannot be shown images.", where="--image", fix="run it with --runtime ort."
        )
    backend.show(images)


def _next_token(backend: Backend, tokens: Sequence[int], sampler: Sampler) -> int:
    """Appends tokens and chooses the next one, on the device if possible."""
    if sampler.takes_best and isinstance(backend, ChoosingBackend):
        return backend.choose(tokens)
    return sampler.pick(backend.forward(tokens))


def _check_prompt(prompt: Sequence[int], capacity: int) -> None:
    """Refuses a prompt that is empty or too long.

    Raises:
        UsageError: It is empty or too long.
    """
    if not prompt:
        raise UsageError("the prompt has no tokens.", where="--prompt", fix="give some text.")
    if len(prompt) > capacity:
        raise UsageError(
            f"the prompt has {len(prompt)} tokens, but the cache of this model holds {capacity}.",
            where="--prompt",
            fix=f"shorten it; or, if the model was made for so many, export it again with --max-seq-len {len(prompt)}.",
        )
