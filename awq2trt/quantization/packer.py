"""Packs finished blocks as the checkpoint stores them.

In: quantized linears and plain tensors of a block. Out: arrays under the names and in the layout of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from awq2trt.checkpoint.checkpoint import fuse_linears
from awq2trt.checkpoint.layouts import Layout, pack_linear
from awq2trt.checkpoint.writer import compact
from awq2trt.models.families import DecoderSpec
from awq2trt.models.sources.base import Array
from awq2trt.quantization.block import LinearReport, LoneLinear, QuantizedBlock
from awq2trt.quantization.store import StoredBlock
from awq2trt.scheme import QuantizedLinear


@dataclass(frozen=True)
class Packer:
    """Packs blocks of one model.

    Attributes:
        spec: The model.
        layout: Layout of the checkpoint's quantized tensors.
    """

    spec: DecoderSpec
    layout: Layout

    def block(self, layer: int, block: QuantizedBlock) -> StoredBlock:
        """Packs a block."""
        prefix = self.spec.prefix(layer)
        exact = self.spec.norm.unit_offset  # 1 + weight is near 0 if weight is near -1
        tensors = {prefix + name: compact(value.numpy(force=True), exact=exact) for name, value in block.norms.items()}
        return StoredBlock(
            tensors | self.linears(layer, block.linears),
            reports={prefix + name: report for name, report in block.reports.items()},
            search={prefix + name: value.numpy(force=True) for name, value in block.search.items()},
        )

    def alone(self, linears: Iterable[LoneLinear]) -> StoredBlock:
        """Packs linears that belong to no block, each as it comes."""
        tensors, reports, search = dict[str, Array](), dict[str, LinearReport](), dict[str, Array]()
        for found in linears:
            tensors |= pack_linear(found.name, found.linear, self.layout)
            reports[found.name] = found.report
            if found.magnitude is not None:
                search[f"{found.name}.magnitude"] = found.magnitude.numpy(force=True)
        return StoredBlock(tensors, reports, search)

    def linears(self, layer: int, linears: Mapping[str, QuantizedLinear]) -> dict[str, Array]:
        """Packs a block's linears, by name relative to the block; returns tensors by full name."""
        tensors: dict[str, Array] = {}
        for name, linear in fuse_linears(self.spec, linears).items():
            tensors.update(pack_linear(self.spec.prefix(layer) + name, linear, self.layout))
        return tensors
