"""Finishes a kit by running its script, on this machine if it is the Jetson, or on another one over SSH.

In: a kit's directory, and where to finish it. Out: the engine, on the Jetson. What the script prints goes straight to
the terminal. It uses the programs `ssh` and `rsync` of this machine, and `rsync` of the other.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from awq2trt.engine.builder import log_of
from awq2trt.errors import BuildError, ToolError, UsageError
from awq2trt.foreign_files import reading
from awq2trt.io_contract import engine_of_graph
from awq2trt.kit.files import SCRIPT_FILE

SSH_VARIABLE: Final = "AWQ2TRT_SSH"
"""Command to use instead of `ssh`, e.g. `ssh -p 2222 -i KEY`."""

_DEVICE_TREE: Final = Path("/proc/device-tree/compatible")
_ORIN: Final = "nvidia,tegra234"
_SSH_FAILED: Final = 255
"""The exit code of ssh itself; any other is that of the remote command."""


def is_orin() -> bool:
    """Whether this machine is a Jetson Orin."""
    return platform.machine() == "aarch64" and _DEVICE_TREE.is_file() and _ORIN in _DEVICE_TREE.read_text()


def finish_here(directory: Path, options: Sequence[str]) -> None:
    """Runs the kit's script on this machine.

    Args:
        directory: The kit.
        options: Options of the script.

    Raises:
        BuildError: The script refuses or fails; the script has already printed why.
    """
    code = subprocess.run([directory / SCRIPT_FILE, *options], check=False).returncode
    if code != 0:
        raise BuildError(
            f"{SCRIPT_FILE} ended with exit code {code}; its output is above.", where=str(directory), fix=_AGAIN
        )


def ssh_command(host: str) -> list[str]:
    """Returns the command that reaches other machines, with its arguments.

    Args:
        host: `USER@HOST`, as ssh takes it.

    Raises:
        ToolError: `ssh` or `rsync` is missing here.
        UsageError: The host's name is empty or not a name.
    """
    if not host or host.startswith("-") or " " in host or not host.isprintable():
        raise UsageError(
            f"expected USER@HOST, got {host!r}.", where="--ssh", fix="name the Jetson as you would for ssh."
        )
    with reading("a command", SSH_VARIABLE, fix="correct it, or unset it to use ssh.", error=UsageError):
        ssh = shlex.split(os.environ.get(SSH_VARIABLE, "")) or ["ssh"]
    for program in (ssh[0], "rsync"):
        if shutil.which(program) is None:
            raise ToolError(f"{program} is not installed.", where="--ssh", fix=f"install {program}.")
    return ssh


def finish_over_ssh(directory: Path, names: Sequence[str], host: str, options: Sequence[str]) -> None:
    """Copies the kit to another machine, runs its script there, and brings the engine back into the kit.

    Only what differs is copied, so a second call is quick. The kit goes into `awq2trt-kits/` in the home directory.

    Args:
        directory: The kit.
        names: Its files.
        host: `USER@HOST`, as ssh takes it.
        options: Options of the script.

    Raises:
        ToolError: `ssh` or `rsync` is missing here.
        UsageError: The host's name is empty or not a name.
        BuildError: The machine cannot be reached, or the script refuses or fails; the script has already printed why.
    """
    ssh = ssh_command(host)
    there = f"awq2trt-kits/{directory.resolve().parent.name}-{directory.name}"
    _run([*ssh, host, f"mkdir -p {shlex.quote(there)}"], host)
    rsync = ["rsync", "--times", "--perms", "--partial", "--rsh", shlex.join(ssh)]
    # The files are named one by one, so that others in the kit, such as an engine that was copied back, stay here.
    files = "".join(f"{name}\n" for name in names)
    _run([*rsync, "--files-from=-", f"{directory}/", f"{host}:{there}/"], host, stdin=files)
    command = shlex.join([f"./{there}/{SCRIPT_FILE}", *options])
    _run([*ssh, host, command], host)
    _run([*rsync, *(f"{host}:{there}/{name}" for name in results_of(names)), f"{directory}/"], host)


def results_of(names: Sequence[str]) -> tuple[str, ...]:
    """Files that the script makes in a kit of these files, and that are copied back: each graph's engine and log."""
    graphs = [name for name in names if PurePosixPath(name).suffix == ".onnx"]
    engines = [engine_of_graph(name) for name in graphs]
    return (*engines, *(f"{name}.state" for name in engines), *map(log_of, graphs))


_AGAIN: Final = "do what the script asks for, then run the same command again."


def _run(command: Sequence[str], host: str, *, stdin: str | None = None) -> None:
    """Runs a command whose output goes to the terminal."""
    code = subprocess.run(command, check=False, text=True, input=stdin).returncode
    if code == 0:
        return
    if command[0] != "rsync" and code != _SSH_FAILED:
        raise BuildError(
            f"the script ended with exit code {code} on {host}; its output is above.", where="--ssh", fix=_AGAIN
        )
    raise BuildError(
        f"{command[0]} to {host} failed with exit code {code}; its output is above.",
        where="--ssh",
        fix=f"make sure that `ssh {host}` logs in without a password, and that rsync is installed on both machines.",
    )
