"""Whether a command starts ranks, is one, or works alone; and contradictory flags."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tiny_builds import TEXT

from awq2trt.artifact.manifest import Artifact
from awq2trt.artifact.records import FileRecord
from awq2trt.errors import UsageError
from awq2trt.stages.many_ranks import RanksWanted, first_rank_writes, run_as_ranks, trace_of_rank

ENVIRONMENT = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)


def _as_rank_1(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def test_alone_unless_asked() -> None:
    assert run_as_ranks(RanksWanted(None, None, None), ["no such program"]) is None
    assert run_as_ranks(RanksWanted(None, 1, "cpu"), ["no such program"]) is None


def test_one_of_several_does_the_work_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    _as_rank_1(monkeypatch)
    assert run_as_ranks(RanksWanted(None, 2, None), ["no such program"]) is None
    assert run_as_ranks(RanksWanted(None, None, None), ["no such program"]) is None
    with pytest.raises(UsageError, match="3 ranks are wanted, but this process is already one of 2"):
        run_as_ranks(RanksWanted(None, 3, None), ["no such program"])


def test_the_command_runs_once_for_each_rank(tmp_path: Path) -> None:
    code = "import os, pathlib; pathlib.Path(os.environ['RANK'] + 'of' + os.environ['WORLD_SIZE']).touch()"
    script = f"import os; os.chdir({str(tmp_path)!r}); {code}"
    assert run_as_ranks(RanksWanted(None, 3, None), [sys.executable, "-c", script]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0of3", "1of3", "2of3"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (RanksWanted(2, 2, None), "got both"),
        (RanksWanted(2, None, "cuda:1"), "GPU of its own"),
        (RanksWanted(2, None, "cpu"), "GPU of its own"),
        (RanksWanted(None, 2, "cuda"), "compute on the CPU"),
    ],
)
def test_contradictions_are_refused(wanted: RanksWanted, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_as_ranks(wanted, ["no such program"])


def test_more_gpus_than_there_are_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match=r"expected 4 GPUs, but PyTorch .* finds 1") as error:
        run_as_ranks(RanksWanted(4, None, None), ["no such program"])
    assert "--gpus 1" in str(error.value)


def test_far_more_processes_than_cores_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with pytest.raises(UsageError, match="expected at most 8 processes for 2 cores, got 9") as error:
        run_as_ranks(RanksWanted(None, 9, None), ["no such program"])
    assert "--ranks 2 or fewer" in str(error.value)


def test_only_the_first_rank_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert first_rank_writes(tmp_path) == tmp_path
    _as_rank_1(monkeypatch)
    assert first_rank_writes(tmp_path) is None


def test_each_rank_has_a_trace_of_its_own_where_the_folder_exists(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert trace_of_rank(tmp_path / "trace.json") == tmp_path / "trace.json"
    _as_rank_1(monkeypatch)
    assert trace_of_rank(tmp_path / "trace.json") == tmp_path / "trace-1.json"
    assert trace_of_rank(tmp_path / "missing" / "trace.json") is None
    assert trace_of_rank(None) is None


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


@pytest.mark.slow
def test_torchrun_gives_the_bytes_of_ranks_and_of_one(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    calibration = ("--calib", str(tmp_path / "text.txt"), "--samples", "3", "--seqlen", "32", "--group-size", "32")

    def quantize(name: str, *flags: str, launcher: tuple[str, ...] = ()) -> Mapping[str, FileRecord]:
        out = tmp_path / name
        command = [sys.executable, "-m", *launcher, "awq2trt", "quantize", str(model), "-o", str(out), *calibration]
        subprocess.run([*command, *flags], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
        return Artifact.open(out, verify="full").manifest.files

    alone = quantize("alone")
    assert quantize("torchrun", launcher=TORCHRUN) == alone
    assert quantize("ranks", "--ranks", "2") == alone
