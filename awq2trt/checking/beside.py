"""The graphs beside a decoder in `check`: what a model sees with, on an image of noise, and its embedding.

In: a checkpoint that sees, and the directory that it was exported to. Out: what PyTorch sees, what runs the graphs as
they are, and findings of their weights.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.vision.description import CHANNELS, VisionSpec
from awq2trt.models.vision.tower import image_features, load_vision
from awq2trt.runtime.ort.embedder import Embedder
from awq2trt.runtime.ort.session import Execution, open_session


def image_of_noise(vision: VisionSpec) -> NDArray[np.float32]:
    """A prepared image, [1, 3, side, side], the same every time; its numbers are fp16's."""
    side = vision.tower.image_size
    pixels = np.random.default_rng(0).standard_normal((1, CHANNELS, side, side))
    return pixels.astype(np.float16).astype(np.float32)


def seen_by_torch(source: ModelSource) -> NDArray[np.float32] | None:
    """What a model makes of `image_of_noise`, fp32 [1, pieces, H]; None for a model of text."""
    if source.still_vision is None:
        return None
    with torch.inference_mode():
        pixels = torch.from_numpy(image_of_noise(source.still_vision))
        seen: NDArray[np.float32] = image_features(source.still_vision, load_vision(source), pixels).numpy()
    return seen


def vision_limit(vision: VisionSpec) -> float:
    """Relative error that what a model sees may have gathered in fp16, its projector counted as a layer."""
    return drift_limit("float16", max(vision.feature_layers) + 1)


def exported_embedder(onnx: Path, vision: VisionSpec, provider: str) -> Embedder:
    """The graphs of an exported model as they are; rows of bf16, for which NumPy has no type, widened.

    Raises:
        ArtifactError: A file is missing or damaged.
    """
    embedding = load_model(onnx / EMBEDDING_FILE)
    is_bf16 = embedding.graph.outputs[0].dtype is ir.DataType.BFLOAT16
    if is_bf16:
        widen_to_fp32_(embedding)
    return Embedder(
        open_session(embedding if is_bf16 else None, onnx / EMBEDDING_FILE, Execution(provider)),
        open_session(None, onnx / VISION_FILE, Execution(provider)),
        vision.image_token,
    )


def beside_findings(onnx: Path, checkpoint: QuantizedCheckpoint) -> Iterator[Finding]:
    """Initializers of the graphs beside a decoder that are not the checkpoint's tensors in the graph's type."""
    if checkpoint.vision is None:
        return
    for name in (VISION_FILE, EMBEDDING_FILE):
        yield from plain_findings(load_model(onnx / name), checkpoint)
