"""What a model sees in images, in PyTorch, fp32, whatever its tower, and what it says of a text with them.

In: how it sees, its tensors, and prepared pixels. Out: pieces, which stand among the decoder's embeddings or are
attended to; or logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from awq2trt.errors import UnsupportedError, UsageError
from awq2trt.models.block_weights import to_tensor
from awq2trt.models.cross_attention import Media
from awq2trt.models.decoder import BlockRunner, Ends, Shown, run_blocks
from awq2trt.models.deepstack import Deepstack
from awq2trt.models.image_blocks import ImageBlocks
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.vision.arranging import arranged
from awq2trt.models.vision.description import AttendedSpec, SeeingSpec, StillSpec
from awq2trt.models.vision.linears import VisionWeights, WatchedWeights
from awq2trt.models.vision.mixed_positions import MixedPositions
from awq2trt.models.vision.mosaic import MosaicSpec
from awq2trt.models.vision.mosaic_tower import mosaic_features
from awq2trt.models.vision.prepared import Pixels
from awq2trt.models.vision.stacked import StackedVisionSpec
from awq2trt.models.vision.stacked_tower import stacked_features
from awq2trt.models.vision.tiled import TiledVisionSpec
from awq2trt.models.vision.tiled_tower import tiled_features
from awq2trt.models.vision.tower import image_features, load_vision
from awq2trt.models.vision.windowed import WindowedVisionSpec
from awq2trt.models.vision.windowed_tower import windowed_features


def pieces_seen(spec: SeeingSpec, weights: VisionWeights, pixels: Pixels) -> Tensor:
    """What a model sees in one image.

    Args:
        spec: How it sees.
        weights: Tensors of its tower and what is behind it, fp32.
        pixels: The image, prepared by the model's own processor.

    Returns:
        fp32 [pieces, channels]: those of the decoder's embeddings, with what deepstack adds behind them, or of what its
        cross-attention reads.

    Raises:
        UsageError: The image is not of the tower's size.
        UnsupportedError: PyTorch does not run this kind of tower here.
    """
    # Not from_numpy(), which knows nothing of the device that PyTorch computes on.
    values = torch.as_tensor(pixels.values)
    if isinstance(spec, WindowedVisionSpec) and pixels.grid is not None:
        return windowed_features(spec.tower, weights, values, pixels.grid)
    if isinstance(spec, StackedVisionSpec) and pixels.grid is not None:
        return stacked_features(spec.tower, weights, values, pixels.grid)
    if isinstance(spec, StillSpec):
        return image_features(spec, weights, values[None])[0]
    if isinstance(spec, TiledVisionSpec):
        return tiled_features(spec, weights, values)
    if isinstance(spec, MosaicSpec) and pixels.grid is not None:
        return mosaic_features(spec, weights, pixels)
    raise UnsupportedError(
        f"images of this kind are not what {spec.family} sees.", where="the vision tower", fix="use its own processor."
    )


def linears_by_input(spec: SeeingSpec) -> list[tuple[str, ...]]:
    """Full names of the linears through which an image goes, in order; those that share an input are together.

    They are found by watching the tower as it runs, without numbers. Not among them are convolutions, products with
    weights that are stored transposed, linears of layers that are not run, and resamplers.
    """
    found: list[tuple[Tensor, list[str]]] = []

    def observe(name: str, x: Tensor) -> None:
        if not found or found[-1][0] is not x:
            found.append((x, []))
        found[-1][1].append(name)

    grid = spec.example_grid
    shape = spec.pixels_shape if grid is None else (grid.cells, *spec.pixels_shape)
    with torch.device("meta"), torch.no_grad():
        weights = {name: torch.empty(shape) for name, shape in spec.shapes().items()}
        pieces_seen(spec, WatchedWeights(weights, observe), Pixels(np.zeros(shape, np.float32), grid))
    return list(dict.fromkeys(tuple(names) for _, names in found))


def given_by_vision_graph(source: ModelSource, pixels: Pixels) -> Tensor:
    """What a model's vision graph makes of one image: its pieces, or keys and values of them for all layers.

    Args:
        source: A model that sees images.
        pixels: The image.

    Returns:
        fp32 [pieces, channels].

    Raises:
        UsageError, UnsupportedError: As of `pieces_seen`.
    """
    vision = source.vision
    assert vision is not None
    seen = pieces_seen(vision, load_vision(source), pixels)
    if not isinstance(vision, AttendedSpec):
        return seen
    readers = (to_tensor(source.tensor(f"{name}.weight")) for name in vision.readers)
    return torch.cat([seen @ reader.T for reader in readers], dim=-1)


def shown_to_blocks(
    source: ModelSource, tokens: Tensor, seen: Sequence[Sequence[Tensor]], more: int = 0
) -> Shown | None:
    """What blocks see of images, other than in the places of image tokens; None if the decoder only reads images.

    Args:
        source: A model that sees images.
        tokens: Texts, int64 [texts, S].
        seen: What is seen in the images of each text, as of `pieces_seen`, in the order of their tokens; the last one
            may be cut.
        more: Tokens of text that will follow.
    """
    vision, hidden_size, deepstack = source.vision, source.spec.hidden_size, source.spec.deepstack
    assert vision is not None
    if source.spec.image_blocks:
        return ImageBlocks.of_texts(tokens, vision.image_token, more)
    if isinstance(vision, AttendedSpec):
        nothing = torch.zeros(0, vision.resampler.num_latents, vision.resampler.width)
        stacked = [torch.stack([*images]) if images else nothing for images in seen]
        return Media.of_texts(tokens, vision.image_token, stacked, more)
    if not deepstack:
        return None
    added = [torch.cat([torch.zeros(0, (1 + deepstack) * hidden_size), *images])[:, hidden_size:] for images in seen]
    return Deepstack.of_texts(tokens, vision.image_token, added, more)


def logits_of_text_and_images(source: ModelSource, tokens: Sequence[int], images: Sequence[Pixels]) -> Tensor:
    """Computes logits of all positions of a text with images, with one block of the decoder in memory at a time.

    Args:
        source: A model that sees images.
        tokens: The text, with as many image tokens for an image as the model wants.
        images: Prepared images, in the text's order.

    Returns:
        fp32 [S, vocab_size].

    Raises:
        UsageError: It is a model of text, or text and images do not fit.
    """
    vision, ids = source.vision, torch.tensor(tokens)
    if vision is None:
        raise UsageError(
            "expected a model that sees images, got a model of text.", where=source.name, fix="give no images."
        )
    weights, ends = load_vision(source), Ends(source)
    seen = [pieces_seen(vision, weights, pixels) for pixels in images]
    attended = isinstance(vision, AttendedSpec)
    places, needed = ids == vision.image_token, len(seen) if attended else sum(map(len, seen))
    if int(places.sum()) != needed:
        raise UsageError(
            f"expected {needed} image tokens, as {len(images)} images need, got {int(places.sum())}.",
            where="the text",
            fix="pass as many images as the text has image markers.",
        )
    hidden = ends.embed(ids[None])
    media = shown_to_blocks(source, ids[None], [seen]) if seen else None
    if seen and not attended:
        hidden[0, places] = torch.cat(seen)[:, : hidden.shape[-1]]
    positions = None
    if any(rope.sections is not None for rope in source.spec.ropes):
        shown = [arranged(vision.record(), pixels).grid for pixels in images]
        counted = MixedPositions(vision.image_token, [grid for grid in shown if grid is not None])
        positions = torch.as_tensor(counted.of(tokens))[None]
    runner = BlockRunner.for_positions(source.spec, len(ids)).placed(positions, media)
    return ends.logits(run_blocks(source, hidden, runner=runner))[0]
