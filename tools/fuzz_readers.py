"""The readers that are fuzzed: every reader of files that others write, with valid files to start from.

In: the content of one file, and an empty folder. Out: nothing, or an `Awq2trtError`; anything else is a finding.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from fuzz_mutations import bytes_like, json_like, safetensors_like, text_like
from hypothesis import strategies as st
from safetensors.numpy import save
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from awq2trt.artifact.golden import Golden, GoldenCall, read_golden, write_golden
from awq2trt.artifact.manifest import MANIFEST_FILE, Artifact, read_manifest
from awq2trt.artifact.publish import create_artifact
from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.checkpoint.layouts import read_format
from awq2trt.errors import ArtifactError, Awq2trtError
from awq2trt.graph.read import open_decoder, operators_of
from awq2trt.io_contract import CACHE_POSITION, INPUT_IDS, LOGITS, cache_names
from awq2trt.models.families import FAMILIES, describe_model
from awq2trt.models.sources.base import CONFIG_FILE, read_config, refuse_remote_code
from awq2trt.models.sources.opening import open_source
from awq2trt.models.spec import ModelSpec
from awq2trt.recipe import load_recipe
from awq2trt.runtime.chat import ChatTokenizer
from awq2trt.text.tokenizer import encode, load_tokenizer

ROOT: Final = Path(__file__).resolve().parents[1]
_DATA: Final = ROOT / "tests" / "data"

_LLAMA: Final[dict[str, Any]] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
_AWQ: Final = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
_SHARDS: Final = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
_INDEX: Final = "model.safetensors.index.json"


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        seeds: Valid contents of the file; tests check that the reader accepts them.
        cases: Contents similar to them.
        read: Reads a content in an empty folder.
    """

    seeds: Callable[[], list[bytes]]
    cases: Callable[[list[bytes]], st.SearchStrategy[bytes]]
    read: Callable[[bytes, Path], None]


def _json_cases(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    return json_like([json.loads(seed) for seed in seeds])


def _dumped(values: list[Any]) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


def _configs() -> list[bytes]:
    """The example of every family, and one for each way in which checkpoints are quantized."""
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "checkpoint_format": "gptq"}
    weights = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32}
    compressed = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }
    ropes: list[dict[str, Any]] = [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "factor": 2.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ]
    return _dumped(
        [
            *(dict(family.example) for family in FAMILIES),
            *({**_LLAMA, "rope_scaling": {"original_max_position_embeddings": 32, **rope}} for rope in ropes),
            *({**_LLAMA, "quantization_config": quantization} for quantization in (_AWQ, gptq, compressed)),
        ]
    )


def _read_config(content: bytes, folder: Path) -> None:
    (folder / CONFIG_FILE).write_bytes(content)
    config = read_config(folder)
    refuse_remote_code(config, folder)
    if config.get("quantization_config") is not None:
        read_format(config, where=CONFIG_FILE)
    spec = describe_model(config)
    ModelSpec(spec).record()
    _ = spec.outer_shapes(), spec.stored_block_shapes(), spec.scale_groups()


@cache
def _tensors() -> dict[str, Any]:
    """Random tensors of a tiny Llama."""
    spec, random = describe_model(_LLAMA), np.random.default_rng(0)
    shapes = {**spec.outer_shapes(), **{f"model.layers.0.{name}": s for name, s in spec.block_shapes().items()}}
    return {name: random.normal(size=shape).astype(np.float16) for name, shape in shapes.items()}


def _half(number: int) -> dict[str, Any]:
    names = sorted(_tensors())
    middle = len(names) // 2
    return {name: _tensors()[name] for name in (names[:middle], names[middle:])[number]}


def _indexes() -> list[bytes]:
    return _dumped([{"metadata": {"total_size": 1}, "weight_map": {n: _SHARDS[i] for i in (0, 1) for n in _half(i)}}])


def _read_index(content: bytes, folder: Path) -> None:
    for number, name in enumerate(_SHARDS):
        (folder / name).write_bytes(save(_half(number)))
    (folder / _INDEX).write_bytes(content)
    _read_model(folder)


def _weights() -> list[bytes]:
    return [save(_tensors()), save(_tensors(), metadata={"format": "pt"})]


