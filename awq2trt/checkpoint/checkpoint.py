"""Reads a quantized checkpoint, ours or another tool's: a directory of safetensors and a config.json.

In: the directory. Out: its linears' codes and, as a `ModelSource`, dequantized weights. `awq2trt.checkpoint.layouts`
knows how a linear is stored. It needs only NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.checkpoint.layouts import StoredFormat, read_format, require_kinds, unpack_linear
from awq2trt.checkpoint.layouts.layout import LinearToUnpack
from awq2trt.errors import CheckpointError, UnsupportedError
from awq2trt.foreign_files import reading
from awq2trt.models.families import DecoderSpec, FusedLinear, describe_vision
from awq2trt.models.sources.base import (
    CONFIG_FILE,
    Array,
    ModelSource,
    copy_tokenizer,
    files_beside_weights,
    read_config,
    refuse_remote_code,
)
from awq2trt.models.sources.safetensors import SafetensorsFiles, describe_stored, stored_name
from awq2trt.scheme import QuantizedLinear, QuantScheme

_NOT_TOGETHER: Final = "config.json and the weights do not belong together; download"


class QuantizedCheckpoint(ModelSource):
    """A quantized checkpoint on disk, ours or another tool's.

    As a `ModelSource` it returns dequantized weights; `linear` returns the codes. Use `open` to make one.

    Attributes:
        directory: Its directory.
        format: Layout and schemes, from its config.json.
        scheme: How the linears of its blocks are quantized.
        head_scheme: How its head is quantized; None if it is not.
    """

    def __init__(
        self,
        directory: Path,
        config: dict[str, Any],
        stored: StoredFormat,
        tensors: SafetensorsFiles,
        spec: DecoderSpec,
    ) -> None:
        self.directory = directory
        self.name = str(directory)
        self.config = config
        self.format = stored
        self.scheme = stored.scheme
        self.spec = spec
        self.vision = describe_vision(config, [*tensors])
        self._tensors = tensors
        layers = range(spec.num_layers)
        linears = {spec.prefix(i) + name: shape for i in layers for name, shape in spec.stored_linears().items()}
        self._plain = {name: shape for name, shape in linears.items() if self._is_plain(name)}
        self._stored = {name: shape for name, shape in linears.items() if name not in self._plain}
        self.head_scheme = stored.head if _has_codes(stored, tensors, spec.stored_head) else None
        if self.head_scheme is not None:
            self._stored[spec.stored_head] = (spec.vocab_size, spec.hidden_size)
        self._seen_with = self._coded_of_vision()
        self._stored |= self._seen_with
        self._fused = {
            spec.prefix(i) + part: (spec.prefix(i) + fused.stored, fused, fused.parts.index(part))
            for i in layers
            for fused in spec.fused
            for part in fused.parts
        }
        biases = {name.removesuffix(".bias") for name in spec.stored_block_shapes() if name.endswith(".bias")}
        self._biased = {spec.prefix(i) + name for i in layers for name in biases}
        self._biased |= {name for name in self._seen_with if self._vision_shapes().get(f"{name}.bias")}
        self._last: tuple[str, QuantizedLinear] | None = (
            None  # the fused linear that was read last, needed again for each part
        )

    @classmethod
    def open(cls, directory: Path) -> QuantizedCheckpoint:
        """Reads the configuration and the headers of the weight files.

        A head with codes is a weight of its own, even if config.json says that it is tied to the embedding.

        Raises:
            CheckpointError: A file is missing or damaged.
            UnsupportedError: No family describes the model, no layout can read it, or it needs remote code.
        """
        with reading("a quantized checkpoint", directory):
            config = read_config(directory)
            refuse_remote_code(config, directory)
            stored = read_format(config, where=str(directory / CONFIG_FILE))
            tensors = SafetensorsFiles.in_directory(directory, config)
            spec = describe_stored(config, tensors, quantized=True)
            if _has_codes(stored, tensors, spec.head):
                spec = replace(spec, tie_embeddings=False)
            checkpoint = cls(directory, config, stored, tensors, spec)
            checkpoint._refuse_strangers()
            for name, shape in checkpoint._plain.items():
                tensors.require_weight(f"{name}.weight", shape)
        return checkpoint

    @property
    def files(self) -> tuple[Path, ...]:
        return self._tensors.files

    @property
    def side_files(self) -> tuple[Path, ...]:
        return files_beside_weights(self.directory)

    def is_quantized(self, name: str) -> bool:
        """Whether a linear of a block, or the head, is stored as codes; `name` may be a part of a fused one."""
        return (self._fused[name][0] if name in self._fused else name) in self._stored

    @property
    def plain_linears(self) -> tuple[str, ...]:
        """Linears of blocks that the checkpoint leaves unquantized, by their names in the file."""
        return tuple(self._plain)

    @property
    def vision_linears(self) -> tuple[str, ...]:
        """Full names of the linears that the model sees with and that are stored as codes, in the order of channels."""
        return tuple(name for name in self._seen_with if self.input_order(name) is None)

    def input_order(self, name: str) -> NDArray[np.int64] | None:
        """The order of the input channels in a linear's columns; None for the usual order, and for a plain linear."""
        kind = self.format.layout.group_of_channel
        stored = self._fused[name][0] if name in self._fused else name
        tensor = f"{stored}.{kind}"
        if kind is None or stored not in self._stored or tensor not in self._tensors:
            return None
        where = f"{self.directory}: {name}"
        tensors = {kind: self._tensors.tensor(tensor)}
        return LinearToUnpack(tensors, self.scheme, self._stored[stored], where).input_order(kind)

    def linear(self, name: str) -> QuantizedLinear:
        """Returns the quantized linear `name`, e.g. `model.layers.0.self_attn.q_proj`; it may be a part of a fused one.

        Raises:
            CheckpointError: The linear is missing, or its tensors do not fit config.json.
        """
        if name not in self._fused:
            return self._stored_linear(name)
        stored, fused, index = self._fused[name]
        if self._last is None or self._last[0] != stored:
            self._last = (stored, self._stored_linear(stored))
        rows = [self.spec.linear_shape(part)[0] for part in fused.parts]
        return _split_linear(self._last[1], fused, rows)[index]

    def _stored_linear(self, name: str) -> QuantizedLinear:
        """Returns a quantized linear as the checkpoint stores it, after checking its bias."""
        where = f"{self.directory}: {name}"
        tensors, shape = self.stored_tensors(name), self._stored[name]
        linear = unpack_linear(self.format.layout, tensors, self.stored_scheme(name), shape, where=where)
        if name in self._biased and linear.bias is None:
            raise CheckpointError(
                "the bias is missing, but config.json says that this linear has one.",
                where=where,
                fix=f"{_NOT_TOGETHER} both again.",
            )
        if name in self._biased or linear.bias is None:
            return linear
        if np.any(linear.bias):
            raise CheckpointError(
                "config.json says that this linear has no bias, but the file has one of up to "
                f"{np.abs(linear.bias.astype(np.float32)).max():g}.",
                where=where,
                fix=f"{_NOT_TOGETHER} both again, or set the key for biases in config.json.",
            )
        return replace(linear, bias=None)  # AutoGPTQ stores zeros if the model has no bias

    def _is_plain(self, name: str) -> bool:
        """Whether a linear has a weight and nothing of the layout; the file decides that, not the config.

        Configs name the linears that tools leave out in too many ways: by exact names, parts of names, expressions or
        classes.
        """
        codes = any(f"{name}.{kind}" in self._tensors for kind in self.format.layout.required)
        return f"{name}.weight" in self._tensors and not codes

    def _coded_of_vision(self) -> dict[str, tuple[int, int]]:
        """N and K of the linears that the model sees with and of which there are codes, by full name."""
        weights = {name.removesuffix(".weight"): shape for name, shape in self._vision_shapes().items()}
        return {
            name: (shape[0], shape[1])
            for name, shape in weights.items()
            if len(shape) == 2 and _has_codes(self.format, self._tensors, name)
        }

    def _refuse_strangers(self) -> None:
        """Refuses tensors of a quantized linear that its layout does not know, since their meaning would be lost."""
        known = self.format.layout.tensor_names
        for name in self._tensors:
            owner, _, kind = name.rpartition(".")
            if owner in self._stored and kind not in known:
                raise UnsupportedError(
                    f"expected {', '.join(known)} in a linear of the layout {self.format.layout.name}, got {kind}.",
                    where=f"{self.directory}: {name}",
                    fix="quantize the original model with awq2trt: the linears of its blocks, and its head.",
                )

    @property
    def stored_names(self) -> tuple[str, ...]:
        """The quantized linears of blocks, and the head, as the checkpoint stores them; fused ones count as one."""
        return tuple(name for name in self._stored if name not in self._seen_with)

    def stored_tensors(self, name: str) -> dict[str, Array]:
        """The tensors of a quantized linear as they are in the file, by name relative to it."""
        return {
            kind: self._tensors.tensor(f"{name}.{kind}")
            for kind in self.format.layout.tensor_names
            if f"{name}.{kind}" in self._tensors
        }

    def stored_shape(self, name: str) -> tuple[int, int]:
        """N and K of a quantized linear as it is in the file."""
        return self._stored[name]

    def stored_scheme(self, name: str) -> QuantScheme:
        """How a quantized weight in the file was quantized."""
        is_head = self.head_scheme is not None and name == self.spec.stored_head
        return self.format.head if is_head else self.scheme

    def split_rows(self, name: str, value: Array) -> dict[str, Array]:
        """Splits [N, ...] of a linear in the file into rows of its parts; one that is not fused is its only part."""
        parts = {part: (fused, fused.parts) for part, (stored, fused, _) in self._fused.items() if stored == name}
        if not parts:
            return {name: value}
        fused, relative = next(iter(parts.values()))
        split = fused.split(value, [self.spec.linear_shape(part)[0] for part in relative])
        return dict(zip(parts, split, strict=True))

    def tensor(self, name: str) -> Array:
        owner, _, kind = name.rpartition(".")
        if kind == "weight" and owner in self._stored:
            return _dequantized(self._stored_linear(owner))
        if owner in self._fused:
            stored = self._fused[owner][0]
            return self.split_rows(stored, self.tensor(f"{stored}.{kind}"))[owner]
        return self._tensors.tensor(stored_name(self.spec, self._tensors, name))

    def has(self, name: str) -> bool:
        return name in self._tensors

    def header_shape(self, name: str) -> tuple[int, ...] | None:
        return self._tensors.shape(stored_name(self.spec, self._tensors, name))

    def expected_shapes(self) -> dict[str, tuple[int, ...]]:
        plain = super().expected_shapes().items()
        return {name: shape for name, shape in plain if name.rpartition(".")[0] not in self._stored}

    def require_tensors(self) -> None:
        super().require_tensors()
        for name in self._stored:
            found = [kind for kind in self.format.layout.tensor_names if f"{name}.{kind}" in self._tensors]
            require_kinds(self.format.layout, found, where=f"{self.name}: {name}")

    def save_tokenizer(self, directory: Path) -> None:
        copy_tokenizer(self.directory, directory)


