"""Makes one directory of a published OpenFlamingo checkpoint, its decoder and its tower, for `awq2trt quantize`.

    python tools/convert_openflamingo.py CHECKPOINT.pt --language DIR --vision DIR --output DIR

In: `checkpoint.pt` of a model like openflamingo/OpenFlamingo-9B-vitl-mpt7b, which has only the perceiver, the gated
cross-attention and the embeddings; the directory of the decoder that it was trained on (mosaicml/mpt-7b, or
togethercomputer/RedPajama-INCITE-Base-3B-v1); and that of the tower (openai/clip-vit-large-patch14). Out: a directory
in the layout of `awq2trt.models.families.openflamingo`, in safetensors, every weight in the type that it had.

`checkpoint.pt`, and `pytorch_model*.bin` of a decoder without safetensors, are read by PyTorch's restricted unpickler
(`torch.load(weights_only=True)`), which makes tensors and runs no code. The interval of cross-attention is taken from
the checkpoint. Nothing is downloaded. Files are mapped into memory, not read at once: a model of 9 billion parameters
needs a few GB of memory.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from awq2trt.errors import Awq2trtError
from awq2trt.images.processor import PROCESSOR_FILES
from awq2trt.models.families import DecoderSpec, describe_model, describe_vision, find_family
from awq2trt.models.sources.safetensors import SafetensorsSource

ADDED_TOKENS: Final = ("<|endofchunk|>", "<image>")
PADDING: Final = "<PAD>"
"""Tokens that `create_model_and_transforms` of `open-flamingo` adds to a tokenizer, in this order."""

LANGUAGE: Final = "lang_encoder."
VISION: Final = "vision_encoder."
TOWER: Final = "vision_model."
"""Prefix of a tower's tensors in its own directory."""

STATE: Final = "model_state_dict"
"""Key of the weights in a checkpoint that training wrote, beside the optimizer's state."""

SHARD_SIZE: Final = "2GB"

ALIAS: Final = re.compile(r"lang_encoder\.gated_cross_attn_layers\.(\d+)\.(.*)")
GATE: Final = re.compile(r".*\.(\d+)\.gated_cross_attn_layer\.attn_gate")


def main() -> None:
    """Converts the checkpoint that the command line names."""
    parser = argparse.ArgumentParser(description="OpenFlamingo's checkpoint, decoder and tower -> one directory.")
    parser.add_argument("checkpoint", type=Path, help="checkpoint.pt")
    parser.add_argument("--language", type=Path, required=True, help="directory of the decoder that it was trained on")
    parser.add_argument("--vision", type=Path, required=True, help="directory of the CLIP model that it was trained on")
    parser.add_argument("--output", "-o", type=Path, required=True, help="a directory that does not exist yet")
    arguments = parser.parse_args()
    try:
        convert(arguments.checkpoint, arguments.language, arguments.vision, arguments.output)
    except Awq2trtError as error:
        raise SystemExit(str(error)) from error


def convert(checkpoint: Path, language: Path, vision: Path, output: Path) -> None:
    """Writes the directory.

    Raises:
        SystemExit: A file is missing, the directory exists, or the three do not belong together.
        Awq2trtError: The model is of a kind that awq2trt does not know.
    """
    require(not output.exists(), f"{output} exists: name another --output.")
    for file in (checkpoint, language / "config.json", vision / "config.json"):
        require(file.is_file(), f"there is no file {file}: download it.")
    text = json.loads((language / "config.json").read_text(encoding="utf-8"))
    text.pop("auto_map", None)  # transformers has the classes that published decoders brought along
    spec = decoder_spec(text)
    trained = trained_tensors(checkpoint, spec.block_prefix)
    tower = json.loads((vision / "config.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(language)
    tokenizer.add_special_tokens({"additional_special_tokens": list(ADDED_TOKENS)})
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PADDING})
    decoder = pieces(language)
    trained |= {name: rows_of(name, trained, decoder, len(tokenizer)) for name in end_weights(spec)}
    end, image = (tokenizer.convert_tokens_to_ids(token) for token in ADDED_TOKENS)
    ends = sorted({end, tokenizer.eos_token_id} - {None})
    config = {
        "architectures": ["OpenFlamingoForConditionalGeneration"],
        "text_config": {**text, "eos_token_id": ends, "vocab_size": len(trained[end_weights(spec)[0]])},
        "vision_config": tower.get("vision_config", tower),
        "cross_attn_every_n_layers": interval(trained),
        "media_token_id": image,
    }
    tensors = assembled(config, trained, decoder, pieces(vision))
    output.mkdir(parents=True)
    save_torch_state_dict(tensors, output, max_shard_size=SHARD_SIZE)
    tokenizer.save_pretrained(output)
    (output / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (output / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}) + "\n", encoding="utf-8")
    for name in PROCESSOR_FILES:
        if (vision / name).is_file():
            shutil.copy(vision / name, output / name)
    SafetensorsSource.open(output).require_tensors()


