"""`python -m awq2trt` is `awq2trt`."""

from __future__ import annotations

from awq2trt.cli import main

main()
