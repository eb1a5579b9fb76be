"""Tunes the step sizes of a complete quantized model to what the original predicts; codes and zero points stay.

In: the finished blocks, calibration tokens, the final residual stream of the original model. Out: the same linears with
other step sizes. Quantizing blocks one after another cannot take later blocks into account; here the gradient of the
Kullback-Leibler divergence of the predictions flows back through all of them (EfficientQAT, arXiv:2407.11062, section
3.3, trains step sizes end to end in its second phase, on the text's own next tokens). Only one number for 128 weights
is learned, so that a little text is enough.

A block's activations are computed again in the backward pass (gradient checkpointing), and codes stay bytes, so that
memory grows with the codes, not with the activations of all blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from awq2trt.models.decoder import BlockRunner, Ends
from awq2trt.quantization.learning import WindowDraws, with_its_gradient
from awq2trt.quantization.rounding import GroupGrid, Rounded, as_step
from awq2trt.scheme import QuantizedLinear, QuantScheme

WARM_UP: Final = 5
"""Number of first steps over which the rate rises, since Adam's estimates begin at 0."""

BETAS: Final = (0.9, 0.95)
"""Adam's betas: the mean of squares covers 20 steps, not 1,000, since a run has about a hundred."""

HEAD_POSITIONS: Final = 1024
"""Positions whose predictions are compared at once: 1,024 x 49,152 fp32 are 200 MB, and five such tensors exist."""


@dataclass(frozen=True)
class TuneOptions:
    """How long and how fast to tune.

    Attributes:
        steps: Number of Adam's steps.
        windows: Number of calibration windows in each step.
        rate: The highest learning rate of the logarithms of step sizes.
    """

    steps: int = 100
    windows: int = 8
    rate: float = 1e-3

    @classmethod
    def for_scheme(cls, scheme: QuantScheme) -> TuneOptions:
        """The options that measurements suggest (docs/notes/accuracy.md): 2 bits need a higher rate."""
        return cls(rate=3e-3) if scheme.bits == 2 else cls()


@dataclass(frozen=True)
class FinishedBlock:
    """A block of the quantized model.

    Attributes:
        linears: Quantized linears, by name relative to the block.
        plain: Norm weights and other tensors, fp32.
    """

    linears: Mapping[str, QuantizedLinear]
    plain: Mapping[str, Tensor]


@dataclass(frozen=True)
class Predicted:
    """What the original model predicts.

    Attributes:
        ends: Embedding, last norm and head, which both models share.
        runner: Runner of the blocks.
        tokens: The text, int64 [samples, seqlen].
        final: The original model's residual stream after its last block, fp32 [samples, seqlen, hidden_size].
        seed: Seed of the order of windows.
    """

    ends: Ends
    runner: BlockRunner
    tokens: Tensor
    final: Tensor
    seed: int


def tune_steps(
    blocks: Sequence[FinishedBlock],
    predicted: Predicted,
    options: TuneOptions,
    advance: Callable[[int], None] = lambda _: None,
) -> list[dict[str, QuantizedLinear]]:
    """Tunes step sizes; they stay unchanged if that does not bring the predictions on the text nearer.

    Args:
        blocks: All blocks of the model.
        predicted: The predictions to approach.
        options: How long and how fast to tune.
        advance: Called with 1 after every step.

    Returns:
        The linears of every block.
    """
    tuned = [_TunedBlock.of(block) for block in blocks]
    parameters = [growth for block in tuned for growth in block.growth.values()]
    adam = torch.optim.Adam(parameters, lr=options.rate, betas=BETAS)
    windows = WindowDraws.start(len(predicted.tokens), options.windows, predicted.seed)
    before = _divergence(tuned, predicted, options.windows)
    for step in range(options.steps):
        for group in adam.param_groups:
            group["lr"] = options.rate * min(1.0, (step + 1) / WARM_UP) * (1 - step / options.steps)
        adam.zero_grad()
        _add_gradients_(tuned, predicted, windows.next_())
        adam.step()
        advance(1)
    if _divergence(tuned, predicted, options.windows) < before:
        return [block.tuned_linears() for block in tuned]
    return [dict(block.linears) for block in blocks]  # also if the result is not a number


