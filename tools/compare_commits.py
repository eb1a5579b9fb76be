"""Quantizes a model with two commits on this machine, in turns, and compares time, memory and perplexity.

    python tools/compare_commits.py HEAD~3 HEAD smollm2-135m-instruct [--rounds 3] [--text FILE] [-- flags ...]

Every run is a process of its own, with this Python, in a worktree of the commit that is removed afterwards. Compare CPU
seconds (user and system, all threads) if other programs run at the same time; wall seconds need a quiet machine. The
smallest figures of all rounds are printed, since disturbances only make a run longer. With --text, one program, that of
the second commit, measures the perplexity of both checkpoints. Arguments after -- are flags of `awq2trt quantize`. The
native library is not built, since the search does not use it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Run:
    """What one process needed."""

    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int

    def best(self, other: Run) -> Run:
        """The smallest figures of two runs."""
        return Run(
            min(self.cpu_seconds, other.cpu_seconds),
            min(self.wall_seconds, other.wall_seconds),
            min(self.peak_bytes, other.peak_bytes),
        )


def main() -> None:
    """Runs both commits in turns, then prints a table."""
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="commit")
    parser.add_argument("after", help="commit")
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--text", type=Path, help="measure perplexity on this file")
    arguments, flags = parser.parse_args(sys.argv[1:split]), sys.argv[split + 1 :]
    model = str(Path(arguments.model).resolve()) if Path(arguments.model).exists() else arguments.model
    with (
        tempfile.TemporaryDirectory(prefix="compare-commits-") as scratch,
        trees([arguments.before, arguments.after], Path(scratch)) as found,
    ):
        outputs = [Path(scratch) / f"checkpoint-{index}" for index in range(len(found))]
        best: dict[int, Run] = {}
        for _ in range(arguments.rounds):
            for index, (tree, output) in enumerate(zip(found, outputs, strict=True)):
                run = measure(["quantize", model, "-o", str(output), "--overwrite", *flags], tree)
                best[index] = run.best(best.get(index, run))
        perplexities = perplexities_of(outputs, arguments.text, found[-1]) if arguments.text else None
    print(table([arguments.before, arguments.after], list(best.values()), perplexities))


@contextmanager
def trees(commits: Sequence[str], scratch: Path) -> Iterator[list[Path]]:
    """Yields worktrees of some commits, which are removed at the end."""
    found = [scratch / f"tree-{index}" for index in range(len(commits))]
    git = ["git", "-C", str(REPOSITORY), "worktree"]
    try:
        for tree, commit in zip(found, commits, strict=True):
            subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        yield found
    finally:
        for tree in filter(Path.exists, found):
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


_RUN: Final = """
import atexit, re, runpy, sys
from pathlib import Path
# The memory of this program; getrusage() would count that of the process that started it, too.
peak, status = Path(sys.argv.pop(1)), Path("/proc/self/status")
atexit.register(lambda: peak.write_text(re.search(r"VmHWM:\\s*(\\d+)", status.read_text())[1]))
# An editable install's finder would find the package that is installed, whatever the path says.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
sys.path.insert(0, sys.argv.pop(1))
runpy.run_module("awq2trt", run_name="__main__", alter_sys=True)
"""
"""Runs the package in its second argument, a tree, and writes the process's peak memory in KiB into the first."""


def measure(arguments: Sequence[str], tree: Path) -> Run:
    """Runs the package of a worktree to its end.

    Raises:
        SystemExit: The run failed.
    """
    peak = tree / "peak.txt"
    command = [sys.executable, "-c", _RUN, str(peak), str(tree), *arguments]
    started = time.monotonic()
    child = subprocess.Popen(command, cwd=tree)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed in {tree}")
    return Run(usage.ru_utime + usage.ru_stime, time.monotonic() - started, 1024 * int(peak.read_text()))


def perplexities_of(checkpoints: Sequence[Path], text: Path, tree: Path) -> list[float]:
    """Measures perplexities of checkpoints on the first windows of a text, with a worktree's package."""
    results = tree / "perplexities.json"
    measure(["eval", *map(str, checkpoints), "--text", str(text.resolve()), "--json", str(results)], tree)
    return [float(result["perplexity"]["value"]) for result in json.loads(results.read_text())["results"]]


def table(commits: Sequence[str], runs: Sequence[Run], perplexities: Sequence[float] | None) -> str:
    """Formats both commits side by side, and by which factor the second is better."""
    rows = [
        ("CPU, s", [run.cpu_seconds for run in runs]),
        ("wall, s", [run.wall_seconds for run in runs]),
        ("peak memory, MB", [run.peak_bytes / 1e6 for run in runs]),
        *([("perplexity", perplexities)] if perplexities else []),
    ]
    lines = [f"{'':16s}{commits[0][:14]:>15s}{commits[1][:14]:>15s}{'ratio':>8s}"]
    lines += [f"{name:16s}{before:15.3f}{after:15.3f}{before / after:8.3f}" for name, (before, after) in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
