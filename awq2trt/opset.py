"""The custom operators, declared once: domain, names, inputs, attributes, version.

The exporter writes these names, the ONNX function bodies define what they mean, and the plugin
library implements them (`plugins/ops`; a test holds its C++ constants to these). The normative text
is `plugins/FORMAT.md`.
"""

from __future__ import annotations

from typing import Final

DOMAIN: Final = "awq2trt"
DOMAIN_VERSION: Final = 1

ONNX_OPSET: Final = 24
"""Standard opset of exported graphs: `TensorScatter` needs 24, `Attention` and `RotaryEmbedding` 23."""

ONNX_IR_VERSION: Final = 11
"""IR version of exported graphs. Function overloads need 10, and opset 24 goes with 11."""

PLUGIN_VERSION: Final = "1"
PLUGIN_NAMESPACE: Final = "awq2trt"

W4A16_LINEAR: Final = "W4A16Linear"
"""y[..., N] = x[..., K] @ (scales * (codes - zeros))^T + bias.

Inputs, without gaps: X [..., K] fp16|bf16, codes INT4 [N, K], scales [N, ceil(K/G)] as X,
then zeros INT4 [N, ceil(K/G)] if `has_zeros`, then bias [N] as X if `has_bias`.
"""

FEATURES_MULTIPLE: Final = 8
"""K of a `W4A16Linear` must be a multiple of it: rows of codes are whole 32-bit words."""

CODE_BITS: Final = 4
"""Width of a code in the graph. Narrower ones are exported as 4-bit codes."""

ATTR_GROUP_SIZE: Final = "group_size"
ATTR_HAS_ZEROS: Final = "has_zeros"
ATTR_HAS_BIAS: Final = "has_bias"
ATTR_PLUGIN_VERSION: Final = "plugin_version"
ATTR_PLUGIN_NAMESPACE: Final = "plugin_namespace"
