"""The graphs beside a decoder in `check`: what a model sees with, on an image of noise, and its embedding.

In: a checkpoint that sees, and the directory that it was exported to. Out: what PyTorch sees, what runs the graphs as
they are, and findings of their weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from awq2trt.checking.tolerance import drift_limit
from awq2trt.checking.weights import Finding, plain_findings
from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.graph.ort_lowering import widen_to_fp32_
from awq2trt.graph.read import load_model
from awq2trt.io_contract import EMBEDDING_FILE, VISION_FILE
from awq2trt.models.decoder import BlockRunner, Ends
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.spec import ModelSpec
from awq2trt.models.vision.arranging import arranged
from awq2trt.models.vision.description import AttendedSpec, SeeingSpec
from awq2trt.models.vision.mixed_positions import MixedPositions
from awq2trt.models.vision.prepared import Pixels, PreparedImage
from awq2trt.models.vision.seeing import given_by_vision_graph, pieces_seen, shown_to_blocks
from awq2trt.models.vision.stacked import StackedVisionSpec
from awq2trt.models.vision.tower import load_vision
from awq2trt.runtime.ort.embedder import Embedder
from awq2trt.runtime.ort.session import Execution, open_session
from awq2trt.runtime.tables import tables_of


def image_of_noise(vision: SeeingSpec) -> Pixels:
    """A prepared image, the same every time; its numbers are fp16's."""
    grid = vision.example_grid
    shape = vision.pixels_shape if grid is None else (grid.cells, *vision.pixels_shape)
    values = np.random.default_rng(0).standard_normal(shape)
    return Pixels(values.astype(np.float16).astype(np.float32), grid)


def prepared_noise(vision: SeeingSpec) -> PreparedImage:
    """The same as a vision graph takes it."""
    return arranged(vision.record(), image_of_noise(vision))


def shown_first(vision: SeeingSpec | None, tokens: Sequence[int]) -> list[int]:
    """Tokens of a text; behind an image, for a decoder whose blocks see images, which text alone would not show."""
    return [*([vision.image_token] * _tokens_of_noise(vision) if vision else []), *tokens]


def noise_shown(vision: SeeingSpec | None, tokens: Sequence[int]) -> list[PreparedImage]:
    """Images of noise for the image tokens of a text, if blocks of the decoder see images; the last one may be cut."""
    if vision is None or not (each := _tokens_of_noise(vision)):
        return []
    return [prepared_noise(vision)] * -(-list(tokens).count(vision.image_token) // each)


def _tokens_of_noise(vision: SeeingSpec) -> int:
    """Tokens that stand for an image of noise in checks; 0 if the decoder only reads images, as it does text."""
    if isinstance(vision, AttendedSpec):
        return vision.tokens_per_image
    return prepared_noise(vision).pieces if isinstance(vision, StackedVisionSpec) else 0


def begun(source: ModelSource, ends: Ends, tokens: Sequence[int]) -> tuple[Tensor, BlockRunner]:
    """What the first block of a model reads of a text, and what runs its blocks; noise is in the places of images.

    Args:
        source: The model.
        ends: Its ends.
        tokens: The text, as of `shown_first`.

    Returns:
        fp32 [1, S, hidden_size], and a runner.
    """
    vision, ids = source.vision, torch.tensor([list(tokens)])
    hidden, runner = ends.embed(ids), BlockRunner.for_positions(source.spec, len(tokens))
    shown = noise_shown(vision, tokens)
    if vision is None or not shown:
        return hidden, runner
    seen = [pieces_seen(vision, load_vision(source), image_of_noise(vision))] * len(shown)
    positions = None
    if isinstance(vision, StackedVisionSpec):
        places = ids[0] == vision.image_token
        hidden[0, places] = torch.cat(seen)[: int(places.sum()), : hidden.shape[-1]]
        grids = [image.grid for image in shown if image.grid is not None]
        positions = torch.as_tensor(MixedPositions(vision.image_token, grids).of(list(tokens)))[None]
    return hidden, runner.placed(positions, shown_to_blocks(source, ids, [seen]))


def seen_by_torch(source: ModelSource) -> NDArray[np.float32] | None:
    """What a model's vision graph makes of `image_of_noise`, fp32 [pieces, channels]; None for a model of text."""
    if source.vision is None:
        return None
    with torch.inference_mode():
        seen = given_by_vision_graph(source, image_of_noise(source.vision))
    return np.asarray(seen.numpy(), np.float32)


def vision_limit(vision: SeeingSpec) -> float:
    """Relative error that what a model sees may have gathered in fp16, what is behind the tower counted as a layer."""
    return drift_limit("float16", vision.depth + 1)


def exported_embedder(onnx: Path, model: ModelSpec, tables: Mapping[str, tuple[int, ...]], provider: str) -> Embedder:
    """The graphs of an exported model as they are; rows of bf16, for which NumPy has no type, widened.

    Args:
        onnx: Its directory.
        model: Its description; it sees.
        tables: Shapes of the decoder's tables, by name.
        provider: Execution provider.

    Raises:
        ArtifactError: A file is missing or damaged.
    """
    assert model.vision is not None
    embedding = load_model(onnx / EMBEDDING_FILE)
    is_bf16 = embedding.graph.outputs[0].dtype is ir.DataType.BFLOAT16
    if is_bf16:
        widen_to_fp32_(embedding)
    return Embedder(
        open_session(embedding if is_bf16 else None, onnx / EMBEDDING_FILE, Execution(provider)),
        open_session(None, onnx / VISION_FILE, Execution(provider)),
        model.vision.image_token,
        tables_of(model.record(), tables),
        model.decoder.deepstack * model.decoder.hidden_size,
    )


def beside_findings(onnx: Path, checkpoint: QuantizedCheckpoint) -> Iterator[Finding]:
    """Initializers of the graphs beside a decoder that are not the checkpoint's tensors in the graph's type."""
    if checkpoint.vision is None:
        return
    for name in (VISION_FILE, EMBEDDING_FILE):
        yield from plain_findings(load_model(onnx / name), checkpoint)
