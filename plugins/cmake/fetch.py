"""Fetches what a build needs and the machine lacks from PyPI into the build folder; nothing of it is ever committed.

Usage: fetch.py tensorrt-headers|cuda FOLDER
"""

from __future__ import annotations

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
    # What CMake looks for and the wheels lack: the folder's usual name, and the library's name without its version.
    _link(folder / "lib64", "lib")
    (versioned,) = (folder / "lib").glob("libcudart.so.*")
    _link(folder / "lib" / "libcudart.so", versioned.name)


def _link(link: Path, target: str) -> None:
    if not link.exists():
        link.symlink_to(target)


def _pip(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-I", "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True
    )


if __name__ == "__main__":
    COMMANDS = {"tensorrt-headers": fetch_tensorrt_headers, "cuda": fetch_cuda}
    if len(sys.argv) != 3 or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    COMMANDS[sys.argv[1]](Path(sys.argv[2]))
