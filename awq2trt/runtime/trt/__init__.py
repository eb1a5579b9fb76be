"""Decoders in TensorRT and TensorRT-RTX."""
