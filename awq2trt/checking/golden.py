"""Makes golden outputs with PyTorch; `runtime.golden` compares executors with them.

In: a checkpoint and tokens. Out: a `Golden`. Expected logits are computed from the checkpoint by
`awq2trt.models.decoder`, in fp32. They do not depend on the exported graph, so that they reveal mistakes of the
exporter as well as of executors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import numpy as np
import torch
from numpy.typing import NDArray

from awq2trt.artifact.golden import Golden, GoldenCall, GoldenImage
from awq2trt.checking.beside import prepared_noise, seen_by_torch, vision_limit
from awq2trt.checking.tolerance import drift_limit
from awq2trt.errors import UsageError
from awq2trt.io_contract import ROTARY_TABLES
from awq2trt.models.decoder import Ends, run_model
from awq2trt.models.families import DecoderSpec
from awq2trt.models.sources.base import ModelSource
from awq2trt.progress import Progress

TEXT: Final = "The capital of France is Paris, and the capital of Italy is Rome. The sea is"
"""Any text would do; with this one a reader sees at once whether the answer makes sense."""

PREFILL_TOKENS: Final = 16
"""More than one tile of the kernels (16 rows), even with the decode calls after it."""

_DECODE_CALLS: Final = 2


def make_golden(source: ModelSource, tokens: Sequence[int], capacity: int, dtype: str, progress: Progress) -> Golden:
    """Computes the expected logits of one conversation, `prefill`, `decode-1`, `decode-2`, and of a second, `first`.

    `first` is the first token of `prefill` alone, and shows what decode kernels do with an empty cache.

    Of a model that sees also what it sees in an image of noise.

    Args:
        source: The quantized checkpoint.
        tokens: Tokens of `TEXT`, at least one.
        capacity: Capacity of the cache.
        dtype: Type of activations in the graph, for the tolerance.
        progress: Counts the blocks.

    Raises:
        UsageError: There are no tokens.
    """
    if not tokens:
        raise UsageError("the tokenizer gives no tokens for any text.", where=TEXT, fix="check tokenizer.json.")
    kept = list(tokens[: min(PREFILL_TOKENS + _DECODE_CALLS, capacity)])
    prefill = max(1, len(kept) - _DECODE_CALLS)
    with torch.inference_mode(), progress.task("golden outputs", total=source.spec.num_layers) as advance:
        hidden = run_model(source, torch.tensor([kept]), progress=advance)
        ends = Ends(source, narrow_head=True)
        logits = ends.logits(hidden)[0].numpy().astype(np.float32)  # [S, V]
        embeddings = ends.embed(torch.tensor(kept)).numpy() if source.vision else None  # [S, H]
    spans = {"prefill": (0, prefill)}
    spans |= {f"decode-{index - prefill + 1}": (index, index + 1) for index in range(prefill, len(kept))}
    spans["first"] = (0, 1)
    calls = tuple(
        GoldenCall(
            name,
            tuple(kept[start:end]),
            start,
            logits[end - 1],
            None if embeddings is None else embeddings[start:end].astype(dtype),
        )
        for name, (start, end) in spans.items()
    )
    limit = drift_limit(dtype, source.spec.num_layers + 1)
    return Golden(TEXT, limit, calls, _image(source), text_tables(source.spec, capacity, dtype))


def _image(source: ModelSource) -> GoldenImage | None:
    """An image of noise, and what a model that sees makes of it; None for a model of text."""
    seen = seen_by_torch(source)
    if source.vision is None or seen is None:
        return None
    inputs = {
        name: array.astype(np.float16) if array.dtype == np.float32 else array
        for name, array in prepared_noise(source.vision).inputs.items()
    }
    return GoldenImage(inputs, seen, vision_limit(source.vision))


def text_tables(spec: DecoderSpec, capacity: int, dtype: str) -> dict[str, NDArray[np.generic]]:
    """Rotary tables for a conversation of text, by the names of a decoder's inputs; none for one that has its own."""
    tables = [rope.tables(capacity) for rope in spec.ropes if rope.sections is not None]
    return {name: table.astype(dtype) for pair in tables for name, table in zip(ROTARY_TABLES, pair, strict=True)}