_PIECE_ROWS: Final = 8192
"""Rows that are dequantized at once: a complete head would take its fp32 bytes several times."""


def _dequantized(linear: QuantizedLinear) -> NDArray[np.float32]:
    weight = np.empty((linear.out_features, linear.in_features), np.float32)
    for start in range(0, linear.out_features, _PIECE_ROWS):
        end = start + _PIECE_ROWS
        weight[start:end] = linear.rows(start, end).dequantize()
    return weight


def _has_codes(stored: StoredFormat, tensors: SafetensorsFiles, owner: str) -> bool:
    return f"{owner}.{stored.layout.required[0]}" in tensors


def fuse_linears(spec: DecoderSpec, linears: Mapping[str, QuantizedLinear]) -> dict[str, QuantizedLinear]:
    """Puts rows of fused linears together again, under the checkpoint's names; codes stay as they are."""
    found = dict(linears)
    for fused in spec.fused:
        parts = [found.pop(name) for name in fused.parts]
        found[fused.stored] = QuantizedLinear(
            codes=fused.fuse([part.codes for part in parts]),
            scales=fused.fuse([part.scales for part in parts]),
            zeros=_fused_or_none(fused, [part.zeros for part in parts]),
            scheme=parts[0].scheme,
            bias=_fused_or_none(fused, [part.bias for part in parts]),
        )
    return found


def _split_linear(linear: QuantizedLinear, fused: FusedLinear, rows: Sequence[int]) -> list[QuantizedLinear]:
    """The inverse of `fuse_linears` for one linear: groups run along K, so rows can be separated."""
    parts = [
        [None] * len(rows) if value is None else fused.split(value, rows)
        for value in (linear.codes, linear.scales, linear.zeros, linear.bias)
    ]
    return [
        QuantizedLinear(codes, scales, zeros, linear.scheme, bias, linear.input_order)
        for codes, scales, zeros, bias in zip(*parts, strict=True)
    ]


def _fused_or_none(fused: FusedLinear, parts: Sequence[Array | None]) -> Array | None:
    found = [part for part in parts if part is not None]
    return fused.fuse(found) if found else None
