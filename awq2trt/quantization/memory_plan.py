"""Plans how much memory quantizing a model takes at most, part by part, before it begins.

In: the model's shapes, the method, the calibration windows. Out: `MemoryPlan`. Tensors are counted, each as often as
copies of it exist at the same time; memory that the process already holds is added. Second moments of inputs, the
largest part for a model with wide MLPs, may be kept in files after calibration. That is all that a small limit changes,
and it changes no bit of the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from awq2trt.checkpoint.writer import SHARD_BYTES
from awq2trt.errors import UsageError
from awq2trt.models.families import DecoderSpec, ScaleGroup, SeeingSpec
from awq2trt.quantization.dealing import PIECE_WEIGHTS
from awq2trt.quantization.head import JUDGED_TOKENS, PIECE_ROWS
from awq2trt.quantization.method import BlockMethod
from awq2trt.quantization.vision import VisionLinears

_FP32: Final = 4
_FP64: Final = 8

_SEARCH_COPIES: Final = 7
"""Copies of a piece of rows while its grids are searched: weights, candidates, differences, their products, codes."""

_DESCENT_COPIES: Final = 12
"""The same copies while codes descend."""

_GPTQ_MATRICES: Final = 2
"""Matrices [K, K] beside E[x x^T]: its copy and its factor; both are smaller where only the factor is kept."""

_GPTQ_COPIES: Final = 7
"""Copies of a piece of rows that GPTQ rounds: weights, what is left of them, codes, grids, and those of a panel."""

_LEARN_COPIES: Final = 14
"""Copies of a block's weights while it learns: offsets, gradients, codes, the graph of operations, the best state so
far."""

_ACTIVATIONS: Final = 6
"""Number of a window's widest activations that exist at the same time."""

_SLACK: Final = 1.1
"""What an allocator keeps in addition to what was requested, as a factor."""


@dataclass(frozen=True)
class Job:
    """The work that is planned.

    Attributes:
        spec: The model.
        method: How a block is quantized.
        samples: Number of calibration windows.
        seqlen: Number of tokens in each.
        writes_text: Whether the model writes its calibration text, for which all of it is in memory.
        head: Whether the head is quantized, too.
        sees: Whether the windows have images, of which deepstack adds features behind the first blocks.
        ranks: Number of ranks that do the work.
        on_gpu: Whether it is a GPU's memory that is planned, in which no packed blocks are.
        vision: What the model sees with, if it is quantized.
    """

    spec: DecoderSpec
    method: BlockMethod
    samples: int
    seqlen: int
    writes_text: bool
    head: bool = False
    sees: bool = False
    ranks: int = 1
    on_gpu: bool = False
    vision: SeeingSpec | None = None


@dataclass(frozen=True)
class MemoryPlan:
    """How much memory is needed.

    Attributes:
        parts: Bytes of each part of the work by name, in order.
        statistics_on_disk: Whether second moments are kept in files after calibration.
        resident_bytes: Memory that the process already holds.
    """

    parts: Mapping[str, int]
    statistics_on_disk: bool
    resident_bytes: int

    @property
    def peak_bytes(self) -> int:
        """The largest number of bytes at any time."""
        return self.resident_bytes + max(self.parts.values())

    def describe(self) -> str:
        """Describes the plan in one line."""
        parts = ", ".join(f"{name} {_gib(value + self.resident_bytes)}" for name, value in self.parts.items())
        where = "; second moments on disk" if self.statistics_on_disk else ""
        return f"planned memory: at most {_gib(self.peak_bytes)} GiB; {parts}{where}"


def plan_memory(job: Job, resident_bytes: int, limit_bytes: int | None = None) -> MemoryPlan:
    """Returns the fastest plan within a limit.

    Args:
        job: The work.
        resident_bytes: Memory that the process already holds.
        limit_bytes: Most bytes for any part; None for no limit.

    Raises:
        UsageError: No plan stays below the limit.
    """
    plans = [MemoryPlan(_parts(job, on_disk), on_disk, resident_bytes) for on_disk in (False, True)]
    for plan in plans:
        if limit_bytes is None or plan.peak_bytes <= limit_bytes:
            return plan
    least = min(plans, key=lambda plan: plan.peak_bytes)
    part = max(least.parts, key=least.parts.__getitem__)
    fix = f"use --max-memory {math.ceil(least.peak_bytes / 2**20)}M or more"
    if job.writes_text and part == "text":
        fix += "; or name a text with --calib, so that the model does not have to write one"
    raise UsageError(
        f"{_gib(limit_bytes or 0)} GiB are too little: at least {_gib(least.peak_bytes)} GiB are needed, "
        f"by the part {part!r}.",
        where="--max-memory",
        fix=f"{fix}.",
    )


