"""Writes tests/data/openflamingo.safetensors: what the package `open-flamingo` computes with tiny random models.

    pip install --no-deps --target DIR open-flamingo==2.0.1 open-clip-torch==2.20.0 einops einops-exts
    python tools/make_openflamingo_golden.py --packages DIR

The package's own classes run here, on `VisionTransformer` of open_clip and decoders of transformers, so the file is an
oracle that shares no code with us; the weights are those of tests/tiny_flamingo.py. open_clip is of the version that
published checkpoints were trained with: since 2.23, its tower ends in a norm that they do not know. Both packages pin
old versions of others, which nothing that is needed here uses: only their modules are imported, not all that they
depend on.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

TESTS: Final = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from tiny_flamingo import (  # noqa: E402  (found through the path above)
    END_OF_CHUNK,
    IMAGE_TOKEN,
    TEXT_CONFIGS,
    TOWER_CONFIG,
    flamingo_config,
    flamingo_tensors,
)

OUTPUT: Final = TESTS / "data" / "openflamingo.safetensors"
CONTINUATION: Final = (7, 200, 31, 99)
BLOCKS: Final = {"mpt": "transformer.blocks", "gpt_neox": "gpt_neox.layers"}
"""Where a decoder has its blocks, as `create_model_and_transforms` knows it."""
HEADS: Final = {"mpt": "lang_encoder.transformer.wte.weight", "gpt_neox": "lang_encoder.embed_out.weight"}


def main() -> None:
    """Runs the package and writes the file."""
    parser = argparse.ArgumentParser(description="Golden outputs of open-flamingo.")
    parser.add_argument("--packages", type=Path, required=True, help="folder with open_flamingo and open_clip")
    prepare_imports(parser.parse_args().packages)
    tokens, pixels = inputs()
    golden = {"tokens": tokens, "pixels": pixels, "continuation": torch.tensor(CONTINUATION)}
    with torch.no_grad():
        for text in TEXT_CONFIGS:
            model = flamingo(text)
            golden |= {f"{text}.{name}": value for name, value in outputs(model, tokens, pixels).items()}
    save_file({name: value.contiguous() for name, value in golden.items()}, OUTPUT)
    OUTPUT.chmod(0o644)  # safetensors creates files that only their owner can read


def prepare_imports(packages: Path) -> None:
    """Makes modules of the packages importable without what the packages import at once."""
    sys.path.insert(0, str(packages))
    for name in ("open_flamingo", "open_flamingo.src", "open_clip"):
        package = ModuleType(name)
        package.__path__ = [str(packages / name.replace(".", "/"))]
        sys.modules[name] = package
    for name in ("torchvision", "torchvision.ops"):
        sys.modules[name] = ModuleType(name)
    misc: Any = ModuleType("torchvision.ops.misc")
    misc.FrozenBatchNorm2d = nn.BatchNorm2d  # open_clip names it in a function that is not called here
    sys.modules["torchvision.ops.misc"] = misc


def inputs() -> tuple[Tensor, Tensor]:
    """Three texts with two, one and no image, int64 [3, S], and six images, fp32 [6, 3, side, side]."""
    generator, side = torch.Generator().manual_seed(5), TOWER_CONFIG["image_size"]
    tokens = torch.randint(0, 256, (3, 24), generator=generator)
    tokens[0, 3] = tokens[0, 13] = tokens[1, 7] = IMAGE_TOKEN
    return tokens, torch.randn(6, 3, side, side, generator=generator)


def flamingo(text: str) -> Any:
    """A tiny model of the package's own class."""
    mixin = importlib.import_module("open_flamingo.src.flamingo_lm").FlamingoLMMixin
    extend = importlib.import_module("open_flamingo.src.utils").extend_instance
    config = flamingo_config(text)
    decoder_config = AutoConfig.for_model(**{**config["text_config"], "eos_token_id": 256})
    decoder = AutoModelForCausalLM.from_config(decoder_config, attn_implementation="eager")
    extend(decoder, mixin)
    decoder.set_decoder_layers_attr_name(BLOCKS[text])
    clip: Any = ModuleType("clip")
    clip.visual = tower()
    model = importlib.import_module("open_flamingo.src.flamingo").Flamingo(
        clip, decoder, END_OF_CHUNK, IMAGE_TOKEN, TOWER_CONFIG["hidden_size"], config["cross_attn_every_n_layers"]
    )
    own = {name: torch.from_numpy(value) for name, value in flamingo_tensors(config).items()}
    own |= renamed_tower(own)
    own["lang_encoder.lm_head.weight"] = own[HEADS[text]]  # transformers 5 has this name for all heads
    found = model.load_state_dict(own, strict=False)
    aliases = ("lang_encoder.old_decoder_blocks.", "lang_encoder.gated_cross_attn_layers.")
    missing = [name for name in found.missing_keys if not name.startswith(aliases) and ".rotary_emb." not in name]
    unused = {"vision_encoder.proj", "vision_encoder.ln_post.weight", "vision_encoder.ln_post.bias"}
    strangers = {name for name in found.unexpected_keys if not name.startswith("vision_encoder.")} - {HEADS[text]}
    if set(missing) - unused or strangers:
        raise SystemExit(f"missing: {set(missing) - unused}, unexpected: {strangers}")
    return model.eval()


