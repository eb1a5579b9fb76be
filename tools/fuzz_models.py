"""What is fuzzed of models: config.json, an index of shards, weights as they are and quantized, and GGUF files.

In: the content of one file, and an empty folder. Out: nothing, or an `Awq2trtError`; anything else is a finding. A
quantized checkpoint is its weights; its `quantization_config` lies in their metadata, so that both are changed.
"""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
from fuzz_mutations import LENGTH_BYTES
from numpy.typing import NDArray
from safetensors.numpy import save

from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.checkpoint.layouts import read_format
from awq2trt.checkpoint.opening import open_any
from awq2trt.models.families import FAMILIES, describe_model, describe_vision
from awq2trt.models.sources.base import CONFIG_FILE, ModelSource, read_config, refuse_remote_code
from awq2trt.models.sources.eight_bit import EightBits
from awq2trt.models.sources.opening import open_source
from awq2trt.models.spec import ModelSpec

Array = NDArray[Any]
Tensors = dict[str, Array]

_LLAMA: Final[dict[str, Any]] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
_GROUP: Final = 32
_SHARDS: Final = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
_INDEX: Final = "model.safetensors.index.json"
_QUANTIZATION: Final = "quantization_config"


def dumped(values: list[Any]) -> list[bytes]:
    """JSON texts."""
    return [json.dumps(value).encode() for value in values]


_SMOLVLM: Final = {
    "architectures": ["SmolVLMForConditionalGeneration"],
    "text_config": {**_LLAMA, "model_type": "llama"},
    "vision_config": {
        "image_size": 24,
        "patch_size": 4,
        "hidden_act": "gelu",
        "num_attention_heads": 3,
        "hidden_size": 6,
    },
    "image_token_id": 7,
    "scale_factor": 2,
}


def configs() -> list[bytes]:
    """Examples of all families and one that sees; one for each scaling of rotary embeddings and way to quantize."""
    ropes: list[dict[str, Any]] = [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16, "factor": 2.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ]
    return dumped(
        [
            *(dict(family.example) for family in FAMILIES),
            _SMOLVLM,
            *({**_LLAMA, "rope_scaling": {"original_max_position_embeddings": 32, **rope}} for rope in ropes),
            *({**_LLAMA, _QUANTIZATION: quantization} for quantization, _ in _QUANTIZED),
        ]
    )


def read_config_json(content: bytes, folder: Path) -> None:
    """All that is known of a model by its config.json."""
    (folder / CONFIG_FILE).write_bytes(content)
    config = read_config(folder)
    refuse_remote_code(config, folder)
    spec = describe_model(config)
    vision = describe_vision(config, [])
    if vision is not None:
        _ = vision.record(), vision.shapes(), vision.modules
    ModelSpec(spec).record()
    _ = spec.outer_shapes(), spec.stored_block_shapes(), spec.scale_groups()
    if config.get(_QUANTIZATION) is not None and EightBits.of(config, CONFIG_FILE) is None:
        read_format(config, where=CONFIG_FILE)


@cache
def _tensors() -> Tensors:
    """Random tensors of a tiny Llama."""
    spec, random = describe_model(_LLAMA), np.random.default_rng(0)
    shapes = {**spec.outer_shapes(), **{f"model.layers.0.{name}": s for name, s in spec.block_shapes().items()}}
    return {name: random.normal(size=shape).astype(np.float16) for name, shape in shapes.items()}


def _half(number: int) -> Tensors:
    names = sorted(_tensors())
    middle = len(names) // 2
    return {name: _tensors()[name] for name in (names[:middle], names[middle:])[number]}


def indexes() -> list[bytes]:
    """The index of two shards."""
    return dumped([{"metadata": {"total_size": 1}, "weight_map": {n: _SHARDS[i] for i in (0, 1) for n in _half(i)}}])


def read_index(content: bytes, folder: Path) -> None:
    """A model of two shards."""
    for number, name in enumerate(_SHARDS):
        (folder / name).write_bytes(save(_half(number)))
    (folder / _INDEX).write_bytes(content)
    _read_plain(folder)


def weights() -> list[bytes]:
    """A model in one file."""
    return [save(_tensors()), save(_tensors(), metadata={"format": "pt"})]


def read_weights(content: bytes, folder: Path) -> None:
    """A model in one file."""
    (folder / "model.safetensors").write_bytes(content)
    _read_plain(folder)


