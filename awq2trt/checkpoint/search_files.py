"""Names of the files that `quantize` leaves beside a checkpoint's weights, for `check` and `inspect` to read."""

from __future__ import annotations

from typing import Final

REPORT_FILE: Final = "quantization.json"
"""Per linear: alpha, share of clipped groups, relative output error before and after the search."""

SEARCH_FILE: Final = "quantization.npz"
"""Per shared input: mean |x| of its channels, and the scales s folded into it, see
`awq2trt.quantization.block.QuantizedBlock.search`. An .npz file, since others take every .safetensors file of the
directory for weights. Only methods that search scales leave it."""
