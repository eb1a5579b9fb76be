"""Which of a checkpoint's tensors a description names: what it does not name, it would silently leave out.

In: tensor names of a checkpoint. Out: the first module that a description has no place for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from awq2trt.models.families.description import DecoderSpec, Family

_BUFFERS: Final = ("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias", "attn.bias")
"""Endings of tensors that old versions of transformers saved and no version reads: tables that the code computes."""


def first_unplaced(spec: DecoderSpec, names: Iterable[str], *, quantized: bool = False) -> str | None:
    """The first tensor that the description does not name, or None.

    Args:
        spec: The description.
        names: All tensors of the checkpoint.
        quantized: Linears of blocks and the head may have tensors of their layout: whatever is theirs has its place.
    """
    placed = _Places.of(spec, quantized=quantized)
    return next((name for name in sorted(names, key=_reading_order) if not placed.has(name)), None)


def nearest_family(families: Iterable[Family], names: Iterable[str]) -> tuple[Family, str | None]:
    """The family whose example places the most tensors, and the first one that it does not place."""
    names = sorted(names, key=_reading_order)

    def count(family: Family) -> int:
        placed = _Places.of(family.describe(family.example), quantized=False)
        return sum(placed.has(name) for name in names)

    best = max(families, key=count)
    return best, first_unplaced(best.describe(best.example), names)


@dataclass(frozen=True)
class _Places:
    """What a description has a name for, whatever the number of layers.

    Attributes:
        outer: Tensors outside the blocks.
        block: Tensors of a block, relative to it.
        quantized: Its linears whose tensors are those of a layout.
        quantized_head: Head and embedding, whose tensors may be those of a layout.
        prefix: Of a block.
        optional_prefix: What names in the file may lack.
    """

    outer: frozenset[str]
    block: frozenset[str]
    quantized: frozenset[str]
    quantized_head: frozenset[str]
    prefix: re.Pattern[str]
    optional_prefix: str

    @classmethod
    def of(cls, spec: DecoderSpec, *, quantized: bool) -> _Places:
        """The places of a description."""
        head = f"{spec.head}.weight"  # stored beside the embedding by some who tie them
        return cls(
            outer=frozenset((*spec.outer_shapes(), head)),
            block=frozenset((*spec.stored_block_shapes(), *spec.optional_block_shapes())),
            quantized=frozenset(spec.stored_linears() if quantized else ()),
            quantized_head=frozenset((spec.embedding, spec.head) if quantized else ()),
            prefix=re.compile(re.escape(spec.block_prefix).replace(r"\{layer\}", r"\d+")),
            optional_prefix=spec.optional_prefix,
        )

    def has(self, name: str) -> bool:
        if name.endswith(_BUFFERS):
            return True
        for full in (name, self.optional_prefix + name):
            block = self.prefix.match(full)
            relative = full[block.end() :] if block else full
            if relative in (self.block if block else self.outer):
                return True
            if relative.rpartition(".")[0] in (self.quantized if block else self.quantized_head):
                return True
        return False


def _reading_order(name: str) -> list[tuple[bool, int, str]]:
    """Sorts layer 2 before layer 10."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]
