"""Fuzzes the readers of files that others write: `make fuzz`, or `tools/fuzz.py --seconds 600 [READER ...]`.

In: valid files, changed by hypothesis (`fuzz_mutations`). Out: how many cases each reader accepted and refused; and if
a case raised anything but an error of ours, took too long or too much memory, the smallest such file, in
build/fuzz/READER. Earlier findings are kept in tests/data/fuzz, and `make test` reads them. It exits with 1 if there is
a finding.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Final

from fuzz_readers import READERS, ROOT, Reader, outcome
from hypothesis import HealthCheck, Phase, given, seed, settings

FINDINGS: Final = ROOT / "build" / "fuzz"

SECONDS_PER_CASE: Final = 10
"""A limit: the slowest cases take half a second on a quiet machine."""

MEMORY_BYTES: Final = 3 << 30
"""Memory beyond what the process has at the start; the largest valid file here has a few kilobytes."""

_ROUND: Final = 400
"""Number of cases between two looks at the clock."""


class TooSlowError(BaseException):
    """A case took too long. It is no Exception, so that no reader mistakes it for one of its own."""


class TooMuchMemoryError(BaseException):
    """A case requested more memory than it may have."""


def read_case(reader: Reader, content: bytes) -> str | None:
    """Reads one case within its limits, like `outcome`.

    Raises:
        BaseException: The case is a finding.
    """
    previous = signal.signal(signal.SIGALRM, _too_slow)
    signal.alarm(SECONDS_PER_CASE)
    try:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            said = outcome(reader, content, Path(folder))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    if said is not None and "not enough memory" in said:
        raise TooMuchMemoryError(said)
    return said


def _too_slow(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise TooSlowError(f"more than {SECONDS_PER_CASE} s")


def fuzz(name: str, seconds: float, first_seed: int, *, findings: Path = FINDINGS) -> Path | None:
    """Fuzzes one reader in this process; returns the file of the smallest finding, None if there is none.

    Args:
        name: Name of the reader.
        seconds: How long to fuzz.
        first_seed: Seed of the first round's draws; every round has the next one.
        findings: Where findings go, in a folder with the reader's name.
    """
    reader, counts, started = READERS[name], Counter[str](), time.monotonic()
    folder = findings / name
    folder.mkdir(parents=True, exist_ok=True)
    last, smallest = folder / "last", b""  # the current case stays in `last` if it kills the process

    @settings(
        max_examples=_ROUND,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(reader.cases(reader.seeds()))
    def holds(content: bytes) -> None:
        nonlocal smallest
        if time.monotonic() - started > seconds and not smallest:
            return
        last.write_bytes(content)
        try:
            said = read_case(reader, content)
        except BaseException as error:
            smallest = content
            raise AssertionError(f"{type(error).__name__}: {error}") from error
        counts["refused" if said else "taken"] += 1

    number = first_seed
    try:
        while time.monotonic() - started < seconds:
            seed(number)(holds)()
            number += 1
    except AssertionError:
        traceback.print_exc()
        return _kept(smallest, name, folder)
    last.unlink(missing_ok=True)
    spent = time.monotonic() - started
    print(f"{name}: {counts['taken']:,} taken, {counts['refused']:,} refused in {spent:.0f} s: no finding", flush=True)
    return None


def _kept(case: bytes, name: str, folder: Path) -> Path:
    """Writes a finding of a reader into its folder; returns the file."""
    finding = folder / f"finding-{hashlib.sha256(case).hexdigest()[:12]}"
    finding.write_bytes(case)
    print(f"{name}: FOUND {finding}", flush=True)
    return finding


def _limit_process() -> None:
    """Limits this process's memory, and makes it print a traceback if Python itself crashes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    faulthandler.enable()


def main() -> int:
    """Fuzzes each reader in a process of its own, which a finding may kill."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"some of: {', '.join(READERS)}; all by default")
    parser.add_argument("--seconds", type=float, default=600, help="seconds for each reader")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="seed of the first draws")
    parser.add_argument("--here", action="store_true", help="fuzz one reader, in this process")
    arguments = parser.parse_args()
    names = arguments.readers or list(READERS)
    unknown = sorted({*names} - {*READERS})
    if unknown:
        parser.error(f"unknown reader {unknown[0]!r}, expected some of: {', '.join(READERS)}")
    if arguments.here:
        import transformers.models.auto  # noqa: F401  (counts before the limit, not as a case's memory)

        _limit_process()
        return int(any(fuzz(name, arguments.seconds, arguments.seed) is not None for name in names))
    failed = []
    for name in names:
        options = ["--seconds", str(arguments.seconds), "--seed", str(arguments.seed)]
        code = subprocess.run([sys.executable, __file__, "--here", *options, name], check=False).returncode
        if code < 0 or code > 1:
            print(f"{name}: the process died ({code}); its last case is {FINDINGS / name / 'last'}")
        if code:
            failed.append(name)
    if failed:
        print(f"findings in: {', '.join(failed)}; seed {arguments.seed}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
