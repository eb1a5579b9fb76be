"""Tiny random models of the real transformers classes, saved as a user would have them, with a real tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
)

VOCAB_SIZE = 272
"""256 bytes, end-of-text, padding, and a few tokens that no text produces."""

LLAMA_CONFIG: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "initializer_range": 0.2,  # weights are so large that every part of a block affects the logits
}


def save_llama(directory: Path, **overrides: Any) -> Path:
    """Saves a random Llama; `overrides` go into its config."""
    return _save(directory, LlamaConfig(**{**LLAMA_CONFIG, **overrides}))


def save_mistral(directory: Path, **overrides: Any) -> Path:
    """Saves a random Mistral; `overrides` go into its config."""
    return _save(directory, MistralConfig(**{**LLAMA_CONFIG, **overrides}))


def save_family(directory: Path, config: Mapping[str, Any]) -> Path:
    """Saves a random model of the real class that a config.json names."""
    kept = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    found = AutoConfig.for_model(config["model_type"], **kept)
    for name in ("init_std", "initializer_range"):
        if hasattr(found, name):
            setattr(found, name, 0.1)
    return _save(directory, found)


def save_tokenizer(directory: Path) -> None:
    """Saves a byte-level tokenizer: every text has ids, one for each of its bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate([*alphabet, "<|end|>", "<|pad|>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>", pad_token="<|pad|>"
    ).save_pretrained(directory)


def publish(directory: Path, model_class: Any, template: str, markers: Sequence[str] = ()) -> None:
    """Saves a model again as it would be published: in fp16, with a chat template and tokens for markers in texts."""
    model_class.from_pretrained(directory, dtype=torch.float16).save_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.add_special_tokens({"additional_special_tokens": [*markers]}) == len(markers)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)


def spread_weights_(model: torch.nn.Module) -> None:
    """Makes a model's weights so large that every part affects the logits, and its norms unlike 1 and 0."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ("norm" in name or "ln_q" in name) and name.endswith("weight"):
                value.uniform_(0.5, 1.5)
            else:
                value.normal_(std=0.2)


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random token ids."""
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))


def _save(directory: Path, config: Any) -> Path:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.normal_(std=0.2)
            elif value.ndim == 1:
                # transformers initializes norms with 1, or 0 if the gain is 1 + weight, which would hide a missing fold
                # them.
                low = -0.5 if value.abs().max() == 0 else 0.5
                value.uniform_(low, low + 1)
    model.save_pretrained(directory)
    save_tokenizer(directory)
    return directory
