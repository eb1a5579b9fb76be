"""Describes a layout of quantized checkpoints as data, and has the checks that all layouts share.

In: nothing. Out: `Layout`, of which every file beside this one declares one or two, and `StoredFormat`, the content of
a `quantization_config`. It needs only NumPy. Shapes are given for a linear [N, K] with groups of G along K and b bits
per code.
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
"""The `quantization_config` in a config.json."""

BIAS: Final = "bias"

QUANTIZE_AGAIN: Final = "quantize the original model with awq2trt."
DAMAGED: Final = "the checkpoint is damaged, or config.json belongs to another model; download both again."


@dataclass(frozen=True)
class LinearToUnpack:
    """A linear's tensors, with all that is needed to read them.

    Attributes:
        tensors: The tensors by name relative to the linear; all required ones are present.
        scheme: The scheme according to `quantization_config`.
        shape: N, K according to config.json.
        where: Name of the linear, for errors.
    """

    tensors: Tensors
    scheme: QuantScheme
    shape: tuple[int, int]
    where: str

    @property
    def groups(self) -> int:
        """Number of groups in a row."""
        return self.scheme.groups(self.shape[1])

    def expect(self, name: str, shape: tuple[int, ...], dtype: type[np.generic] | None = None) -> Array:
        """Returns a tensor after checking its shape and type.

        Args:
            name: Its name relative to the linear.
            shape: The shape it must have.
            dtype: The type it must have; None if any type will do.

        Raises:
            CheckpointError: The shape or type is wrong.
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
        """Refuses a linear that lacks the optional tensor `name`, if the config makes it necessary."""
        if name not in self.tensors:
            raise CheckpointError(f"missing {name} in a linear {reason}.", where=self.where, fix=DAMAGED)

    def refuse_shorter_group(self) -> None:
        """Refuses a K that groups do not divide, for layouts without a shorter last group."""
        columns = self.shape[1]
        if columns % self.scheme.group_of(columns):
            raise CheckpointError(
                f"groups of {self.scheme.group_size} do not divide K = {columns}.", where=self.where, fix=DAMAGED
            )

    def input_order(self, name: str) -> NDArray[np.int64] | None:
        """Returns an order of the input channels in which those of a group are neighbours.

        Args:
            name: Name of the tensor [K] with the group of every channel; act-order (desc_act, actorder=group) writes
                it, in which groups follow the activations.

        Returns:
            int64 [K], or None if channels are in sequence already (no act-order, or static groups).

        Raises:
            CheckpointError: A group has more or fewer channels than its length.
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
        version: Returns the layout's name in a config, in lower case.
    """

    name: str
    version_key: str
    version: Callable[[QuantizationConfig], str]


@dataclass(frozen=True)
class ModelSchemes:
    """How the weights of a model are quantized.

    Attributes:
        blocks: Scheme of every linear of its blocks.
        head: Scheme of its head, and of an embedding that is the same weight; None if it is not quantized.
        seen_with: N and K of the linears that it sees with, if they are quantized: by the scheme of its blocks.
    """

    blocks: QuantScheme
    head: QuantScheme | None = None
    seen_with: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Writer:
    """How we write a layout.

    Attributes:
        holds: Whether the layout can hold a model quantized by these schemes.
        config: Makes a `quantization_config` from schemes and the name of the head.
        pack: Returns a linear's tensors, by name relative to it.
    """

    holds: Callable[[DecoderSpec, ModelSchemes], bool]
    config: Callable[[ModelSchemes, str], dict[str, Any]]
    pack: Callable[[QuantizedLinear], dict[str, Array]]


SchemeNumbers = tuple[int, int, bool]
"""Bits, group size, and whether there are zero points."""


def same_head(_config: QuantizationConfig, _where: str) -> SchemeNumbers | None:
    """Serves as `Layout.read_head` for tools whose configs have one scheme: a quantized head has that scheme, too."""
    return None


@dataclass(frozen=True)
class Layout:
    """How a tool stores a linear.

    Attributes:
        name: Its name in configs.
        tool: The tool that writes these configs.
        required: Names, relative to the linear, of tensors that all linears have.
        optional: Names of tensors that some linears have, in addition to a bias.
        group_of_channel: The optional tensor with the group of each input channel; None if channels are always in
            sequence.
        read: Returns the scheme of the blocks' linears, from the config and its path, for errors.
        unpack: Makes a linear from its tensors.
        writer: How we write it; None for a layout that we only read.
        read_head: Does the same as `read` for a head; returns None if the config describes no quantized head.
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
        """Names, relative to the linear, of all tensors that a linear may have."""
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
    """The content of `quantization_config`: a layout, and how the codes were made.

    Attributes:
        layout: Layout of every quantized weight.
        scheme: Scheme of the linears of blocks.
        head: Scheme of the head, if its weight is quantized, which its tensors show.
    """

    layout: Layout
    scheme: QuantScheme
    head: QuantScheme


def config_integer(found: QuantizationConfig, where: str, *keys: str) -> int:
    """Returns the value of the first of `keys` that `found` has.

    Raises:
        CheckpointError: All keys are missing, or the value is not an integer.
    """
    value = next((found[key] for key in keys if found.get(key) is not None), None)
    if not isinstance(value, int) or isinstance(value, bool):
        raise CheckpointError(f"{keys[0]}: expected an integer, got {value!r}.", where=where, fix=DAMAGED)
    return value


def has_whole_groups(spec: DecoderSpec, schemes: ModelSchemes) -> bool:
    """Whether every group of every quantized weight has the full length of its scheme."""
    shapes = (*spec.stored_linears().values(), *schemes.seen_with)
    widths = [(columns, schemes.blocks) for _, columns in shapes]
    if schemes.head is not None:
        widths.append((spec.hidden_size, schemes.head))
    return all(
        columns % scheme.group_of(columns) == 0 and (scheme.group_size == WHOLE_ROW or columns >= scheme.group_size)
        for columns, scheme in widths
    )
