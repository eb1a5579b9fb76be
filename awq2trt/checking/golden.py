"""Makes golden outputs with PyTorch; `runtime.golden` compares executors with them.

In: a checkpoint and tokens. Out: a `Golden`. Expected logits are computed from the checkpoint by
`awq2trt.models.decoder`, in fp32. They do not depend on the exported graph, so that they reveal mistakes of the
exporter as well as of executors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import numpy as np
import torch
from numpy.typing import NDArray

from awq2trt.artifact.golden import Golden, GoldenCall, GoldenImage
from awq2trt.checking.beside import (
    begun,
    noise_shown,
    prepared_noise,
    seen_by_torch,
    shown_first,
    vision_limit,
)
from awq2trt.checking.tolerance import drift_limit
from awq2trt.errors import UsageError
from awq2trt.io_contract import IoContract
from awq2trt.models.decoder import Ends, run_blocks
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.spec import ModelSpec
from awq2trt.models.vision.description import AttendedSpec
from awq2trt.progress import Progress
from awq2trt.runtime.attended_images import AttendedImages
from awq2trt.runtime.rotary_tables import RotaryTables
from awq2trt.runtime.tables import tables_of

TEXT: Final = "The capital of France is Paris, and the capital of Italy is Rome. The sea is"
"""Any text would do; with this one a reader sees at once whether the answer makes sense."""

PREFILL_TOKENS: Final = 16
"""More than one tile of the kernels (16 rows), even with the decode calls after it."""

_DECODE_CALLS: Final = 2


def make_golden(source: ModelSource, tokens: Sequence[int], io: IoContract, progress: Progress) -> Golden:
    """Computes the expected logits of one conversation, `prefill`, `decode-1`, `decode-2`, and of a second, `first`.

    `first` is the first token of `prefill` alone, and shows what decode kernels do with an empty cache.

    Of a model that sees also what it sees in an image of noise. If its decoder attends to images, conversations begin
    with this one.

    Args:
        source: The quantized checkpoint.
        tokens: Tokens of `TEXT`, at least one.
        io: Inputs and outputs of the decoder, of which capacity, type and tables matter here.
        progress: Counts the blocks.

    Raises:
        UsageError: There are no tokens.
    """
    if not tokens:
        raise UsageError("the tokenizer gives no tokens for any text.", where=TEXT, fix="check tokenizer.json.")
    # A decoder with deepstack only reads text here: a kit compares what its embedding gives with these tokens' rows.
    attended = source.vision if isinstance(source.vision, AttendedSpec) else None
    dtype, tokens = io.logits.dtype, shown_first(attended, tokens)
    kept = tokens[: min(PREFILL_TOKENS + _DECODE_CALLS, io.capacity)]
    prefill = max(1, len(kept) - _DECODE_CALLS)
    with torch.inference_mode(), progress.task("golden outputs", total=source.spec.num_layers) as advance:
        ends = Ends(source, narrow_head=True)
        hidden, runner = begun(source, ends, kept)
        hidden = run_blocks(source, hidden, runner=runner, progress=advance)
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
            np.zeros((end - start, io.deepstack), dtype) if io.deepstack else None,
        )
        for name, (start, end) in spans.items()
    )
    limit = drift_limit(dtype, source.spec.num_layers + 1)
    tables = tables_of_text(source, kept, io.tables, dtype)
    return Golden(TEXT, limit, calls, _image(source), tables, attended=attended is not None)


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


def tables_of_text(
    source: ModelSource, tokens: Sequence[int], shapes: Mapping[str, tuple[int, ...]], dtype: str
) -> dict[str, NDArray[Any]]:
    """A decoder's tables for a text, by name; none for a decoder that has no such inputs.

    Args:
        source: The model.
        tokens: The text; its image tokens stand for images of noise if blocks of the decoder see images.
        shapes: Shapes of the tables, by name.
        dtype: Type of activations in the graph.
    """
    tables = tables_of(ModelSpec(source.spec, source.vision).record(), shapes)
    if tables is None:
        return {}
    shown = noise_shown(source.vision, tokens)
    if isinstance(tables, AttendedImages):
        seen = seen_by_torch(source)
        assert seen is not None
        tables.show([seen] * len(shown))
    elif isinstance(tables, RotaryTables):
        tables.show(image.grid for image in shown if image.grid is not None)
    tables.append(tokens)
    whole = {name: np.issubdtype(table.dtype, np.integer) for name, table in tables.arrays.items()}
    return {name: table if whole[name] else table.astype(dtype) for name, table in tables.arrays.items()}
