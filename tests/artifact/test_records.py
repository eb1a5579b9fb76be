"""Records: what they contain for a decoder of text, and that they can describe later kinds of models and targets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, JsonValue, ValidationError
from tiny_artifacts import CHECKPOINT, CONTENTS, DECODER, IO

from awq2trt.artifact.records import (
    Contents,
    GraphRecord,
    LayerSchemeRecord,
    ModelRecord,
    ProfileRecord,
    RangeRecord,
    RopeRecord,
    VisionRecord,
    WeightRecord,
)
from awq2trt.io_contract import CacheContract, IoContract, TensorContract
from awq2trt.scheme import QuantScheme


def _again(record: BaseModel) -> BaseModel:
    """Writes a record as JSON and reads it back."""
    return type(record).model_validate(json.loads(record.model_dump_json()))


@pytest.mark.parametrize("kind", CONTENTS)
def test_json_keeps_everything(kind: Any) -> None:
    assert _again(CONTENTS[kind]) == CONTENTS[kind]


def test_the_decoder_is_one_of_the_graphs() -> None:
    assert CHECKPOINT.decoder is None
    assert CONTENTS["onnx"].decoder == IO


def test_engines_are_added_to_every_graph() -> None:
    contents = CONTENTS["onnx"]
    vision = GraphRecord(model="vision.onnx", io=IoContract((), ()))
    contents = contents.model_copy(update={"graphs": {**contents.graphs, "vision": vision}})
    other = IoContract(IO.inputs, IO.outputs)
    built = contents.with_engines(other)
    assert built.graphs == {
        "decoder": GraphRecord(model="model.onnx", engine="model.engine", io=other),
        "vision": GraphRecord(model="vision.onnx", engine="vision.engine", io=vision.io),
    }
    assert contents.beside == {"vision": vision}
    assert contents.with_engines().decoder == IO
    assert contents.graphs["decoder"].engine is None


def test_ends_are_head_and_embedding() -> None:
    plain = WeightRecord(dtype="bfloat16", scheme=None)
    record = CHECKPOINT.quantization.with_ends("bfloat16", None, tied=True)
    assert record.head == record.embedding == plain
    assert record.scheme == CHECKPOINT.quantization.scheme
    scheme = QuantScheme(bits=8)
    quantized = WeightRecord(dtype="bfloat16", scheme=scheme)
    apart = CHECKPOINT.quantization.with_ends("bfloat16", scheme, tied=False)
    assert (apart.head, apart.embedding) == (quantized, plain)
    one = CHECKPOINT.quantization.with_ends("bfloat16", scheme, tied=True)
    assert one.head == one.embedding == quantized


def test_a_profile_of_tokens() -> None:
    profile = ProfileRecord.of_tokens("prefill", 1, 8, 16)
    assert profile.axes == {"sequence": RangeRecord(shortest=1, typical=8, longest=16)}
    assert profile.tokens.longest == 16


def test_a_model_that_sees_needs_no_other_format() -> None:
    """A vision tower in fp16 with quantized exceptions, a quantized head, an INT8 cache, tables of three positions."""
    scheme = QuantScheme(group_size=32)
    quantization = CHECKPOINT.quantization.model_copy(
        update={
            "exceptions": (LayerSchemeRecord(layers="model.visual.*", scheme=None),),
            "head": WeightRecord(dtype="float16", scheme=scheme),
            "embedding": WeightRecord(dtype="float16", scheme=scheme),
        }
    )
    rope = RopeRecord(inv_freq=(1.0, 0.5), sections=(1, 1, 0), interleaved=True)
    settings: dict[str, JsonValue] = {
        "size": {"shortest_edge": 336},
        "image_grid_pinpoints": [[336, 672], [672, 336]],
        "image_mean": [0.5, 0.5, 0.5],
        "do_rescale": True,
    }
    model = ModelRecord(
        decoder=DECODER.model_copy(update={"ropes": (rope,)}),
        vision=VisionRecord(family="qwen2.5-vl", image_token=6, tokens_per_image=None, settings=settings),
    )
    pixels = TensorContract("pixel_values", "float16", ("patches", 1176), "Patches of images.")
    features = TensorContract("image_features", "float16", ("patches", 4), "What stands for them among the tokens.")
    vision = IoContract((pixels,), (features,))
    decoder = IoContract(IO.inputs, IO.outputs, CacheContract("int8", "bhcd-int8", 16))
    images = ProfileRecord(name="images", axes={"patches": RangeRecord(shortest=4, typical=256, longest=4096)})
    engine = CONTENTS["engine"].engine
    assert engine is not None
    contents = CONTENTS["engine"].model_copy(
        update={
            "quantization": quantization,
            "model": model,
            "graphs": {
                "vision": GraphRecord(model="vision.onnx", engine="vision.engine", io=vision),
                "decoder": GraphRecord(model="model.onnx", engine="model.engine", io=decoder),
            },
            "operators": {"W4A16Linear": "1", "CachedAttention": "1"},
            "engine": engine.model_copy(update={"profiles": {**engine.profiles, "vision": (images,)}}),
        }
    )
    assert _again(contents) == contents


def test_unknown_fields_are_refused() -> None:
    value = json.loads(CONTENTS["onnx"].model_dump_json())
    value["graphs"]["decoder"]["colour"] = "blue"
    with pytest.raises(ValidationError, match=r"graphs\.decoder\.colour"):
        Contents.model_validate(value)
