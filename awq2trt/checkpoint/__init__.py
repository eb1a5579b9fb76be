"""Quantized checkpoints: byte layouts, ours and other tools', read and written."""
