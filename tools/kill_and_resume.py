"""Kills `awq2trt quantize` at random moments, resumes it, and compares the result with an uninterrupted run's.

    python tools/kill_and_resume.py smollm2-135m-instruct [--kills 5] [--seed 0] [-- flags of quantize ...]

Both runs happen on this machine, each in a directory of its own below --output. If the flags start several ranks
(--ranks N, --gpus N), every kill hits one of them, drawn at random, the first kill always the writing one. Exits with 1
if a single byte differs.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from awq2trt.artifact.manifest import Artifact


def main() -> None:
    """Runs, kills, resumes, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("build/kill-and-resume"))
    parser.epilog = "Arguments after -- are flags of `awq2trt quantize`."
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments, flags = parser.parse_args(sys.argv[1:split]), sys.argv[split + 1 :]
    shutil.rmtree(arguments.output, ignore_errors=True)
    command = [sys.executable, "-m", "awq2trt", "quantize", arguments.model, *flags]

    whole, killed = arguments.output / "whole", arguments.output / "killed"
    seconds = run_whole([*command, "-o", str(whole)])
    draw = random.Random(arguments.seed)
    moments = sorted(draw.uniform(0, seconds) for _ in range(arguments.kills))
    run_until_killed([*command, "-o", str(killed), "--resume"], moments, draw)
    subprocess.run([*command, "-o", str(killed), "--resume"], check=True)
    compare(whole, killed)


def run_whole(command: list[str]) -> float:
    """Runs the command to its end, prints what it needed, and returns its seconds."""
    started = time.monotonic()
    child = subprocess.Popen(command)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit("the uninterrupted run failed")
    seconds = time.monotonic() - started
    print(f"uninterrupted: {seconds:.0f} s, peak resident memory {usage.ru_maxrss / 1e6:.2f} GB")
    return seconds


def run_until_killed(command: list[str], moments: list[float], draw: random.Random) -> None:
    """Kills the command, or one of its ranks, once at each of the moments, which are counted over all its runs."""
    for number, (before, moment) in enumerate(zip([0.0, *moments], moments, strict=False)):
        child = subprocess.Popen(command)
        try:
            child.wait(timeout=moment - before)
            print(f"finished before the kill at {moment:.0f} s")
        except subprocess.TimeoutExpired:
            ranks = ranks_of(child.pid)
            rank = draw.choice(sorted(ranks)) if ranks and number else 0
            os.kill(ranks.get(rank, child.pid), signal.SIGKILL)
            child.wait()
            whom = f"rank {rank} of {len(ranks)} " if ranks else ""
            print(f"killed {whom}after {moment - before:.1f} s, after {moment:.0f} s of work in all", flush=True)


def ranks_of(launcher: int) -> dict[int, int]:
    """Process ids of the ranks that a process has started, by their number; empty if it has started none."""
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):  # another process may end while it is looked at
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            variables = dict(line.split("=", 1) for line in (entry / "environ").read_text().split("\0") if "=" in line)
            if int(parent) == launcher and "RANK" in variables:
                found[int(variables["RANK"])] = int(entry.name)
    return found


def compare(whole: Path, killed: Path) -> None:
    """Compares every file's hash in both manifests, and on disk."""
    expected, got = (Artifact.open(directory, verify="full").manifest.files for directory in (whole, killed))
    different = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
    if different:
        raise SystemExit(f"different: {', '.join(different)}")
    for name, record in expected.items():
        print(f"same  {record.sha256}  {name}")


if __name__ == "__main__":
    main()
