"""Optimization profiles: the numbers of new tokens, and the shapes of every input in them."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from awq2trt.artifact.records import VisionRecord
from awq2trt.engine.profiles import contract_shapes, decoder_profiles, profile_shapes, profiles_beside
from awq2trt.graph.read import DecoderSizes
from awq2trt.io_contract import IoContract, TensorContract


def test_prefill_is_chosen_for_a_typical_prompt_or_for_the_longest() -> None:
    assert [
        (each.name, each.tokens.shortest, each.tokens.typical, each.tokens.longest) for each in decoder_profiles(2048)
    ] == [
        ("prefill", 1, 512, 2048),
        ("decode", 1, 1, 1),
    ]
    assert decoder_profiles(100)[0].tokens.typical == 100
    assert decoder_profiles(131072)[0].tokens.longest == 65535, "more is beyond a grid of blocks"


def test_a_profile_is_one_conversation_with_a_cache_of_fixed_length() -> None:
    half = ir.DataType.FLOAT16
    sizes = DecoderSizes(
        num_layers=1, num_kv_heads=2, capacity=64, head_dim=8, vocab_size=99, dtype=half, cache_dtype=half
    )
    cache = ((1, 2, 64, 8),) * 3
    assert profile_shapes(decoder_profiles(64)[0], sizes) == {
        "input_ids": ((1, 1), (1, 64), (1, 64)),
        "cache_position": ((1,), (1,), (1,)),
        "past_key_0": cache,
        "past_value_0": cache,
    }


def test_a_decoder_of_embeddings_has_rows_in_the_place_of_tokens() -> None:
    half = ir.DataType.FLOAT16
    sizes = DecoderSizes(
        num_layers=1,
        num_kv_heads=2,
        capacity=64,
        head_dim=8,
        vocab_size=99,
        dtype=half,
        cache_dtype=half,
        hidden_size=16,
    )
    shapes = profile_shapes(decoder_profiles(64)[1], sizes)
    assert next(iter(shapes.items())) == ("inputs_embeds", ((1, 1, 16),) * 3)


def test_graphs_beside_a_decoder_take_an_image_or_the_decoders_tokens() -> None:
    pixels = TensorContract("pixel_values", "float16", ("images", 3, 8, 8), "Images.")
    tokens = TensorContract("input_ids", "int64", ("batch", "sequence"), "Tokens.")
    image = profiles_beside("vision", 64, None)
    assert [profile.name for profile in image] == ["image"]
    assert contract_shapes(image[0], IoContract((pixels,), ())) == {"pixel_values": ((1, 3, 8, 8),) * 3}
    prefill, decode = profiles_beside("embedding", 2048, None)
    assert contract_shapes(prefill, IoContract((tokens,), ())) == {"input_ids": ((1, 1), (1, 512), (1, 2048))}
    assert contract_shapes(decode, IoContract((tokens,), ())) == {"input_ids": ((1, 1),) * 3}


def test_an_image_of_any_size_has_a_range_of_patches_and_windows() -> None:
    settings: dict[str, Any] = {"patch_size": 14, "spatial_merge_size": 2, "window_size": 112}
    settings |= {"min_pixels": 4 * 784, "max_pixels": 1280 * 784}
    vision = VisionRecord(family="qwen2_5_vl", image_token=1, tokens_per_image=None, settings=settings)
    (image,) = profiles_beside("vision", 64, vision)
    patches, windows = image.axes["patches"], image.axes["windows"]
    assert (patches.shortest, patches.typical, patches.longest) == (4, 35 * 35 * 4, 1280 * 4)
    assert (windows.shortest, windows.typical, windows.longest) == (1, 81, 160)
    del settings["window_size"]
    (image,) = profiles_beside("vision", 64, vision.model_copy(update={"settings": settings}))
    assert image.axes == {"patches": patches}


def test_a_decoder_with_deepstack_reads_as_many_rows_of_it_as_embeddings() -> None:
    sizes = DecoderSizes(1, 2, 4, 64, 100, ir.DataType.FLOAT16, ir.DataType.FLOAT16, hidden_size=8, deepstack=24)
    prefill, decode = decoder_profiles(64)
    for profile, longest in ((prefill, 64), (decode, 1)):
        shapes = profile_shapes(profile, sizes)
        assert list(shapes)[:2] == ["inputs_embeds", "deepstack_embeds"]
        assert [tuple(shape) for shape in shapes["inputs_embeds"]] == [(1, 1, 8), *[(1, longest, 8)] * 2]
        assert [tuple(shape) for shape in shapes["deepstack_embeds"]] == [(1, 1, 24), *[(1, longest, 24)] * 2]
