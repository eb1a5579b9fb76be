"""Measures many quantization settings side by side, with a single walk through a model's blocks.

In: a model, windows of calibration text, settings, windows of test text. Out: a `Measured` for every setting. Every
setting is a lane with a residual stream of its own on the test text, and another on the calibration text if its method
is sequential; the unquantized model's stream on the calibration text, and its statistics, are shared. Weights are kept
dequantized in memory and nothing is written, so that widths which no checkpoint format can hold can be measured, too.

Methods that only the study needs are defined here: channels kept in FP16 (AWQ paper, Table 1), channels multiplied by a
fixed s (Tables 2 and 3), and quantizing only some kinds of linears.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from awq2trt.evaluation.perplexity import Perplexity, perplexity
from awq2trt.machine.arithmetic import narrow_type
from awq2trt.methods import METHODS
from awq2trt.models.block_weights import load_block, with_linears_of
from awq2trt.models.decoder import BlockRunner, Ends
from awq2trt.models.families import DecoderSpec
from awq2trt.models.sources.base import ModelSource
from awq2trt.progress import Progress, SilentProgress
from awq2trt.quantization.block import (
    UNGUIDED,
    Guide,
    Statistics,
    collect_statistics,
    dequantized,
    quantize_block,
    run_block,
)
from awq2trt.quantization.correction import Pursuit
from awq2trt.quantization.learning import Lesson
from awq2trt.quantization.method import BlockMethod, method_of
from awq2trt.quantization.rounding import fake_quantize, from_groups, group_grid, round_to_codes, to_groups
from awq2trt.quantization.tuning import FinishedBlock, Predicted, TuneOptions, tune_steps
from awq2trt.recipe import QuantizeOptions
from awq2trt.scheme import QuantScheme

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Calibration:
    """The windows on which a setting is calibrated.

    Attributes:
        text: Name of a text; `self` is the model's own.
        samples: Number of windows.
        seqlen: Number of tokens in each.
        draw: Which of several sets of windows to use, from 0; 0 is the set of `awq2trt quantize --calib`. It is the
            seed of the model's own text.
    """

    text: str = "wikitext2"
    samples: int = 32
    seqlen: int = 512
    draw: int = 0


@dataclass(frozen=True)
class Keep:
    """Rounding to nearest, with some input channels of every linear kept in FP16 (AWQ paper, Table 1).

    Attributes:
        by: How channels are chosen: by the largest mean |activation|, by the largest norm of the `weight`'s column, or
            at `random`.
        share: Share of the input channels.
    """

    by: str
    share: float


@dataclass(frozen=True)
class Multiply:
    """Rounding to nearest after the most salient input channels were multiplied by s (AWQ paper, Tables 2 and 3).

    Attributes:
        scale: s; inputs are divided by it.
        share: Share of the input channels: those with the largest mean |activation|.
    """

    scale: float
    share: float = 0.01


@dataclass(frozen=True)
class Setting:
    """One figure of the study: a method, a scheme, and the texts for calibration and test.

    Attributes:
        options: Method and scheme as in `awq2trt quantize` (the calibration in them is ignored); None for the original.
        calibration: None for methods that use no text.
        special: One of the study's own methods, instead of the usual one.
        only: Last parts of the names of linears to quantize; all if empty.
        tests: Names of texts.
        windows: Number of windows of each.
        seqlen: Tokens in each window.
    """

    options: QuantizeOptions | None
    calibration: Calibration | None = None
    special: Keep | Multiply | None = None
    only: tuple[str, ...] = ()
    tests: tuple[str, ...] = ("wikitext2",)
    windows: int = 8
    seqlen: int = 1024

    def name(self) -> str:
        """A readable name that differs for all settings, used for its file."""
        return "_".join([*self._method_parts(), *self._text_parts()])

    def _method_parts(self) -> list[str]:
        if self.options is None:
            return ["original"]
        parts = [self.options.scheme.describe(), self.options.method]
        method = METHODS[self.options.method]
        if method.searches_scales:
            parts.append(self.options.effort)
        if self.options.tune is not None:
            parts.append("tuned" if self.options.tune else "untuned")
        if method.rounds_columns and not self.options.act_order:
            parts.append("no-act-order")
        if isinstance(self.special, Keep):
            parts.append(f"keep-{self.special.share:g}-by-{self.special.by}")
        elif isinstance(self.special, Multiply):
            parts.append(f"multiply-{self.special.share:g}-by-{self.special.scale:g}")
        return [*parts, *(["only-" + "-".join(self.only)] if self.only else [])]

    def _text_parts(self) -> list[str]:
        on = self.calibration
        calibrated = [] if on is None else [f"{on.text}-{on.samples}x{on.seqlen}-draw{on.draw}"]
        return [*calibrated, f"test-{'-'.join(self.tests)}-{self.windows}x{self.seqlen}"]


@dataclass
class Measured:
    """What was measured for a setting.

    Attributes:
        perplexity: Perplexity by test text.
        window_nll: Mean NLL of every window, by test text.
        quantize_seconds: Processor time of quantizing, including the setting's own statistics.
        evaluate_seconds: Processor time of the test text.
        device: The device that computed it.
        changed_steps: Only for `Multiply`: share of groups whose step size changed.
        step_ratio: Only for `Multiply`: mean of new over old step size.
    """

    perplexity: dict[str, float] = field(default_factory=dict)
    window_nll: dict[str, tuple[float, ...]] = field(default_factory=dict)
    quantize_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    device: str = ""
    changed_steps: float | None = None
    step_ratio: float | None = None


def walk(
    source: ModelSource,
    settings: Sequence[Setting],
    calibration: Tensor | None,
    texts: Mapping[str, Tensor],
    progress: Progress,
) -> list[Measured]:
    """Measures settings that share their calibration windows.

    Args:
        source: The model.
        settings: What to measure.
        calibration: Windows, int64 [samples, seqlen]; None if no setting needs any.
        texts: Test windows by name, int64 [at least windows, seqlen].
        progress: Receives the progress over blocks.
    """
    ends = Ends(source)
    hidden = None if calibration is None else ends.embed(calibration)
    lanes = [_Lane.start(source.spec, ends, setting, calibration, texts) for setting in settings]
    runner = BlockRunner.for_positions(source.spec, 1 if calibration is None else calibration.shape[1])
    shared = hidden is not None and any(lane.needs_original for lane in lanes)
    exact = hidden if any(lane.needs_original and lane.is_sequential for lane in lanes) else None
    with torch.no_grad(), progress.task(f"{len(settings)} settings", total=source.spec.num_layers) as advance:
        for layer in range(source.spec.num_layers):
            weights, statistics = load_block(source, layer), None
            before, exactly_before = hidden, exact
            if exact is not None:
                exact = run_block(runner, layer, weights, exact)
            if shared and hidden is not None:
                factored = with_linears_of(source.spec, weights, narrow_type())
                hidden, statistics = collect_statistics(runner, layer, factored, hidden)
            for lane in lanes:
                streams = (exactly_before, exact) if lane.is_sequential else (before, hidden)
                lane.step_(layer, weights, Original(statistics, *streams))
            advance(1)
        return [lane.measure(ends) for lane in lanes]


@dataclass(frozen=True)
class Original:
    """The outputs of a block of the unquantized model on the calibration text.

    Attributes:
        statistics: Statistics of its inputs; None if no setting needs them.
        inputs: Its inputs, fp32 [samples, seqlen, hidden_size]; None if no setting needs them.
        outputs: Its outputs, of the same shape; None if no setting needs them.
    """

    statistics: Statistics | None
    inputs: Tensor | None
    outputs: Tensor | None


class _Lane:
    """A setting on its way through the blocks."""

    def __init__(
        self, setting: Setting, runner: BlockRunner, ends: Ends, tokens: Tensor | None, tests: Mapping[str, Tensor]
    ) -> None:
        self._spec = runner.spec
        self._ends = ends
        self._setting = setting
        self._method = method_of(setting.options) if setting.options else None
        self._tune = self._method.tune if self._method is not None else None
        self._tokens = tokens
        self._calibration: Tensor | None = None
        self._finished: list[FinishedBlock] = []  # only for a method that tunes
        self._final: Tensor | None = None
        self._tests = tests
        self._hidden: dict[str, Tensor] = {}
        self._runner = runner
        self._steps = Steps()
        self._measured = Measured(device=device_name())

    @classmethod
    def start(
        cls, spec: DecoderSpec, ends: Ends, setting: Setting, calibration: Tensor | None, texts: Mapping[str, Tensor]
    ) -> _Lane:
        """Makes a lane before the first block.

        Args:
            spec: The model.
            ends: The model's ends.
            setting: The setting to measure.
            calibration: Tokens to calibrate on, int64 [samples, seqlen].
            texts: Texts to test on, by name.
        """
        longest = max(setting.seqlen, 1 if calibration is None else calibration.shape[1])
        tests = {name: texts[name][: setting.windows, : setting.seqlen] for name in setting.tests}
        lane = cls(setting, BlockRunner.for_positions(spec, longest), ends, calibration, tests)
        if calibration is not None and lane._method is not None and lane._method.sequential:
            lane._calibration = ends.embed(calibration)
        lane._hidden = {name: ends.embed(windows) for name, windows in tests.items()}
        return lane

    @property
    def needs_original(self) -> bool:
        """Whether it needs the unquantized model's activations on the calibration text."""
        if isinstance(self._setting.special, Keep):
            return self._setting.special.by == "activation"
        method = self._method
        uses_text = method is not None and method.uses_text
        if method is not None and method.sequential:
            uses_text = method.needs_original or method.tune is not None
        return isinstance(self._setting.special, Multiply) or uses_text

    @property
    def is_sequential(self) -> bool:
        """Whether it runs blocks by fp32 factors, as the quantizer does where every block follows quantized ones."""
        return self._method is not None and self._method.sequential

    def step_(self, layer: int, weights: Weights, original: Original) -> None:
        """Quantizes a block and runs the texts through it, unless the complete model is tuned before that."""
        started = time.process_time()
        quantized = self._quantize(layer, weights, original)
        quantized_at = time.process_time()
        if self._tune is None:
            self._run_tests(layer, quantized)
        self._measured.quantize_seconds += quantized_at - started
        self._measured.evaluate_seconds += time.process_time() - quantized_at

    def _run_tests(self, layer: int, weights: Weights) -> None:
        self._hidden = {name: run_block(self._runner, layer, weights, hidden) for name, hidden in self._hidden.items()}

    def _tune_(self, options: TuneOptions) -> None:
        """Tunes the complete model, then runs the texts through it."""
        assert self._tokens is not None
        assert self._final is not None
        assert self._setting.options is not None
        started = time.process_time()
        seed = self._setting.options.seed
        tuned = tune_steps(
            self._finished, Predicted(self._ends, self._runner, self._tokens, self._final, seed), options
        )
        tuned_at = time.process_time()
        for layer, (block, linears) in enumerate(zip(self._finished, tuned, strict=True)):
            self._run_tests(layer, dequantized(linears, block.plain))
        self._measured.quantize_seconds += tuned_at - started
        self._measured.evaluate_seconds += time.process_time() - tuned_at

    def measure(self, ends: Ends) -> Measured:
        """Measures perplexities, after the last block."""
        if self._tune is not None:
            self._tune_(self._tune)
        started = time.process_time()
        for name, windows in self._tests.items():
            result = _perplexity(ends, windows, self._hidden[name])
            self._measured.perplexity[name] = result.value
            self._measured.window_nll[name] = result.window_nll
        self._measured.evaluate_seconds += time.process_time() - started
        if isinstance(self._setting.special, Multiply):
            self._measured.changed_steps, self._measured.step_ratio = self._steps.changed_share, self._steps.mean_ratio
        return self._measured

    def _quantize(self, layer: int, weights: Weights, original: Original) -> Weights:
        setting, spec, method, statistics = self._setting, self._spec, self._method, original.statistics
        if method is None:
            return weights
        if setting.special is not None:
            changed = _special_block(spec, weights, statistics, setting, layer, self._steps)
        else:
            if self._calibration is not None:
                _, statistics = collect_statistics(self._runner, layer, weights, self._calibration)
            block = quantize_block(spec, layer, weights, statistics or {}, method, self._guide(layer, method, original))
            changed = dequantized(block.linears, block.norms)
            if self._tune is not None:
                self._finished.append(FinishedBlock(block.linears, block.norms))
                self._final = original.outputs
        if setting.only:
            left = [name for name in spec.block.linears if name.rpartition(".")[2] not in setting.only]
            changed.update({f"{name}.weight": weights[f"{name}.weight"] for name in left})
        if self._calibration is not None:
            self._calibration = run_block(self._runner, layer, changed, self._calibration)
        return changed

    def _guide(self, layer: int, method: BlockMethod, original: Original) -> Guide:
        """What the original block shows to a method that compares blocks with it."""
        lesson, pursuit, run, inputs = None, None, partial(self._runner.run, layer=layer), self._calibration
        if inputs is None or self._setting.options is None:
            return UNGUIDED
        if method.learn is not None and original.outputs is not None:
            lesson = Lesson(run, inputs, original.outputs, self._setting.options.seed + layer, len(inputs))
        if method.correct is not None and original.inputs is not None:
            pursuit = Pursuit(run, inputs, original.inputs)
        return Guide(lesson, pursuit=pursuit)


