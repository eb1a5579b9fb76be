"""The graph of a tower with windows (Qwen2.5-VL), for one still image of any size.

In: a `WindowedVisionSpec` and its tensors. Out: nodes, from prepared patches and whole numbers that follow from the
image's grid (`models.vision.windowed.WindowLayout`) to pieces. Patches keep their order from layer to layer; where a
layer attends within windows, they are gathered into windows of one size, whose empty slots are masked, and put back.
So linears compute nothing for empty slots, the few layers that see the whole image need no mask, and the graph has two
free axes: patches and windows.

The same computation in PyTorch is `awq2trt.models.vision.windowed_tower`.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from awq2trt.io_contract import (
    PATCH_PLACES,
    PATCH_SLOTS,
    PATCHES,
    PIXEL_VALUES,
    WINDOW_PATCHES,
    WINDOWS,
    IoContract,
    TensorContract,
)
from awq2trt.models.families import GELU
from awq2trt.models.vision.windowed import WindowedTowerSpec, WindowedVisionSpec
from awq2trt.onnx_export.external_data import ExternalDataWriter
from awq2trt.onnx_export.patch_graph import Heads, PatchBuilder, patch_contract
from awq2trt.onnx_export.tower_graph import Tensors, TowerCodes


def windowed_contract(spec: WindowedVisionSpec, dtype: str) -> IoContract:
    """Inputs and outputs of the graph.

    Args:
        spec: How the model sees.
        dtype: Name of the type of pixels, weights and embeddings.
    """
    tower, whole = spec.tower, "int64"
    more = (
        TensorContract(
            WINDOW_PATCHES, whole, (WINDOWS, tower.layout.slots), "Patch in every slot of a window; -1 for none."
        ),
        TensorContract(PATCH_SLOTS, whole, (PATCHES,), "Slot of every patch, counted through all windows."),
    )
    return patch_contract(tower, dtype, more)


class WindowedBuilder(PatchBuilder):
    """A tower with windows, and its merger.

    Shapes in comments: P patches, W windows, L slots of a window, H channels of the tower, D of a head.

    `_windows`, which `seen` sets: the patch in every slot, int64 [W, L], the first one in empty slots; which slots have
    one, bool [W, 1, L, L], the same for all queries; and the slot of every patch, int64 [P].
    """

    _spec: WindowedTowerSpec
    _windows: tuple[ir.Value, ir.Value, ir.Value]

    def __init__(
        self,
        spec: WindowedVisionSpec,
        tensors: Tensors,
        writer: ExternalDataWriter,
        dtype: ir.DataType,
        codes: TowerCodes | None = None,
    ) -> None:
        super().__init__(spec, tensors, writer, dtype, codes)
        self._spec = spec.tower

    def seen(self, inputs: Mapping[str, ir.Value]) -> ir.Value:
        spec = self._spec
        hidden = self.read_patches(inputs[PIXEL_VALUES])
        self._angles = self.cosines_and_sines(inputs[PATCH_PLACES], hidden)
        members = inputs[WINDOW_PATCHES]
        taken = self.op("GreaterOrEqual", [members, self.integers([0])])
        keys = self.op("Unsqueeze", [taken, self.integers([1, 2])])  # [W, 1, 1, L]
        # ONNX Runtime's Attention broadcasts a mask over heads, but not over queries.
        mask = self.op("Expand", [keys, self.integers([1, 1, spec.layout.slots, 1])], name="slots_taken")
        self._windows = (self.op("Max", [members, self.integers([0])]), mask, inputs[PATCH_SLOTS])
        for layer in range(spec.num_layers):
            hidden = self._layer(spec.layer_prefix(layer), hidden, whole=layer in spec.full_layers)
        return self._merge(hidden)

    def _layer(self, prefix: str, hidden: ir.Value, *, whole: bool) -> ir.Value:
        """One layer: [P, H] -> [P, H]."""
        spec, attention = self._spec, f"{prefix}attn."
        normed = self._norm(f"{prefix}norm1", hidden)
        attend = self.attend_to_all if whole else self._attend_in_windows
        context = attend(self.heads(attention, normed), f"{attention}attention")  # [P, H]
        hidden = self.op("Add", [hidden, self.linear(f"{attention}proj", context)])
        normed = self._norm(f"{prefix}norm2", hidden)
        gate, up = (self.linear(f"{prefix}mlp.{name}", normed) for name in ("gate_proj", "up_proj"))
        inner = self.op("Mul", [self.activation(spec.activation, gate), up])
        return self.op("Add", [hidden, self.linear(f"{prefix}mlp.down_proj", inner)], name=f"{prefix}residual")

    def _attend_in_windows(self, heads: Heads, name: str) -> ir.Value:
        """Attention of patches to those of their window: [P, H]."""
        members, mask, slots = self._windows
        gathered = [
            self.op("Transpose", [self.op("Gather", [x, members], {"axis": 0})], {"perm": [0, 2, 1, 3]}) for x in heads
        ]  # [W, heads, L, D]
        context = self.op("Attention", [*gathered, mask], {"scale": self.score_scale}, name=name)
        merged = self.op("Transpose", [context], {"perm": [0, 2, 1, 3]})
        flat = self.op("Reshape", [merged, self.integers([-1, self._spec.hidden_size])])  # [W L, H]
        return self.op("Gather", [flat, slots], {"axis": 0})

    def _merge(self, hidden: ir.Value) -> ir.Value:
        """[P, H] -> [pieces, out_features]; the patches of a piece are neighbours."""
        merger = f"{self._spec.prefix}merger."
        normed = self._norm(f"{merger}ln_q", hidden)
        square = self.integers([-1, self._spec.hidden_size * self._spec.merge**2])
        inner = self.linear(f"{merger}mlp.0", self.op("Reshape", [normed, square]))
        return self.linear(f"{merger}mlp.2", self.activation(GELU, inner))

    def _norm(self, name: str, x: ir.Value) -> ir.Value:
        """A norm over the last axis, its squares and their mean in fp32."""
        attributes = {"axis": -1, "epsilon": self._spec.norm_eps, "stash_type": int(ir.DataType.FLOAT)}
        return self.op("RMSNormalization", [x, self.keep(f"{name}.weight")], attributes, name=name)
