"""Artifacts: what is whole opens, what is not is refused with the reason, whatever stopped the run that wrote it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from awq2trt.artifact.manifest import Artifact, Kind, Manifest, current_artifact, fingerprint_of, record_file
from awq2trt.artifact.publish import can_resume, create_artifact
from awq2trt.artifact.records import (
    CalibrationRecord,
    Contents,
    EngineRecord,
    FileRecord,
    ProfileRecord,
    QuantizationRecord,
    SourceRecord,
)
from awq2trt.errors import ArtifactError, UsageError
from awq2trt.io_contract import IoContract, TensorContract
from awq2trt.recipe import QuantizeOptions
from awq2trt.scheme import QuantScheme

FINGERPRINT = "f" * 64
SOURCE = SourceRecord(
    model="tiny", family="llama", files={"model.safetensors": FileRecord(size_bytes=3, sha256="0" * 64)}
)
CALIBRATION = CalibrationRecord(text="self", sha256="1" * 64, samples=2, seqlen=8, seed=0)
CHECKPOINT = Contents(
    source=SOURCE,
    quantization=QuantizationRecord(method="awq", scheme=QuantScheme(group_size=32), calibration=CALIBRATION),
)
IO = IoContract(
    inputs=(TensorContract("input_ids", "int64", ("batch", "sequence"), "New tokens."),),
    outputs=(TensorContract("logits", "float16", ("batch", 1, 7), "Logits."),),
    capacity=16,
    vocab_size=7,
    num_layers=0,
)
ENGINE = EngineRecord(
    target="rtx4090",
    compute_capabilities=("SM89",),
    flavour="tensorrt-rtx",
    tensorrt_version="1.7.1.116",
    plugin_version=None,
    profiles=(ProfileRecord(name="prefill", shortest=1, typical=512, longest=2048),),
)
CONTENTS: dict[Kind, Contents] = {
    "checkpoint": CHECKPOINT,
    "onnx": CHECKPOINT.model_copy(update={"io": IO}),
    "engine": CHECKPOINT.model_copy(update={"io": IO, "engine": ENGINE}),
}
FILES = {"config.json": b"{}", "model.safetensors": b"\x00" * 1000, "plots/alpha.svg": b"<svg/>"}


def _write(directory: Path, kind: Kind = "checkpoint", files: dict[str, bytes] = FILES, **options: bool) -> Artifact:
    with create_artifact(directory, kind, FINGERPRINT, **options) as draft:
        for name, content in files.items():
            (draft.files / name).parent.mkdir(exist_ok=True)
            (draft.files / name).write_bytes(content)
        return draft.publish(CONTENTS[kind])


def _contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("kind", ["checkpoint", "onnx", "engine"])
def test_what_was_written_is_read_back(tmp_path: Path, kind: Kind) -> None:
    written = _write(tmp_path / "a" / "b", kind)
    read = Artifact.open(tmp_path / "a" / "b", kind=kind)
    assert read == written
    assert read.manifest.contents == CONTENTS[kind]
    assert read.path("plots/alpha.svg").read_bytes() == b"<svg/>"
    assert set(_contents(read.directory)) == {*FILES, "manifest.json"}


def test_manifest_bytes(tmp_path: Path) -> None:
    """The format as other readers meet it, byte for byte; a change here is a change of the format."""
    _write(tmp_path, files={"config.json": b"{}"})
    expected = """\
    {
      "contents": {
        "engine": null,
        "io": null,
        "kit": null,
        "quantization": {
          "calibration": {
            "samples": 2,
            "seed": 0,
            "seqlen": 8,
            "sha256": "%s",
            "text": "self"
          },
          "effort": null,
          "method": "awq",
          "scheme": {
            "bits": 4,
            "group_size": 32,
            "zero_point": true
          }
        },
        "source": {
          "family": "llama",
          "files": {
            "model.safetensors": {
              "sha256": "%s",
              "size_bytes": 3
            }
          },
          "model": "tiny"
        }
      },
      "files": {
        "config.json": {
          "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
          "size_bytes": 2
        }
      },
      "fingerprint": "%s",
      "format_version": 1,
      "kind": "checkpoint",
      "tool_version": "0.1.0"
    }
    """
    expected = textwrap.dedent(expected) % ("1" * 64, "0" * 64, "f" * 64)
    assert (tmp_path / "manifest.json").read_text() == expected


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    _write(tmp_path / "one")
    _write(tmp_path / "two", files=dict(reversed(FILES.items())))
    assert _contents(tmp_path / "one") == _contents(tmp_path / "two")


def test_other_tools_see_no_config_before_the_end(tmp_path: Path) -> None:
    with create_artifact(tmp_path / "out", "checkpoint", FINGERPRINT) as draft:
        (draft.files / "config.json").write_bytes(b"{}")
        assert not list((tmp_path / "out").glob("[!.]*"))
        draft.publish(CHECKPOINT)
    assert (tmp_path / "out" / "config.json").is_file()


def test_adopted_files_are_copies(tmp_path: Path) -> None:
    origin = _write(tmp_path / "onnx", "onnx", {"model.onnx": b"graph"})
    with create_artifact(tmp_path / "engine", "engine", FINGERPRINT) as draft:
        draft.adopt(origin.path("model.onnx"))
        engine = draft.publish(CONTENTS["engine"])
    assert engine.path("model.onnx").read_bytes() == b"graph"
    assert engine.path("model.onnx").stat().st_nlink == 1
    assert not engine.path("model.onnx").samefile(origin.path("model.onnx"))


# Opening what is not whole.


def _edit(directory: Path, change: Callable[[dict[str, object]], object]) -> None:
    path = directory / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def _flip_byte(directory: Path) -> None:
    path = directory / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_flip_byte, "it was changed since"),
        (lambda d: (d / "config.json").unlink(), "it is missing"),
        (lambda d: (d / "model.safetensors").write_bytes(b"\x00" * 999), "expected 1000 bytes, got 999"),
        (lambda d: (d / "manifest.json").unlink(), "not a directory that awq2trt wrote"),
        (lambda d: (d / "manifest.json").write_text("{"), "not a manifest of awq2trt"),
        (lambda d: (d / "manifest.json").write_text("[]"), "not a manifest of awq2trt"),
        (lambda d: (d / "manifest.json").write_bytes(b"\xff\xfe"), "not a manifest of awq2trt"),
        (
            lambda d: _edit(d, lambda m: m.update(format_version=2, tool_version="9.9")),
            "the awq2trt that wrote it (9.9)",
        ),
        (lambda d: _edit(d, lambda m: m.update(surprise=1)), "surprise: Extra inputs are not permitted"),
        (lambda d: _edit(d, lambda m: m.pop("files")), "files: Field required"),
        (lambda d: _edit(d, lambda m: m.update(kind="cake")), "kind: Input should be"),
        (lambda d: _edit(d, lambda m: m["contents"]["quantization"]["scheme"].update(bits=9)), "got 9 bits"),  # type: ignore[index]
        (lambda d: _edit(d, lambda m: m.update(files={"../x": m["files"]["config.json"]})), "stay inside"),  # type: ignore[index]
        (lambda d: _edit(d, lambda m: m.update(files={"/etc/x": m["files"]["config.json"]})), "stay inside"),  # type: ignore[index]
        (shutil.rmtree, "no such directory"),
    ],
)
def test_damage_is_refused_with_the_reason(tmp_path: Path, damage: Callable[[Path], object], reason: str) -> None:
    directory = tmp_path / "out"
    _write(directory)
    damage(directory)
    with pytest.raises(ArtifactError) as raised:
        Artifact.open(directory, kind="checkpoint")
    assert reason in str(raised.value)
    assert str(directory) in str(raised.value)
    assert raised.value.fix


def test_size_only_verification_sees_lengths_but_reads_nothing(tmp_path: Path) -> None:
    _write(tmp_path)
    _flip_byte(tmp_path)
    Artifact.open(tmp_path, verify="size")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match="expected 1000 bytes, got 0"):
        Artifact.open(tmp_path, verify="size")


def test_another_kind_is_refused_and_the_command_named(tmp_path: Path) -> None:
    _write(tmp_path, "onnx")
    with pytest.raises(ArtifactError, match="expected a directory of kind 'engine', got one of kind 'onnx'") as raised:
        Artifact.open(tmp_path, kind="engine")
    assert "awq2trt build" in str(raised.value.fix)


def test_a_file_that_is_not_listed(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no model\.engine among its files"):
        _write(tmp_path).path("model.engine")


@pytest.mark.parametrize(
    ("kind", "update"),
    [("checkpoint", {"io": IO}), ("onnx", {}), ("engine", {"io": IO}), ("onnx", {"io": IO, "engine": ENGINE})],
)
def test_contents_must_fit_the_kind(kind: Kind, update: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=rf"kind {kind}: (io|engine) must be"):
        Manifest(kind=kind, fingerprint="", tool_version="", contents=CHECKPOINT.model_copy(update=update), files={})


# Writing over what is there.


def test_an_artifact_is_replaced_with_all_its_files(tmp_path: Path) -> None:
    _write(tmp_path)
    _write(tmp_path, files={"config.json": b"[]"})
    assert set(_contents(tmp_path)) == {"config.json", "manifest.json"}
    assert Artifact.open(tmp_path).path("config.json").read_bytes() == b"[]"


def test_a_directory_of_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(ArtifactError, match=r"not empty \(thesis\.txt\)"):
        _write(tmp_path)
    assert _contents(tmp_path) == {"thesis.txt": b"all of it"}
    _write(tmp_path, overwrite=True)
    assert set(_contents(tmp_path)) == {*FILES, "manifest.json", "thesis.txt"}


def test_an_artifact_of_another_kind_is_not_replaced(tmp_path: Path) -> None:
    _write(tmp_path, "checkpoint")
    before = _contents(tmp_path)
    with pytest.raises(ArtifactError, match="holds a finished checkpoint"):
        _write(tmp_path, "engine")
    assert _contents(tmp_path) == before
    _write(tmp_path, "engine", {"model.engine": b"e"}, overwrite=True)
    assert set(_contents(tmp_path)) == {"model.engine", "manifest.json"}


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ArtifactError, match="cannot write here: File exists"):
        _write(tmp_path / "out")
    with pytest.raises(ArtifactError, match="cannot write here: Not a directory"):
        _write(tmp_path / "out" / "deeper")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ArtifactError, match="cannot write here: Permission denied"):
        _write(tmp_path / "out")


# Runs that do not end well.


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), RuntimeError("bug"), SystemExit(3)], ids=repr)
def test_a_failed_run_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    with (
        pytest.raises(type(failure)),
        create_artifact(tmp_path / "out", "checkpoint", FINGERPRINT) as draft,
    ):
        (draft.files / "config.json").write_bytes(b"{")
        raise failure
    assert not (tmp_path / "out").exists()


def test_a_failed_run_leaves_the_artifact_that_was_there(tmp_path: Path) -> None:
    _write(tmp_path)
    before = _contents(tmp_path)
    with pytest.raises(RuntimeError), create_artifact(tmp_path, "checkpoint", FINGERPRINT) as draft:
        (draft.files / "config.json").write_bytes(b"new")
        raise RuntimeError
    assert _contents(tmp_path) == before


def test_ctrl_c_while_files_move_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if target.name == "config.json":
            raise KeyboardInterrupt
        return original(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path / "out")
    assert not _contents(tmp_path)


def test_an_interrupted_run_is_resumed_only_with_the_same_options(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), create_artifact(tmp_path, "checkpoint", FINGERPRINT) as draft:
        assert not draft.resumed
        (draft.scratch / "block-0").write_bytes(b"done")
        (draft.files / "half").write_bytes(b"h")
        raise KeyboardInterrupt
    assert can_resume(tmp_path, FINGERPRINT)
    assert not can_resume(tmp_path, "e" * 64)
    with pytest.raises(ArtifactError, match=r"incomplete.*--resume"):
        Artifact.open(tmp_path)
    with (
        pytest.raises(UsageError, match="cannot be resumed"),
        create_artifact(tmp_path, "checkpoint", "e" * 64, resume=True),
    ):
        pass
    with create_artifact(tmp_path, "checkpoint", FINGERPRINT, resume=True) as draft:
        assert draft.resumed
        assert (draft.scratch / "block-0").read_bytes() == b"done"
        assert not list(draft.files.iterdir())
        draft.publish(CHECKPOINT)
    assert set(_contents(tmp_path)) == {"manifest.json"}


def test_without_resume_an_interrupted_run_is_forgotten(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), create_artifact(tmp_path, "checkpoint", FINGERPRINT) as draft:
        (draft.scratch / "block-0").write_bytes(b"done")
        raise KeyboardInterrupt
    with create_artifact(tmp_path, "checkpoint", FINGERPRINT) as draft:
        assert not draft.resumed
        assert not list(draft.scratch.iterdir())


def test_resuming_nothing_starts_afresh(tmp_path: Path) -> None:
    with create_artifact(tmp_path / "out", "checkpoint", FINGERPRINT, resume=True) as draft:
        assert not draft.resumed


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_publish

def run(directory, steps):
    '''Writes an artifact over another, and dies at the given step of those that change the disk.'''
    def counted(original):
        def call(*args, **kwargs):
            nonlocal steps
            steps -= 1
            if steps < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)
        return call
    test_publish._write(directory, files={"config.json": b"old", "stale.bin": b"old"})
    for name in ("replace", "unlink", "rmdir", "write_bytes", "mkdir"):
        setattr(Path, name, counted(getattr(Path, name)))
    os.fsync = counted(os.fsync)
    os.unlink = counted(os.unlink)
    test_publish._write(directory)

step = 0
while True:
    directory = Path(sys.argv[2]) / str(step)
    child = os.fork()
    if child == 0:
        run(directory, step)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
    step += 1
print(step)
"""