def _parts(job: Job, on_disk: bool) -> dict[str, int]:
    spec, method, parts = job.spec, job.method, dict[str, int]()
    shapes = {name: spec.linear_shape(name) for name in spec.block.linears}
    block = _FP32 * spec.block_size()
    outer = sum(map(math.prod, spec.outer_shapes().values()))
    streams, behind = _streams(job) * _stream(job), _behind(job)
    groups, read = spec.scale_groups(), _FP32 if method.uses_text else 0
    widths = [spec.linear_shape(group.balance_layers[0])[1] for group in groups]
    moments, widest = read * sum(width**2 for width in widths), read * max(widths) ** 2
    piece = _FP32 * max(min(PIECE_WEIGHTS, math.prod(shape)) for shape in shapes.values())
    linear, codes = _FP32 * max(map(math.prod, shapes.values())), sum(map(math.prod, shapes.values()))
    copies = _DESCENT_COPIES if method.search and method.search.code_passes else _SEARCH_COPIES
    kept = 0 if on_disk else moments
    activations = _ACTIVATIONS * _FP32 * job.seqlen * max(*widths, spec.num_heads * job.seqlen)
    if job.writes_text:
        cache = 2 * job.samples * job.seqlen * spec.num_kv_heads * spec.head_dim
        parts["text"] = spec.num_layers * (block + _FP32 * cache) + _FP32 * outer
    # A block is read in half precision and widened; its linears are narrowed again for bf16 products.
    parts["calibrate"] = block + block // 2 + moments + activations + streams + behind
    if method.search:
        trial = max(_scale_search(spec, group, method) for group in groups)
        parts["scales"] = 2 * block + kept + trial + streams + behind
    # As it is and folded; what finished codes stand for; and corrected, if it is still to learn.
    blocks = 2 + bool(method.correct) + bool(method.correct and method.learn)
    parts["codes"] = blocks * block + kept + widest + copies * piece + codes + 2 * linear + streams + behind
    if method.correct:  # two moments of the widest input, the matrix to solve with and its factor
        most = _FP32 * max(length * width for length, width in _group_shapes(spec))
        parts["correct"] = blocks * block + kept + 4 * widest + 4 * most + codes + streams + 2 * activations
    if matrices := _gptq_matrices(method, widths):
        parts["gptq"] = parts["codes"] + (_GPTQ_COPIES - copies) * piece + matrices
    if method.uses_text:
        parts["report"] = 2 * block + kept + _reported(spec, method) + 5 * piece + 2 * codes + streams + behind
    if method.learn:
        parts["learn"] = _LEARN_COPIES * block + kept + streams + method.learn.windows * activations
    if method.tune:
        whole = spec.num_layers * codes
        parts["tune"] = whole + 3 * block + 2 * _FP32 * outer + method.tune.windows * activations * 4 + streams
    parts.update({name: value + streams for name, value in _beside_blocks(job).items()})
    parts["write"] = _write(spec)
    return {name: round(_SLACK * value) for name, value in parts.items()}


def _beside_blocks(job: Job) -> dict[str, int]:
    """What is quantized while the streams of the blocks are still held: the head and the vision tower."""
    parts = {"head": _head(job)} if job.head else {}
    return parts if job.vision is None else parts | {"vision": _vision(job, job.vision)}


def _streams(job: Job) -> int:
    """Residual streams at the same time, and as many as deepstack adds features to."""
    return (4 if job.method.needs_original else 2) + (job.spec.deepstack if job.sees else 0)


def _stream(job: Job) -> int:
    """A residual stream."""
    return _FP32 * job.samples * job.seqlen * job.spec.hidden_size


