"""Files of golden outputs: they are written, read back, and refused if they are damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from awq2trt.artifact.golden import (
    ARRAYS_FILE,
    DESCRIPTION_FILE,
    Golden,
    GoldenCall,
    GoldenImage,
    loosen_golden_,
    read_golden,
    relative_error,
    write_golden,
)
from awq2trt.errors import ArtifactError

PREFILL = tuple(range(40, 56))
VOCAB_SIZE = 272


@pytest.fixture(scope="module")
def golden() -> Golden:
    """A conversation of three calls, and one that starts with the same token, as `checking.golden` makes them."""
    logits = np.random.default_rng(0).normal(size=(4, VOCAB_SIZE)).astype(np.float32)
    count = len(PREFILL)
    calls = (
        GoldenCall("prefill", PREFILL, 0, logits[0]),
        GoldenCall("decode-1", (56,), count, logits[1]),
        GoldenCall("decode-2", (57,), count + 1, logits[2]),
        GoldenCall("first", PREFILL[:1], 0, logits[3]),
    )
    return Golden("The sea is", 0.03, calls)


def test_files_hold_the_contracts_inputs_and_outputs(golden: Golden, tmp_path: Path) -> None:
    written = write_golden(golden, tmp_path)
    assert {path.name for path in written} == {path.name for path in tmp_path.iterdir()}
    description = json.loads((tmp_path / DESCRIPTION_FILE).read_text())
    prefill, decode = description["calls"][0], description["calls"][1]
    assert description["text"] == "The sea is"
    assert decode["files"] == {}
    raw = np.fromfile(tmp_path / prefill["files"]["input_ids"], "<i8")
    assert raw.tolist() == prefill["tokens"] == list(PREFILL)
    assert (tmp_path / prefill["files"]["cache_position"]).read_bytes() == bytes(8)
    logits = np.fromfile(tmp_path / prefill["files"]["logits"], "<f4")
    with np.load(tmp_path / ARRAYS_FILE) as arrays:
        assert arrays["decode-1.cache_position"].tolist() == [len(PREFILL)]
        assert arrays["prefill.logits"].shape == (1, 1, VOCAB_SIZE)
        np.testing.assert_array_equal(arrays["prefill.logits"][0, 0], logits)


def test_reading_gives_back_what_was_written_and_writing_again_the_same_bytes(golden: Golden, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    write_golden(golden, first)
    read = read_golden(first)
    write_golden(read, second)
    assert read.relative_tolerance == golden.relative_tolerance
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


@pytest.mark.parametrize("name", [DESCRIPTION_FILE, ARRAYS_FILE])
@pytest.mark.parametrize("content", [b"", b"{}", b"PK\x03\x04 cut short"])
def test_damaged_files_are_named(golden: Golden, tmp_path: Path, name: str, content: bytes) -> None:
    write_golden(golden, tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"golden\.json: cannot be read as|golden\.npz: cannot be read as"):
        read_golden(tmp_path)


def test_a_model_without_golden_outputs_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no golden\.json"):
        read_golden(tmp_path)


def test_relative_error_leaves_out_the_mean() -> None:
    expected = np.array([99.0, 101.0], np.float32)
    assert relative_error(np.array([99.0, 102.0], np.float32), expected) == pytest.approx(1 / np.sqrt(2))
    assert np.isnan(relative_error(np.array([np.nan, 1.0]), expected))


def test_calls_have_the_contracts_shapes() -> None:
    arrays = GoldenCall("prefill", (3, 4, 5), 0, np.zeros(7, np.float32)).arrays()
    assert {name: (array.shape, str(array.dtype)) for name, array in arrays.items()} == {
        "input_ids": ((1, 3), "int64"),
        "cache_position": ((1,), "int64"),
        "logits": ((1, 1, 7), "float32"),
    }


def test_tolerances_of_errors_of_different_origin_add_up_as_squares(golden: Golden, tmp_path: Path) -> None:
    loosen_golden_(tmp_path, 0.4)
    assert not list(tmp_path.iterdir()), "a model may have no golden outputs"
    write_golden(golden, tmp_path)
    before = json.loads((tmp_path / DESCRIPTION_FILE).read_bytes())
    loosen_golden_(tmp_path, 0.4)
    after = json.loads((tmp_path / DESCRIPTION_FILE).read_bytes())
    assert after["relative_tolerance"] == pytest.approx((golden.relative_tolerance**2 + 0.16) ** 0.5)
    assert {**after, "relative_tolerance": None} == {**before, "relative_tolerance": None}


def test_an_image_and_what_a_decoder_reads_are_kept_too(golden: Golden, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    image = GoldenImage(
        {
            "pixel_values": random.normal(size=(1, 3, 4, 4)).astype(np.float16),
            "patch_slots": np.arange(7),
        },
        random.normal(size=(5, 8)).astype(np.float32),
        0.02,
    )
    tables = {"rotary_cos": random.normal(size=(6, 4)).astype(np.float16)}
    rows = random.normal(size=(len(PREFILL), 8)).astype(np.float16)
    calls = (replace(golden.calls[0], embeddings=rows), *golden.calls[1:])
    written = write_golden(replace(golden, calls=calls, image=image, tables=tables), tmp_path)
    assert {path.name for path in written} == {path.name for path in tmp_path.iterdir()}
    assert np.array_equal(np.fromfile(tmp_path / "golden.prefill.inputs_embeds.bin", np.float16), rows.reshape(-1))
    assert np.array_equal(
        np.fromfile(tmp_path / "golden.vision.pixel_values.bin", np.float16), image.inputs["pixel_values"].reshape(-1)
    )
    assert np.array_equal(np.fromfile(tmp_path / "golden.vision.patch_slots.bin", np.int64), np.arange(7))
    stored = np.fromfile(tmp_path / "golden.rotary_cos.bin", np.float16)
    assert np.array_equal(stored, tables["rotary_cos"].reshape(-1))
    description = json.loads((tmp_path / DESCRIPTION_FILE).read_text())
    assert description["dtypes"]["inputs_embeds"] == "float16"
    back = read_golden(tmp_path)
    assert back.image is not None
    for name, array in image.inputs.items():
        np.testing.assert_array_equal(back.image.inputs[name], array)
    np.testing.assert_array_equal(back.image.embeddings, image.embeddings)
    assert back.image.relative_tolerance == 0.02
    assert len(back.calls) == len(golden.calls)