def _read_weights(content: bytes, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(content)
    _read_model(folder)


def _read_model(folder: Path) -> None:
    (folder / CONFIG_FILE).write_text(json.dumps(_LLAMA))
    _read_all(str(folder))


def _read_all(model: str) -> None:
    """Reads every tensor of a model, after everything that headers tell."""
    source = open_source(model)
    source.require_tensors()
    source.outer()
    for layer in range(source.spec.num_layers):
        source.block(layer)


@cache
def _ggufs() -> tuple[bytes, ...]:
    """A tiny Llama as llama.cpp stores it, in fp32 and in Q8_0."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    contents = []
    for encoding in (None, GGMLQuantizationType.Q8_0):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.gguf"
            writer = GGUFWriter(path, "llama")
            writer.add_block_count(1)
            writer.add_context_length(64)
            writer.add_embedding_length(32)
            writer.add_feed_forward_length(32)
            writer.add_head_count(2)
            writer.add_head_count_kv(1)
            writer.add_layer_norm_rms_eps(1e-5)
            writer.add_rope_freq_base(10000.0)
            writer.add_tokenizer_model("gpt2")
            writer.add_token_list(["a", "b", "<s>"])
            writer.add_token_merges(["a b"])
            writer.add_token_types([1, 1, 3])
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


def _gguf_tensors() -> dict[str, Any]:
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


def _read_gguf(content: bytes, folder: Path) -> None:
    (folder / "m.gguf").write_bytes(content)
    _read_all(str(folder / "m.gguf"))


def _tokenizers() -> list[bytes]:
    """Tokenizers for each kind of model in tokenizer.json, as text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_ = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate([*alphabet, "ab"])}, merges=[("a", "b")]))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    bytes_.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    pieces = Tokenizer(models.Unigram([("<unk>", 0.0), ("\u2581a", -1.0), ("b", -2.0), ("<0x0A>", -3.0)], 0, True))
    pieces.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    pieces.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="a $A", special_tokens=[("a", 0)])
    return [tokenizer.to_str().encode() for tokenizer in (bytes_, pieces, words)]


_TOKENIZER_CONFIG: Final[dict[str, Any]] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": {"content": "</s>", "lstrip": False, "special": True, "__type": "AddedToken"},
    "model_max_length": 64,
    "chat_template": "{{ messages[0].content }}",
    "added_tokens_decoder": {"257": {"content": "<s>", "special": True}},
}


def _read_tokenizer(content: bytes, folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    (folder / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER_CONFIG))
    _use_tokenizer(folder)


