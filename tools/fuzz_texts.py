"""What is fuzzed of texts and pictures: tokenizers, what goes beside them, texts to calibrate on, captions, images.

In: the content of one file, and an empty folder. Out: nothing, or an `Awq2trtError`; anything else is a finding.
"""

from __future__ import annotations

import io
import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
from fuzz_models import dumped
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from awq2trt.errors import Awq2trtError
from awq2trt.evaluation.tasks import TASKS, Score, read_task, score_task
from awq2trt.images.pairs import is_image_text, read_pairs
from awq2trt.images.processor import read_processor
from awq2trt.images.read import read_image
from awq2trt.models.sources.base import copy_tokenizer
from awq2trt.models.sources.tokenizer_json import CHAT_TEMPLATE_FILE
from awq2trt.runtime.chat import ChatTokenizer, user_message
from awq2trt.stages.readiness import require_images
from awq2trt.text.read import read_text
from awq2trt.text.tokenizer import encode, load_tokenizer


def tokenizers() -> list[bytes]:
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


def read_tokenizer(content: bytes, folder: Path) -> None:
    """A tokenizer.json."""
    (folder / "tokenizer.json").write_bytes(content)
    (folder / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER_CONFIG))
    _use_tokenizer(folder)


def read_tokenizer_config(content: bytes, folder: Path) -> None:
    """What goes beside a tokenizer.json."""
    (folder / "tokenizer.json").write_bytes(tokenizers()[0])
    (folder / "tokenizer_config.json").write_bytes(content)
    _use_tokenizer(folder)


def read_generation_config(content: bytes, folder: Path) -> None:
    """End tokens."""
    (folder / "tokenizer.json").write_bytes(tokenizers()[0])
    (folder / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER_CONFIG))
    (folder / "generation_config.json").write_bytes(content)
    ChatTokenizer.load(folder)


def _use_tokenizer(folder: Path) -> None:
    tokenizer = ChatTokenizer.load(folder)
    tokenizer.decode(tokenizer.encode("a b\n\u00e4"))
    encode(load_tokenizer(folder), "a b")


def tokenizer_configs() -> list[bytes]:
    """What lies beside a tokenizer.json."""
    return dumped([_TOKENIZER_CONFIG])


def generation_configs() -> list[bytes]:
    """End tokens."""
    return dumped([{"eos_token_id": [1, 2]}])


def pieces() -> list[bytes]:
    """tokenizer.model of both kinds."""
    from transformers.utils import sentencepiece_model_pb2_new as messages

    contents = []
    for kind in (1, 2):
        model: Any = getattr(messages, "ModelProto")()  # noqa: B009  (made when the module is imported)
        for number, text in enumerate(("<unk>", "<s>", "</s>", "<0x0A>", "\u2581", "a", "b", "\u2581a", "ab")):
            kinds = {"<unk>": 2, "<s>": 3, "</s>": 3, "<0x0A>": 6}
            model.pieces.add(piece=text, score=-float(number), type=kinds.get(text, 1))
        model.trainer_spec.model_type = kind
        contents.append(model.SerializeToString())
    return contents


_PIECES_CONFIG: Final = {**_TOKENIZER_CONFIG, "tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": {}}


def read_pieces(content: bytes, folder: Path) -> None:
    """A tokenizer.model."""
    _convert(folder, content, json.dumps(_PIECES_CONFIG).encode())


def pieces_configs() -> list[bytes]:
    """What may lie beside a tokenizer.model."""
    added = {"9": {"content": "<x>", "special": True, "rstrip": True}}
    return dumped([_PIECES_CONFIG, {**_PIECES_CONFIG, "legacy": False, "added_tokens_decoder": added}])


def read_pieces_config(content: bytes, folder: Path) -> None:
    """What goes beside a tokenizer.model."""
    _convert(folder, pieces()[0], content)


def _convert(folder: Path, model: bytes, config: bytes) -> None:
    """As commands do: into a directory of their own."""
    for name in ("model", "made"):
        (folder / name).mkdir()
    (folder / "model" / "tokenizer.model").write_bytes(model)
    (folder / "model" / "tokenizer_config.json").write_bytes(config)
    copy_tokenizer(folder / "model", folder / "made")
    _use_tokenizer(folder / "made")


