"""The folded model: the original with the search's scales folded in, before any linear is rounded.

In: the original model, the checkpoint, and the scales that `quantize` stores in `quantization.npz`. Out: a
`ModelSource` whose linears are the original's, folded again in fp32, and whose other tensors (norms, unquantized
embedding and head) are the checkpoint's. It computes the same as the original exactly if those tensors were folded
correctly.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.models.block_weights import load_block
from awq2trt.models.families import UNFOLDED
from awq2trt.models.sources.base import Array, ModelSource
from awq2trt.quantization.fold import fold_scales_


class FoldedSource(ModelSource):
    """The original model, folded again.

    Args:
        original: The model that was quantized.
        checkpoint: The quantized checkpoint.
        search: Arrays of `quantization.npz`; empty if nothing was folded.
    """

    def __init__(self, original: ModelSource, checkpoint: QuantizedCheckpoint, search: Mapping[str, Array]) -> None:
        self.name = f"{original.name}, folded"
        self.config = checkpoint.config
        self.spec = checkpoint.spec
        self.vision = checkpoint.vision
        self._original = original
        self._checkpoint = checkpoint
        self._search = search

    @property
    def files(self) -> tuple[Path, ...]:
        return self._original.files

    def tensor(self, name: str) -> Array:
        quantized = self._checkpoint.head_scheme is not None and name == f"{self.spec.stored_head}.weight"
        quantized = quantized or name.removesuffix(".weight") in self._checkpoint.vision_linears
        return (self._original if quantized else self._checkpoint).tensor(name)

    def has(self, name: str) -> bool:
        return self._checkpoint.has(name)

    def header_shape(self, name: str) -> tuple[int, ...] | None:
        return self._checkpoint.header_shape(name)

    def save_tokenizer(self, directory: Path) -> None:
        self._original.save_tokenizer(directory)

    def folded_block(self, layer: int) -> dict[str, Tensor]:
        """All tensors of a block after folding, fp32, by relative name; its norms are also the original's."""
        weights, prefix = load_block(self._original, layer), self.spec.prefix(layer)
        for group in self.spec.scale_groups():
            scales = self._search.get(f"{prefix}{group.balance_layers[0]}.scales")
            if scales is not None and group.smooth_kind != UNFOLDED:
                fold_scales_(weights, group, torch.from_numpy(scales), self.spec.head_dim)
        return weights

    def block(self, layer: int) -> dict[str, Array]:
        """Folded linears, with the checkpoint's own norms."""
        prefix = self.spec.prefix(layer)
        linears = {f"{name}.{kind}" for name in self.spec.block.linears for kind in ("weight", "bias")}
        return {
            name: value.numpy() if name in linears else self._checkpoint.tensor(prefix + name)
            for name, value in self.folded_block(layer).items()
        }
