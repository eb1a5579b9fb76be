"""Inputs of a decoder that depend on images, which only whoever runs the graph knows.

In: the decoder's description, and the sizes of a conversation. Out: contracts of its inputs.
"""

from __future__ import annotations

from awq2trt.io_contract import BATCH, DEEPSTACK_EMBEDS, ROTARY_TABLES, SEQUENCE, TensorContract
from awq2trt.models.families import DecoderSpec
from awq2trt.onnx_export.cross_graph import attended_contract


def deepstack_contract(spec: DecoderSpec, dtype: str) -> list[TensorContract]:
    """What is added behind the first blocks, if anything is.

    Args:
        spec: The decoder.
        dtype: Name of the type of activations.
    """
    shape = (BATCH, SEQUENCE, spec.deepstack * spec.hidden_size)
    meaning = "What is added behind each of the first blocks, one after the other; zeros for tokens of text."
    return [TensorContract(DEEPSTACK_EMBEDS, dtype, shape, meaning)] if spec.deepstack else []


def given_tables(spec: DecoderSpec, images: int, capacity: int, dtype: str) -> list[TensorContract]:
    """Tables that are inputs, since positions or keys depend on images.

    Args:
        spec: The decoder.
        images: Images of a conversation at most, for a decoder that attends to them.
        capacity: Slots of the cache.
        dtype: Name of the type of activations.
    """
    mixed = [rope for rope in spec.ropes if rope.sections is not None]
    shapes = [(capacity, rope.rotary_dim // 2) for rope in mixed]
    meaning = "{} of the angles of the token in every cache slot."
    return attended_contract(spec, images, capacity, dtype) + [
        TensorContract(name, dtype, shape, meaning.format(kind))
        for shape in shapes
        for name, kind in zip(ROTARY_TABLES, ("Cosines", "Sines"), strict=True)
    ]