def _read_plain(folder: Path) -> None:
    (folder / CONFIG_FILE).write_text(json.dumps(_LLAMA))
    _read_all(open_source(str(folder)))


def _read_all(source: ModelSource) -> None:
    """Reads every tensor of a model, after everything that headers tell."""
    source.require_tensors()
    source.outer()
    for layer in range(source.spec.num_layers):
        source.block(layer)


def _words(random: np.random.Generator, *shape: int) -> Array:
    return random.integers(-(2**31), 2**31, shape, dtype=np.int32)


def _steps(random: np.random.Generator, *shape: int) -> Array:
    return random.uniform(0.01, 0.02, shape).astype(np.float16)


def _awq(rows: int, columns: int, random: np.random.Generator) -> Tensors:
    groups = columns // _GROUP
    codes, zeros = _words(random, columns, rows // 8), _words(random, groups, rows // 8)
    return {"qweight": codes, "qzeros": zeros, "scales": _steps(random, groups, rows)}


def _gemv(rows: int, columns: int, random: np.random.Generator) -> Tensors:
    codes, zeros = _words(random, rows, columns // 8), _words(random, rows, 4)
    return {"qweight": codes, "qzeros": zeros, "scales": _steps(random, rows, 32)}


def _gemv_fast(rows: int, columns: int, random: np.random.Generator) -> Tensors:
    codes = random.integers(-(2**15), 2**15, (rows // 4, columns), dtype=np.int16)
    steps = _steps(random, 32, rows)
    return {"qweight": codes, "scales": steps, "scaled_zeros": -8 * steps}


def _gptq(rows: int, columns: int, random: np.random.Generator) -> Tensors:
    groups = columns // _GROUP
    tensors = {"qweight": _words(random, columns // 8, rows), "qzeros": _words(random, groups, rows // 8) & 0x77777777}
    return {**tensors, "scales": _steps(random, groups, rows), "g_idx": np.arange(columns, dtype=np.int32) // _GROUP}


def _packed(rows: int, columns: int, random: np.random.Generator) -> Tensors:
    groups, shape = columns // _GROUP, np.array([rows, columns])
    zeros = _words(random, rows // 8, groups)
    codes = {"weight_packed": _words(random, rows, columns // 8), "weight_zero_point": zeros}
    return {**codes, "weight_scale": _steps(random, rows, groups), "weight_shape": shape}


def _packed_bytes(rows: int, columns: int, random: np.random.Generator) -> Tensors:
    shape = np.array([rows, columns])
    tensors = {"weight_packed": _words(random, rows, columns // 4), "weight_shape": shape}
    return {**tensors, "weight_scale": _steps(random, rows, columns // _GROUP)}


def _int8(rows: int, columns: int, random: np.random.Generator) -> Tensors:
    codes = random.integers(-128, 128, (rows, columns), dtype=np.int8)
    return {"weight": codes, "weight_scale": _steps(random, rows, 1), "weight_zero_point": codes[:, :1]}


def _fp8(rows: int, columns: int, random: np.random.Generator) -> Tensors:
    codes = random.normal(size=(rows, columns)).astype(ml_dtypes.float8_e4m3fn)
    return {"weight": codes, "weight_scale_inv": _steps(random, rows // _GROUP, columns // _GROUP)}


def _compressed(stored: str, bits: int, **settings: Any) -> dict[str, Any]:
    settings = {"num_bits": bits, "type": "int", "symmetric": False, **settings}
    groups = {"group_0": {"targets": ["Linear"], "weights": settings}}
    return {"quant_method": "compressed-tensors", "format": stored, "config_groups": groups, "ignore": ["lm_head"]}


_AWQ: Final = {"quant_method": "awq", "bits": 4, "group_size": _GROUP, "version": "gemm", "zero_point": True}
_GPTQ: Final = {"quant_method": "gptq", "bits": 4, "group_size": _GROUP, "sym": False, "checkpoint_format": "gptq"}
_ROUND: Final = {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4, "sym": False}
_IN_GROUPS: Final[dict[str, Any]] = {"strategy": "group", "group_size": _GROUP}

_QUANTIZED: Final[tuple[tuple[dict[str, Any], Callable[[int, int, np.random.Generator], Tensors]], ...]] = (
    (_AWQ, _awq),
    ({**_AWQ, "version": "gemv"}, _gemv),
    ({**_AWQ, "version": "gemv_fast"}, _gemv_fast),
    (_GPTQ, _gptq),
    ({**_GPTQ, "checkpoint_format": "gptq_v2", "desc_act": True}, _gptq),
    ({**_ROUND, "group_size": _GROUP}, _gptq),
    (_compressed("pack-quantized", 4, **_IN_GROUPS), _packed),
    (_compressed("pack-quantized", 8, **_IN_GROUPS, symmetric=True), _packed_bytes),
    (_compressed("int-quantized", 8, strategy="channel"), _int8),
    ({"quant_method": "fp8", "weight_block_size": [_GROUP, _GROUP]}, _fp8),
)
"""`quantization_config`, and the tensors of a linear [N, K] as that tool stores them."""


@cache
def quantized() -> tuple[bytes, ...]:
    """A tiny checkpoint in every layout that is read."""
    spec, random, contents = describe_model(_LLAMA), np.random.default_rng(0), []
    linears = {f"model.layers.0.{name}": shape for name, shape in spec.stored_linears().items()}
    for quantization, encode in _QUANTIZED:
        tensors = {name: value for name, value in _tensors().items() if name.rpartition(".")[0] not in linears}
        for name, shape in linears.items():
            tensors |= {f"{name}.{kind}": value for kind, value in encode(*shape, random).items()}
        contents.append(save(tensors, metadata={_QUANTIZATION: json.dumps(quantization)}))
    return tuple(contents)


def read_quantized(content: bytes, folder: Path) -> None:
    """Every tensor of a quantized checkpoint."""
    (folder / "model.safetensors").write_bytes(content)
    (folder / CONFIG_FILE).write_text(json.dumps({**_LLAMA, _QUANTIZATION: _quantization_in(content)}))
    source, _ = open_any(str(folder))
    if not isinstance(source, QuantizedCheckpoint):
        _read_all(source)
        return
    source.require_tensors()
    source.outer()
    for name in source.stored_names:
        source.input_order(name)
        source.linear(name).dequantize()


def _quantization_in(content: bytes) -> object:
    """What the metadata say of the quantization; AutoAWQ's where they are damaged."""
    try:
        length = struct.unpack("<Q", content[:LENGTH_BYTES])[0]
        return json.loads(json.loads(content[LENGTH_BYTES : LENGTH_BYTES + length])["__metadata__"][_QUANTIZATION])
    except (struct.error, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return _AWQ


@cache
def ggufs() -> tuple[bytes, ...]:
    """A tiny Llama as llama.cpp stores it, in fp32 and in Q8_0."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    contents = []
    for encoding in (None, GGMLQuantizationType.Q8_0):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.gguf"
            writer = GGUFWriter(path, "llama")
            writer.add_block_count(1)
            writer.add_context_length(64)
            writer.add_embedding_length(_LLAMA["hidden_size"])
            writer.add_feed_forward_length(_LLAMA["intermediate_size"])
            writer.add_head_count(2)
            writer.add_head_count_kv(1)
            writer.add_layer_norm_rms_eps(1e-5)
            writer.add_rope_freq_base(10000.0)
            writer.add_tokenizer_model("gpt2")
            writer.add_token_list(["a", "b", "ab", "<s>"])
            writer.add_token_merges(["a b"])
            writer.add_token_types([1, 1, 1, 3])
            for name, value in _gguf_tensors().items():
                if encoding is None or value.ndim == 1:
                    writer.add_tensor(name, value)
                else:
                    writer.add_tensor(name, quants.quantize(value, encoding), raw_dtype=encoding)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            contents.append(path.read_bytes())
    return tuple(contents)


def _gguf_tensors() -> Tensors:
    renamed = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.o_proj": "attn_output",
        **{f"self_attn.{name}_proj": f"attn_{name}" for name in "qkv"},
        **{f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")},
    }
    tensors = {}
    for name, value in _tensors().items():
        owner = name.removesuffix(".weight")
        block = "blk.0." if owner.startswith("model.layers.0.") else ""
        tensors[f"{block}{renamed[owner.removeprefix('model.layers.0.')]}.weight"] = value.astype(np.float32)
    return tensors


def read_gguf(content: bytes, folder: Path) -> None:
    """Every tensor of a GGUF file, and its tokenizer."""
    (folder / "m.gguf").write_bytes(content)
    source = open_source(str(folder / "m.gguf"))
    _read_all(source)
    (folder / "tokenizer").mkdir()
    source.save_tokenizer(folder / "tokenizer")