def test_kill_at_any_step_leaves_the_old_artifact_the_new_one_or_none(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    script = tmp_path / "killed_run.py"
    script.write_text(KILLED_RUN)
    command = [sys.executable, str(script), str(Path(__file__).parent), str(runs)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=120)
    steps = int(output.stdout)
    assert steps > 15
    old, new = ({"config.json": b"old", "stale.bin": b"old"}, FILES)
    seen = set()
    for step in range(steps):
        directory = runs / str(step)
        try:
            artifact = Artifact.open(directory)
        except ArtifactError as error:
            seen.add("none" if "incomplete" in str(error) else str(error))
        else:
            files = {name: artifact.path(name).read_bytes() for name in artifact.manifest.files}
            assert files in (old, new)
            seen.add("old" if files == old else "new")
        again = _write(directory)
        assert Artifact.open(directory) == again
        assert _contents(directory) == _contents(runs / str(steps)), f"after a kill at step {step}"
    assert seen == {"old", "none", "new"}


LOCKING_RUN = """
import sys, time
from pathlib import Path
from awq2trt.artifact.publish import create_artifact
with create_artifact(Path(sys.argv[1]), "checkpoint", "f" * 64) as draft:
    (draft.scratch / "block-0").write_bytes(b"done")
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_directory_in_use_is_refused_until_its_owner_dies(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", LOCKING_RUN, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ArtifactError, match=rf"in use by another build \(pid {other.pid}\)"):
            _write(tmp_path)
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert can_resume(tmp_path, FINGERPRINT)
    with create_artifact(tmp_path, "checkpoint", FINGERPRINT, resume=True) as draft:
        assert (draft.scratch / "block-0").read_bytes() == b"done"


def test_half_a_manifest_from_a_kill_while_it_was_written(tmp_path: Path) -> None:
    (tmp_path / ".work").mkdir()
    (tmp_path / ".work" / "manifest.json").write_text('{"files": {"conf')
    _write(tmp_path)
    assert set(_contents(tmp_path)) == {*FILES, "manifest.json"}


def test_a_hostile_work_directory_deletes_nothing_outside(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    manifest = _write(tmp_path / "out").manifest.model_dump(mode="json")
    manifest["files"] = {"../victim": manifest["files"]["config.json"]}
    (tmp_path / "out" / "manifest.json").unlink()
    (tmp_path / "out" / ".work").mkdir()
    (tmp_path / "out" / ".work" / "manifest.json").write_text(json.dumps(manifest))
    _write(tmp_path / "out")
    assert victim.read_text() == "precious"


# A full disk.

_Usage = namedtuple("_Usage", ["total", "used", "free"])


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["errno", "quota", "text"],
)
def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(10**9, 0, 12_345_678))
    with (
        pytest.raises(ArtifactError, match=r"the disk is full: 12\.3 MB are free, and at least 5\.0 MB are needed"),
        create_artifact(tmp_path / "out", "checkpoint", FINGERPRINT, expected_bytes=5_000_000) as draft,
    ):
        (draft.files / "model.safetensors").write_bytes(b"half")
        raise error
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_too_small_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(10**9, 0, 4_999_999))
    started = False
    with (
        pytest.raises(ArtifactError, match=r"5\.0 MB are free, and at least 5\.0 MB"),
        create_artifact(tmp_path, "checkpoint", FINGERPRINT, expected_bytes=5_000_000),
    ):
        started = True
    assert not started
    assert not _contents(tmp_path)


def test_errors_about_other_files_stay_what_they_are(tmp_path: Path) -> None:
    with (
        pytest.raises(PermissionError),
        create_artifact(tmp_path / "out", "checkpoint", FINGERPRINT),
    ):
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/else")


# Fingerprints and hashes.


def test_current_means_whole_and_of_the_same_fingerprint(tmp_path: Path) -> None:
    assert current_artifact(tmp_path, "checkpoint", FINGERPRINT) is None
    written = _write(tmp_path)
    assert current_artifact(tmp_path, "checkpoint", FINGERPRINT) == written
    assert current_artifact(tmp_path, "checkpoint", "e" * 64) is None
    assert current_artifact(tmp_path, "onnx", FINGERPRINT) is None
    (tmp_path / "config.json").unlink()
    assert current_artifact(tmp_path, "checkpoint", FINGERPRINT) is None


def test_fingerprints_follow_every_input(monkeypatch: pytest.MonkeyPatch) -> None:
    base = fingerprint_of(source=SOURCE, options=QuantizeOptions())
    assert base == fingerprint_of(options=QuantizeOptions(), source=SOURCE)
    assert base != fingerprint_of(source=SOURCE, options=QuantizeOptions(seed=1))
    assert base != fingerprint_of(source=SOURCE.model_copy(update={"files": {}}), options=QuantizeOptions())
    monkeypatch.setattr("awq2trt.artifact.manifest.__version__", "99")
    assert base != fingerprint_of(source=SOURCE, options=QuantizeOptions())


def test_fingerprints_refuse_what_has_no_fixed_text() -> None:
    with pytest.raises(TypeError, match="got set"):
        fingerprint_of(names={"a", "b"})


def test_file_hashes(tmp_path: Path) -> None:
    content = os.urandom((1 << 22) + 7)
    (tmp_path / "f").write_bytes(content)
    expected = FileRecord(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    assert record_file(tmp_path / "f") == expected
