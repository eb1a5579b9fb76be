"""`awq2trt bench --kernels`: measures the W4A16 or W8A16 kernels of the plugin library alone on a GPU.

In: the plugin library and the benchmark library beside it (through `kernels`), and PyTorch with CUDA on this machine.
Out: a table of microseconds, GB/s and share of the floor, beside cuBLAS fp16 and PyTorch's own INT4 kernel
(`torch._weight_int4pack_mm`) in the same run; optionally a JSON file and a plot.

The floor of a problem is the larger of two times: its bytes over the bandwidth of a device-to-device copy, and its
operations over the rate of a bare mma.sync loop, both measured in the same run. Weights rotate through at least 400 MB,
so that none of them is in the L2 cache. Launches run back to back in a CUDA graph; the time is the median over replays,
divided by the launches in one.
"""

from __future__ import annotations

import datetime
import importlib
import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from awq2trt.errors import ToolError, UsageError
from awq2trt.machine.kernels import GemmProblem, KernelConfig, Kernels, LinearTensors
from awq2trt.machine.plugin_library import find_plugin_library

ROTATED_BYTES: Final = 400_000_000
"""Bytes of weights that are read before one is used again: 8 times the H100's 50 MB L2 cache, 4 times the RTX
5090's."""

COPIED_BYTES: Final = 1 << 30

REPLAYS: Final = 15

MIN_LAUNCHES: Final = 24
"""Fewest launches in a graph, whose start costs a few microseconds once."""

TINYGEMM_MAX_TOKENS: Final = 16

MMA_ITERATIONS: Final = 4000

DEFAULT_TOKENS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048)

CODE_BITS: Final = (4, 8)

DTYPES: Final = ("float16", "bfloat16")
"""Types of x; their positions are their values in the kernels' enum."""


@dataclass(frozen=True)
class LayerShape:
    """One linear layer, y[M, N] = x[M, K] W^T."""

    k: int
    n: int

    def __str__(self) -> str:
        return f"{self.k}x{self.n}"


DEFAULT_SHAPES: Final = (
    LayerShape(4096, 4096),  # Llama-2-7B q, o
    LayerShape(4096, 12288),  # its q, k, v together
    LayerShape(4096, 22016),  # its gate and up together
    LayerShape(11008, 4096),  # its down
    LayerShape(4096, 32000),  # its lm_head
    LayerShape(8192, 28672),  # Llama-2-70B gate
)


HEAD_SHAPES: Final = (
    LayerShape(576, 49152),  # SmolLM2-135M
    LayerShape(2048, 151936),  # Qwen3-1.7B
    LayerShape(4096, 32000),  # Llama-2-7B
    LayerShape(4096, 128256),  # Llama-3-8B
)
"""Shapes of heads, which have 8-bit codes."""

HEAD_TOKENS: Final = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class WeightKind:
    """How weights are quantized.

    Attributes:
        code_bits: 4 or 8.
        group_size: G.
        zero_points: Whether there are zero points.
    """

    code_bits: int = 4
    group_size: int = 128
    zero_points: bool = True

    def groups(self, shape: LayerShape) -> int:
        """Number of groups in a layer."""
        return shape.n * math.ceil(shape.k / self.group_size)

    def packed_bytes(self, codes: int) -> int:
        """Bytes of this many codes."""
        return math.ceil(codes * self.code_bits / 8)

    def bytes(self, shape: LayerShape) -> int:
        """Bytes of a layer's codes, scales and zero points."""
        groups = self.groups(shape)
        zeros = self.packed_bytes(groups) if self.zero_points else 0
        return self.packed_bytes(shape.n * shape.k) + 2 * groups + zeros


