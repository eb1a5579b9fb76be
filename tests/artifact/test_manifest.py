"""Manifests: what was written is read back; what is incomplete or unknown is refused with the reason."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError
from tiny_artifacts import CHECKPOINT, CONTENTS, ENGINE, FINGERPRINT, GRAPHS, SOURCE, tree, write

from awq2trt.artifact.manifest import (
    Artifact,
    Kind,
    Manifest,
    current_artifact,
    fingerprint_of,
    manifest_of,
    record_file,
    record_files,
)
from awq2trt.artifact.records import FileRecord
from awq2trt.errors import ArtifactError
from awq2trt.recipe import QuantizeOptions

LITERAL = Path(__file__).parents[1] / "data" / "manifest_format_2.json"
FORMAT = Path(__file__).parents[2] / "plugins" / "FORMAT.md"


@pytest.mark.parametrize("kind", CONTENTS)
def test_what_was_written_is_read_back(tmp_path: Path, kind: Kind) -> None:
    written = write(tmp_path / "a" / "b", kind)
    read = Artifact.open(tmp_path / "a" / "b", kind=kind)
    assert read == written
    assert read.manifest.contents == CONTENTS[kind]
    assert read.path("plots/alpha.svg").read_bytes() == b"<svg/>"
    assert set(tree(read.directory)) == {*read.manifest.files, "manifest.json", *["SHA256SUMS"] * (kind == "kit")}


def test_manifest_bytes(tmp_path: Path) -> None:
    """The format as other readers meet it, byte for byte; a change here changes the format."""
    write(tmp_path, "engine", {"model.onnx": b"graph", "model.engine": b"e"})
    assert (tmp_path / "manifest.json").read_text() == LITERAL.read_text()


def test_the_example_of_the_format_is_a_manifest() -> None:
    section = FORMAT.read_text().partition("## Manifest")[2]
    example = section.partition("```json\n")[2].partition("```")[0]
    manifest = manifest_of(json.loads(example))
    assert json.loads(manifest.to_bytes()) == json.loads(example)  # every field is there, defaults included
    assert set(manifest.contents.graphs) == {"decoder"}


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
        (lambda d: (d / "manifest.json").unlink(), "awq2trt did not write this directory"),
        (lambda d: (d / "manifest.json").write_text("{"), "cannot be read as a manifest of awq2trt"),
        (lambda d: (d / "manifest.json").write_text("[]"), "cannot be read as a manifest of awq2trt"),
        (lambda d: (d / "manifest.json").write_bytes(b"\xff\xfe"), "cannot be read as a manifest of awq2trt"),
        (
            lambda d: _edit(d, lambda m: m.update(format_version=3, tool_version="9.9")),
            "format version 3, expected 1 or 2.",
        ),
        (
            lambda d: _edit(d, lambda m: m.update(format_version=3, tool_version="9.9")),
            "the awq2trt that wrote it (9.9)",
        ),
        (
            lambda d: _edit(d, lambda m: m.update(minimum_runtime="0.10.0", surprise=1)),
            "it needs awq2trt 0.10.0 or later, but this is 0.1.0.",
        ),
        (lambda d: _edit(d, lambda m: m.update(minimum_runtime="soon")), "minimum_runtime: String should match"),
        (lambda d: _edit(d, lambda m: m.update(format_version=1, contents={})), "'io' is missing"),
        (lambda d: _edit(d, lambda m: m.update(format_version=1, contents=3)), "'int' object is not iterable"),
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
    write(directory)
    damage(directory)
    with pytest.raises(ArtifactError) as raised:
        Artifact.open(directory, kind="checkpoint")
    assert reason in str(raised.value)
    assert str(directory) in str(raised.value)
    assert raised.value.fix


def test_size_only_verification_sees_lengths_but_reads_nothing(tmp_path: Path) -> None:
    write(tmp_path)
    _flip_byte(tmp_path)
    Artifact.open(tmp_path, verify="size")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match="expected 1000 bytes, got 0"):
        Artifact.open(tmp_path, verify="size")


def test_another_kind_is_refused_and_the_command_named(tmp_path: Path) -> None:
    write(tmp_path, "onnx")
    with pytest.raises(ArtifactError, match="expected a directory of kind 'engine', got one of kind 'onnx'") as raised:
        Artifact.open(tmp_path, kind="engine")
    assert "awq2trt build" in str(raised.value.fix)


def test_a_file_that_is_not_listed(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no model\.engine among its files"):
        write(tmp_path).path("model.engine")


@pytest.mark.parametrize(
    ("kind", "update", "reason"),
    [
        ("checkpoint", {"graphs": GRAPHS}, "kind checkpoint: decoder must be absent"),
        ("onnx", {}, "kind onnx: decoder must be given"),
        ("engine", {"graphs": GRAPHS}, "kind engine: engine must be given"),
        ("onnx", {"graphs": GRAPHS, "engine": ENGINE}, "kind onnx: engine must be absent"),
        ("kit", {"graphs": GRAPHS}, "kind kit: kit must be given"),
        ("lowered", {"graphs": GRAPHS}, "kind lowered: lowered must be given"),
        ("onnx", {"graphs": GRAPHS}, r"'model\.onnx' of a graph is not among the files"),
    ],
)
def test_contents_must_fit_the_kind(kind: Kind, update: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Manifest(kind=kind, fingerprint="", tool_version="", contents=CHECKPOINT.model_copy(update=update), files={})


def test_sums_are_of_the_manifest_as_it_is_on_disk(tmp_path: Path) -> None:
    kit = write(tmp_path, "kit")
    assert (tmp_path / "SHA256SUMS").read_bytes() == kit.manifest.sums_bytes(
        record_file(tmp_path / "manifest.json").sha256
    )
    _edit(tmp_path, lambda m: None)  # other bytes of the same value
    with pytest.raises(ArtifactError, match="was changed since it was written"):
        Artifact.open(tmp_path, kind="kit")


def test_the_engine_of_a_kit_stays_inside(tmp_path: Path) -> None:
    value = json.loads(write(tmp_path, "kit").manifest.to_bytes())
    value["contents"]["graphs"]["decoder"]["engine"] = "../model.engine"
    with pytest.raises(ValidationError, match="stay inside"):
        manifest_of(value)


# Fingerprints and hashes.


def test_current_means_whole_and_of_the_same_fingerprint(tmp_path: Path) -> None:
    assert current_artifact(tmp_path, "checkpoint", FINGERPRINT) is None
    written = write(tmp_path)
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


def test_several_files_are_hashed_by_name(tmp_path: Path) -> None:
    paths = [tmp_path / f"shard-{number}" for number in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * (number << 20))
    assert record_files(iter(paths)) == {path.name: record_file(path) for path in paths}
    assert record_files(()) == {}