def _behind(job: Job) -> int:
    """What the first rank has of blocks that ranks took in turn and that are not stored yet.

    These are the streams behind a block of each rank and behind the one that is being stored, codes of its own block,
    and two packed blocks, one of them in two copies.
    """
    if not job.method.blocks_apart or job.ranks == 1:
        return 0
    codes = sum(math.prod(job.spec.linear_shape(name)) for name in job.spec.block.linears)
    return (job.ranks + 1) * _stream(job) + (0 if job.on_gpu else codes + 3 * codes // 2)


def _gptq_matrices(method: BlockMethod, widths: Sequence[int]) -> int:
    """What GPTQ's matrices [K, K] take beside E[x x^T], of the widest input whose codes compensate; 0 if none do."""
    widest = max((width for width in widths if width <= method.compensated_width), default=0)
    return _GPTQ_MATRICES * (_FP64 if method.gptq else _FP32) * widest**2


def _reported(spec: DecoderSpec, method: BlockMethod) -> int:
    """E[x x^T] of an input as it is, and for a shared one the damped one and its factor, which other linears need."""
    matrices = list[int]()
    for group in spec.scale_groups():
        width = spec.linear_shape(group.balance_layers[0])[1]
        shared = len(group.balance_layers) > 1
        matrices.append((1 + shared + (shared and width <= method.compensated_width)) * width**2)
    return _FP32 * max(matrices)


def _scale_search(spec: DecoderSpec, group: ScaleGroup, method: BlockMethod) -> int:
    """E[x x^T] of a group's input, plus its weights three times for their magnitudes, or the rows of one trial."""
    shapes = [spec.linear_shape(name) for name in group.balance_layers]
    width, rows = shapes[0][1], sum(length for length, _ in shapes)
    tried = min(rows, method.search.scales.rows(rows, width)) if method.search else 0
    return _FP32 * (width**2 + max(3 * rows, rows + 6 * tried) * width)


def _head(job: Job) -> int:
    """The head as stored, codes as found and as joined of two candidates, a piece's grids; probabilities of tokens."""
    spec, tokens = job.spec, min(JUDGED_TOKENS, job.samples * job.seqlen) if job.method.uses_text else 0
    weights, piece = spec.vocab_size * spec.hidden_size, min(PIECE_ROWS, spec.vocab_size) * spec.hidden_size
    return (2 + 3) * weights + _FP32 * (_SEARCH_COPIES * piece + 4 * tokens * spec.vocab_size)


def _vision(job: Job, vision: SeeingSpec) -> int:
    """What a model sees with in fp32, its codes, moments of its inputs, and what is made of the widest to round rows.

    Three matrices of the widest input are E[x x^T], what grids see of it, and what the report reads.
    """
    linears, method = VisionLinears.of(vision), job.method
    weights = _FP32 * sum(map(math.prod, vision.shapes().values()))
    coded, largest = (count(map(math.prod, linears.shapes.values())) for count in (sum, max))
    piece = _DESCENT_COPIES * _FP32 * min(PIECE_WEIGHTS, largest)
    rounded = weights + coded + piece + 2 * _FP32 * largest
    if not method.uses_text:
        return rounded
    widths = [width for _, width in linears.shapes.values()]
    return rounded + linears.moments_bytes + 3 * _FP32 * max(widths) ** 2 + _gptq_matrices(method, widths)


def _write(spec: DecoderSpec) -> int:
    """A tensor outside the blocks as it is read and as it is stored; or a file that is being written, twice."""
    sizes = [math.prod(shape) for shape in spec.outer_shapes().values()]
    codes = spec.num_layers * sum(math.prod(spec.linear_shape(name)) for name in spec.block.linears)
    file = max(2 * max(sizes), min(SHARD_BYTES, 2 * sum(sizes) + codes))
    return max((_FP32 + 2) * max(sizes), 2 * file)


def _group_shapes(spec: DecoderSpec) -> Iterator[tuple[int, int]]:
    """Rows of all linears that share an input, and its width."""
    for group in spec.scale_groups():
        shapes = [spec.linear_shape(name) for name in group.balance_layers]
        yield sum(length for length, _ in shapes), shapes[0][1]


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f}"
