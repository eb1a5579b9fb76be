"""A stand-in for a Jetson: a folder with the files and programs that `finish.sh` uses, whose answers tests set."""

from __future__ import annotations

import hashlib
import signal
import struct
import subprocess
from pathlib import Path
from typing import Any

from awq2trt.version import __version__

TRTEXEC = """#!/bin/sh
# Records its arguments; "builds" an engine, "runs" one by writing the answer that lies in the folder above.
machine=$(dirname "$(dirname "$0")")
if [ "$1" = --help ]; then
    echo "&&&& RUNNING TensorRT.trtexec [TensorRT v$(cat "$machine/tensorrt")] [b72] # trtexec --help"
    exit 0
fi
printf '%s\\n' "$@" >>"$machine/recorded"
for argument; do
    case $argument in
    --saveEngine=*)
        echo "an engine of TensorRT $(cat "$machine/tensorrt")" >"${argument#*=}"
        [ ! -f "$machine/slow" ] || { echo $$ >"$machine/slow"; exec sleep 60; }
        ;;
    --timingCacheFile=*) echo timings >"${argument#*=}" ;;
    --dumpRawBindingsToFile) cp "$machine"/answers/* . ;;
    esac
done
echo '[E] what went wrong, if anything did'
exit "$(cat "$machine/exit")"
"""

NVCC = """#!/bin/sh
# Records its arguments; "compiles" the library.
machine=$(dirname "$(dirname "$0")")
printf '%s\\n' "$@" >"$machine/recorded"
while [ "$1" != -o ]; do shift; done
echo library >"$2"
"""


class Orin:
    """The stand-in. Attributes are its answers; set them before `finish`.

    Args:
        folder: Its folder, which is created.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cpu = "aarch64"
        self.jetson_linux = "R38"
        self.jetpack_package: str | None = None
        self.tensorrt = "101600"
        self.chip: str | None = "nvidia,tegra234"
        self.memory_mib, self.swap_mib, self.disk_mib = 60000, 0, 100000
        self.trtexec = True
        self.exit = 0
        self.tools = folder / "bin"
        self.tools.mkdir(parents=True)
        (folder / "answers").mkdir()

    @property
    def recorded(self) -> list[str]:
        """Arguments of trtexec, or of nvcc, in order."""
        path = self.folder / "recorded"
        return path.read_text().splitlines() if path.is_file() else []

    def add_compiler(self) -> None:
        """Installs nvcc and TensorRT's headers."""
        self.program("nvcc", NVCC)
        headers = self.folder / "root/usr/include/aarch64-linux-gnu"
        headers.mkdir(parents=True)
        (headers / "NvInferRuntime.h").touch()

    def program(self, name: str, script: str) -> None:
        """Installs a program."""
        (self.tools / name).write_text(script)
        (self.tools / name).chmod(0o755)

    def environment(self) -> dict[str, str]:
        """Writes down all answers of the machine, and returns variables that put it in the place of the real one."""
        root = self.folder / "root"
        for name in ("etc", "proc/device-tree"):
            (root / name).mkdir(parents=True, exist_ok=True)
        release = f"# {self.jetson_linux} (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
        (root / "etc/nv_tegra_release").write_text(release)
        if self.chip is not None:
            (root / "proc/device-tree/compatible").write_bytes(f"nvidia,p3737-0000+p3701-0005\0{self.chip}\0".encode())
        memory = {"MemTotal": 65536, "MemAvailable": self.memory_mib, "SwapFree": self.swap_mib}
        (root / "proc/meminfo").write_text("".join(f"{key}: {1024 * value} kB\n" for key, value in memory.items()))
        (self.folder / "tensorrt").write_text(f"{self.tensorrt}\n")
        (self.folder / "exit").write_text(f"{self.exit}\n")
        self.program("uname", f"#!/bin/sh\necho {self.cpu}\n")
        self.program("df", f"#!/bin/sh\necho header\necho disk 1 1 {1024 * self.disk_mib} 1% /\n")
        package = f"printf %s {self.jetpack_package}" if self.jetpack_package else "exit 1"
        self.program("dpkg-query", f"#!/bin/sh\ncase $* in *nvidia-jetpack*) {package} ;; *) exit 1 ;; esac\n")
        if self.trtexec:
            self.program("trtexec", TRTEXEC)
        return {"PATH": f"{self.tools}:/usr/bin:/bin", "AWQ2TRT_ROOT": str(root)}

    def finish(self, shell: str, kit: Path, *options: str, **how: Any) -> subprocess.CompletedProcess[str]:
        """Runs a kit's script to its end."""
        command = [shell, str(kit / "finish.sh"), *options]
        environment = self.environment()
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False, **how)

    def start(self, shell: str, kit: Path) -> subprocess.Popen[str]:
        """Starts a kit's script, with a trtexec that takes a minute."""
        (self.folder / "slow").touch()
        command = [shell, str(kit / "finish.sh")]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command,
            env=self.environment(),
            stdout=pipe,
            stderr=pipe,
            text=True,
            start_new_session=True,
            preexec_fn=_hear_signals,  # noqa: PLW1509 - this process has no threads
        )

    def trtexec_pid(self) -> int:
        """Process of the slow trtexec; 0 until it runs."""
        text = (self.folder / "slow").read_text().strip()
        return int(text) if text else 0

    def hurry(self) -> None:
        """Makes trtexec fast again."""
        (self.folder / "slow").unlink()


def _hear_signals() -> None:
    """Restores signals, since a shell cannot trap those that its parent ignores, like background jobs and nohup."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


_AARCH64_HEADER = b"\x7fELF\x02\x01" + bytes(10) + struct.pack("<HH", 3, 183) + bytes(44)


def fake_runtime_package(folder: Path) -> Path:
    """Makes a fake C++ library for aarch64 in the form in which it is installed; returns its folder."""
    (folder / "include").mkdir(parents=True)
    (folder / "include" / "awq2trt.h").write_text("/* a header */\n")
    package = folder / "lib" / "cmake" / "awq2trt"
    package.mkdir(parents=True)
    (package / "awq2trt-config-version.cmake").write_text(f'set(PACKAGE_VERSION "{__version__}")\n')
    library = folder / "lib" / "libawq2trt.so.0.1"
    library.write_bytes(_AARCH64_HEADER)
    (folder / "lib" / "libawq2trt.so").symlink_to(library.name)
    return folder


def fake_library(path: Path, *, cuda: int = 13000, architectures: str = "87-real") -> Path:
    """Writes a file that describes itself as a plugin library for aarch64, and contains nothing else."""
    text = f"awq2trt plugins: version=0.1.0 architectures={architectures} cuda={cuda}\0"
    path.write_bytes(_AARCH64_HEADER + text.encode())
    return path


def write_sums(kit: Path) -> None:
    """Updates SHA256SUMS to the current files."""
    names = [line.split("  ")[1] for line in (kit / "SHA256SUMS").read_text().splitlines()]
    lines = [f"{hashlib.sha256((kit / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (kit / "SHA256SUMS").write_text("".join(lines))
