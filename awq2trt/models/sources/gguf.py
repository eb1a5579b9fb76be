"""GGUF files (llama.cpp) as a `ModelSource`: tensors dequantized one at a time, under Hugging Face names.

The gguf package reads and dequantizes; transformers builds the tokenizer out of the metadata.
llama.cpp stores some tensors in forms of its own (convert_hf_to_gguf.py): Llama's q_proj and k_proj with the rows of
each head interleaved (`LlamaModel.permute`), which `_halves` puts back into the rotate-half order; and the weights of
Gemma's norms with the 1 added that its code adds, which is taken off again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from awq2trt.errors import CheckpointError, UnsupportedError
from awq2trt.models.families import describe_model
from awq2trt.models.families.rope import llama3_scaled
from awq2trt.models.sources.base import Array, ModelSource

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

_REQUIRED: Final = object()

_GEMMA3_27B_BLOCKS: Final = 62
"""The one Gemma 3 whose attention scale is not that of its head size; GGUF does not store it (llama.cpp goes by the
number of blocks, too)."""

_OUTER_NAMES: Final = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK_NAMES: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class _Architecture:
    """How llama.cpp stores an architecture.

    Attributes:
        name: The architecture in config.json.
        model_type: The same for transformers.
        block_names: Tensors of a block: GGUF's name -> Hugging Face's.
        interleaved: Rows of q and k are interleaved.
        unit_offset: Norms are stored with 1 added.
    """

    name: str
    model_type: str
    block_names: Mapping[str, str]
    interleaved: bool = False
    unit_offset: bool = False


_ARCHITECTURES: Final[Mapping[str, _Architecture]] = {
    "llama": _Architecture("LlamaForCausalLM", "llama", _BLOCK_NAMES, interleaved=True),
    "gemma3": _Architecture(
        "Gemma3ForCausalLM",
        "gemma3_text",
        {
            **_BLOCK_NAMES,
            "attn_q_norm": "self_attn.q_norm",
            "attn_k_norm": "self_attn.k_norm",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
        unit_offset=True,
    ),
}
"""GGUF `general.architecture` -> what it stands for."""


class GgufSource(ModelSource):
    """One `.gguf` file: weights, config and tokenizer."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path
        self.name = name or str(path)
        reader = _read(path)
        self._stored = _architecture(reader, path)
        names = self._stored.block_names
        self._tensors = {_hugging_face_name(tensor.name, names): tensor for tensor in reader.tensors}
        self.config = _config(reader, self._stored, self._tensors, path)
        self.spec = describe_model(self.config)

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def tensor(self, name: str) -> Array:
        from gguf import quants

        if name not in self._tensors:
            raise CheckpointError(
                "the file has no such tensor.", where=f"{self.path}: {name}", fix="download it again."
            )
        stored = self._tensors[name]
        try:
            value: Array = quants.dequantize(stored.data, stored.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise UnsupportedError(
                f"cannot read GGUF tensor type {stored.tensor_type.name} ({error}).",
                where=f"{self.path}: {name}",
                fix="use a GGUF in F16, BF16, Q8_0 or Q4_1, or the model's safetensors.",
            ) from error
        if self._stored.interleaved and ".q_proj." in name:
            value = _halves(value, self.spec.num_heads)
        elif self._stored.interleaved and ".k_proj." in name:
            value = _halves(value, self.spec.num_kv_heads)
        elif self._stored.unit_offset and name.endswith("norm.weight"):
            value = value - 1
        return value

    def has(self, name: str) -> bool:
        return name in self._tensors

    def save_tokenizer(self, directory: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.path.parent, gguf_file=self.path.name)
        tokenizer.save_pretrained(directory)


def _read(path: Path) -> GGUFReader:
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except (ValueError, IndexError, OSError, KeyError, TypeError, UnicodeDecodeError, OverflowError) as error:
        raise CheckpointError(
            f"not a readable GGUF file ({error}).",
            where=str(path),
            fix="it is truncated or damaged; download it again.",
        ) from error


def _architecture(reader: GGUFReader, path: Path) -> _Architecture:
    """What the file holds.

    Raises:
        UnsupportedError: An architecture whose names we do not know.
    """
    architecture = _metadata(reader, "general.architecture", path)
    if architecture not in _ARCHITECTURES:
        raise UnsupportedError(
            f"expected a GGUF of {', '.join(_ARCHITECTURES)}, got {architecture!r}.",
            where=str(path),
            fix="use the model's safetensors directory, or see the families in README.",
        )
    return _ARCHITECTURES[architecture]


def _config(
    reader: GGUFReader, stored: _Architecture, tensors: Mapping[str, ReaderTensor], path: Path
) -> dict[str, Any]:
    """config.json's content, from the metadata (keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""
    prefix = _metadata(reader, "general.architecture", path)

    def value(key: str, default: Any = _REQUIRED) -> Any:
        return _metadata(reader, f"{prefix}.{key}", path, default=default)

    embedding = tensors.get("model.embed_tokens.weight")
    if embedding is None:
        raise CheckpointError("the file has no token embedding.", where=str(path), fix="download it again.")
    heads = value("attention.head_count")
    config = {
        "architectures": [stored.name],
        "model_type": stored.model_type,
        "hidden_size": value("embedding_length"),
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv", heads),
        "head_dim": value("attention.key_length", value("embedding_length") // heads),
        "vocab_size": int(embedding.shape[-1]),
        "max_position_embeddings": value("context_length"),
        # GGUF keeps it in single precision: 1e-5 comes as 9.999999747378752e-06.
        "rms_norm_eps": float(np.format_float_positional(np.float32(value("attention.layer_norm_rms_epsilon")))),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in tensors,
        "mlp_bias": "model.layers.0.mlp.up_proj.bias" in tensors,
    }
    if prefix == "gemma3":
        config |= _gemma3_keys(config, value)
    else:
        config["hidden_act"] = "silu"
        config["rope_parameters"] = _rope_parameters(float(value("rope.freq_base", 10000.0)), tensors, path)
    return {**config, **_token_ids(reader, path)}


def _gemma3_keys(config: Mapping[str, Any], value: Callable[..., Any]) -> dict[str, Any]:
    """What Gemma 3's config.json says beside Llama's keys; the pattern of its layers is always the same."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(value("rope.freq_base", 1e6))}
    if value("rope.scaling.type", "none") == "linear":
        rope |= {"rope_type": "linear", "factor": float(value("rope.scaling.factor"))}
    whole = config["num_hidden_layers"] == _GEMMA3_27B_BLOCKS
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": value("attention.sliding_window"),
        "query_pre_attn_scalar": config["hidden_size"] // config["num_attention_heads"]
        if whole
        else config["head_dim"],
        "rope_parameters": {
            "full_attention": rope,
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    }


def _token_ids(reader: GGUFReader, path: Path) -> dict[str, int]:
    """Special tokens that config.json names, those that the file knows."""
    stored = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
    found = {key: _metadata(reader, f"tokenizer.ggml.{name}", path, default=None) for key, name in stored.items()}
    return {key: token for key, token in found.items() if token is not None}


def _metadata(reader: GGUFReader, key: str, path: Path, default: Any = _REQUIRED) -> Any:
    """One scalar of the metadata as a Python value."""
    field = reader.fields.get(key)
    if field is None:
        if default is _REQUIRED:
            raise CheckpointError(f"the metadata has no {key}.", where=str(path), fix="download the file again.")
        return default
    return field.contents()


def _rope_parameters(theta: float, tensors: Mapping[str, ReaderTensor], path: Path) -> dict[str, Any]:
    """Rotary parameters. Llama 3.1's scaling is stored as a table of divisors, `rope_freqs.weight`.

    The table is recognised, not copied, so that config.json says what every reader of the model understands.
    """
    if "rope_freqs.weight" not in tensors:
        return {"rope_type": "default", "rope_theta": theta}
    divisors = np.asarray(tensors["rope_freqs.weight"].data, dtype=np.float64)
    plain = theta ** -(np.arange(divisors.size) / divisors.size)
    for factor in (8.0, 16.0, 32.0):
        scaling = {
            "rope_type": "llama3",
            "rope_theta": theta,
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        if np.allclose(plain / llama3_scaled(plain, scaling), divisors, rtol=1e-4):
            return scaling
    raise UnsupportedError(
        "the rotary scaling in rope_freqs.weight is not Llama 3.1's with factor 8, 16 or 32.",
        where=str(path),
        fix="use the model's safetensors directory.",
    )


def _hugging_face_name(gguf_name: str, block_names: Mapping[str, str]) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; unknown names stay as they are."""
    stem, _, kind = gguf_name.rpartition(".")
    if stem in _OUTER_NAMES:
        return f"{_OUTER_NAMES[stem]}.{kind}"
    parts = stem.split(".", 2)
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in block_names:
        return f"model.layers.{parts[1]}.{block_names[parts[2]]}.{kind}"
    return gguf_name


def _halves(value: Array, heads: int) -> Array:
    """Rows of every head from llama.cpp's interleaved pairs to halves; [heads * head_dim, ...] or a bias."""
    pairs = value.reshape(heads, value.shape[0] // heads // 2, 2, *value.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(value.shape)