def device_name() -> str:
    """Name of the default device, for reports."""
    if torch.get_default_device().type == "cuda":
        return torch.cuda.get_device_name(torch.get_default_device())
    return f"CPU, {os.cpu_count()} cores"


def _perplexity(ends: Ends, windows: Tensor, hidden: Tensor) -> Perplexity:
    streams = iter(hidden)
    return perplexity(windows, lambda _: ends.logits_in_pieces(next(streams)), SilentProgress(), "perplexity")


@dataclass
class Steps:
    """Step sizes before and after channels were multiplied, over all groups of a model."""

    groups: int = 0
    changed: int = 0
    ratios: float = 0.0

    def add_(self, before: Tensor, after: Tensor) -> None:
        self.groups += before.numel()
        self.changed += int((before != after).sum())
        self.ratios += float((after / before).double().sum())

    @property
    def changed_share(self) -> float:
        return self.changed / self.groups

    @property
    def mean_ratio(self) -> float:
        return self.ratios / self.groups


def _special_block(
    spec: DecoderSpec,
    weights: Weights,
    statistics: Statistics | None,
    setting: Setting,
    layer: int,
    steps: Steps,
) -> dict[str, Tensor]:
    """A block of the study's own methods; `steps` counts what `Multiply` did to step sizes."""
    assert setting.options is not None
    scheme, changed = setting.options.scheme, dict(weights)
    inputs = {name: group.balance_layers[0] for group in spec.scale_groups() for name in group.balance_layers}
    draw = setting.calibration.draw if setting.calibration else 0
    for index, name in enumerate(spec.block.linears):
        weight = weights[f"{name}.weight"]
        magnitude = statistics[inputs[name]].magnitude() if statistics else None
        if isinstance(setting.special, Keep):
            seed = (draw * spec.num_layers + layer) * len(spec.block.linears) + index
            kept = salient_channels(weight, magnitude, setting.special, seed)
            changed[f"{name}.weight"] = keep_channels(weight, scheme, kept)
        elif isinstance(setting.special, Multiply):
            salient = salient_channels(weight, magnitude, Keep("activation", setting.special.share), 0)
            changed[f"{name}.weight"] = multiply_channels(weight, scheme, salient, setting.special.scale, steps)
    return changed


