"""Models that see, of published sizes, for `bench_vision.py`. They have random weights.

In: a name in `SHAPES`. Out: a config.json, with the sizes in the model's own on the Hugging Face hub, and what of an
image it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from awq2trt.evaluation.random_model import RandomModel
from awq2trt.models.vision.prepared import Grid
from awq2trt.recipe import BUILD_HEAD, HeadKind, QuantizeOptions
from awq2trt.scheme import QuantScheme

CLIP_LARGE: Final[Mapping[str, Any]] = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
"""The tower of both LLaVAs."""


@dataclass(frozen=True)
class Shape:
    """A model that sees.

    Attributes:
        config: Its config.json.
        grid: Grid of the measured image's patches or tiles; None where all images are of one size.
        size: Height and width of the measured image, where the model sees the whole of it beside its tiles.
        capacity: Positions in the cache: an image, the question, and an answer.
        head: How the head is stored; as `awq2trt build` does unless told otherwise.
    """

    config: Mapping[str, Any]
    grid: Grid | None = None
    size: tuple[int, int] | None = None
    capacity: int = 1024
    head: HeadKind = BUILD_HEAD

    @property
    def model(self) -> RandomModel:
        """Its random weights, which are drawn when they are needed."""
        return RandomModel(dict(self.config), QuantScheme(), QuantizeOptions(head=self.head).head_scheme)

    def with_layers(self, layers: int) -> Shape:
        """Returns this model with fewer layers in its decoder."""
        text = {**self.config["text_config"], "num_hidden_layers": layers}
        return replace(self, config={**self.config, "text_config": text})


SHAPES: Final[Mapping[str, Shape]] = {
    "llava-1.5-7b": Shape(
        {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "image_token_index": 32000,
            "vision_feature_layer": -2,
            "text_config": {
                "model_type": "llama",
                "vocab_size": 32064,
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
                "max_position_embeddings": 4096,
                "rms_norm_eps": 1e-5,
                "tie_word_embeddings": False,
            },
            "vision_config": CLIP_LARGE,
        }
    ),
    "llava-1.6-mistral-7b": Shape(
        {
            "architectures": ["LlavaNextForConditionalGeneration"],
            "model_type": "llava_next",
            "image_token_index": 32000,
            "vision_feature_layer": -2,
            "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
            "text_config": {
                "model_type": "mistral",
                "vocab_size": 32064,
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "max_position_embeddings": 32768,
                "rms_norm_eps": 1e-5,
                "sliding_window": None,
                "tie_word_embeddings": False,
            },
            "vision_config": CLIP_LARGE,
        },
        grid=Grid(1, 2, 2),
        size=(672, 672),
        capacity=4096,
    ),
    "gemma-3-4b": Shape(
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "image_token_index": 262144,
            "boi_token_index": 255999,
            "eoi_token_index": 256000,
            "mm_tokens_per_image": 256,
            "tie_word_embeddings": True,
            "text_config": {
                "model_type": "gemma3_text",
                "vocab_size": 262208,
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_hidden_layers": 34,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "head_dim": 256,
                "query_pre_attn_scalar": 256,
                "sliding_window": 1024,
                "max_position_embeddings": 131072,
                "rms_norm_eps": 1e-6,
                "tie_word_embeddings": True,
            },
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 27,
                "num_attention_heads": 16,
                "image_size": 896,
                "patch_size": 14,
            },
        }
    ),
    "qwen3-vl-4b": Shape(
        {
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "model_type": "qwen3_vl",
            "image_token_id": 151655,
            "vision_start_token_id": 151652,
            "vision_end_token_id": 151653,
            "tie_word_embeddings": True,
            "text_config": {
                "model_type": "qwen3_vl_text",
                "vocab_size": 151936,
                "hidden_size": 2560,
                "intermediate_size": 9728,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "max_position_embeddings": 262144,
                "rms_norm_eps": 1e-6,
                "tie_word_embeddings": True,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 5000000.0,
                    "mrope_section": [24, 20, 20],
                    "mrope_interleaved": True,
                },
            },
            "vision_config": {
                "model_type": "qwen3_vl_vision",
                "depth": 24,
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_heads": 16,
                "patch_size": 16,
                "out_hidden_size": 2560,
                "num_position_embeddings": 2304,
                "deepstack_visual_indexes": [5, 11, 17],
            },
        },
        grid=Grid(1, 48, 48),
    ),
    "qwen2.5-vl-3b": Shape(
        {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": "qwen2_5_vl",
            "image_token_id": 151655,
            "vision_start_token_id": 151652,
            "vision_end_token_id": 151653,
            "tie_word_embeddings": True,
            "text_config": {
                "model_type": "qwen2_5_vl_text",
                "vocab_size": 151936,
                "hidden_size": 2048,
                "intermediate_size": 11008,
                "num_hidden_layers": 36,
                "num_attention_heads": 16,
                "num_key_value_heads": 2,
                "max_position_embeddings": 128000,
                "rms_norm_eps": 1e-6,
                "tie_word_embeddings": True,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1000000.0,
                    "mrope_section": [16, 24, 24],
                },
            },
            "vision_config": {
                "model_type": "qwen2_5_vl",
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "window_size": 112,
                "out_hidden_size": 2048,
                "fullatt_block_indexes": [7, 15, 23, 31],
            },
        },
        Grid(1, 48, 48),
    ),
}
"""Published sizes by name, under the keys that transformers 5 saves. Where Qwen3-VL's were read, `PUBLISHED` of
tests/models/families/test_qwen3_vl.py says.
"""
