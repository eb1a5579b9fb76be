"""Image files of every kind: the right picture, or one clear error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from pictures import picture
from PIL import Image
from transformers.image_transforms import convert_to_rgb
from transformers.image_utils import load_image

from awq2trt.errors import UsageError
from awq2trt.images.read import read_image


def test_rgb_is_itself(tmp_path: Path) -> None:
    Image.fromarray(picture(7, 5)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), picture(7, 5))


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "I;16", "LAB"])
def test_modes_are_converted_as_transformers_does(mode: str, tmp_path: Path) -> None:
    kind = {"CMYK": "jpeg", "YCbCr": "jpeg", "LAB": "tiff"}.get(mode, "png")
    path = tmp_path / f"a.{kind}"
    grey = Image.fromarray(picture(9, 12)).convert("L")
    image = (
        Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
        if mode == "I;16"
        else Image.fromarray(picture(9, 12)).convert(mode)
    )
    image.save(path)
    got = read_image(path)
    assert got.shape == (9, 12, 3)
    np.testing.assert_array_equal(got, np.asarray(load_image(str(path))))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_white(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(picture(6, 8)).convert(mode)
    alpha = np.linspace(0, 255, 48).astype(np.uint8).reshape(6, 8)
    image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / "a.png")
    got = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(got, convert_to_rgb(image, return_numpy=True))
    assert got[0, 0].tolist() == [255, 255, 255]


def test_a_transparent_colour_of_a_palette_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 3)
    image.putpalette(bytes(range(30)))
    image.save(tmp_path / "a.png", transparency=3)
    assert (read_image(tmp_path / "a.png") == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_cameras_held_otherwise_are_turned(orientation: int, tmp_path: Path) -> None:
    path, exif = tmp_path / "a.png", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(4, 7)).save(path, exif=exif)
    rgb = picture(4, 7)
    turned = {
        1: rgb,
        2: rgb[:, ::-1],
        3: rgb[::-1, ::-1],
        4: rgb[::-1],
        5: rgb.swapaxes(0, 1),
        6: rgb[::-1].swapaxes(0, 1),
        7: rgb[::-1, ::-1].swapaxes(0, 1),
        8: rgb[:, ::-1].swapaxes(0, 1),
    }[orientation]
    np.testing.assert_array_equal(read_image(path), turned)


def test_of_an_animation_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif")[2, 2].tolist() == [255, 0, 0]


def _truncated(path: Path) -> None:
    Image.fromarray(picture(64, 64)).save(path, format="jpeg")
    path.write_bytes(path.read_bytes()[:-200])


def _damaged(path: Path) -> None:
    Image.fromarray(picture(64, 64)).save(path, format="png")
    data = bytearray(path.read_bytes())
    data[60:70] = bytes(10)
    path.write_bytes(data)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_text("hello there"), r"expected an image \(JPEG.*begins with b'hello th'"),
    "empty": (lambda path: path.write_bytes(b""), r"begins with b''"),
    "truncated": (_truncated, "truncated or damaged"),
    "damaged": (_damaged, "truncated or damaged"),
    "thread": (lambda path: Image.new("L", (20000, 1)).save(path, "png"), "200 times as long as wide, got 20000"),
    "huge": (lambda path: Image.new("1", (16384, 8193)).save(path, "png"), r"at most 134,217,728 pixels, got 16384 x"),
    "bomb": (lambda path: Image.new("1", (20000, 10000)).save(path, "png"), r"at most 134,217,728 pixels, got"),
    "directory": (lambda path: path.mkdir(), "expected an image file, got a directory"),
    "missing": (lambda path: None, "expected an image file, got no such file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_get_one_clear_error(case: str, tmp_path: Path) -> None:
    make, message = BAD[case]
    make(tmp_path / "picture")
    with pytest.raises(UsageError, match=message) as caught:
        read_image(tmp_path / "picture")
    assert caught.value.where == str(tmp_path / "picture")
    assert caught.value.fix


def test_what_pillow_has_no_word_for_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(picture(8, 8)).save(path)
    for raised, says in ((MemoryError(), "too large for the memory"), (KeyError("tag"), "cannot be read as an image")):
        monkeypatch.setattr("awq2trt.images.read._upright_rgb", Mock(side_effect=raised))
        with pytest.raises(UsageError, match=says):
            read_image(path)