@dataclass(frozen=True)
class Ceilings:
    """The speed that the GPU itself reaches, measured in the same run.

    Attributes:
        copy_bytes_per_us: Bytes that a large copy reads plus writes per microsecond.
        mma_flops_per_us: Rate of a bare mma.sync loop on random operands of one exponent; the floor of large problems.
        normal_mma_flops_per_us: The same on normally distributed operands, like activations and weights, if it was
            measured. It is lower on a GPU at its power limit.
    """

    copy_bytes_per_us: float
    mma_flops_per_us: float
    normal_mma_flops_per_us: float | None = None


@dataclass(frozen=True)
class Measurement:
    """The result for one shape and number of tokens."""

    shape: LayerShape
    tokens: int
    config: str
    us: float
    floor_us: float
    bytes: int
    flops: int
    cublas_us: float | None = None
    tinygemm_us: float | None = None

    @property
    def share(self) -> float:
        """Floor divided by time; 1 is perfect."""
        return self.floor_us / self.us


@dataclass(frozen=True)
class KernelReport:
    """One run of the benchmark."""

    device: str
    versions: dict[str, str]
    date: str
    group_size: int
    dtype: str
    zero_points: bool
    code_bits: int
    ceilings: Ceilings
    measurements: tuple[Measurement, ...]


def bench_kernels(
    *,
    shapes: Sequence[LayerShape] | None = None,
    tokens: Sequence[int] | None = None,
    kind: WeightKind = WeightKind(),
    dtype: str = DTYPES[0],
    baselines: bool = True,
) -> KernelReport:
    """Measures the kernels on this machine's GPU.

    Args:
        shapes: Layers to measure; None for Llama-2's, or for heads if codes have 8 bits.
        tokens: Numbers of rows of x to measure each with; None for those that such layers see.
        kind: How the weights are quantized.
        dtype: One of `DTYPES`.
        baselines: Whether to time cuBLAS and PyTorch's INT4 kernel too.

    Raises:
        UsageError: There are no kernels for `dtype` or `code_bits`.
        ToolError: There is no plugin library or no PyTorch with CUDA, or a CUDA call failed.
    """
    if dtype not in DTYPES:
        raise UsageError(f"got {dtype}, expected one of: {', '.join(DTYPES)}.", where="--dtype", fix="leave it out.")
    if kind.code_bits not in CODE_BITS:
        raise UsageError(f"got {kind.code_bits}, expected 4 or 8.", where="--code-bits", fix="leave it out.")
    of_blocks = kind.code_bits == CODE_BITS[0]
    shapes = shapes or (DEFAULT_SHAPES if of_blocks else HEAD_SHAPES)
    tokens = tokens or (DEFAULT_TOKENS if of_blocks else HEAD_TOKENS)
    library = find_plugin_library()
    torch = _torch_with_cuda()
    kernels = Kernels.load(library)
    ceilings = measure_ceilings(torch, kernels)
    measurements: list[Measurement] = []
    for shape in shapes:
        layer = RotatedLayer.random(torch, shape, kind, dtype)
        cublas = _cublas_times(torch, shape, tokens, dtype) if baselines else {}
        tinygemm = _tinygemm_times(torch, shape, tokens, kind.group_size) if baselines and of_blocks else {}
        for m in tokens:
            measured = layer.measure(kernels, m, ceilings)
            measurements.append(replace(measured, cublas_us=cublas.get(m), tinygemm_us=tinygemm.get(m)))
        del layer
        torch.cuda.empty_cache()
    return KernelReport(
        device=torch.cuda.get_device_name(),
        versions={"plugins": library.version, "torch": str(torch.__version__), "cuda": str(torch.version.cuda)},
        date=datetime.date.today().isoformat(),
        group_size=kind.group_size,
        dtype=dtype,
        zero_points=kind.zero_points,
        code_bits=kind.code_bits,
        ceilings=ceilings,
        measurements=tuple(measurements),
    )


def floor_us(byte_count: int, flops: int, ceilings: Ceilings) -> float:
    """The larger of the time to move the bytes and the time to do the arithmetic."""
    return max(byte_count / ceilings.copy_bytes_per_us, flops / ceilings.mma_flops_per_us)


