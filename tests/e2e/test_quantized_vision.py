"""A run that quantizes what a model sees with: the same however it is made, and refused before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import save_pictures
from rank_processes import run_ranks
from seeing_families import options_of_sight, quantize_sight
from tiny_llava import save_llava
from tiny_models import save_llama

from awq2trt.artifact.manifest import Artifact, fingerprint_of, record_file
from awq2trt.artifact.records import FileRecord
from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.errors import UsageError
from awq2trt.models.sources.opening import open_source
from awq2trt.progress import SilentProgress
from awq2trt.quantization.job import QuantizeJob
from awq2trt.quantization.store import Store, StoredBlock
from awq2trt.quantization.vision import quantize_vision
from awq2trt.recipe import QuantizeOptions
from awq2trt.report.inspection import inspect_checkpoint
from awq2trt.stages.opening import source_record
from awq2trt.stages.quantize import (
    QuantizeRequest,
    checkpoint_bytes,
    quantize_bytes,
    quantize_fingerprint,
    quantize_on_ranks_stage,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("models") / "tiny-llava")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    save_pictures(folder, 12, captions=True)
    return folder


def _files(directory: Path) -> Mapping[str, FileRecord]:
    return Artifact.open(directory, verify="full").manifest.files


def test_the_decoder_does_not_change_with_what_it_sees_with(model: Path, pictures: Path, tmp_path: Path) -> None:
    for name, flag in (("with", True), ("without", False)):
        quantize_sight(model, tmp_path / name, pictures, quantize_vision=flag)
    both, alone = (QuantizedCheckpoint.open(tmp_path / name) for name in ("with", "without"))
    assert both.vision_linears
    assert not alone.vision_linears
    assert both.stored_names == alone.stored_names
    for name in both.stored_names:
        stored, other = both.linear(name), alone.linear(name)
        np.testing.assert_array_equal(stored.codes, other.codes, err_msg=name)
        np.testing.assert_array_equal(stored.scales, other.scales, err_msg=name)


def test_without_the_flag_a_fingerprint_is_that_of_older_versions(model: Path, pictures: Path) -> None:
    """Older versions had no such option, so what they made is current as long as it is not given."""
    source = open_source(str(model))
    record = source_record(source)
    plain = QuantizeOptions(method="rtn")
    old = {key: value for key, value in plain.model_dump(mode="json").items() if key != "quantize_vision"}
    side = {path.name: record_file(path) for path in source.side_files}
    parts: dict[str, Any] = {"kind": "checkpoint", "source": record, "side": side, "calib": None, "begun": {}}
    assert quantize_fingerprint(source, record, plain) == fingerprint_of(options=old, **parts)
    given = plain.model_copy(update={"quantize_vision": True})
    assert quantize_fingerprint(source, record, given) == fingerprint_of(
        options={**old, "quantize_vision": True}, **parts
    )


@pytest.mark.parametrize("where", ["before", "within", "stored", "merged"])
def test_an_interrupted_run_resumes_to_the_same_bytes(
    where: str, model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first linear, in the middle, with everything but the tensors stored, and with those stored."""
    quantize_sight(model, tmp_path / "whole", pictures)
    stops = 0

    def stop(*_: Any, **__: Any) -> None:
        nonlocal stops
        stops += 1
        raise KeyboardInterrupt

    def some(*given: Any) -> Any:
        found = quantize_vision(*given)
        yield next(found)
        stop()

    def keep_some(store: Store, found: StoredBlock) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr("awq2trt.quantization.store.write_tensors", stop)
            keep_vision(store, found)

    keep_vision = Store.keep_vision
    with monkeypatch.context() as patched:
        if where == "before":
            patched.setattr(QuantizeJob, "_quantize_vision", stop)
        elif where == "within":
            patched.setattr("awq2trt.quantization.job.quantize_vision", some)
        elif where == "stored":
            patched.setattr(Store, "keep_vision", keep_some)
        else:
            patched.setattr(QuantizeJob, "_write_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            quantize_sight(model, tmp_path / "resumed", pictures)
    assert stops == 1
    quantize_sight(model, tmp_path / "resumed", pictures, resume=True)
    assert _files(tmp_path / "resumed") == _files(tmp_path / "whole")


def test_what_was_stored_is_not_looked_at_again(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError

    with monkeypatch.context() as patched:
        patched.setattr(QuantizeJob, "_write_checkpoint", never)
        with pytest.raises(AssertionError):
            quantize_sight(model, tmp_path / "out", pictures)
    monkeypatch.setattr("awq2trt.quantization.job.quantize_vision", never)
    quantize_sight(model, tmp_path / "out", pictures, resume=True)
    assert QuantizedCheckpoint.open(tmp_path / "out").vision_linears


def _as_rank(model: Path, out: Path, calib: Path, changes: dict[str, Any]) -> None:
    quantize_on_ranks_stage(QuantizeRequest(str(model), out, options_of_sight(calib, **changes)), SilentProgress())


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"effort": "best"}])
def test_ranks_make_the_same_of_it(changes: dict[str, Any], model: Path, pictures: Path, tmp_path: Path) -> None:
    for count in (1, 2):
        assert run_ranks(count, _as_rank, model, tmp_path / str(count), pictures, changes) == [0] * count
    one, two = (QuantizedCheckpoint.open(tmp_path / str(count)) for count in (1, 2))
    assert one.vision_linears == two.vision_linears != ()
    for name in one.vision_linears:
        for kind, value in one.stored_tensors(name).items():
            np.testing.assert_array_equal(value, two.stored_tensors(name)[kind], err_msg=f"{name}.{kind}")
    if not changes:  # ranks that share blocks may break ties otherwise
        assert _files(tmp_path / "1") == _files(tmp_path / "2")


