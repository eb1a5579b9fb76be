"""What a layout of quantized checkpoints is, as data, and the checks that all layouts share.

In: nothing. Out: `Layout`, of which every file beside this one declares one or two, and `StoredFormat`, what a
`quantization_config` says. NumPy only. Shapes are of a linear [N, K] with groups of G along K, b bits a code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.errors import CheckpointError
from awq2trt.models.families import DecoderSpec
from awq2trt.scheme import WHOLE_ROW, QuantizedLinear, QuantScheme

Array = NDArray[Any]
Tensors = Mapping[str, Array]
QuantizationConfig = Mapping[str, Any]
"""`quantization_config` of a config.json."""

BIAS: Final = "bias"

QUANTIZE_AGAIN: Final = "quantize the original model with awq2trt."
DAMAGED: Final = "the checkpoint is damaged, or config.json is another model's; download both again."


@dataclass(frozen=True)
class LinearToUnpack:
    """A linear's tensors, with all that says how to read them.

    Attributes:
        tensors: By name relative to the linear; all that are required are there.
        scheme: What `quantization_config` says.
        shape: N, K as config.json has them.
        where: Name of the linear, for errors.
    """

    tensors: Tensors
    scheme: QuantScheme
    shape: tuple[int, int]
    where: str

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return self.scheme.groups(self.shape[1])

    def expect(self, name: str, shape: tuple[int, ...], dtype: type[np.generic] | None = None) -> Array:
        """A tensor, its shape and type verified.

        Args:
            name: Relative to the linear.
            shape: It must have.
            dtype: It must have; None for a tensor whose type is free.

        Raises:
            CheckpointError: It has another.
        """
        value = self.tensors[name]
        if value.shape != shape or (dtype is not None and value.dtype != dtype):
            kind = f"{np.dtype(dtype).name} " if dtype is not None else ""
            raise CheckpointError(
                f"{name}: expected {kind}{list(shape)}, got {value.dtype} {list(value.shape)}.",
                where=self.where,
                fix=DAMAGED,
            )
        return value

    def require(self, name: str, reason: str) -> None:
        """Refuses a linear without the optional tensor `name`, which the config makes necessary."""
        if name not in self.tensors:
            raise CheckpointError(f"missing {name} of a linear {reason}.", where=self.where, fix=DAMAGED)

    def refuse_shorter_group(self) -> None:
        """Refuses a K that the groups do not divide, for layouts that have no shorter last group."""
        columns = self.shape[1]
        if columns % self.scheme.group_of(columns):
            raise CheckpointError(
                f"groups of {self.scheme.group_size} do not divide K = {columns}.", where=self.where, fix=DAMAGED
            )

    def input_order(self, name: str) -> NDArray[np.int64] | None:
        """The order of input channels that makes neighbours of those of a group.

        Args:
            name: Tensor [K] with the group of every channel: of act-order (desc_act, actorder=group), where the groups
                follow the activations.

        Returns:
            int64 [K], or None where channels are in sequence already (no act-order, or static groups).

        Raises:
            CheckpointError: A group has more channels than its length, or fewer.
        """
        if name not in self.tensors:
            return None
        columns = self.shape[1]
        group_of_channel = self.expect(name, (columns,))
        sequence = np.arange(columns) // self.scheme.group_of(columns)
        if np.array_equal(group_of_channel, sequence):
            return None
        order = np.argsort(group_of_channel, kind="stable").astype(np.int64)
        if not np.array_equal(group_of_channel[order], sequence):
            raise CheckpointError(
                f"{name}: expected {self.scheme.group_of(columns)} input channels in each of {self.groups} groups.",
                where=self.where,
                fix=DAMAGED,
            )
        return order


@dataclass(frozen=True)
class Tool:
    """How the configs of one `quant_method` name their layouts.

    Attributes:
        name: Value of `quant_method` in its `quantization_config`.
        version_key: The key that names the layout, for errors.
        version: The config -> the layout's name there, lower case.
    """

    name: str
    version_key: str
    version: Callable[[QuantizationConfig], str]


@dataclass(frozen=True)
class ModelSchemes:
    """How the weights of a model are quantized.

    Attributes:
        blocks: Every linear of its blocks.
        head: Its head, and where the two are one its embedding; None for one that is not quantized.
    """

    blocks: QuantScheme
    head: QuantScheme | None = None


@dataclass(frozen=True)
class Writer:
    """How we write a layout.

    Attributes:
        holds: Whether the layout can hold a model quantized by these schemes.
        config: Schemes and the name of the head -> `quantization_config`.
        pack: A linear -> its tensors, by name relative to it.
    """

    holds: Callable[[DecoderSpec, ModelSchemes], bool]
    config: Callable[[ModelSchemes, str], dict[str, Any]]
    pack: Callable[[QuantizedLinear], dict[str, Array]]


SchemeNumbers = tuple[int, int, bool]
"""Bits, group size, and whether there are zero points."""


def same_head(_config: QuantizationConfig, _where: str) -> SchemeNumbers | None:
    """`Layout.read_head` of a tool whose configs have one scheme: a head that is quantized has it, too."""
    return None


@dataclass(frozen=True)
class Layout:
    """How a tool stores a linear.

    Attributes:
        name: What the config calls it.
        tool: Whose configs these are.
        required: Tensors that every linear has, relative to its name.
        optional: Those that some have; a bias beside them.
        group_of_channel: The one of them that says which group an input channel is in; None for channels in sequence.
        read: The config and its place, for errors -> the scheme of the blocks' linears.
        unpack: Tensors of a linear -> the linear.
        writer: None for a layout that we only read.
        read_head: As `read`, for a head of another scheme; None where the config names none.
    """

    name: str
    tool: Tool
    required: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[QuantizationConfig, str], SchemeNumbers]
    unpack: Callable[[LinearToUnpack], QuantizedLinear]
    writer: Writer | None = None
    group_of_channel: str | None = None
    read_head: Callable[[QuantizationConfig, str], SchemeNumbers | None] = same_head

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Tensors that a linear may have, relative to its name."""
        return (*self.required, *self.optional, BIAS)

    @property
    def written(self) -> Writer:
        """How we write it.

        Raises:
            ValueError: We only read it.
        """
        if self.writer is None:
            raise ValueError(f"the layout {self.name} is only read here")
        return self.writer


@dataclass(frozen=True)
class StoredFormat:
    """What `quantization_config` says: a layout, and how its codes were made.

    Attributes:
        layout: Of every quantized weight.
        scheme: Of the linears of blocks.
        head: Of the head, if its weight is quantized, which its tensors tell.
    """

    layout: Layout
    scheme: QuantScheme
    head: QuantScheme


def config_integer(found: QuantizationConfig, where: str, *keys: str) -> int:
    """The first of `keys` that `found` has.

    Raises:
        CheckpointError: It has none of them, or no integer there.
    """
    value = next((found[key] for key in keys if found.get(key) is not None), None)
    if not isinstance(value, int) or isinstance(value, bool):
        raise CheckpointError(f"{keys[0]}: expected an integer, got {value!r}.", where=where, fix=DAMAGED)
    return value


def has_whole_groups(spec: DecoderSpec, schemes: ModelSchemes) -> bool:
    """Whether every group of every quantized weight is as long as its scheme says."""
    widths = [(columns, schemes.blocks) for _, columns in spec.stored_linears().values()]
    if schemes.head is not None:
        widths.append((spec.hidden_size, schemes.head))
    return all(
        columns % scheme.group_of(columns) == 0 and (scheme.group_size == WHOLE_ROW or columns >= scheme.group_size)
        for columns, scheme in widths
    )
