"""Quantizes a model: rounding, the AWQ search, folding, one block, the complete job."""
