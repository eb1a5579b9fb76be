"""Images in prompts: files good and bad, their places in a text, and what a model of text says of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import picture
from PIL import Image
from tiny_llava import IMAGE_TOKEN, export_llava
from tiny_llava_next import export_llava_next
from tiny_models import save_llama
from tiny_qwen_vl import export_qwen3_vl, export_qwen_vl
from tiny_smolvlm import export_smolvlm

import awq2trt
from awq2trt.artifact.manifest import Artifact
from awq2trt.errors import ArtifactError, UnsupportedError, UsageError
from awq2trt.images.patches import Patches
from awq2trt.images.processor import describe_processor
from awq2trt.images.tiles import Tiles
from awq2trt.models.vision.prepared import PreparedImage
from awq2trt.recipe import ExportOptions, QuantizeOptions
from awq2trt.runtime import Model, system_message, user_message
from awq2trt.runtime.backend import SeeingBackend
from awq2trt.runtime.ort.loading import DeviceOptions
from awq2trt.runtime.sight import Sight, with_markers

PIECES, CAPACITY = 16, 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeing")
    export_llava(folder, capacity=CAPACITY)
    Image.fromarray(picture(24, 30)).save(folder / "good.png")
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return Model.load(folder / "onnx", DeviceOptions("cpu"))


def _answer(model: Model, prompt: str, *images: Path) -> str:
    return model.generate_text(prompt, images=images, raw=True, max_new_tokens=6)


def test_what_is_seen_decides_the_answer(model: Model, folder: Path) -> None:
    Image.fromarray(255 - picture(24, 30)).save(folder / "other.png")
    answers = [_answer(model, "<image>a", folder / name) for name in ("good.png", "other.png", "good.png")]
    assert answers[0] == answers[2] != answers[1]
    assert _answer(model, "b<image>a", folder / "good.png") != answers[0]
    both = (folder / "good.png", folder / "other.png")
    assert _answer(model, "<image><image>", *both) != _answer(model, "<image><image>", *both[::-1])


def _text_file(path: Path) -> None:
    path.write_text("this is no image")


def _long(path: Path) -> None:
    Image.new("RGB", (20_000, 1)).save(path)


def _truncated(path: Path) -> None:
    Image.fromarray(picture(200, 300)).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:900])


def _nothing(path: Path) -> None:
    """No file."""


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (_text_file, r"expected an image .* got a file that begins with b'this is '"),
        (_long, "200 times as long as wide, got 20000 x 1"),
        (_truncated, "truncated or damaged"),
        (_nothing, "expected an image file, got no such file"),
    ],
    ids=["text", "20000x1", "truncated", "missing"],
)
def test_what_is_no_image_is_one_message_that_names_the_file(
    write: Any, says: str, model: Model, tmp_path: Path
) -> None:
    path = tmp_path / "bad.jpg"
    write(path)
    with pytest.raises(UsageError, match=says) as raised:
        _answer(model, "<image>a", path)
    assert raised.value.where == str(path)


def _save_cmyk(image: Image.Image, path: Path) -> None:
    image.convert("CMYK").save(path, format="TIFF")


def _save_gif(image: Image.Image, path: Path) -> None:
    image.quantize(256, dither=Image.Dither.NONE).save(
        path, format="GIF", save_all=True, append_images=[Image.new("P", image.size)]
    )


def _save_turned(image: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    image.transpose(Image.Transpose.ROTATE_90).save(path, format="PNG", exif=exif)


@pytest.mark.parametrize("save", [_save_cmyk, _save_gif, _save_turned], ids=["cmyk", "animated", "turned"])
def test_odd_images_are_seen_as_what_they_show(save: Any, model: Model, folder: Path, tmp_path: Path) -> None:
    image = Image.fromarray(np.repeat(np.repeat(picture(8, 10) // 64 * 64, 3, axis=0), 3, axis=1))
    image.save(tmp_path / "plain.png")
    save(image, tmp_path / "odd")
    assert model.sight is not None
    plain, odd = (
        image.inputs["pixel_values"] for image in model.sight.prepare([tmp_path / "plain.png", tmp_path / "odd"])
    )
    np.testing.assert_allclose(odd, plain, atol=0.05)
    assert _answer(model, "<image>a", tmp_path / "odd")


@pytest.mark.parametrize(
    ("prompt", "images", "says"),
    [
        ("a", 1, "places for images in the prompt: 0; images given: 1"),
        ("<image>a", 0, "places for images in the prompt: 1; images given: 0"),
        ("<image>a<image>", 1, "places for images in the prompt: 2; images given: 1"),
        ("<image><image><image>a", 3, rf"has 49 tokens, 48 of them of 3 images, but the cache .* holds {CAPACITY}"),
    ],
)
def test_images_and_their_places_must_fit(prompt: str, images: int, says: str, model: Model, folder: Path) -> None:
    with pytest.raises(UsageError, match=says):
        _answer(model, prompt, *[folder / "good.png"] * images)


def test_as_many_image_tokens_as_the_cache_holds_are_taken(model: Model, folder: Path) -> None:
    room = CAPACITY - 2 * PIECES
    assert len(model.tokenizer.encode("a" * room)) == room
    pieces = list(model.generate("<image>" * 2 + "a" * room, images=[folder / "good.png"] * 2, raw=True))
    assert len(pieces) <= 1  # the cache is full: the last token is chosen and not written


def test_a_model_of_text_sees_nothing(tmp_path: Path, folder: Path) -> None:
    save_llama(tmp_path / "model")
    awq2trt.quantize(tmp_path / "model", tmp_path / "checkpoint", QuantizeOptions(method="rtn", group_size=32))
    awq2trt.export(tmp_path / "checkpoint", tmp_path / "onnx", ExportOptions(max_seq_len=64))
    text = Model.load(tmp_path / "onnx", DeviceOptions("cpu"))
    assert text.sight is None
    assert _answer(text, "<image>")  # a text like any other
    with pytest.raises(UsageError, match="does not see"):
        _answer(text, "a", folder / "good.png")


def test_places_are_counted_in_pieces(model: Model) -> None:
    sight = model.sight
    assert isinstance(sight, Sight)
    image = PreparedImage({}, PIECES)
    assert sight.place([1, IMAGE_TOKEN, 2], [image]) == [1, *[IMAGE_TOKEN] * PIECES, 2]
    assert sight.place([1, 2], []) == [1, 2]


def test_images_without_places_come_before_what_the_user_says_last() -> None:
    messages = [system_message("Be brief."), user_message("one"), {"role": "assistant", "content": "1"}]
    asked = [*messages, user_message("two")]
    assert with_markers(asked, 2) == [*messages, user_message("<image>\n<image>\ntwo")]
    assert with_markers(asked, 0) == asked
    placed = [user_message("a <image> b"), user_message("two")]
    assert with_markers(placed, 1) == placed


TILES = 5
"""Tiles of a picture of 24 x 30 pixels: two a side, and the whole picture. Each has 9 pieces."""

MOSAIC = 70
"""Pieces of a picture of 24 x 30 pixels: 4 rows of 4 of the whole, then 6 of 8 rows of 8, each with a newline."""

ANY_SIZE = ("qwen2.5-vl", "qwen3-vl")
"""See an image of any size as it is: 12 tokens for one of 24 x 30 pixels and 2 around them."""

EXPORTS: dict[str, tuple[Any, int]] = {
    **dict(zip(ANY_SIZE, [(export_qwen_vl, CAPACITY), (export_qwen3_vl, CAPACITY)], strict=True)),
    "smolvlm": (export_smolvlm, 160),
    "llava-next": (export_llava_next, 160),
}
"""Models whose tokens for an image depend on its size, and the tokens that their caches hold."""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """Loads one of `EXPORTS`, each once."""

    @cache
    def load(kind: str) -> Model:
        export, capacity = EXPORTS[kind]
        folder = tmp_path_factory.mktemp(kind)
        export(folder, capacity=capacity)
        return Model.load(folder / "onnx", DeviceOptions("cpu"))

    return load


@pytest.fixture(scope="module", params=EXPORTS)
def any_kind(request: pytest.FixtureRequest, loaded: Callable[[str], Model]) -> Model:
    """A model that takes images of all sizes, in any of the ways."""
    return loaded(request.param)


@pytest.fixture(scope="module", params=ANY_SIZE)
def any_size(request: pytest.FixtureRequest, loaded: Callable[[str], Model]) -> Model:
    """A model that sees an image of any size as it is."""
    return loaded(request.param)


@pytest.fixture(scope="module")
def tiled(loaded: Callable[[str], Model]) -> Model:
    """A model that sees an image as tiles of 9 pieces, 45 and the texts around them for one of 24 x 30 pixels."""
    return loaded("smolvlm")


@pytest.fixture(scope="module")
def mosaic(loaded: Callable[[str], Model]) -> Model:
    """A model that sees an image as a whole, then tiles of 16 pieces side by side."""
    return loaded("llava-next")


@pytest.mark.parametrize("write", [_text_file, _long, _truncated, _nothing])
def test_what_is_no_image_is_none_of_any_size_either(write: Any, any_kind: Model, tmp_path: Path) -> None:
    path = tmp_path / "bad.jpg"
    write(path)
    with pytest.raises(UsageError) as raised:
        _answer(any_kind, "<image>a", path)
    assert raised.value.where == str(path)


def test_what_is_seen_decides_the_answer_in_every_way(any_kind: Model, folder: Path, tmp_path: Path) -> None:
    Image.fromarray(255 - picture(24, 30)).save(tmp_path / "other.png")
    good, other = folder / "good.png", tmp_path / "other.png"
    answer = _answer(any_kind, "<image>a", good)
    assert answer == _answer(any_kind, "<image>a", good) != _answer(any_kind, "<image>a", other)
    assert _answer(any_kind, "<image><image>", good, other) != _answer(any_kind, "<image><image>", other, good)


@pytest.mark.parametrize(
    ("kind", "prompt", "images", "says"),
    [
        *((kind, "a", 1, "places for images in the prompt: 0; images given: 1") for kind in EXPORTS),
        *((kind, "<image>a", 0, "places for images in the prompt: 1; images given: 0") for kind in EXPORTS),
        *(
            (kind, "<image><image><image>a", 3, rf"has 43 tokens, 36 of them of 3 images, but .* holds {CAPACITY}")
            for kind in ANY_SIZE
        ),
        ("smolvlm", "<image>" * TILES * 9, 1, "places for images in the prompt: 45; images given: 1"),
        ("smolvlm", "<image><image>a<image>", 3, "has 178 tokens, 135 of them of 3 images, but .* holds 160"),
        ("llava-next", "<image><image>a<image>", 3, "has 211 tokens, 210 of them of 3 images, but .* holds 160"),
    ],
)
def test_images_of_all_sizes_and_their_places_must_fit(
    kind: str, prompt: str, images: int, says: str, loaded: Callable[[str], Model], folder: Path
) -> None:
    with pytest.raises(UsageError, match=says):
        _answer(loaded(kind), prompt, *[folder / "good.png"] * images)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *(
            (kind, settings)
            for kind in ANY_SIZE
            for settings in ({}, {"patch_size": "a"}, {"spatial_merge_size": 0}, {"window_size": 4})
        ),
        *(("smolvlm", settings) for settings in ({"patch_size": "a"}, {"scale_factor": 9}, {"scale_factor": 0})),
        *(("llava-next", {"patch_size": size}) for size in ("a", 23, 0)),
    ],
    ids=str,
)
def test_a_manifest_without_its_pieces_is_refused(
    kind: str, settings: dict[str, Any], loaded: Callable[[str], Model]
) -> None:
    with pytest.raises(ArtifactError, match="how a model sees"):
        Sight.of(_with_settings(loaded(kind), settings))


@pytest.mark.parametrize("save", [_save_cmyk, _save_gif, _save_turned], ids=["cmyk", "animated", "turned"])
def test_odd_images_of_any_size_are_seen_as_what_they_show(save: Any, any_size: Model, tmp_path: Path) -> None:
    image = Image.fromarray(np.repeat(np.repeat(picture(8, 10) // 64 * 64, 3, axis=0), 3, axis=1))
    image.save(tmp_path / "plain.png")
    save(image, tmp_path / "odd")
    assert any_size.sight is not None
    plain, odd = any_size.sight.prepare([tmp_path / "plain.png", tmp_path / "odd"])
    assert (plain.pieces, odd.grid) == (12, plain.grid)
    np.testing.assert_allclose(odd.inputs["pixel_values"], plain.inputs["pixel_values"], atol=0.05)
    assert _answer(any_size, "<image>a", tmp_path / "odd")


def test_a_large_image_becomes_as_small_as_the_cache_wants(any_size: Model, tmp_path: Path) -> None:
    Image.fromarray(picture(600, 800)).save(tmp_path / "large.png")
    assert any_size.sight is not None
    (image,) = any_size.sight.prepare([tmp_path / "large.png"])
    assert 12 < image.pieces <= 24  # what the model's own processor allows; three quarters of the cache are 30
    assert _answer(any_size, "<image>a", tmp_path / "large.png")


def _with_settings(model: Model, settings: dict[str, Any]) -> Artifact:
    """A model whose manifest has other settings of what it sees; without any, none."""
    contents = model.artifact.manifest.contents
    assert contents.model is not None
    assert contents.model.vision is not None
    vision = contents.model.vision.model_copy(
        update={"settings": {**contents.model.vision.settings, **settings} if settings else {}}
    )
    record = contents.model.model_copy(update={"vision": vision})
    manifest = model.artifact.manifest.model_copy(update={"contents": contents.model_copy(update={"model": record})})
    return replace(model.artifact, manifest=manifest)


def test_a_processor_that_was_changed_is_named(any_size: Model, folder: Path) -> None:
    assert any_size.sight is not None
    assert isinstance(any_size.sight.processor, Patches)
    other = replace(any_size.sight, processor=replace(any_size.sight.processor, frames=1))
    with pytest.raises(UnsupportedError, match=r"makes pixel_values of \[48, 48\], and the vision graph takes"):
        other.prepare([folder / "good.png"])


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("qwen2.5-vl", {"merge_size": 4}, "patch_size, temporal_patch_size and merge_size, 4, 2, 2, got 4, 2, 4"),
        ("smolvlm", {"max_image_size": {"longest_edge": 8192}}, "image_size as its max_image_size, 24, got 8192"),
    ],
)
def test_a_processor_that_was_changed_is_refused_before_it_prepares_anything(
    kind: str, change: dict[str, Any], says: str, loaded: Callable[[str], Model], tmp_path: Path
) -> None:
    artifact, name = loaded(kind).artifact, "preprocessor_config.json"
    config = json.loads((artifact.directory / name).read_text())
    (tmp_path / name).write_text(json.dumps({**config, **change}))
    with pytest.raises(UnsupportedError, match=says):
        Sight.of(replace(artifact, directory=tmp_path))


def test_pieces_come_tile_by_tile(tiled: Model, folder: Path) -> None:
    assert isinstance(tiled.backend, SeeingBackend)
    assert tiled.sight is not None
    (image,) = tiled.sight.prepare([folder / "good.png"])
    assert (image.tiles, image.pieces) == (TILES, 9 * TILES)
    seen = tiled.backend.see(image)
    for tile, pieces in enumerate(seen.reshape(TILES, 9, -1)):
        one = PreparedImage({name: array[tile : tile + 1] for name, array in image.inputs.items()}, 9)
        np.testing.assert_array_equal(tiled.backend.see(one), pieces)


def test_a_processor_of_other_tiles_is_named(tiled: Model, folder: Path) -> None:
    assert tiled.sight is not None
    assert isinstance(tiled.sight.processor, Tiles)
    other = replace(tiled.sight, processor=replace(tiled.sight.processor, side=12))
    with pytest.raises(UnsupportedError, match=r"makes pixel_values of \[\d+, 3, 12, 12\], and the vision graph takes"):
        other.prepare([folder / "good.png"])


@pytest.mark.parametrize("size", [(1, 200), (200, 1), (1, 1), (3, 150)], ids=str)
def test_long_images_become_mosaics_too(size: tuple[int, int], mosaic: Model, tmp_path: Path) -> None:
    Image.fromarray(picture(*size)).save(tmp_path / "long.png")
    assert mosaic.sight is not None
    (image,) = mosaic.sight.prepare([tmp_path / "long.png"])
    assert isinstance(mosaic.backend, SeeingBackend)
    assert len(mosaic.backend.see(image)) == image.pieces >= PIECES
    assert _answer(mosaic, "<image>a", tmp_path / "long.png")


def test_pieces_of_a_mosaic_are_ordered(mosaic: Model, folder: Path) -> None:
    """The last piece of every row is the same; those of the whole image are those of its tile."""
    assert isinstance(mosaic.backend, SeeingBackend)
    assert mosaic.sight is not None
    (image,) = mosaic.sight.prepare([folder / "good.png"])
    seen = mosaic.backend.see(image)
    assert image.pieces == len(seen) == MOSAIC
    rows = seen[PIECES:].reshape(6, 9, -1)
    assert (rows[:, -1] == rows[0, -1]).all()
    whole = PreparedImage({name: array[:1] for name, array in image.inputs.items()}, PIECES + 1)
    np.testing.assert_array_equal(mosaic.backend.see(whole)[:-1], seen[:PIECES])


def test_a_processor_of_other_mosaics_is_named(mosaic: Model, folder: Path) -> None:
    assert mosaic.sight is not None
    smaller = describe_processor(
        {
            "image_processor_type": "LlavaNextImageProcessor",
            "size": {"shortest_edge": 11},
            "crop_size": {"height": 11, "width": 11},
            "image_grid_pinpoints": [[11, 22]],
        },
        where="another",
    )
    other = replace(mosaic.sight, processor=smaller)
    with pytest.raises(UnsupportedError, match=r"makes pixel_values of \[3, 3, 11, 11\], and the vision graph takes"):
        other.prepare([folder / "good.png"])