def test_a_model_of_text_has_nothing_to_see_with(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got a model of text, which has nothing to see with"):
        quantize_sight(save_llama(tmp_path / "model"), tmp_path / "out")


@pytest.mark.parametrize("calib", ["self", "text.txt"])
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_a_search_needs_images(calib: str, method: str, model: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("It was a bright cold day in April. " * 60)
    named = calib if calib == "self" else str(tmp_path / calib)
    with pytest.raises(UsageError, match="expected images to calibrate what the model sees with") as error:
        quantize_sight(model, tmp_path / "out", Path(named), method=method)
    assert "--method rtn" in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("calib", ["pictures", "pictures.jsonl", "text.txt", "wikitext"])
def test_a_path_that_does_not_exist_is_not_said_to_have_no_images(calib: str, model: Path, tmp_path: Path) -> None:
    """Neither is the name of a data set, none of which has images for us."""
    named = calib if calib == "wikitext" else str(tmp_path / calib)
    says = rf"--calib {named}: expected images .* but there is no such folder or file\. .*correct the path"
    with pytest.raises(UsageError, match=says):
        quantize_sight(model, tmp_path / "out", Path(named), method="awq")
    assert not (tmp_path / "out").exists()


def test_pictures_without_captions_will_do(model: Path, pictures: Path, tmp_path: Path) -> None:
    save_pictures(tmp_path / "bare", 4)
    notes = quantize_sight(model, tmp_path / "out", tmp_path / "bare")
    assert any(note.startswith("the pictures have no captions") for note in notes)
    assert QuantizedCheckpoint.open(tmp_path / "out").vision_linears


@pytest.mark.parametrize("flag", [False, True])
def test_sizes_are_known_before_and_named_after(flag: bool, model: Path, tmp_path: Path) -> None:
    options = options_of_sight(None, quantize_vision=flag)
    quantize_sight(model, tmp_path / "out", quantize_vision=flag)
    source, artifact = open_source(str(model)), Artifact.open(tmp_path / "out")
    inspection = inspect_checkpoint(artifact)
    assert checkpoint_bytes(source, options) == pytest.approx(inspection.size_bytes, rel=0.05)
    assert quantize_bytes(source, options) > checkpoint_bytes(source, options)
    assert ("codes of what it sees with" in inspection.sizes) == flag
    kept = 2 * sum(value.size for value in source.vision_tensors().values())
    assert (inspection.sizes["what it sees with"] == kept) == (not flag)
    norms = 2 * 48 * (2 * source.spec.num_layers + 1)
    assert inspection.sizes["norms"] in (norms, 2 * norms)  # in 16 bits, or as they were
    assert sum(inspection.sizes.values()) == inspection.size_bytes
