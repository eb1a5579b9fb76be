"""Fetches from PyPI what a build needs and the machine lacks, into the build folder; none of it is ever committed.

Usage: fetch.py tensorrt-headers|cuda FOLDER
       fetch.py cuda-aarch64 FOLDER NVCC
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HEADERS_WHEEL = "kernel-lens==2.0.1"
HEADERS_IN_WHEEL = "kernel_lens/include/tensorrt/"  # TensorRT 10.14.1, Apache-2.0

CUDA_WHEELS = (
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
)
CUDA_IN_WHEELS = Path("nvidia") / "cu13"
STATIC_RUNTIME = "libcudart_static.a"
AARCH64_TARGETS = ("aarch64-linux", "sbsa-linux")  # nvcc's names of Jetsons and of servers; the runtime is the same


def fetch_tensorrt_headers(folder: Path) -> None:
    """Puts NvInfer*.h into `folder`."""
    with tempfile.TemporaryDirectory() as scratch:
        _pip("download", "--no-deps", "--dest", scratch, HEADERS_WHEEL)
        (wheel,) = Path(scratch).glob("*.whl")
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.startswith(HEADERS_IN_WHEEL) and name.endswith(".h"):
                    (folder / Path(name).name).write_bytes(archive.read(name))


def fetch_cuda(folder: Path) -> None:
    """Puts nvcc, its parts and the CUDA runtime into `folder`, laid out as a toolkit."""
    with tempfile.TemporaryDirectory() as scratch:
        _pip("install", "--no-deps", "--target", scratch, *CUDA_WHEELS)
        shutil.copytree(Path(scratch) / CUDA_IN_WHEELS, folder, dirs_exist_ok=True)
    for program in (*(folder / "bin").glob("*"), *(folder / "nvvm" / "bin").glob("*")):
        program.chmod(0o755)
    _link(folder / "lib64", "lib")  # the usual name
    _link_cudart(folder / "lib")


def link_cuda_aarch64(folder: Path, nvcc: str) -> None:
    """Makes `folder` a toolkit of links to that of `nvcc`, with the aarch64 part of the CUDA runtime.

    nvcc looks for the target's part beside itself, in targets/aarch64-linux.
    """
    toolkit, version = _toolkit_of(nvcc)
    if folder.exists():
        shutil.rmtree(folder)
    target = folder / "targets" / AARCH64_TARGETS[0]
    target.mkdir(parents=True)
    (folder / "bin").mkdir()
    for program in (toolkit / "bin").iterdir():
        _link(folder / "bin" / program.name, str(program))
    _link(folder / "nvvm", str(toolkit / "nvvm"))
    _link(folder / "include", str((toolkit / "include").resolve()))
    _link(target / "include", str((toolkit / "include").resolve()))
    for name in AARCH64_TARGETS:
        if (toolkit / "targets" / name / "lib" / STATIC_RUNTIME).is_file():
            _link(target / "lib", str(toolkit / "targets" / name / "lib"))
            return
    if int(version.split(".")[0]) < 13:
        sys.exit(
            f"error: {toolkit} has no aarch64 part, and PyPI's wheels for CUDA {version} lack the static runtime.\n"
            f"  fix: install NVIDIA's package cuda-cross-aarch64 of CUDA {version}, or use CUDA 13 (CUDACXX=.../nvcc)."
        )
    with tempfile.TemporaryDirectory() as scratch:
        platform = ("--platform", "manylinux2014_aarch64", "--only-binary", ":all:")
        wheel = f"nvidia-cuda-runtime=={version}.*"
        _pip("install", "--no-deps", *platform, "--target", scratch, wheel)
        shutil.copytree(Path(scratch) / CUDA_IN_WHEELS / "lib", target / "lib")
    _link_cudart(target / "lib")


def _link_cudart(folder: Path) -> None:
    """Gives the CUDA runtime the name without a version that CMake looks for and that the wheels lack."""
    (versioned,) = folder.glob("libcudart.so.*")
    _link(folder / "libcudart.so", versioned.name)


def _toolkit_of(nvcc: str) -> tuple[Path, str]:
    """Returns the root and version of nvcc's toolkit; nvcc itself may be a link, or a script that starts another."""
    said = subprocess.run([nvcc, "--dryrun", "-x", "cu", "/dev/null"], capture_output=True, text=True, check=True)
    here = re.search(r"^#\$ _HERE_=(.+)$", said.stderr, re.MULTILINE)
    version = re.search(r"release (\d+\.\d+)", subprocess.check_output([nvcc, "--version"], text=True))
    if here is None or version is None:
        sys.exit(f"error: {nvcc} does not report where its toolkit is, or which version it has.")
    return Path(here.group(1)).parent, version.group(1)


def _link(link: Path, target: str) -> None:
    if not link.exists():
        link.symlink_to(target)


def _pip(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-I", "-m", "pip", "--quiet", "--quiet", "--disable-pip-version-check", *arguments],
        check=True,
    )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["tensorrt-headers", folder]:
            fetch_tensorrt_headers(Path(folder))
        case ["cuda", folder]:
            fetch_cuda(Path(folder))
        case ["cuda-aarch64", folder, nvcc]:
            link_cuda_aarch64(Path(folder), nvcc)
        case _:
            sys.exit(__doc__)
