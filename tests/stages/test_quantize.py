"""`awq2trt quantize`: the origin in a checkpoint, equal bytes twice, and never over the model itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_builds import AWQ
from tiny_kits import RTN

from awq2trt.artifact.manifest import Artifact, record_file
from awq2trt.errors import ArtifactError, UsageError
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions
from awq2trt.scheme import QuantScheme
from awq2trt.stages.export import ExportRequest, export_stage
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage


def _tree(directory: Path) -> dict[str, str]:
    return {path.name: record_file(path).sha256 for path in directory.rglob("*") if path.is_file()}


def test_a_checkpoint_says_what_it_was_made_from(model: Path, made: Path) -> None:
    contents = Artifact.open(made / "checkpoint", kind="checkpoint").manifest.contents
    assert contents.source.model == "tiny-llama"
    assert contents.source.family == "llama"
    assert contents.source.files == {"model.safetensors": record_file(model / "model.safetensors")}
    assert contents.quantization.method == "awq"
    assert contents.quantization.scheme == QuantScheme(group_size=32)
    calibration = contents.quantization.calibration
    assert calibration is not None
    assert (calibration.text, calibration.samples, calibration.seqlen) == ("calibration.txt", 2, 16)


def test_manifests_name_no_place_of_this_machine(made: Path) -> None:
    for manifest in made.glob("*/manifest.json"):
        assert str(made) not in manifest.read_text()
        assert str(Path.home()) not in manifest.read_text()


def test_two_runs_give_the_same_bytes(model: Path, made: Path, tmp_path: Path) -> None:
    shutil.copyfile(made / "calibration.txt", tmp_path / "calibration.txt")
    options = AWQ.model_copy(update={"calib": str(tmp_path / "calibration.txt")})
    quantize_stage(QuantizeRequest(str(model), tmp_path / "checkpoint", options), SilentProgress())
    export = ExportRequest(tmp_path / "checkpoint", tmp_path / "onnx", ExportOptions(max_seq_len=64))
    export_stage(export, SilentProgress())
    assert _tree(tmp_path / "checkpoint") == _tree(made / "checkpoint")
    assert _tree(tmp_path / "onnx") == _tree(made / "onnx")


def test_the_model_itself_is_never_the_output(model: Path, made: Path) -> None:
    before = _tree(model)
    with pytest.raises(UsageError, match="the output directory is the model's own"):
        quantize_stage(QuantizeRequest(str(model), model, RTN, overwrite=True), SilentProgress())
    assert _tree(model) == before
    export = ExportRequest(made / "checkpoint", made / "checkpoint", ExportOptions(), overwrite=True)
    with pytest.raises(UsageError, match="the output directory is the checkpoint's own"):
        export_stage(export, SilentProgress())


def test_an_output_that_is_a_link_to_itself_is_the_systems_error(model: Path, made: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for output in (tmp_path / "loop", tmp_path / "loop" / "below"):
        with pytest.raises((OSError, ArtifactError), match=r"loop|link"):
            quantize_stage(QuantizeRequest(str(model), output, RTN), SilentProgress())
        with pytest.raises((OSError, ArtifactError), match=r"loop|link"):
            export_stage(ExportRequest(made / "checkpoint", output, ExportOptions()), SilentProgress())


def test_a_manifest_says_of_a_scheme_what_older_versions_read(made: Path) -> None:
    record = json.loads((made / "checkpoint" / "manifest.json").read_text())["contents"]["quantization"]["scheme"]
    assert set(record) == {"bits", "group_size", "zero_point"}


class _Notes(SilentProgress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)


@pytest.mark.parametrize("head", ["fp16", "int8"])
def test_with_a_limit_the_plan_of_memory_is_said_part_by_part(head: str, model: Path, tmp_path: Path) -> None:
    notes = _Notes()
    options = RTN.model_copy(update={"head": head})
    quantize_stage(QuantizeRequest(str(model), tmp_path / "out", options, max_memory="8G"), notes)
    plan = next(note for note in notes.said if note.startswith("planned memory: at most "))
    assert ("head " in plan) == (head == "int8")
