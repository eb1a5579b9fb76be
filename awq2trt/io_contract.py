"""The interface of an exported model's graphs: names, types, shapes and meanings of inputs and outputs, declared once.

`export` writes graphs that follow it, `run` and `build` read it, the manifest stores these dataclasses as they are, and
`plugins/FORMAT.md` (section "I/O contract") is its normative text. It needs only the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MODEL_FILE: Final = "model.onnx"
WEIGHTS_FILE: Final = "model.onnx.data"
ENGINE_FILE: Final = "model.engine"

VISION_FILE: Final = "vision.onnx"
VISION_WEIGHTS_FILE: Final = "vision.onnx.data"

EMBEDDING_FILE: Final = "embedding.onnx"
EMBEDDING_WEIGHTS_FILE: Final = "embedding.onnx.data"

DECODER: Final = "decoder"
"""The graph that every exported model has."""

VISION: Final = "vision"
EMBEDDING: Final = "embedding"
"""What a model that sees has beside it: what makes pieces of images, and rows of tokens, for the decoder to read."""

INPUT_IDS: Final = "input_ids"
INPUTS_EMBEDS: Final = "inputs_embeds"
NEW_TOKENS: Final = (INPUT_IDS, INPUTS_EMBEDS)
"""What a decoder reads of its new tokens: one or the other, as its first input."""

DEEPSTACK_EMBEDS: Final = "deepstack_embeds"
"""What a decoder reads beside `inputs_embeds` if it has deepstack: what is added behind its first blocks."""

CACHE_POSITION: Final = "cache_position"
PIXEL_VALUES: Final = "pixel_values"
IMAGE_EMBEDDINGS: Final = "image_embeddings"
PATCH_PLACES: Final = "patch_places"
PATCH_SLOTS: Final = "patch_slots"
WINDOW_PATCHES: Final = "window_patches"
ROTARY_COS: Final = "rotary_cos"
ROTARY_SIN: Final = "rotary_sin"
ROTARY_TABLES: Final = (ROTARY_COS, ROTARY_SIN)
"""What a decoder reads if the positions of images have three numbers: a row for every slot of its cache, which whoever
runs it fills."""
ATTENDED_IMAGES: Final = "attended_images"
IMAGE_OF_SLOT: Final = "image_of_slot"
"""What a decoder reads that attends to images: keys and values of images, as the vision graph makes them, and for every
slot of its cache the number of the image that its token attends to, from 1, or 0 for none."""
VISIBLE_END: Final = "visible_end"
"""What a decoder reads in which tokens of an image see each other: for every slot of its cache the last slot that its
token sees."""
TABLES: Final = (*ROTARY_TABLES, ATTENDED_IMAGES, IMAGE_OF_SLOT, VISIBLE_END)
"""What a decoder may read that is the same in every call until another image is shown."""
LOGITS: Final = "logits"
NEXT_TOKEN: Final = "next_token"

BATCH: Final = "batch"
SEQUENCE: Final = "sequence"
ROWS: Final = "rows"
"""Symbolic axes: sequences in a call, new tokens of each, and logits of each (1, or `SEQUENCE` if all are wanted)."""

IMAGES: Final = "images"
"""Symbolic axis of a vision graph for images of one size: images at once."""

PATCHES: Final = "patches"
WINDOWS: Final = "windows"
PIECES: Final = "pieces"
"""Symbolic axes of a vision graph for images of any size, which takes one at a time: its patches, the windows that they
share, and the pieces that they become."""

CACHE_LAYOUT: Final = "bhcd"
"""Axes of a cache tensor: batch, key-value heads, capacity, channels of a head."""

SCALED_LAYOUT: Final = "bhcd+scales"
"""The layout with 8-bit codes: beside each cache tensor one of scales: batch, key-value heads, capacity."""

LAST_POSITION_NODE: Final = "last_position"
"""Name of the node that keeps only the last position's hidden state; an executor that wants all logits bypasses it."""


