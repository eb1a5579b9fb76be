"""Runs fifty prompts through the C++ library and through ONNX Runtime's package; the ids must be the same.

    make runtime && awq2trt build smollm2-135m-instruct --target cpu -o build/smollm2
    python tools/compare_runtimes.py build/smollm2/cpu

Each prompt goes through the chat template twice: once always taking the best token, and once with temperature, top-k,
top-p and a seed of its own. Prints every difference, and exits with 1 if there is one. On the CPU both run the same
kernels, so that nothing may differ.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from awq2trt.runtime import Model, Sampler, Sampling, generate, user_message
from awq2trt.runtime.native import GenerateOptions, NativeModel

SUBJECTS = (
    "the moon", "a glacier", "yeast", "binary search", "the French Revolution", "photosynthesis", "jazz",
    "the number zero", "salt", "a violin",
)  # fmt: skip
FORMS = (
    "What is {}?",
    "Write two sentences about {}.",
    "Why does {} matter? Answer briefly.",
    "Erkläre mir bitte: {}.",
    "List three facts on {} 🙂",
)
PROMPTS = tuple(form.format(subject) for subject in SUBJECTS for form in FORMS)


@dataclass(frozen=True)
class Comparison:
    """One prompt, answered both ways.

    Attributes:
        prompt: The user's message.
        sampling: How tokens were chosen.
        native: Ids from the C++ library.
        python: Ids from the package.
        same_text: Whether the C++ library's text matches its ids.
    """

    prompt: str
    sampling: Sampling
    native: list[int]
    python: list[int]
    same_text: bool

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return self.same_text and self.native == self.python


def samplings(seed: int) -> tuple[Sampling, Sampling]:
    """The settings: greedy, and seeded."""
    return Sampling(), Sampling(0.8, top_k=50, top_p=0.95, seed=seed)


def compare(directory: Path, prompts: Sequence[str], max_tokens: int) -> Iterator[Comparison]:
    """Answers every prompt, greedily and seeded.

    Args:
        directory: A model built for `cpu` or `cuda`.
        prompts: The user's messages.
        max_tokens: Most tokens in each answer.
    """
    native, python = NativeModel.load(directory), Model.load(directory)
    special = python.artifact.manifest.contents.tokens or python.tokenizer.special
    for number, prompt in enumerate(prompts):
        messages = [user_message(prompt)]
        ids = python.tokenizer.encode_messages(messages)
        for sampling in samplings(number):
            session = native.session()
            session.append(messages)
            answer = session.generate(GenerateOptions(max_tokens=max_tokens, sampling=sampling))
            expected = list(
                generate(python.backend, ids, Sampler(sampling), stop_tokens=special.stop, max_new_tokens=max_tokens)
            )
            same_text = answer.text == python.tokenizer.decode(answer.tokens)
            yield Comparison(prompt, sampling, answer.tokens, expected, same_text)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="a model built for cpu or cuda")
    parser.add_argument("--tokens", type=int, default=48, help="most tokens in each answer")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="how many of the prompts")
    arguments = parser.parse_args()
    answers = different = tokens = 0
    for comparison in compare(arguments.directory, PROMPTS[: arguments.prompts], arguments.tokens):
        answers += 1
        tokens += len(comparison.native)
        if not comparison.same:
            different += 1
            print(f"{comparison.prompt!r}, {comparison.sampling}:\n  {comparison.native}\n  {comparison.python}")
    print(f"{answers} answers, {tokens} tokens, {different} different")
    raise SystemExit(1 if different else 0)


if __name__ == "__main__":
    main()
