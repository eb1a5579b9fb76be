"""Publishing: complete artifacts open and nothing else does, whatever stopped the run that wrote them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_artifacts import CHECKPOINT, CONTENTS, FILES, FINGERPRINT, tree, write

from awq2trt.artifact.manifest import Artifact
from awq2trt.artifact.publish import can_resume, create_artifact
from awq2trt.errors import ArtifactError, UsageError


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "one")
    write(tmp_path / "two", files=dict(reversed(FILES.items())))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_other_tools_see_no_config_before_the_end(tmp_path: Path) -> None:
    with create_artifact(tmp_path / "out", "checkpoint", FINGERPRINT) as draft:
        (draft.files / "config.json").write_bytes(b"{}")
        assert not list((tmp_path / "out").glob("[!.]*"))
        draft.publish(CHECKPOINT)
    assert (tmp_path / "out" / "config.json").is_file()


def test_adopted_files_are_copies(tmp_path: Path) -> None:
    origin = write(tmp_path / "onnx", "onnx", {"model.onnx": b"graph"})
    with create_artifact(tmp_path / "engine", "engine", FINGERPRINT) as draft:
        draft.adopt(origin.path("model.onnx"))
        (draft.files / "model.engine").write_bytes(b"e")
        engine = draft.publish(CONTENTS["engine"])
    assert engine.path("model.onnx").read_bytes() == b"graph"
    assert engine.path("model.onnx").stat().st_nlink == 1
    assert not engine.path("model.onnx").samefile(origin.path("model.onnx"))


# Writing over what is there.


def test_an_artifact_is_replaced_with_all_its_files(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, files={"config.json": b"[]"})
    assert set(tree(tmp_path)) == {"config.json", "manifest.json"}
    assert Artifact.open(tmp_path).path("config.json").read_bytes() == b"[]"


def test_a_directory_of_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(ArtifactError, match=r"not empty \(thesis\.txt\)"):
        write(tmp_path)
    assert tree(tmp_path) == {"thesis.txt": b"all of it"}
    write(tmp_path, overwrite=True)
    assert set(tree(tmp_path)) == {*FILES, "manifest.json", "thesis.txt"}


def test_an_artifact_of_another_kind_is_not_replaced(tmp_path: Path) -> None:
    write(tmp_path, "checkpoint")
    before = tree(tmp_path)
    with pytest.raises(ArtifactError, match="holds a finished checkpoint"):
        write(tmp_path, "engine")
    assert tree(tmp_path) == before
    write(tmp_path, "engine", {"model.onnx": b"graph", "model.engine": b"e"}, overwrite=True)
    assert set(tree(tmp_path)) == {"model.onnx", "model.engine", "manifest.json"}


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ArtifactError, match="cannot write here: File exists"):
        write(tmp_path / "out")
    with pytest.raises(ArtifactError, match="cannot write here: Not a directory"):
        write(tmp_path / "out" / "deeper")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ArtifactError, match="cannot write here: Permission denied"):
        write(tmp_path / "out")


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
    write(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(RuntimeError), create_artifact(tmp_path, "checkpoint", FINGERPRINT) as draft:
        (draft.files / "config.json").write_bytes(b"new")
        raise RuntimeError
    assert tree(tmp_path) == before


def test_ctrl_c_while_files_move_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.replace

    def replace(source: Path, target: str, **options: int) -> None:
        if target == "config.json":
            raise KeyboardInterrupt
        original(source, target, **options)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out")
    assert not tree(tmp_path)


def test_an_interrupted_run_is_resumed_only_with_the_same_options(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), create_artifact(tmp_path, "checkpoint", FINGERPRINT) as draft:
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
        assert (draft.scratch / "block-0").read_bytes() == b"done"
        assert not list(draft.files.iterdir())
        draft.publish(CHECKPOINT)
    assert set(tree(tmp_path)) == {"manifest.json"}


def test_without_resume_an_interrupted_run_is_forgotten(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), create_artifact(tmp_path, "checkpoint", FINGERPRINT) as draft:
        (draft.scratch / "block-0").write_bytes(b"done")
        raise KeyboardInterrupt
    with create_artifact(tmp_path, "checkpoint", FINGERPRINT) as draft:
        assert not list(draft.scratch.iterdir())


def test_resuming_nothing_starts_afresh(tmp_path: Path) -> None:
    with create_artifact(tmp_path / "out", "checkpoint", FINGERPRINT, resume=True) as draft:
        assert not list(draft.scratch.iterdir())


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import tiny_artifacts

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
    tiny_artifacts.write(directory, files={"config.json": b"old", "stale.bin": b"old"})
    for name in ("replace", "unlink", "rmdir", "mkdir", "fsync"):
        setattr(os, name, counted(getattr(os, name)))
    Path.write_text = counted(Path.write_text)
    tiny_artifacts.write(directory)

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
    command = [sys.executable, str(script), str(Path(__file__).parents[1]), str(runs)]
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
        again = write(directory)
        assert Artifact.open(directory) == again
        assert tree(directory) == tree(runs / str(steps)), f"after a kill at step {step}"
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
            write(tmp_path)
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert can_resume(tmp_path, FINGERPRINT)
    with create_artifact(tmp_path, "checkpoint", FINGERPRINT, resume=True) as draft:
        assert (draft.scratch / "block-0").read_bytes() == b"done"


def test_half_a_manifest_from_a_kill_while_it_was_written(tmp_path: Path) -> None:
    (tmp_path / ".work").mkdir()
    (tmp_path / ".work" / "manifest.json").write_text('{"files": {"conf')
    write(tmp_path)
    assert set(tree(tmp_path)) == {*FILES, "manifest.json"}


def test_a_manifest_with_a_name_that_no_file_can_have_is_no_obstacle(tmp_path: Path) -> None:
    write(tmp_path)
    manifest = tmp_path / "manifest.json"
    written = json.loads(manifest.read_text())
    written["files"]["9" * 5000] = written["files"]["config.json"]
    manifest.unlink()
    (tmp_path / ".work").mkdir()
    (tmp_path / ".work" / "manifest.json").write_text(json.dumps(written))
    write(tmp_path, files={"config.json": b"[]"}, overwrite=True)
    assert Artifact.open(tmp_path).path("config.json").read_bytes() == b"[]"


def test_a_hostile_work_directory_deletes_nothing_outside(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    manifest = write(tmp_path / "out").manifest.model_dump(mode="json")
    manifest["files"] = {"../victim": manifest["files"]["config.json"]}
    (tmp_path / "out" / "manifest.json").unlink()
    (tmp_path / "out" / ".work").mkdir()
    (tmp_path / "out" / ".work" / "manifest.json").write_text(json.dumps(manifest))
    write(tmp_path / "out")
    assert victim.read_text() == "precious"


# Directories that someone else prepared.


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A folder outside the output directory, which must be unchanged afterwards."""
    folder = tmp_path / "victim"
    (folder / "files").mkdir(parents=True)
    (folder / "files" / "deep.txt").write_text("deep")
    (folder / "precious.txt").write_text("precious")
    before = tree(folder)
    yield folder
    assert tree(folder) == before