def texts() -> list[bytes]:
    """Records to calibrate on, one of each kind."""
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "text", "text": "b"}]}]
    records: list[Any] = [{"text": "a"}, {"prompt": "a", "response": "b"}, {"messages": said}]
    lines = "\n".join(json.dumps(record) for record in records)
    return [lines.encode(), lines.encode("utf-16"), lines.encode("utf-8-sig")]


def read_texts(content: bytes, folder: Path) -> None:
    """The same bytes as records, and as a text."""
    for name in ("t.jsonl", "t.txt"):
        (folder / name).write_bytes(content)
    with suppress(Awq2trtError):
        read_text(str(folder / "t.txt"), characters=100)
    read_text(str(folder / "t.jsonl"), characters=100)


def captions() -> list[bytes]:
    """Conversations about pictures."""
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}]
    return dumped([{"image": "a.png", "caption": "a"}, {"images": ["a.png"], "messages": said}])


def read_captions(content: bytes, folder: Path) -> None:
    """A file of one line, or of those that there are."""
    (folder / "a.png").write_bytes(images()[0])
    path = folder / "c.jsonl"
    path.write_bytes(content)
    is_image_text(path)
    pairs = read_pairs(path)
    _ = [pair.text for pair in pairs]
    require_images(pairs)


def rows() -> list[bytes]:
    """A row of every task, with its name."""
    choices = {"text": ["a", "b"], "label": ["A", "B"]}
    found: dict[str, Any] = {
        "piqa": {"goal": "a", "sol1": "b", "sol2": "c", "label": 1},
        "arc-easy": {"question": "a", "choices": choices, "answerKey": "B"},
        "winogrande": {"sentence": "a _ b", "option1": "c", "option2": "d", "answer": "1"},
        "lambada": {"text": "a b"},
    }
    return dumped([{**row, "task": task} for task, row in found.items()])


def read_rows(content: bytes, folder: Path) -> None:
    """A task's file, and how well a model does that finds everything equally likely."""
    (folder / "t.jsonl").write_bytes(content)
    task = next((name for name in TASKS if f'"{name}"'.encode() in content), "piqa")
    examples = read_task(task, folder / "t.jsonl")
    count = sum(len(example.continuations) for example in examples)
    score_task(task, examples, [Score(-math.log(2), greedy=False)] * count)


def images() -> list[bytes]:
    """A picture in every format."""
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    contents = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"):
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        contents.append(buffer.getvalue())
    return contents


def read_picture(content: bytes, folder: Path) -> None:
    """A picture."""
    (folder / "a").write_bytes(content)
    read_image(folder / "a")


def image_processors() -> list[bytes]:
    """preprocessor_config.json of CLIP and of Qwen2-VL."""
    whole: dict[str, Any] = {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": 3, "width": 3},
        "resample": 3,
        "do_resize": True,
        "do_center_crop": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 0.5,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"shortest_edge": 3},
    }
    patches = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": 16,
        "max_pixels": 64,
        "size": {"shortest_edge": 16, "longest_edge": 64},
        "patch_size": 2,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }
    return dumped([whole, {"image_processor_type": "CLIPImageProcessor", "size": {"height": 5, "width": 2}}, patches])


def read_image_processor(content: bytes, folder: Path) -> None:
    """What a processor makes of a picture."""
    (folder / "preprocessor_config.json").write_bytes(content)
    read_processor(folder).pixels(np.zeros((4, 5, 3), np.uint8))


def templates() -> list[bytes]:
    """Chat templates."""
    loop = "{% for message in messages %}{{ message['role'] + message['content'] }}{% endfor %}"
    return [loop.encode(), b"{% if add_generation_prompt %}{{ bos_token }}{{ messages[0].content | trim }}{% endif %}"]


def read_template(content: bytes, folder: Path) -> None:
    """A chat_template.jinja, and what it makes of a conversation."""
    (folder / "tokenizer.json").write_bytes(tokenizers()[0])
    (folder / "tokenizer_config.json").write_text(json.dumps({**_TOKENIZER_CONFIG, "chat_template": None}))
    (folder / CHAT_TEMPLATE_FILE).write_bytes(content)
    ChatTokenizer.load(folder).encode_messages([user_message("a")])