@dataclass(frozen=True)
class TensorContract:
    """One input or output.

    Attributes:
        dtype: NumPy's name of the element type, `bfloat16` included.
        shape: A number for a fixed axis, a name for a dynamic one.
        meaning: One sentence.
        alias: For an output, the input whose memory it may use; None if it needs its own.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    meaning: str
    alias: str | None = None


@dataclass(frozen=True)
class CacheContract:
    """A graph's key-value cache.

    Attributes:
        dtype: NumPy's name of the element type.
        layout: How its tensors lie in memory, by name; `plugins/FORMAT.md` has the names.
        capacity: Positions that it holds: prompt and generated tokens together.
    """

    dtype: str
    layout: str
    capacity: int


@dataclass(frozen=True)
class IoContract:
    """Inputs and outputs of a graph.

    Attributes:
        inputs: All inputs. A decoder has `input_ids` or `inputs_embeds`, with deepstack `deepstack_embeds`,
            `cache_position`, then perhaps `rotary_cos` and `rotary_sin`, or `attended_images` and `image_of_slot`, or
            `visible_end`, then `past_key_i`, `past_value_i` of every layer, then, with a cache of codes,
            `past_key_scale_i`, `past_value_scale_i` of every layer; a vision graph has `pixel_values`, for images of
            any size `patch_places`, and with windows `window_patches` and `patch_slots`; an embedding has `input_ids`.
        outputs: All outputs. A decoder has `logits`, then `present_key_i`, `present_value_i` of every layer and their
            scales, each of which may be the same memory as its `past_` input; a vision graph has `image_embeddings`; an
            embedding has `inputs_embeds`.
        cache: Format of the caches; None for a graph without any.
    """

    inputs: tuple[TensorContract, ...]
    outputs: tuple[TensorContract, ...]
    cache: CacheContract | None = None

    @property
    def capacity(self) -> int:
        """Positions that the cache holds; 0 without one."""
        return self.cache.capacity if self.cache else 0

    @property
    def tables(self) -> dict[str, tuple[int, ...]]:
        """Shapes of a decoder's inputs that are the same in every call, by name."""
        return {
            tensor.name: tuple(axis for axis in tensor.shape if isinstance(axis, int))
            for tensor in self.inputs
            if tensor.name in TABLES
        }

    @property
    def deepstack(self) -> int:
        """Channels of `deepstack_embeds`; 0 for a decoder without it."""
        found = (tensor.shape[-1] for tensor in self.inputs if tensor.name == DEEPSTACK_EMBEDS)
        return int(next(found, 0))

    @property
    def logits(self) -> TensorContract:
        """A decoder's scores."""
        return next(tensor for tensor in self.outputs if tensor.name == LOGITS)

    @property
    def vocab_size(self) -> int:
        """Scores of a token: the last axis of a decoder's `logits`."""
        return int(self.logits.shape[-1])

    @property
    def cache_pairs(self) -> tuple[tuple[str, str], ...]:
        """(past, present) names that may share memory, layer by layer, key before value; scales, if any, after all."""
        return tuple((tensor.alias, tensor.name) for tensor in self.outputs if tensor.alias is not None)


def weights_of(model_file: str) -> str:
    """Name of the file beside a graph's that has its weights."""
    return f"{model_file}.data"


def engine_of_graph(model_file: str) -> str:
    """Name of the engine that is built of a graph's file."""
    return f"{model_file.removesuffix('.onnx')}.engine"


def cache_names(tense: str, num_layers: int) -> tuple[str, ...]:
    """Names of the cache tensors, `tense` being `past` (inputs) or `present` (outputs)."""
    return tuple(f"{tense}_{kind}_{layer}" for layer in range(num_layers) for kind in ("key", "value"))


def is_cache(name: str) -> bool:
    """Whether an input or output of a decoder is part of its cache, scales included."""
    return name.startswith(("past_", "present_"))


def scale_name(cache_name: str) -> str:
    """Name of the scales of a cache tensor: `past_key_0` -> `past_key_scale_0`."""
    kind, _, layer = cache_name.rpartition("_")
    return f"{kind}_scale_{layer}"
