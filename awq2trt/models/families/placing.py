"""Compares a checkpoint's tensors with a description, which would silently leave out those that it does not name.

In: tensor names of a checkpoint. Out: the first module that a description has no place for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from awq2trt.models.families.description import DecoderSpec, Family

_BUFFERS: Final = ("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias", "attn.bias")
"""Endings of tensors that old versions of transformers saved and none reads: tables that the code computes."""


def first_unplaced(spec: DecoderSpec, names: Iterable[str], *, quantized: bool = False) -> str | None:
    """Returns the first tensor that the description does not name, or None.

    Args:
        spec: The description.
        names: Names of all tensors of the checkpoint.
        quantized: Whether linears of blocks and the head may have a layout's tensors, which then all have their place.
    """
    placed = _Places.of(spec, quantized=quantized)
    return next((name for name in sorted(names, key=_reading_order) if not placed.has(name)), None)


def nearest_family(families: Iterable[Family], names: Iterable[str]) -> tuple[Family, str | None]:
    """Returns the family whose example places the most tensors, and the first tensor that it does not place."""
    names = sorted(names, key=_reading_order)

    def count(family: Family) -> int:
        placed = _Places.of(family.describe(family.example), quantized=False)
        return sum(placed.has(name) for name in names)

    best = max(families, key=count)
    return best, first_unplaced(best.describe(best.example), names)


@dataclass(frozen=True)
class _Places:
    """The names that a description has, for any number of layers.

    Attributes:
        outer: Tensors outside the blocks.
        block: Tensors of a block, relative to it.
        quantized: Linears of a block that are stored in a layout of quantized checkpoints.
        quantized_head: Head and embedding, if they may be stored in such a layout.
        prefix: Prefix of a block's names.
        optional_prefix: The prefix that names in the file may lack.
    """

    outer: frozenset[str]
    block: frozenset[str]
    quantized: frozenset[str]
    quantized_head: frozenset[str]
    prefix: re.Pattern[str]
    optional_prefix: str

    @classmethod
    def of(cls, spec: DecoderSpec, *, quantized: bool) -> _Places:
        """Collects the names of a description."""
        cross = () if spec.cross is None else spec.cross.shapes()
        head = f"{spec.head}.weight"  # some tools store a tied head beside the embedding
        return cls(
            outer=frozenset((*spec.outer_shapes(), head)),
            block=frozenset((*spec.stored_block_shapes(), *spec.optional_block_shapes(), *cross)),
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
    """Returns a key for sorting by which layer 2 comes before layer 10."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]
