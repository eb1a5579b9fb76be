"""What the linears of a block are rounded from: folded weights, which a method may correct as their turns come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from awq2trt.models.families import DecoderSpec
from awq2trt.quantization.correction import Pursuit
from awq2trt.quantization.linear_input import LinearInput
from awq2trt.quantization.method import BlockMethod
from awq2trt.quantization.rounding import Rounded


@dataclass(frozen=True)
class Aims:
    """What the linears of a block are rounded from.

    Attributes:
        spec: The model.
        where: Name of the block, with a dot at its end.
        method: What is asked of the block.
        pursuit: What weights are corrected by; None to leave them.
        folded: The block's tensors with scales folded in.
        tensors: The same, the weights of linears corrected whose turn has come, until they are finished.
        inputs: What linears read, as they are rounded by it.
        current: `folded`, with what the codes of finished linears stand for.
    """

    spec: DecoderSpec
    where: str
    method: BlockMethod
    pursuit: Pursuit | None
    folded: Mapping[str, Tensor]
    tensors: dict[str, Tensor]
    inputs: dict[str, LinearInput]
    current: dict[str, Tensor] = field(default_factory=dict)

    def weight(self, name: str) -> Tensor:
        """Weight of a linear, fp32 [N, K]."""
        return self.tensors[f"{name}.weight"]

    def correct_(self, name: str) -> None:
        """Before the first linear of a group: corrects the weights of all of it."""
        options = self.method.correct
        group = next((group for group in self.spec.scale_groups() if group.balance_layers[0] == name), None)
        if self.pursuit is None or options is None or group is None:
            return
        drift = self.pursuit.drift(self.spec, group, self.folded, {**self.folded, **self.current})
        weights = drift.corrected([self.weight(one) for one in group.balance_layers], options, self.where + name)
        self.inputs.update(dict.fromkeys(group.balance_layers, LinearInput.unscaled(drift.seen)))
        for one, weight in zip(group.balance_layers, weights, strict=True):
            self.tensors[f"{one}.weight"] = weight

    def finish_(self, name: str, found: Rounded) -> None:
        """After a linear was rounded: those behind it read what it gives."""
        if self.pursuit is not None and self.method.correct is not None:
            self.current[f"{name}.weight"] = found.dequantize(self.method.scheme)
            if self.method.learn is None:  # nothing needs the corrected one any more
                self.tensors[f"{name}.weight"] = self.folded[f"{name}.weight"]
