"""What a model is built for: `TARGETS` has one row for each target.

A target is a GPU, a set of GPUs that one engine serves, or any machine's CPU, with the runtime that executes the model
there: TensorRT, TensorRT-RTX or ONNX Runtime. Memory and bandwidth are the vendor's figures; they bound what fits and
how fast decoding can be, and choose nothing else.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from awq2trt.errors import UsageError

_GIB: Final = 1 << 30


class Flavour(str, Enum):
    """The runtime that executes the model; the value is its usual name."""

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"
    ONNXRUNTIME = "onnxruntime"


ANY_CPU: Final = "any"
"""The `Target.cpu` of a target that runs beside any CPU."""


@dataclass(frozen=True)
class JetPack:
    """A JetPack release, as far as a kit depends on it.

    Attributes:
        version: The value of `--jetpack`.
        tensorrt: Its TensorRT, (major, minor).
        cuda: Its CUDA, (major, minor).
        fused: Whether its TensorRT has layers for attention and for an in-place cache (since 10.15), and parses opset
            24; if not, a kit's model uses basic operators of opset 20.
    """

    version: str
    tensorrt: tuple[int, int]
    cuda: tuple[int, int]
    fused: bool

    @property
    def major(self) -> int:
        """The major version; releases that share it have the same CUDA driver interface."""
        return int(self.version.split(".")[0])


# NVIDIA, "JetPack SDK" pages of the releases; our kits have not run on either.
JETPACKS: Final[Mapping[str, JetPack]] = {
    "7.2": JetPack("7.2", tensorrt=(10, 16), cuda=(13, 2), fused=True),
    "6.2": JetPack("6.2", tensorrt=(10, 3), cuda=(12, 6), fused=False),
}


DEFAULT_JETPACK: Final = "7.2"


@dataclass(frozen=True)
class Target:
    """One target.

    Attributes:
        name: The value of `--target`.
        title: Its usual name.
        compute_capabilities: (major, minor) of every GPU that an engine must run on; empty for the GPU of the
            machine that builds, and for targets without an engine.
        cpu: Architecture of the CPU, as `uname -m` prints it, or `ANY_CPU`.
        flavour: The runtime that executes the model there.
        minimum_version: The lowest version of that runtime that runs our models, (major, minor).
        cuda: The CUDA version of that runtime, (major, minor); None for a CPU.
        memory_bytes: Memory that the GPU can use, or the smallest of several GPUs; None if unknown beforehand.
        bandwidth_bytes_per_s: Bandwidth of that memory, or the smallest of several; None if unknown beforehand.
    """

    name: str
    title: str
    compute_capabilities: tuple[tuple[int, int], ...]
    cpu: str
    flavour: Flavour
    minimum_version: tuple[int, int]
    cuda: tuple[int, int] | None
    memory_bytes: int | None
    bandwidth_bytes_per_s: float | None

    @property
    def is_kit(self) -> bool:
        """Whether other machines can only prepare a kit, which the target itself has to finish.

        TensorRT builds only for the GPU it runs on; TensorRT-RTX builds for any RTX GPU anywhere.
        """
        return self.flavour is Flavour.TENSORRT

    @property
    def is_lowered(self) -> bool:
        """Whether an ONNX model for one provider of ONNX Runtime is built, and no engine."""
        return self.flavour is Flavour.ONNXRUNTIME

    @property
    def capability_names(self) -> tuple[str, ...]:
        """Compute capabilities as NVIDIA writes them: `8.6`."""
        return tuple(f"{major}.{minor}" for major, minor in self.compute_capabilities)


def _orin(name: str, title: str, memory_bytes: int, bandwidth_bytes_per_s: float) -> Target:
    """Describes a Jetson Orin module. JetPack 6.2 has TensorRT 10.3 and CUDA 12.6 (NVIDIA, "JetPack SDK 6.2")."""
    return Target(
        name=name,
        title=title,
        compute_capabilities=((8, 7),),
        cpu="aarch64",
        flavour=Flavour.TENSORRT,
        minimum_version=(10, 3),
        cuda=(12, 6),
        memory_bytes=memory_bytes,
        bandwidth_bytes_per_s=bandwidth_bytes_per_s,
    )


def _rtx(
    name: str,
    title: str,
    compute_capabilities: tuple[tuple[int, int], ...],
    memory_bytes: int | None,
    bandwidth_bytes_per_s: float | None,
) -> Target:
    """Describes RTX cards in an x86-64 machine. TensorRT-RTX 1.7 is the first to parse all we use of opset 24."""
    return Target(
        name=name,
        title=title,
        compute_capabilities=compute_capabilities,
        cpu="x86_64",
        flavour=Flavour.TENSORRT_RTX,
        minimum_version=(1, 7),
        cuda=(13, 0),
        memory_bytes=memory_bytes,
        bandwidth_bytes_per_s=bandwidth_bytes_per_s,
    )


MINIMUM_ONNXRUNTIME: Final = (1, 27)
"""Oldest usable ONNX Runtime: 1.24 lacks `TensorScatter`, 1.25 and 1.26 run the function body of the wrong overload."""

MINIMUM_CAPABILITY: Final = (8, 0)
"""Compute capability that kernels of the target `cuda` need, for `cp.async` and bf16 `mma` (PTX ISA)."""


def _provider(name: str, title: str, cuda: tuple[int, int] | None) -> Target:
    """Describes a provider of ONNX Runtime, whose CUDA wheels use CUDA 13 since 1.30."""
    return Target(
        name=name,
        title=title,
        compute_capabilities=(),
        cpu=ANY_CPU,
        flavour=Flavour.ONNXRUNTIME,
        minimum_version=MINIMUM_ONNXRUNTIME,
        cuda=cuda,
        memory_bytes=None,
        bandwidth_bytes_per_s=None,
    )


CUDA_CPUS: Final = ("x86_64", "aarch64")
"""CPUs beside a GPU of the target `cuda`: the plugin library is built for these."""

CPU_TARGET: Final = "cpu"
CUDA_TARGET: Final = "cuda"

_ALL: Final = (
    # NVIDIA, "Jetson AGX Orin Series" product page: 64 GB 256-bit LPDDR5, 204.8 GB/s.
    _orin("orin", "Jetson AGX Orin 64 GB", 64 * _GIB, 204.8e9),
    # NVIDIA, "Jetson AGX Orin Series" product page: 32 GB 256-bit LPDDR5, 204.8 GB/s.
    _orin("orin-32gb", "Jetson AGX Orin 32 GB", 32 * _GIB, 204.8e9),
    # NVIDIA, "Jetson Orin NX Series" product page: 16 GB 128-bit LPDDR5, 102.4 GB/s.
    _orin("orin-nx", "Jetson Orin NX 16 GB", 16 * _GIB, 102.4e9),
    # NVIDIA, "Jetson Orin Nano Super Developer Kit" product page: 8 GB 128-bit LPDDR5, 102 GB/s in Super mode
    # (JetPack 6.1 and later); the same module has 68 GB/s in its original power modes.
    _orin("orin-nano", "Jetson Orin Nano 8 GB (Super)", 8 * _GIB, 102e9),
    # NVIDIA, "Ampere GA102 GPU architecture" whitepaper, GeForce RTX 3090: 24 GB 384-bit GDDR6X, 936 GB/s.
    _rtx("rtx3090", "GeForce RTX 3090", ((8, 6),), 24 * _GIB, 936e9),
    # NVIDIA, "GeForce RTX 40 Series Laptops" product page: RTX 4070, 8 GB 128-bit GDDR6; at 16 Gbit/s a pin, 256 GB/s.
    _rtx("rtx4070-laptop", "GeForce RTX 4070 Laptop", ((8, 9),), 8 * _GIB, 256e9),
    # NVIDIA, "Ada GPU architecture" whitepaper, GeForce RTX 4090: 24 GB 384-bit GDDR6X, 1008 GB/s.
    _rtx("rtx4090", "GeForce RTX 4090", ((8, 9),), 24 * _GIB, 1008e9),
    # NVIDIA, "GeForce RTX 5090" product page: 32 GB 512-bit GDDR7, 1792 GB/s.
    _rtx("rtx5090", "GeForce RTX 5090", ((12, 0),), 32 * _GIB, 1792e9),
    _rtx("rtx", "any GeForce RTX 30, 40 or 50", ((8, 6), (8, 9), (12, 0)), None, None),
    _rtx("host", "the GPU of this machine", (), None, None),
    _provider(CUDA_TARGET, "any NVIDIA GPU of compute capability 8.0 or later", (13, 0)),
    _provider(CPU_TARGET, "any machine's CPU", None),
)

TARGETS: Final[Mapping[str, Target]] = {target.name: target for target in _ALL}


def find_target(name: str) -> Target:
    """Returns the target called `name`.

    Raises:
        UsageError: There is no such target; the message names the closest.
    """
    if name in TARGETS:
        return TARGETS[name]
    closest = difflib.get_close_matches(name.lower(), TARGETS, n=1, cutoff=0.0)[0]
    raise UsageError(
        f"unknown target {name!r}, expected one of: {', '.join(TARGETS)}.",
        where="--target",
        fix=f"did you mean {closest}? `awq2trt targets` describes them all.",
    )


def find_jetpack(version: str) -> JetPack:
    """Returns the JetPack release called `version`.

    Raises:
        UsageError: Kits are not made for it.
    """
    if version in JETPACKS:
        return JETPACKS[version]
    raise UsageError(
        f"unknown JetPack {version!r}, expected one of: {', '.join(JETPACKS)}.",
        where="--jetpack",
        fix="`cat /etc/nv_tegra_release` on the Jetson says R36 for JetPack 6, R38 or more for JetPack 7.",
    )
