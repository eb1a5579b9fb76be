"""Gated cross-attention before blocks of a decoder as ONNX nodes, to images whose keys and values are an input.

In: a `CrossAttentionSpec`, the inputs `attended_images` and `image_of_slot`, and a residual stream. Out: the residual
stream that a block reads. The vision graph computes keys and values for all layers, once an image; here each layer
takes its own. A token attends to one image, as `image_of_slot` says; where it says none, only the gated MLP acts.

The same computation in PyTorch is `awq2trt.models.cross_attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from awq2trt.io_contract import ATTENDED_IMAGES, IMAGE_OF_SLOT, VISIBLE_END, TensorContract
from awq2trt.models.families import CrossAttentionSpec, DecoderSpec


def attended_contract(spec: DecoderSpec, images: int, capacity: int, dtype: str) -> list[TensorContract]:
    """The decoder's inputs with images; none for a decoder that does not attend to them.

    Args:
        spec: The decoder.
        images: Images of a conversation at most.
        capacity: Slots of the cache.
        dtype: Name of the type of activations.
    """
    if spec.image_blocks:
        meaning = "The last slot that the token in every cache slot sees."
        return [TensorContract(VISIBLE_END, "int64", (capacity,), meaning)]
    if spec.cross is None:
        return []
    channels = 2 * spec.cross.inner_size * len(spec.cross_layers)
    return [
        TensorContract(ATTENDED_IMAGES, dtype, (images, spec.cross.pieces, channels), "What the vision graph gives."),
        TensorContract(IMAGE_OF_SLOT, "int64", (capacity,), "Image of the token in every cache slot, from 1; or 0."),
    ]


@dataclass(frozen=True)
class CrossNodes:
    """The graph that cross-attention is computed in.

    Attributes:
        op: Appends a node of a type, with inputs and attributes.
        tensor: An initializer with the model's tensor of this full name.
        number: An initializer with one number, by name and value.
        integers: An int64 constant.
    """

    op: Callable[..., ir.Value]
    tensor: Callable[[str], ir.Value]
    number: Callable[[str, float], ir.Value]
    integers: Callable[[Sequence[int]], ir.Value]


@dataclass(frozen=True)
class CrossGraph:
    """Appends cross-attention to a decoder's graph.

    Shapes in comments: B batch, S new tokens, M images, P pieces of an image, H hidden size, D head size.

    Attributes:
        decoder: The decoder's description.
        spec: The description of its cross-attention.
        nodes: The graph.
        attended: Keys and values of images for all layers, [M, P, layers * 2 * heads * D].
        mask: Which pieces each new token attends to, bool [B, 1, S, M * P].
        sees: 1 for a token that attends to an image, otherwise 0; [B, S, 1].
        lowest: The score of pieces that are masked.
    """

    decoder: DecoderSpec
    spec: CrossAttentionSpec
    nodes: CrossNodes
    attended: ir.Value
    mask: ir.Value
    sees: ir.Value
    lowest: ir.Value

    @classmethod
    def begin(
        cls,
        decoder: DecoderSpec,
        nodes: CrossNodes,
        given: tuple[ir.Value, ir.Value],
        positions: ir.Value,
        lowest: ir.Value,
    ) -> CrossGraph:
        """Writes what all layers read.

        Args:
            decoder: The decoder's description; it attends to images.
            nodes: The graph.
            given: `attended_images` and `image_of_slot`.
            positions: Positions of the new tokens, int64 [B, S].
            lowest: The score of pieces that are masked.
        """
        attended, image_of_slot = given
        spec = decoder.cross
        assert spec is not None
        op, integers = nodes.op, nodes.integers
        images = int(attended.shape[0])  # type: ignore[index, arg-type]  # declared so
        image = op("Gather", [image_of_slot, positions], name="attended_image")  # [B, S], from 1; 0 for none
        # A token before the first image looks at that one, so that softmax has something to divide by, and is cleared.
        looked_at = op("Unsqueeze", [op("Max", [image, integers([1])]), integers([1, 3])])  # [B, 1, S, 1]
        image_of_piece = integers(np.repeat(np.arange(1, images + 1), spec.pieces).tolist())  # [M * P]
        mask = op("Equal", [looked_at, image_of_piece], name="attended_mask")
        seeing = op("Greater", [op("Unsqueeze", [image, integers([2])]), integers([0])])
        sees = op("CastLike", [seeing, attended], name="attended_any")
        return cls(decoder, spec, nodes, attended, mask, sees, lowest)

    def before(self, layer: int, hidden: ir.Value) -> ir.Value:
        """The residual stream behind what stands before a block, [B, S, H]; the same one if there is nothing."""
        if layer not in self.decoder.cross_layers:
            return hidden
        index, prefix = self.decoder.cross_layers.index(layer), self.decoder.prefix(layer) + self.spec.prefix
        attended = self._attend(prefix, index, self._norm(f"{prefix}attn.norm", hidden))
        hidden = self._gated(f"{prefix}attn_gate", hidden, attended)
        inner = self._linear(f"{prefix}ff.1", self._norm(f"{prefix}ff.0", hidden))
        active = self.nodes.op("Gelu", [inner], {"approximate": "none"}, name=f"{prefix}ff.gelu")
        return self._gated(f"{prefix}ff_gate", hidden, self._linear(f"{prefix}ff.3", active))

    def _attend(self, prefix: str, index: int, normed: ir.Value) -> ir.Value:
        """Attention of [B, S, H] to the pieces of one image: [B, S, H], zeros where there is none."""
        op, integers, spec = self.nodes.op, self.nodes.integers, self.spec
        scale = self.nodes.number("cross_attention.scale", spec.head_dim**-0.5)
        queries = op("Mul", [self._linear(f"{prefix}attn.to_q", normed), scale])
        split = op("Reshape", [queries, integers([0, 0, spec.num_heads, spec.head_dim])])
        queries = op("Transpose", [split], {"perm": [0, 2, 1, 3]})  # [B, heads, S, D]
        keys, values = (
            self._of_images(2 * index + part, perm) for part, perm in ((0, [0, 2, 3, 1]), (1, [0, 2, 1, 3]))
        )
        scores = op("MatMul", [queries, keys], name=f"{prefix}attn.scores")  # [B, heads, S, M * P]
        masked = op("Where", [self.mask, scores, self.lowest])
        shares = op("Softmax", [masked], {"axis": -1}, name=f"{prefix}attn.softmax")
        context = op("MatMul", [shares, values], name=f"{prefix}attn.context")  # [B, heads, S, D]
        merged = op("Transpose", [context], {"perm": [0, 2, 1, 3]})
        flat = op("Reshape", [merged, integers([0, 0, spec.inner_size])])
        return self._linear(f"{prefix}attn.to_out", op("Mul", [flat, self.sees]))

    def _of_images(self, part: int, perm: Sequence[int]) -> ir.Value:
        """Keys or values of all images, [1, M * P, heads, D] with its axes in another order.

        Args:
            part: How many times keys or values of other layers, or keys of this one, stand before these.
            perm: The order of the axes.
        """
        op, integers, spec = self.nodes.op, self.nodes.integers, self.spec
        start, end = part * spec.inner_size, (part + 1) * spec.inner_size
        own = op("Slice", [self.attended, integers([start]), integers([end]), integers([2])])
        split = op("Reshape", [own, integers([1, -1, spec.num_heads, spec.head_dim])])
        return op("Transpose", [split], {"perm": list(perm)})

    def _gated(self, name: str, hidden: ir.Value, added: ir.Value) -> ir.Value:
        """The residual stream with what a gate lets through."""
        share = self.nodes.op("Tanh", [self.nodes.tensor(name)])
        return self.nodes.op("Add", [hidden, self.nodes.op("Mul", [added, share], name=name)], name=f"{name}.added")

    def _linear(self, name: str, x: ir.Value) -> ir.Value:
        """[..., K] -> [..., N]."""
        transposed = self.nodes.op("Transpose", [self.nodes.tensor(f"{name}.weight")], {"perm": [1, 0]})
        return self.nodes.op("MatMul", [x, transposed], name=name)

    def _norm(self, name: str, x: ir.Value) -> ir.Value:
        """A norm over the last axis, its squares and their mean in fp32."""
        inputs = [x, self.nodes.tensor(f"{name}.weight"), self.nodes.tensor(f"{name}.bias")]
        attributes = {"axis": -1, "epsilon": self.spec.norm_eps, "stash_type": int(ir.DataType.FLOAT)}
        return self.nodes.op("LayerNormalization", inputs, attributes, name=name)
