"""Quantizing a model: rounding, the AWQ search, folding, one block, the whole job."""
