"""The decoder of text within a model that sees: its part of config.json -> `DecoderSpec`, under the checkpoint's names.

Published checkpoints list only what differs from the defaults of transformers' classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from awq2trt.errors import UnsupportedError
from awq2trt.models.families import gemma, llama, qwen
from awq2trt.models.families.config_keys import refuse_unless
from awq2trt.models.families.description import DecoderSpec, Family

_TEXT: Final[Mapping[str, Family]] = {
    str(family.example["model_type"]): family for family in (llama.LLAMA, llama.MISTRAL, qwen.QWEN2, gemma.GEMMA3)
}
"""Decoders in published checkpoints, by `model_type`."""

_TEXT_SIZES: Final[Mapping[str, Mapping[str, int]]] = {
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "mistral": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "gemma3_text": {
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
}
"""Default sizes of the classes `LlamaConfig`, `MistralConfig` and `Gemma3TextConfig`: a published text_config lists
only what differs from them."""


def describe_text(text: Mapping[str, Any], *, prefix: str, head: str, tied: bool) -> DecoderSpec:
    """Describes a decoder.

    Args:
        text: The value of `text_config`.
        prefix: What the checkpoint has in place of `model.` in the names of the decoder's tensors.
        head: Name of the head.
        tied: Whether the whole model's configuration says that head and embedding are one weight.

    Raises:
        UnsupportedError: The decoder is of another kind, or a key has a value that no such model has.
    """
    kind = str(text.get("model_type", "llama"))
    family = _TEXT.get(kind)
    if family is None:
        raise UnsupportedError(
            f"text_config.model_type: expected {', '.join(_TEXT)}, got {kind!r}.",
            where="config.json",
            fix="this decoder is not supported here; CONTRIBUTING.md, 'A new model family', shows how to add it.",
        )
    refuse_unless(text, {"is_causal": True, "per_layer_config": None})
    sizes = {key: size for key, size in _TEXT_SIZES.get(kind, {}).items() if text.get(key) is None}
    spec = family.describe({**text, **sizes})
    own = "model."
    return replace(
        spec,
        tie_embeddings=spec.tie_embeddings or tied,
        embedding=prefix + spec.embedding.removeprefix(own),
        final_norm=prefix + spec.final_norm.removeprefix(own),
        block_prefix=prefix + spec.block_prefix.removeprefix(own),
        head=head,
    )
