"""AutoRound's own configs: `quant_method: auto-round`, whose `packing_format` is one of AutoAWQ's or GPTQ's layouts.

`auto_round:auto_gptq` is GPTQ's first version; `auto_round:gptqmodel` and any format without a tool's name are its
second; `auto_round:auto_awq` is AutoAWQ's GEMM. Linears that `extra_config` leaves at 16 bits are plain. It needs only
NumPy.

Source: packing_format in auto_round/inference/backend.py of AutoRound 0.16.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from awq2trt.checkpoint.layouts import awq_gemm, gptq
from awq2trt.checkpoint.layouts.layout import (
    QUANTIZE_AGAIN,
    Layout,
    QuantizationConfig,
    Tool,
    config_integer,
)
from awq2trt.errors import UnsupportedError

_PREFIX: Final = "auto_round"

_AWQ: Final = f"{_PREFIX}:auto_awq"
_GPTQ: Final = f"{_PREFIX}:auto_gptq"
_GPTQ_V2: Final = f"{_PREFIX}:gptqmodel"

_KERNELS: Final = ("", "exllamav2", "tritonv2", "triton", "gptqmodel")
"""Names behind the prefix that older versions wrote for GPTQ's second layout."""

_PLAIN_BITS: Final = 16
"""From this value of `bits` on, a linear is not quantized."""

_SETTINGS: Final = ("bits", "group_size", "sym", "data_type")


def _version(found: QuantizationConfig) -> str:
    name = str(found.get("packing_format") or found.get("backend") or _GPTQ).lower()
    prefix, _, rest = name.partition(":")
    if prefix != _PREFIX:
        return name
    if rest in _KERNELS:
        return _GPTQ_V2
    return {"awq": _AWQ, "gptq": _GPTQ}.get(rest.removeprefix("auto_").partition(":")[0], name)


def _read(found: QuantizationConfig, where: str) -> tuple[int, int, bool]:
    kind = found.get("data_type", "int")
    if kind != "int":
        raise UnsupportedError(f"data_type: expected int, got {kind!r}.", where=where, fix=QUANTIZE_AGAIN)
    others = {name: own for name, own in (found.get("extra_config") or {}).items() if _differs(own, found)}
    if others:
        name, own = next(iter(others.items()))
        raise UnsupportedError(
            f"extra_config: {name} has quantization settings of its own, {own}.", where=where, fix=QUANTIZE_AGAIN
        )
    return config_integer(found, where, "bits"), config_integer(found, where, "group_size"), not found.get("sym", True)


def _differs(own: Any, found: QuantizationConfig) -> bool:
    """Whether a linear is quantized with other settings than the rest."""
    if not isinstance(own, dict):
        return True
    bits = own.get("bits")
    plain = isinstance(bits, int) and bits >= _PLAIN_BITS
    return not plain and any(own.get(key) is not None and own[key] != found.get(key) for key in _SETTINGS)


_TOOL: Final = Tool("auto-round", "packing_format", _version)

LAYOUTS: Final[tuple[Layout, ...]] = (
    replace(gptq.FIRST_VERSION, name=_GPTQ, tool=_TOOL, read=_read),
    replace(gptq.SECOND_VERSION, name=_GPTQ_V2, tool=_TOOL, read=_read),
    replace(awq_gemm.LAYOUT, name=_AWQ, tool=_TOOL, read=_read, writer=None),
)
