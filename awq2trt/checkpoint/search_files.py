"""Names of the files that `quantize` leaves beside a checkpoint's weights, for `check` and `inspect` to read."""

from __future__ import annotations

from typing import Final

REPORT_FILE: Final = "quantization.json"
"""For each linear: alpha, share of clipped groups, relative output error before and after the search."""

SEARCH_FILE: Final = "quantization.npz"
"""For each shared input: mean |x| of its channels, and the scales s folded into it, see
`awq2trt.quantization.block.QuantizedBlock.search`. It is an .npz file, since other tools would read every .safetensors
file in the directory as weights. Only methods that search scales write it."""