def _named_behind_a_link(out: Path, victim: Path) -> None:
    (out / "sub").symlink_to(victim)
    value = json.loads((out / "manifest.json").read_bytes())
    value["files"]["sub/precious.txt"] = {"size_bytes": 8, "sha256": "0" * 64}
    (out / "manifest.json").write_text(json.dumps(value))


def _old_manifest_names_behind_a_link(out: Path, victim: Path) -> None:
    _named_behind_a_link(out, victim)
    (out / ".work").mkdir()
    (out / "manifest.json").rename(out / ".work" / "old-manifest.json")


def _folder_to_write_into(out: Path, victim: Path) -> None:
    shutil.rmtree(out / "plots")
    (out / "plots").symlink_to(victim)


def _scratch_file(out: Path, victim: Path) -> None:
    (out / ".work" / "scratch").mkdir(parents=True)
    (out / ".work" / "fingerprint").write_text(FINGERPRINT)
    (out / ".work" / "scratch" / "block-0").symlink_to(victim / "precious.txt")


def _second_name(out: Path, victim: Path) -> None:
    (out / ".lock").hardlink_to(victim / "precious.txt")


def _linked_manifest(out: Path, victim: Path) -> None:
    (out / "manifest.json").rename(victim.parent / "m")
    (out / "manifest.json").symlink_to(victim.parent / "m")


PREPARED: dict[str, Callable[[Path, Path], None]] = {
    "a file behind a linked folder": _named_behind_a_link,
    "the same in an interrupted run": _old_manifest_names_behind_a_link,
    "a folder that we write into": _folder_to_write_into,
    "scratch file": _scratch_file,
    "second name": _second_name,
    "pipe": lambda out, victim: os.mkfifo(out / ".lock"),
    "lock": lambda out, victim: (out / ".lock").symlink_to(victim / "precious.txt"),
    "lock to be": lambda out, victim: (out / ".lock").symlink_to(victim / "none"),
    "work": lambda out, victim: (out / ".work").symlink_to(victim),
    "manifest": _linked_manifest,
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("prepared", PREPARED)
def test_links_in_a_prepared_directory_lead_nowhere(
    tmp_path: Path, victim: Path, prepared: str, overwrite: bool
) -> None:
    out = tmp_path / "out"
    write(out)
    PREPARED[prepared](out, victim)
    with pytest.raises(ArtifactError, match=r"expected (a folder|a file|.* of our own).*outside the directory"):
        write(out, overwrite=overwrite, resume=prepared == "scratch file")


def test_the_directory_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "other disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "other disk")
    write(tmp_path / "out")
    assert set(tree(tmp_path / "other disk")) == {*FILES, "manifest.json"}


def test_a_link_in_place_of_a_file_is_removed_and_not_followed(tmp_path: Path, victim: Path) -> None:
    write(tmp_path / "out")
    (tmp_path / "out" / "config.json").unlink()
    (tmp_path / "out" / "config.json").symlink_to(victim / "precious.txt")
    write(tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_bytes() == FILES["config.json"]


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
        pytest.raises(ArtifactError, match=r"the disk is too full: 12\.3 MB are free, but at least 5\.0 MB are needed"),
        create_artifact(tmp_path / "out", "checkpoint", FINGERPRINT, expected_bytes=5_000_000) as draft,
    ):
        (draft.files / "model.safetensors").write_bytes(b"half")
        raise error
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_too_small_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(10**9, 0, 4_999_999))
    started = False
    with (
        pytest.raises(ArtifactError, match=r"5\.0 MB are free, but at least 5\.0 MB"),
        create_artifact(tmp_path, "checkpoint", FINGERPRINT, expected_bytes=5_000_000),
    ):
        started = True
    assert not started
    assert not tree(tmp_path)


def test_errors_about_other_files_stay_what_they_are(tmp_path: Path) -> None:
    with (
        pytest.raises(PermissionError),
        create_artifact(tmp_path / "out", "checkpoint", FINGERPRINT),
    ):
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/else")
