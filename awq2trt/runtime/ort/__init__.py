"""Decoders in ONNX Runtime."""