def tower() -> nn.Module:
    """A tower as open_clip makes it of OpenAI's weights."""
    transformer = importlib.import_module("open_clip.transformer")
    found: nn.Module = transformer.VisionTransformer(
        image_size=TOWER_CONFIG["image_size"],
        patch_size=TOWER_CONFIG["patch_size"],
        width=TOWER_CONFIG["hidden_size"],
        layers=TOWER_CONFIG["num_hidden_layers"],
        heads=TOWER_CONFIG["num_attention_heads"],
        mlp_ratio=TOWER_CONFIG["intermediate_size"] / TOWER_CONFIG["hidden_size"],
        act_layer=transformer.QuickGELU,
        output_tokens=True,
    )
    return found


def renamed_tower(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tower's tensors, which have transformers' names, under open_clip's."""
    ours, theirs, found = "vision_encoder.encoder.layers.", "vision_encoder.transformer.resblocks.", {}
    for kind in ("weight", "bias"):
        for layer in range(TOWER_CONFIG["num_hidden_layers"]):
            a, b = f"{ours}{layer}.", f"{theirs}{layer}."
            attention = f"{a}self_attn."
            heads = [tensors[f"{attention}{name}.{kind}"] for name in ("q_proj", "k_proj", "v_proj")]
            found[f"{b}attn.in_proj_{kind}"] = torch.cat(heads)
            for name, other in (
                ("self_attn.out_proj", "attn.out_proj"),
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ):
                found[f"{b}{other}.{kind}"] = tensors[f"{a}{name}.{kind}"]
        found[f"vision_encoder.ln_pre.{kind}"] = tensors[f"vision_encoder.pre_layrnorm.{kind}"]
    embeddings = "vision_encoder.embeddings."
    found["vision_encoder.class_embedding"] = tensors[f"{embeddings}class_embedding"]
    found["vision_encoder.conv1.weight"] = tensors[f"{embeddings}patch_embedding.weight"]
    found["vision_encoder.positional_embedding"] = tensors[f"{embeddings}position_embedding.weight"]
    return found


def outputs(model: Any, tokens: Tensor, pixels: Tensor) -> dict[str, Tensor]:
    """Scores of the texts, and those behind the first text, token by token as `generate` computes them."""
    shown = pixels.view(len(tokens), -1, 1, *pixels.shape[1:])  # [texts, images, frames, 3, side, side]
    found = model(shown[:1], tokens[:1], use_cache=True, clear_conditioned_layers=False)
    model.lang_encoder._use_cached_vision_x, continued = True, []
    for token in CONTINUATION:
        past = found.past_key_values
        found = model(
            None, torch.tensor([[token]]), past_key_values=past, use_cache=True, clear_conditioned_layers=False
        )
        continued.append(found.logits[0, -1])
    model.uncache_media()
    return {"logits": model(shown, tokens).logits, "continued": torch.stack(continued)}


if __name__ == "__main__":
    main()
