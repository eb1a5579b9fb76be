"""What makes of an image's patches that which a decoder attends to: a perceiver, then keys and values of all layers.

In: patches as a tower gives them, and tensors. Out: nodes on a tower's tape.

The same computation in PyTorch is `awq2trt.models.vision.resampler`; keys and values are those of
`awq2trt.models.cross_attention`.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from awq2trt.models.families import GELU
from awq2trt.models.vision.description import ResamplerSpec
from awq2trt.onnx_export.tower_graph import TowerBuilder


def keys_and_values(builder: TowerBuilder, readers: Sequence[str], pieces: ir.Value) -> ir.Value:
    """Keys and values of the decoder's layers, [images, num_latents, channels], one layer's behind the other's.

    Args:
        builder: The graph.
        readers: Names of the linears that make them.
        pieces: What they read, [images, num_latents, width].
    """
    read = [builder.linear(name, pieces) for name in readers]
    return read[0] if len(read) == 1 else builder.op("Concat", read, {"axis": -1})


def resample(builder: TowerBuilder, spec: ResamplerSpec, patches: ir.Value) -> ir.Value:
    """Appends the perceiver: patches [images, patches, width] -> pieces [images, num_latents, width]."""
    images = builder.op("Shape", [patches], {"start": 0, "end": 1})
    sizes = builder.op("Concat", [images, builder.integers([spec.num_latents, spec.width])], {"axis": 0})
    latents = builder.op("Expand", [builder.keep(f"{spec.prefix}latents"), sizes])
    for layer in range(spec.num_layers):
        attention, mlp = f"{spec.prefix}layers.{layer}.0.", f"{spec.prefix}layers.{layer}.1."
        latents = builder.op("Add", [latents, _attend(builder, spec, attention, patches, latents)])
        inner = builder.linear(f"{mlp}1", builder.layer_norm(f"{mlp}0", latents, spec.norm_eps))
        output = builder.linear(f"{mlp}3", builder.activation(GELU, inner))
        latents = builder.op("Add", [latents, output], name=f"{spec.prefix}layers.{layer}.residual")
    return builder.layer_norm(f"{spec.prefix}norm", latents, spec.norm_eps)


def _attend(builder: TowerBuilder, spec: ResamplerSpec, prefix: str, patches: ir.Value, latents: ir.Value) -> ir.Value:
    """Attention of latents to patches and latents, [images, num_latents, width]."""
    inner = spec.num_heads * spec.head_dim
    asking = builder.layer_norm(f"{prefix}norm_latents", latents, spec.norm_eps)
    known = builder.layer_norm(f"{prefix}norm_media", patches, spec.norm_eps)
    asked = builder.linear(f"{prefix}to_kv", builder.op("Concat", [known, asking], {"axis": 1}))
    keys, values = (
        builder.op("Slice", [asked, *(builder.integers([number]) for number in (start, start + inner, 2))])
        for start in (0, inner)
    )
    split = builder.integers([0, 0, spec.num_heads, spec.head_dim])
    heads = [
        builder.op("Transpose", [builder.op("Reshape", [x, split])], {"perm": [0, 2, 1, 3]})
        for x in (builder.linear(f"{prefix}to_q", asking), keys, values)
    ]  # [images, heads, latents or patches and latents, head_dim]
    context = builder.op("Attention", heads, {"scale": spec.head_dim**-0.5}, name=f"{prefix}attention")
    merged = builder.op("Transpose", [context], {"perm": [0, 2, 1, 3]})
    return builder.linear(f"{prefix}to_out", builder.op("Reshape", [merged, builder.integers([0, 0, inner])]))