def salient_channels(weight: Tensor, magnitude: Tensor | None, keep: Keep, seed: int) -> Tensor:
    """Indices of the input channels to keep, at least one.

    Args:
        weight: fp32 [N, K].
        magnitude: Mean |activation|, fp32 [K]; needed to choose by activation.
        keep: How to choose, and how many.
        seed: Seed of a random choice.
    """
    columns = weight.shape[1]
    count = max(1, round(keep.share * columns))
    if keep.by == "random":
        return torch.randperm(columns, generator=torch.Generator().manual_seed(seed), device="cpu")[:count]
    if keep.by == "activation" and magnitude is None:
        raise ValueError("channels are chosen by activation, but there are no statistics")
    sizes = torch.linalg.vector_norm(weight, dim=0) if magnitude is None or keep.by == "weight" else magnitude
    largest: Tensor = sizes.topk(count).indices
    return largest


def keep_channels(weight: Tensor, scheme: QuantScheme, kept: Tensor) -> Tensor:
    """Returns the weight rounded to nearest, with the columns `kept` in FP16."""
    rounded = fake_quantize(weight, scheme)
    rounded[:, kept] = weight[:, kept].half().float()
    return rounded


def multiply_channels(weight: Tensor, scheme: QuantScheme, salient: Tensor, scale: float, steps: Steps) -> Tensor:
    """Q(w s) / s for the columns `salient`, and Q(w) for the rest; `steps` records step sizes before and after."""
    scales = torch.ones(weight.shape[1])
    scales[salient] = scale
    before, grouped = group_grid(to_groups(weight, scheme), scheme), to_groups(weight * scales, scheme)
    after = group_grid(grouped, scheme)
    steps.add_(before.scales, after.scales)
    rounded = (round_to_codes(grouped, after, scheme) - after.zeros) * after.scales
    return from_groups(rounded, weight.shape[1]) / scales