@dataclass(frozen=True)
class _TunedBlock:
    """A block whose step sizes can grow and shrink.

    Attributes:
        growth: Logarithms of the growth of each linear's step sizes, [N, groups, 1]; they are learned.
    """

    _block: FinishedBlock
    _codes: Mapping[str, Tensor]  # uint8 [N, K]
    _grids: Mapping[str, GroupGrid]
    growth: Mapping[str, Tensor]

    @classmethod
    def of(cls, block: FinishedBlock) -> _TunedBlock:
        """Makes it from a finished block."""
        codes = {name: torch.as_tensor(linear.codes) for name, linear in block.linears.items()}
        grids = {name: GroupGrid.of(linear) for name, linear in block.linears.items()}
        growth = {name: torch.zeros_like(grid.scales, requires_grad=True) for name, grid in grids.items()}
        return cls(block, codes, grids, growth)

    def scales(self, name: str) -> Tensor:
        """Step sizes of a linear as its scheme stores them, [N, groups, 1]."""
        as_stored = partial(as_step, scheme=self._block.linears[name].scheme)
        return with_its_gradient(self._grids[name].scales * self.growth[name].exp(), as_stored)

    def tensors(self) -> dict[str, Tensor]:
        """The block's tensors, fp32, as `BlockRunner` takes them."""
        tensors = dict(self._block.plain)
        for name, linear in self._block.linears.items():
            grid = GroupGrid(self.scales(name), self._grids[name].zeros)
            tensors[f"{name}.weight"] = Rounded(self._codes[name].float(), grid).dequantize(linear.scheme)
            if linear.bias is not None:
                tensors[f"{name}.bias"] = torch.as_tensor(linear.bias).float()
        return tensors

    def tuned_linears(self) -> dict[str, QuantizedLinear]:
        """The linears with their current step sizes."""
        with torch.no_grad():
            return {
                name: replace(linear, scales=self.scales(name).squeeze(-1).half().numpy(force=True))
                for name, linear in self._block.linears.items()
            }


def _final_stream(blocks: Sequence[_TunedBlock], predicted: Predicted, tokens: Tensor) -> Tensor:
    """Computes the quantized model's residual stream after its last block, fp32 [windows, seqlen, hidden_size]."""
    hidden = predicted.ends.embed(tokens)

    def run(layer: int, hidden: Tensor) -> Tensor:
        # The other kernels for attention add gradients in an order that varies from run to run.
        with sdpa_kernel(SDPBackend.MATH):
            return predicted.runner.run(blocks[layer].tensors(), hidden, layer=layer)

    for layer in range(len(blocks)):
        hidden = checkpoint(run, layer, hidden, use_reentrant=False, preserve_rng_state=False)
    return hidden.flatten(0, 1)


def _add_gradients_(blocks: Sequence[_TunedBlock], predicted: Predicted, chosen: Tensor) -> None:
    """Adds the gradients of the mean divergence on some windows to those of the parameters."""
    with torch.enable_grad():
        stream = _final_stream(blocks, predicted, predicted.tokens[chosen])
        end = stream.detach().requires_grad_()
        for divergence in _divergences(predicted, end, predicted.final[chosen].flatten(0, 1)):
            (divergence / len(end)).backward()
        stream.backward(end.grad)


def _divergences(predicted: Predicted, stream: Tensor, original: Tensor) -> Iterator[Tensor]:
    """Yields KL(original || quantized) of the predictions, each summed over some positions."""
    for ours, theirs in zip(stream.split(HEAD_POSITIONS), original.split(HEAD_POSITIONS), strict=True):
        with torch.no_grad():
            wanted = F.log_softmax(predicted.ends.logits(theirs), dim=-1)
        yield F.kl_div(F.log_softmax(predicted.ends.logits(ours), dim=-1), wanted, reduction="sum", log_target=True)


def _divergence(blocks: Sequence[_TunedBlock], predicted: Predicted, at_once: int) -> float:
    """The divergence summed over all windows."""
    total = 0.0
    with torch.no_grad():
        for chosen in torch.arange(len(predicted.tokens)).split(at_once):
            stream = _final_stream(blocks, predicted, predicted.tokens[chosen])
            total += sum(map(float, _divergences(predicted, stream, predicted.final[chosen].flatten(0, 1))))
    return total
