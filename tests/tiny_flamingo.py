"""Tiny OpenFlamingo models, saved as `tools/convert_openflamingo.py` writes them.

Weights depend on nothing but their names and shapes, so that `tools/make_openflamingo_golden.py` gives them to the
package's own classes, too.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tiny_exports import export_saved
from tiny_models import save_tokenizer
from transformers import AutoTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from awq2trt.artifact.manifest import Artifact
from awq2trt.models.families import describe_model, describe_vision
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.vision.prepared import Pixels
from awq2trt.models.vision.seeing import logits_of_text_and_images
from awq2trt.recipe import ExportOptions

ADDED_TOKENS = ["<|endofchunk|>", "<image>"]
"""What `create_model_and_transforms` adds to a tokenizer."""

END_OF_CHUNK, IMAGE_TOKEN = 258, 259

TEXT_CONFIGS: dict[str, dict[str, Any]] = {
    "mpt": {
        "architectures": ["MptForCausalLM"],
        "model_type": "mpt",
        "vocab_size": 264,
        "d_model": 32,
        "n_layers": 4,
        "n_heads": 4,
        "max_seq_len": 256,
        "attn_config": {"clip_qkv": 3.0},
        "bos_token_id": 256,
        "eos_token_id": [256, END_OF_CHUNK],
    },
    "gpt_neox": {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": 264,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
        "rotary_pct": 0.5,
        "bos_token_id": 256,
        "eos_token_id": [256, END_OF_CHUNK],
    },
}

TOWER_CONFIG: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 128,  # open_clip's heads have 64 channels
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 20,
    "patch_size": 5,
    "hidden_act": "quick_gelu",
}


def flamingo_config(text: str = "mpt", *, every: int = 2, **changes: Any) -> dict[str, Any]:
    """A tiny config.json.

    Args:
        text: Kind of decoder.
        every: Interval of cross-attention.
        changes: Changes to the decoder's configuration.
    """
    return {
        "architectures": ["OpenFlamingoForConditionalGeneration"],
        "text_config": {**TEXT_CONFIGS[text], **changes},
        "vision_config": TOWER_CONFIG,
        "cross_attn_every_n_layers": every,
        "media_token_id": IMAGE_TOKEN,
    }


def flamingo_tensors(config: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Weights by full name, so large that every part affects the logits."""
    spec, vision = describe_model(config), describe_vision(config)
    assert vision is not None
    shapes = spec.outer_shapes() | vision.shapes()
    for layer in range(spec.num_layers):
        inside = spec.stored_block_shapes() | spec.cross_shapes(layer)
        shapes |= {spec.prefix(layer) + name: shape for name, shape in inside.items()}
    return {name: _values(name, shape) for name, shape in shapes.items()}


def save_flamingo(directory: Path, text: str = "mpt", *, every: int = 2, **changes: Any) -> Path:
    """Saves a model with its tokenizer and image processor; arguments as for `flamingo_config`."""
    config = flamingo_config(text, every=every, **changes)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(flamingo_tensors(config), directory / "model.safetensors", metadata={"format": "pt"})
    save_flamingo_tokenizer(directory)
    side = TOWER_CONFIG["image_size"]
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(
        directory
    )
    return directory


def save_flamingo_tokenizer(directory: Path) -> None:
    """Saves the tokenizer of bytes with OpenFlamingo's tokens."""
    save_tokenizer(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_special_tokens({"additional_special_tokens": ADDED_TOKENS})
    assert tokenizer.convert_tokens_to_ids(ADDED_TOKENS) == [END_OF_CHUNK, IMAGE_TOKEN]
    tokenizer.save_pretrained(directory)


def export_flamingo(
    folder: Path, text: str = "mpt", *, export: ExportOptions | None = None, **changes: Any
) -> Artifact:
    """A model in `folder/model`, its checkpoint and its ONNX model beside it; arguments as for `flamingo_config`."""
    save_flamingo(folder / "model", text, **changes)
    return export_saved(folder, export or ExportOptions(max_seq_len=96))


def logits_of_texts(source: ModelSource, tokens: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Logits of several texts, whose images follow each other, fp32 [texts, S, vocab_size]."""
    counts = (tokens == IMAGE_TOKEN).sum(dim=-1).tolist()
    texts = zip(tokens.tolist(), pixels.split(counts), strict=True)
    return torch.stack(
        [logits_of_text_and_images(source, text, [Pixels(image.numpy()) for image in images]) for text, images in texts]
    )


def _values(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    uniform = np.random.default_rng(zlib.crc32(name.encode())).random(shape)
    if name.endswith("_gate"):
        return (0.6 + 0.6 * uniform).astype(np.float32)
    if len(shape) == 1 and name.endswith("weight"):  # norms are away from 1
        return (0.5 + uniform).astype(np.float32)
    return ((uniform - 0.5) * (0.8 if len(shape) == 1 else 1.6 / np.sqrt(np.sqrt(shape[-1])))).astype(np.float32)
