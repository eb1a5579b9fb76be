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

from awq2trt.checking.tolerance import drift_limit
from awq2trt.checking.weights import Finding, plain_findings
from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.graph.ort_lowering import widen_to_fp32_
from awq2trt.graph.read import load_model
from awq2trt.io_contract import EMBEDDING_FILE, VISION_FILE
from awq2trt.models.cross_attention import Media
from awq2trt.models.decoder import BlockRunner
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.spec import ModelSpec
from awq2trt.models.vision.arranging import arranged
from awq2trt.models.vision.description import AttendedSpec, SeeingSpec
from awq2trt.models.vision.prepared import Pixels, PreparedImage
from awq2trt.models.vision.seeing import given_by_vision_graph, pieces_seen
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
    """Tokens of a text; for a decoder that attends to images, which text alone would not show, behind an image."""
    return [*([vision.image_token] if isinstance(vision, AttendedSpec) else []), *tokens]


def noise_attended(vision: SeeingSpec | None, tokens: Sequence[int]) -> list[PreparedImage]:
    """An image of noise for every image token of a text, if the decoder attends to images."""
    return [prepared_noise(vision)] * tokens.count(vision.image_token) if isinstance(vision, AttendedSpec) else []


def placed_runner(source: ModelSource, tokens: Sequence[int]) -> BlockRunner:
    """What runs the blocks of a model on a text, whose image tokens stand for images of noise if it attends to them."""
    vision, runner = source.vision, BlockRunner.for_positions(source.spec, len(tokens))
    if not isinstance(vision, AttendedSpec):
        return runner
    seen = pieces_seen(vision, load_vision(source), image_of_noise(vision))
    shown = seen.expand(tokens.count(vision.image_token), -1, -1)
    return runner.placed(None, Media.of_texts(torch.tensor([list(tokens)]), vision.image_token, [shown]))


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
    )


def beside_findings(onnx: Path, checkpoint: QuantizedCheckpoint) -> Iterator[Finding]:
    """Initializers of the graphs beside a decoder that are not the checkpoint's tensors in the graph's type."""
    if checkpoint.vision is None:
        return
    for name in (VISION_FILE, EMBEDDING_FILE):
        yield from plain_findings(load_model(onnx / name), checkpoint)
