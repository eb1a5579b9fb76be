"""GGUF files (llama.cpp) as a `ModelSource`: tensors dequantized one at a time, under Hugging Face names.

The gguf package reads and dequantizes; transformers reads the config and the tokenizer out of the metadata.
llama.cpp stores q_proj and k_proj with the rows of each head interleaved for its own rotary form
(`LlamaModel.permute` in convert_hf_to_gguf.py); `_halves` puts them back into the rotate-half order.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from awq2trt.errors import CheckpointError, UnsupportedError
from awq2trt.families import describe_model
from awq2trt.source import Array, ModelSource

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

_ARCHITECTURES: Final = {"llama": "LlamaForCausalLM"}
"""GGUF `general.architecture` -> the architecture it stands for."""

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


class GgufSource(ModelSource):
    """One `.gguf` file: weights, config and tokenizer."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path
        self.name = name or str(path)
        self._tensors = {_hugging_face_name(tensor.name): tensor for tensor in _read(path).tensors}
        self.config = _config(path, tied="lm_head.weight" not in self._tensors)
        self.spec = describe_model(self.config)

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def tensor(self, name: str) -> Array:
        from gguf import quants

        if name not in self._tensors:
            raise CheckpointError("the file has no such tensor.", where=f"{self.path}: {name}", fix="download it again.")
        stored = self._tensors[name]
        try:
            value: Array = quants.dequantize(stored.data, stored.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise UnsupportedError(
                f"cannot read GGUF tensor type {stored.tensor_type.name} ({error}).",
                where=f"{self.path}: {name}",
                fix="use a GGUF in F16, BF16, Q8_0 or Q4_1, or the model's safetensors.",
            ) from error
        if ".q_proj." in name:
            value = _halves(value, self.spec.num_heads)
        elif ".k_proj." in name:
            value = _halves(value, self.spec.num_kv_heads)
        return value

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
            f"not a readable GGUF file ({error}).", where=str(path), fix="it is truncated or damaged; download it again."
        ) from error


def _config(path: Path, *, tied: bool) -> dict[str, Any]:
    """config.json's content, read from the metadata by transformers."""
    from transformers import AutoConfig

    try:
        config: dict[str, Any] = AutoConfig.from_pretrained(path.parent, gguf_file=path.name).to_dict()
    except (ValueError, KeyError, OSError) as error:
        raise UnsupportedError(
            f"transformers cannot read this model's configuration ({error}).",
            where=str(path),
            fix="use the model's safetensors directory.",
        ) from error
    architecture = _ARCHITECTURES.get(config.get("model_type", ""))
    if architecture is None:
        raise UnsupportedError(
            f"expected a GGUF of {', '.join(_ARCHITECTURES)}, got {config.get('model_type')!r}.",
            where=str(path),
            fix="use the model's safetensors directory, or see the families in README.",
        )
    config["architectures"] = [architecture]
    config["tie_word_embeddings"] = tied
    return config


def _hugging_face_name(gguf_name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; unknown names stay as they are."""
    stem, _, kind = gguf_name.rpartition(".")
    if stem in _OUTER_NAMES:
        return f"{_OUTER_NAMES[stem]}.{kind}"
    parts = stem.split(".", 2)
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in _BLOCK_NAMES:
        return f"model.layers.{parts[1]}.{_BLOCK_NAMES[parts[2]]}.{kind}"
    return gguf_name


def _halves(value: Array, heads: int) -> Array:
    """Rows of every head from llama.cpp's interleaved pairs to halves; [heads * head_dim, ...] or a bias."""
    pairs = value.reshape(heads, value.shape[0] // heads // 2, 2, *value.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(value.shape)