def measure_ceilings(torch: Any, kernels: Kernels) -> Ceilings:
    """Measures the bandwidth of a large copy (bytes read plus written) and the rate of the bare mma.sync loop."""
    source = torch.randint(0, 1 << 30, (COPIED_BYTES // 4,), dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    # Either the driver's copy or a copying kernel is faster, depending on the GPU.
    copies = (lambda: target.copy_(source), lambda: torch.bitwise_not(source, out=target))
    copy_us = min(time_us(torch, [copy]) for copy in copies)
    sink = torch.zeros(1, device="cuda")

    def mma_rate(*, normal: bool) -> float:
        def launch() -> None:
            stream = torch.cuda.current_stream().cuda_stream
            kernels.launch_mma_ceiling(MMA_ITERATIONS, normal=normal, sink=sink.data_ptr(), stream=stream)

        return kernels.mma_ceiling_flops(MMA_ITERATIONS) / time_us(torch, [launch])

    return Ceilings(
        copy_bytes_per_us=2 * COPIED_BYTES / copy_us,
        mma_flops_per_us=mma_rate(normal=False),
        normal_mma_flops_per_us=mma_rate(normal=True),
    )


def time_us(torch: Any, launches: Sequence[Callable[[], object]]) -> float:
    """Median time of one launch; all run in turn and back to back in a CUDA graph."""
    rounds = math.ceil(MIN_LAUNCHES / len(launches))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for launch in launches[:2]:  # loads modules and makes library handles, which must not happen in a capture
            launch()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(rounds):
            for launch in launches:
                launch()
    times = []
    for _ in range(REPLAYS + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return float(statistics.median(times[2:])) / (rounds * len(launches))


@dataclass(frozen=True)
class RotatedLayer:
    """Copies of one layer, as many as needed so that none stays in the L2 cache.

    Attributes:
        torch: PyTorch.
        shape: The layer.
        kind: How its weights are quantized.
        codes: uint8 [copies, bytes of N * K codes].
        scales: fp16 or bf16 [copies, N * groups].
        zeros: uint8 [copies, bytes of N * groups codes, rounded up to 32-bit words]; None without zero points.
    """

    torch: Any
    shape: LayerShape
    kind: WeightKind
    codes: Any
    scales: Any
    zeros: Any | None

    @classmethod
    def random(cls, torch: Any, shape: LayerShape, kind: WeightKind, dtype: str) -> RotatedLayer:
        """Makes a layer with random weights on the current GPU.

        Args:
            torch: PyTorch.
            shape: The layer.
            kind: How its weights are quantized.
            dtype: One of `DTYPES`.
        """
        copies = max(2, math.ceil(ROTATED_BYTES / kind.bytes(shape)))

        def random_bytes(count: int) -> Any:
            return torch.randint(0, 256, (copies, count), dtype=torch.uint8, device="cuda")

        scales = 0.01 + 0.002 * torch.randn(copies, kind.groups(shape), device="cuda").to(getattr(torch, dtype))
        zeros = random_bytes((kind.packed_bytes(kind.groups(shape)) + 3) // 4 * 4) if kind.zero_points else None
        codes = random_bytes(kind.packed_bytes(shape.n * shape.k))
        return cls(torch, shape, kind, codes, scales, zeros)

    def measure(self, kernels: Kernels, tokens: int, ceilings: Ceilings) -> Measurement:
        """Times the kernel that the library chooses for this many rows of x."""
        problem = self.problem(tokens)
        config = kernels.choose_config(problem)
        return Measurement(
            shape=self.shape,
            tokens=tokens,
            config=str(config) if self.kind.code_bits == CODE_BITS[0] else "rows",
            us=self.time_us(kernels, problem, config),
            floor_us=floor_us(self.bytes(tokens), self.flops(tokens), ceilings),
            bytes=self.bytes(tokens),
            flops=self.flops(tokens),
        )

    def problem(self, tokens: int) -> GemmProblem:
        """Describes the problem with this many rows of x."""
        return GemmProblem(
            m=tokens,
            n=self.shape.n,
            k=self.shape.k,
            group_size=self.kind.group_size,
            dtype=DTYPES.index(str(self.scales.dtype).removeprefix("torch.")),
            has_zeros=self.zeros is not None,
            has_bias=False,
        )

    def bytes(self, tokens: int) -> int:
        """Fewest bytes through device memory: weights, x and y once each."""
        return self.kind.bytes(self.shape) + 2 * tokens * (self.shape.k + self.shape.n)

    def flops(self, tokens: int) -> int:
        """Number of multiplications and additions."""
        return 2 * tokens * self.shape.k * self.shape.n

    def time_us(self, kernels: Kernels, problem: GemmProblem, config: KernelConfig) -> float:
        """Measures the time of one launch with this configuration."""
        torch, dtype = self.torch, self.scales.dtype
        x = torch.randn(problem.m, self.shape.k, device="cuda", dtype=dtype)
        y = torch.empty(problem.m, self.shape.n, device="cuda", dtype=dtype)
        workspace = torch.empty(max(config.workspace_bytes, 16), device="cuda", dtype=torch.uint8)

        def launch_of(copy: int) -> Callable[[], None]:
            tensors = LinearTensors(
                x=x.data_ptr(),
                codes=self.codes[copy].data_ptr(),
                scales=self.scales[copy].data_ptr(),
                zeros=None if self.zeros is None else self.zeros[copy].data_ptr(),
                bias=None,
                y=y.data_ptr(),
                workspace=workspace.data_ptr(),
            )
            if self.kind.code_bits == CODE_BITS[0]:
                return lambda: kernels.launch(problem, config, tensors, torch.cuda.current_stream().cuda_stream)
            overlap = config.overlap
            return lambda: kernels.launch_bytes(
                problem, tensors, torch.cuda.current_stream().cuda_stream, overlap=overlap
            )

        return time_us(torch, [launch_of(copy) for copy in range(len(self.codes))])


def format_report(report: KernelReport) -> str:
    """Formats the table that `awq2trt bench --kernels` prints."""
    ceilings = report.ceilings
    zero_points = "zero points" if report.zero_points else "symmetric"
    lines = [
        f"{report.device}, {report.date}, "
        + ", ".join(f"{name} {version}" for name, version in report.versions.items()),
        f"W{report.code_bits}A16 {report.dtype}, group size {report.group_size}, {zero_points}; "
        f"copy {ceilings.copy_bytes_per_us / 1e6:.2f} TB/s, mma.sync {ceilings.mma_flops_per_us / 1e6:.0f} TFLOP/s"
        + (f" ({normal / 1e6:.0f} on normal operands)" if (normal := ceilings.normal_mma_flops_per_us) else ""),
        "",
        f"{'K -> N':>14} {'M':>5} {'us':>8} {'GB/s':>6} {'TFLOP/s':>8} {'floor us':>8} {'share':>6} "
        f"{'cuBLAS us':>10} {'int4pack us':>11}  kernel",
    ]
    for row in report.measurements:
        lines.append(
            f"{f'{row.shape.k} -> {row.shape.n}':>14} {row.tokens:>5} {row.us:>8.1f} {row.bytes / row.us / 1e3:>6.0f} "
            f"{row.flops / row.us / 1e6:>8.1f} {row.floor_us:>8.1f} {row.share:>6.2f} "
            f"{_or_dash(row.cublas_us):>10} {_or_dash(row.tinygemm_us):>11}  {row.config}"
        )
    return "\n".join(lines)


def write_report(report: KernelReport, path: Path) -> None:
    """Writes all numbers of a run as JSON."""
    path.write_text(json.dumps(asdict(report), indent=1) + "\n")


def plot_report(report: KernelReport, path: Path) -> None:
    """Draws the share of the floor over the number of tokens, with a line per shape."""
    matplotlib = _optional_module("matplotlib", "to plot the benchmark", "pip install matplotlib")
    matplotlib.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(8, 4.5), constrained_layout=True)
    for shape in dict.fromkeys(row.shape for row in report.measurements):
        rows = [row for row in report.measurements if row.shape == shape]
        axes.plot(
            [row.tokens for row in rows], [row.share for row in rows], marker="o", label=f"{shape.k} -> {shape.n}"
        )
    tokens = sorted({row.tokens for row in report.measurements})
    axes.set_xscale("log", base=2)
    axes.set_xticks(tokens, [str(m) for m in tokens])
    axes.set_ylim(0, 1)
    axes.set_xlabel("tokens M")
    axes.set_ylabel("share of the floor")
    axes.set_title(f"W{report.code_bits}A16 {report.dtype}, group size {report.group_size}, {report.device}")
    axes.grid(alpha=0.3)
    axes.legend(title="K -> N", ncols=2)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _cublas_times(torch: Any, shape: LayerShape, tokens: Iterable[int], dtype: str) -> dict[int, float]:
    """Microseconds of a matrix product with unquantized weights, by M."""
    copies = max(2, math.ceil(ROTATED_BYTES / (2 * shape.n * shape.k)))
    weights = torch.randn(copies, shape.n, shape.k, device="cuda", dtype=getattr(torch, dtype))
    times = {}
    for m in tokens:
        x = torch.randn(m, shape.k, device="cuda", dtype=weights.dtype)
        y = torch.empty(m, shape.n, device="cuda", dtype=weights.dtype)
        launches = [_bind(torch.mm, x, weights[i].t(), out=y) for i in range(copies)]
        times[m] = time_us(torch, launches)
    return times


def _tinygemm_times(torch: Any, shape: LayerShape, tokens: Iterable[int], group_size: int) -> dict[int, float]:
    """Microseconds of PyTorch's INT4 kernel, by M; it needs bf16 activations and group sizes of 32 to 256."""
    inner_k_tiles = 8
    if group_size not in (32, 64, 128, 256) or shape.k % (16 * inner_k_tiles) or shape.n % 8:
        return {}
    copies = max(2, math.ceil(ROTATED_BYTES / (shape.n * shape.k // 2)))
    codes = torch.randint(0, 256, (shape.n, shape.k // 2), dtype=torch.uint8, device="cuda")
    packed = [torch._convert_weight_to_int4pack(codes, inner_k_tiles).clone() for _ in range(copies)]
    scales = torch.randn(shape.k // group_size, shape.n, 2, dtype=torch.bfloat16, device="cuda")
    times = {}
    for m in (m for m in tokens if m <= TINYGEMM_MAX_TOKENS):
        x = torch.randn(m, shape.k, dtype=torch.bfloat16, device="cuda")
        launches = [_bind(torch._weight_int4pack_mm, x, weight, group_size, scales) for weight in packed]
        times[m] = time_us(torch, launches)
    return times


def _bind(function: Callable[..., object], *args: object, **kwargs: object) -> Callable[[], object]:
    return lambda: function(*args, **kwargs)


def _optional_module(name: str, purpose: str, install: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ToolError(f"{name} is needed {purpose}, but is not installed.", fix=install) from error


def _torch_with_cuda() -> Any:
    torch = _optional_module("torch", "to benchmark kernels", "pip install torch, with CUDA.")
    if not torch.cuda.is_available():
        raise ToolError(
            "benchmarking kernels needs a GPU, but PyTorch finds none.",
            where="bench --kernels",
            fix="run it on a machine with a GPU, with a PyTorch built for CUDA; see `awq2trt doctor`.",
        )
    return torch