def trained_tensors(checkpoint: Path, blocks: str) -> dict[str, Tensor]:
    """The trained weights, under the names that `Flamingo` gives them.

    Args:
        checkpoint: The file.
        blocks: Name of a block of the decoder, with `{layer}` for its number.
    """
    state, found = unpickled(checkpoint), {}
    for name, value in state.get(STATE, state).items():
        own = name.removeprefix("module.")
        if (alias := ALIAS.fullmatch(own)) is not None:  # the same tensors under a second name
            own = f"{LANGUAGE}{blocks.format(layer=alias[1])}gated_cross_attn_layer.{alias[2]}"
        if not own.startswith((f"{LANGUAGE}old_decoder_blocks.", VISION)):
            found[own] = value
    return found


def unpickled(path: Path) -> dict[str, Any]:
    """What a file of `torch.save` holds, if it holds only tensors."""
    try:
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise SystemExit(f"{path}: not a file of tensors: {str(error).splitlines()[0]}") from error
    return found


def pieces(directory: Path) -> dict[str, Tensor]:
    """All tensors of a directory, by name, from safetensors if there are any."""
    found: dict[str, Tensor] = {}
    for path in sorted(directory.glob("model*.safetensors")):
        found |= load_file(path)
    for path in () if found else sorted(directory.glob("pytorch_model*.bin")):
        found |= unpickled(path)
    require(bool(found), f"{directory} has neither model*.safetensors nor pytorch_model*.bin: download its weights.")
    return found


def interval(trained: Mapping[str, Tensor]) -> int:
    """Blocks from one cross-attention to the next."""
    layers = sorted(int(match[1]) for name in trained if (match := GATE.fullmatch(name)))
    require(bool(layers), "the checkpoint has no gated cross-attention: name a checkpoint.pt of OpenFlamingo 2.")
    return layers[0] + 1


def decoder_spec(text: Mapping[str, Any]) -> DecoderSpec:
    """The description of the decoder alone."""
    family = find_family(text)
    require(family is not None, f"unknown decoder {text.get('architectures')}: expected one of `docs/models.md`.")
    assert family is not None
    return family.describe(text)


def end_weights(spec: DecoderSpec) -> tuple[str, ...]:
    """Names of embedding and head, or of the one weight that is both."""
    return tuple(dict.fromkeys(f"{LANGUAGE}{name}.weight" for name in (spec.embedding, spec.stored_head)))


def rows_of(name: str, trained: Mapping[str, Tensor], decoder: Mapping[str, Tensor], tokens: int) -> Tensor:
    """Embedding or head with a row for each token.

    `create_model_and_transforms` gives both as many rows as the tokenizer has tokens. A checkpoint has them if they
    were trained; otherwise they are the decoder's first rows.
    """
    own = trained.get(name)
    rows = own if own is not None else decoder.get(name.removeprefix(LANGUAGE), torch.empty(0))[:tokens].clone()
    require(len(rows) >= tokens, f"{name}: expected a row for each of {tokens} tokens, got {len(rows)}.")
    return rows


def assembled(
    config: dict[str, Any], trained: Mapping[str, Tensor], decoder: Mapping[str, Tensor], tower: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """All tensors that the model needs, by full name."""
    spec, vision = describe_model(config, trained), describe_vision(config, trained)
    assert vision is not None
    names = [*spec.outer_shapes(), *vision.shapes()]
    for layer in range(spec.num_layers):
        inside = spec.stored_block_shapes() | spec.cross_shapes(layer)
        names += [spec.prefix(layer) + name for name in inside]
    found: dict[str, Tensor] = {}
    for name in names:
        own = name.removeprefix(LANGUAGE).replace(".decoder_layer.", ".")
        candidates = (trained.get(name), decoder.get(own), tower.get(TOWER + name.removeprefix(VISION)))
        value = next((candidate for candidate in candidates if candidate is not None), None)
        require(value is not None, f"none of the three has the tensor {name}: they do not belong together.")
        assert value is not None
        found[name] = value.contiguous()
    return found


def require(holds: bool, message: str) -> None:
    """Ends the program unless something holds."""
    if not holds:
        raise SystemExit(message)


if __name__ == "__main__":
    main()
