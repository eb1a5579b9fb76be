"""Hugging Face transformers in fp16 on the same sizes: what a model that is not quantized takes on this GPU.

In: a config.json. Out: rows beside ours, of `generate` as it comes, and with a static cache, for which transformers
compiles decoding. Weights are random. Only whole answers can be timed, so a token's time is a mean, and it holds the
prompt's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Final

from awq2trt.evaluation.decode_bench import BenchRow

EAGER: Final = "Hugging Face fp16"
COMPILED: Final = "Hugging Face fp16, static cache, compiled"

_REPEATS: Final = 3


def bench_transformers(config: dict[str, Any], prompt: int, tokens: int, device: str) -> tuple[BenchRow, ...]:
    """Times a model of these sizes.

    Args:
        config: config.json.
        prompt: Length of the prompt.
        tokens: Of the answer.
        device: As PyTorch names it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.cuda.reset_peak_memory_stats(device)
    kept = {key: value for key, value in config.items() if key not in ("model_type", "architectures", "torch_dtype")}
    try:
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(config["model_type"], **kept), dtype=torch.float16
            ).eval()
    except torch.OutOfMemoryError as error:
        return (BenchRow(EAGER, failed=str(error).splitlines()[0]),)
    ids = torch.ones((1, prompt), dtype=torch.int64, device=device)

    def answer(**options: Any) -> float:
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        model.generate(
            ids,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
            **options,
        )
        torch.cuda.synchronize(device)
        return 1e3 * (time.perf_counter() - started) / tokens

    def peak_bytes() -> int:
        return int(torch.cuda.max_memory_allocated(device))

    with torch.inference_mode():
        return (
            _row(EAGER, answer, peak_bytes),
            _row(COMPILED, lambda: answer(cache_implementation="static"), peak_bytes),
        )


def _row(executor: str, answer: Callable[[], float], peak_bytes: Callable[[], int]) -> BenchRow:
    try:
        answer()  # compiles
        times = [answer() for _ in range(_REPEATS)]
    except (RuntimeError, ValueError, TypeError) as error:  # models that it cannot compile fail in many ways
        return BenchRow(executor, failed=" ".join(str(error).split())[:200])
    return BenchRow(executor, token_ms=statistics.median(times), memory_bytes=peak_bytes())