def _read_tokenizer_config(content: bytes, folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(_tokenizers()[0])
    (folder / "tokenizer_config.json").write_bytes(content)
    _use_tokenizer(folder)


def _read_generation_config(content: bytes, folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(_tokenizers()[0])
    (folder / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER_CONFIG))
    (folder / "generation_config.json").write_bytes(content)
    ChatTokenizer.load(folder)


def _use_tokenizer(folder: Path) -> None:
    tokenizer = ChatTokenizer.load(folder)
    tokenizer.decode(tokenizer.encode("a b\n\u00e4"))
    encode(load_tokenizer(folder), "a b")


def _quantized() -> list[bytes]:
    """A tiny checkpoint in AutoAWQ's layout; these are its weights, and `_AWQ` is its config.json."""
    spec, random = describe_model(_LLAMA), np.random.default_rng(0)
    linears = {f"model.layers.0.{name}" for name in spec.stored_linears()}
    tensors = {name: value for name, value in _tensors().items() if name.rpartition(".")[0] not in linears}
    for name, (rows, columns) in spec.stored_linears().items():
        codes = random.integers(-(2**31), 2**31, (columns, rows // 8), dtype=np.int32)
        zeros = random.integers(-(2**31), 2**31, (columns // 32, rows // 8), dtype=np.int32)
        scales = random.uniform(0.01, 0.02, (columns // 32, rows)).astype(np.float16)
        found = {"qweight": codes, "qzeros": zeros, "scales": scales}
        tensors |= {f"model.layers.0.{name}.{kind}": value for kind, value in found.items()}
    return [save(tensors)]


def _read_quantized(content: bytes, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(content)
    (folder / CONFIG_FILE).write_text(json.dumps({**_LLAMA, "quantization_config": _AWQ}))
    checkpoint = QuantizedCheckpoint.open(folder)
    checkpoint.require_tensors()
    checkpoint.outer()
    for name in checkpoint.stored_names:
        checkpoint.linear(name).dequantize()


@cache
def _golden_files() -> tuple[bytes, bytes]:
    """golden.json and golden.npz of one call."""
    golden = Golden("a", 0.1, (GoldenCall("prefill", (1, 2), 0, np.arange(4, dtype=np.float32)),))
    with tempfile.TemporaryDirectory() as folder:
        write_golden(golden, Path(folder))
        return (Path(folder) / "golden.json").read_bytes(), (Path(folder) / "golden.npz").read_bytes()


def _read_golden(content: bytes, folder: Path) -> None:
    is_arrays = content.startswith(b"PK")
    (folder / "golden.json").write_bytes(_golden_files()[0] if is_arrays else content)
    (folder / "golden.npz").write_bytes(content if is_arrays else _golden_files()[1])
    for call in read_golden(folder).calls:
        call.arrays()


def _golden_cases(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.one_of(_json_cases(seeds[:1]), bytes_like(seeds[1:]))


@cache
def _onnx() -> bytes:
    """A graph with the inputs and outputs of an exported decoder, and weights inside and outside of it."""
    from onnx import TensorProto, helper

    names = list(zip(cache_names("past", 1), cache_names("present", 1), strict=True))
    cache_shape = (1, 1, 8, 4)
    float_, int_ = TensorProto.FLOAT16, TensorProto.INT64
    inputs = [(INPUT_IDS, int_, (1, "sequence")), (CACHE_POSITION, int_, (1,))]
    inputs += [(name, float_, cache_shape) for name, _ in names]
    outputs = [(LOGITS, float_, (1, 1, 5)), *((name, float_, cache_shape) for _, name in names)]
    outside = TensorProto(name="w", data_type=float_, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "model.onnx.data"), ("offset", "0"), ("length", "4")):
        outside.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("Identity", [before], [after]) for before, after in names]
        + [helper.make_node("ConstantOfShape", ["shape"], [LOGITS])],
        "decoder",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [helper.make_tensor("shape", int_, [3], [1, 1, 5]), outside],
    )
    content: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()
    return content


def _read_onnx(content: bytes, folder: Path) -> None:
    (folder / "model.onnx").write_bytes(content)
    (folder / "model.onnx.data").write_bytes(bytes(4))
    model, _ = open_decoder(folder)
    operators_of(model)


def _manifests() -> list[bytes]:
    paths = (_DATA / "manifest_format_2.json", *sorted(_DATA.glob(f"format_1/**/{MANIFEST_FILE}")))
    return [path.read_bytes() for path in paths]


def _read_manifest(content: bytes, folder: Path) -> None:
    """Reads a manifest, and overwrites a directory that an interrupted run seems to have left with it."""
    out, victim = folder / "out", folder / "victim"
    (out / ".work").mkdir(parents=True)
    for path in (out / MANIFEST_FILE, out / ".work" / MANIFEST_FILE):
        path.write_bytes(content)
    victim.write_text("precious")
    try:
        manifest = read_manifest(out, None)
        with suppress(ArtifactError):
            Artifact.open(out)
        (out / MANIFEST_FILE).unlink()
        with suppress(KeyboardInterrupt), create_artifact(out, "checkpoint", "f" * 64, overwrite=True):
            raise KeyboardInterrupt
        manifest.sums_bytes("0" * 64)
        manifest.to_bytes()
    finally:
        if victim.read_text() != "precious" or {path.name for path in folder.iterdir()} > {"out", "victim"}:
            raise AssertionError("something was written or removed outside the directory")


def _recipes() -> list[bytes]:
    return [path.read_bytes() for path in sorted((ROOT / "recipes").glob("*.yaml"))]


_YAML: Final = (
    *("&a ", "*a", "<<: *a", "!!python/object/apply:os.system [x]", "- ", "? ", ": ", "|", ">", "[", "{", "quantize:"),
    *(
        "export:",
        "build:",
        "  bits: ",
        "  group_size: ",
        "  target: ",
        "  samples: ",
        "4",
        "-1",
        "1e9",
        "true",
        "~",
        "%",
    ),
    *("%", "2001-01-01", "0x10", "!!binary a", "---", "...", "\t", "'", '"', "#"),
)


def _recipe_cases(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.one_of(text_like(seeds, _YAML), bytes_like(seeds))


def _read_recipe(content: bytes, folder: Path) -> None:
    (folder / "r.yaml").write_bytes(content)
    load_recipe(folder / "r.yaml")


READERS: Final[dict[str, Reader]] = {
    "config": Reader(_configs, _json_cases, _read_config),
    "index": Reader(_indexes, _json_cases, _read_index),
    "safetensors": Reader(_weights, safetensors_like, _read_weights),
    "gguf": Reader(lambda: list(_ggufs()), bytes_like, _read_gguf),
    "tokenizer": Reader(_tokenizers, _json_cases, _read_tokenizer),
    "tokenizer_config": Reader(lambda: _dumped([_TOKENIZER_CONFIG]), _json_cases, _read_tokenizer_config),
    "generation_config": Reader(lambda: _dumped([{"eos_token_id": [1, 2]}]), _json_cases, _read_generation_config),
    "checkpoint": Reader(_quantized, safetensors_like, _read_quantized),
    "golden": Reader(lambda: list(_golden_files()), _golden_cases, _read_golden),
    "onnx": Reader(lambda: [_onnx()], bytes_like, _read_onnx),
    "manifest": Reader(_manifests, _json_cases, _read_manifest),
    "recipe": Reader(_recipes, _recipe_cases, _read_recipe),
}
"""The readers by name, which `make fuzz` and the folders of findings use."""


def outcome(reader: Reader, content: bytes, folder: Path) -> str | None:
    """A reader's verdict on a content: None if it accepts it, or its message.

    Raises:
        BaseException: Anything that is not an error of ours, which is a finding.
    """
    try:
        reader.read(content, folder)
    except Awq2trtError as error:
        return str(error)
    return None
