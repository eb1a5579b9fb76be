"""Times Hugging Face transformers in fp16 with the same sizes: an unquantized model on this GPU.

In: a config.json. Out: rows beside ours, for plain `generate`, and for a static cache, with which transformers compiles
decoding. Weights are random. Only complete answers can be timed, so a token's time is a mean, which includes the
prompt's. The first token is timed by one call of the model with its cache, eager and under torch.compile.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

from awq2trt.evaluation.decode_bench import FIRST_TOKEN_LENGTHS, BenchRow

EAGER: Final = "Hugging Face fp16"
COMPILED: Final = "Hugging Face fp16, static cache, compiled"

_REPEATS: Final = 3


def bench_transformers(config: dict[str, Any], prompt: int, tokens: int, device: str) -> tuple[BenchRow, ...]:
    """Times a model of these sizes.

    Args:
        config: config.json.
        prompt: Length of the prompt.
        tokens: Length of the answer.
        device: The device, as PyTorch names it.
    """
    import torch

    torch.cuda.init()  # without it there are no statistics to reset
    torch.cuda.reset_peak_memory_stats(device)
    try:
        model = _random_model(config, device)
    except torch.OutOfMemoryError as error:
        return (BenchRow(EAGER, failed=str(error).splitlines()[0]),)
    ids = torch.ones((1, prompt), dtype=torch.int64, device=device)

    def answer(**options: Any) -> float:
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        options |= {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
        model.generate(ids, eos_token_id=None, **options)
        torch.cuda.synchronize(device)
        return 1e3 * (time.perf_counter() - started) / tokens

    def first_token(forward: Callable[..., Any], length: int) -> float:
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        forward(ids.new_ones(1, length), use_cache=True, logits_to_keep=1).logits.argmax(-1).item()
        return 1e3 * (time.perf_counter() - started)

    def row(executor: str, answer: Callable[[], float], forward: Callable[..., Any]) -> BenchRow:
        try:
            answer()  # compiles
            times = [answer() for _ in range(_REPEATS)]
            lengths = [length for length in FIRST_TOKEN_LENGTHS if length <= model.config.max_position_embeddings]
            first = {length: _median(functools.partial(first_token, forward, length)) for length in lengths}
        except (RuntimeError, ValueError, TypeError) as error:  # models that PyTorch cannot compile fail in many ways
            return BenchRow(executor, failed=" ".join(str(error).split())[:200])
        peak = torch.cuda.max_memory_allocated(device)
        return BenchRow(executor, token_ms=statistics.median(times), first_token_ms=first, memory_bytes=int(peak))

    with torch.inference_mode():
        return (
            row(EAGER, answer, model),
            row(COMPILED, lambda: answer(cache_implementation="static"), torch.compile(model, dynamic=False)),
        )


def _random_model(config: dict[str, Any], device: str) -> Any:
    """A model of transformers' own class for a config.json, with random fp16 weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kept = {key: value for key, value in config.items() if key not in ("model_type", "architectures", "torch_dtype")}
    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config["model_type"], **kept), dtype=torch.float16
        ).eval()


def _median(measure: Callable[[], float]) -> float:
    """Measures a median, after one first call, which may compile."""
    measure()
    return statistics.median(measure() for _ in range(_REPEATS))
