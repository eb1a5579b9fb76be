"""awq2trt: a Hugging Face checkpoint to a 4-bit (W4A16) TensorRT engine, on any machine."""

from __future__ import annotations

__version__ = "0.1.0"
