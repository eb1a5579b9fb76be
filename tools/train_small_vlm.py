"""Trains a small vision-language model on generated pictures: SmolLM2-135M behind a small CLIP tower, as a LLaVA 1.5.

    python tools/train_small_vlm.py OUTPUT [--minutes 15] [--tower-steps 1500] [--steps 600] [--seed 0]

In: the packaged SmolLM2-135M-Instruct and the pictures of `vlm_pictures`. Out: a Hugging Face directory that
transformers' `AutoProcessor` and `LlavaForConditionalGeneration` open, and, printed and in `accuracy.json`, how many
questions on pictures of unseen pairs of colour and thing it answers word for word, by kind of question.

Backward through the language model is what costs, so the tower first learns alone to tell colours, things, counts and
places apart, with linear heads that are thrown away. Then the projector learns, the tower and the language model being
frozen. The same seed and steps give the same model on the same machine; `--minutes` may end either part early.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from rich.progress import track
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from vlm_pictures import COLOURS, COUNTS, DIGITS, PLACES, SHAPES, SIDE, UNSEEN, Drawing, Question, drawings

from awq2trt.models.sources.base import ModelSource
from awq2trt.models.sources.opening import open_source
from awq2trt.text.tokenizer import tokenizer_of

MODEL: Final = "smollm2-135m-instruct"
MARKER: Final = "<image>"
UNUSED: Final = "<jupyter_script>"
"""A special token of SmolLM2 that chats never have: `MARKER` takes its row, so that the embedding keeps its size."""

PATCH: Final = 16
IMAGE_TOKENS: Final = (SIDE // PATCH) ** 2
TOWER: Final[dict[str, Any]] = {
    "hidden_size": 192,
    "intermediate_size": 576,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
}
"""The last of the layers is not used: LLaVA 1.5 reads what comes out of the last but one."""

TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOWER_BATCH, BATCH = 32, 16
TOWER_SHARE: Final = 0.3
"""Of `--minutes`, at most."""

_TRAINED_SEED, _MEASURED_SEED = 1, 2
_IGNORED: Final = -100


def main() -> None:
    """Trains, measures and saves."""
    parser = argparse.ArgumentParser(description="Trains a small vision-language model on generated pictures.")
    parser.add_argument("output", type=Path, help="folder to write to; it must be new or empty")
    parser.add_argument("--minutes", type=float, default=15.0, help="training ends then, at the latest")
    parser.add_argument("--tower-steps", type=int, default=1500, help=f"steps of {TOWER_BATCH} pictures")
    parser.add_argument("--steps", type=int, default=600, help=f"steps of {BATCH} questions, of the projector")
    parser.add_argument("--measured", type=int, default=100, help="pictures that accuracy is measured on")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.minutes <= 0 or min(arguments.tower_steps, arguments.steps, arguments.measured) < 1:
        parser.error("--minutes, --tower-steps, --steps and --measured: expected numbers above 0")
    if arguments.output.exists() and any(arguments.output.iterdir()):
        parser.error(f"{arguments.output}: expected a new or empty folder, got one with files")
    torch.manual_seed(arguments.seed)
    source = open_source(MODEL)
    processor = make_processor(source)
    model = make_model(source, processor.tokenizer)
    started = time.monotonic()
    train_tower_(model, processor, arguments, started + 60 * arguments.minutes * TOWER_SHARE)
    train_projector_(model, processor, arguments, started + 60 * arguments.minutes)
    print(f"trained for {(time.monotonic() - started) / 60:.1f} minutes")
    accuracy = measure(model, processor, arguments.measured)
    model.save_pretrained(arguments.output)
    processor.save_pretrained(arguments.output)
    processor.image_processor.save_pretrained(arguments.output)
    (arguments.output / "accuracy.json").write_text(json.dumps(accuracy, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(accuracy, indent=1))


def make_processor(source: ModelSource) -> LlavaProcessor:
    """SmolLM2's tokenizer with `MARKER` in place of an unused token, and CLIP's image processor."""
    told = json.loads(tokenizer_of(source).backend_tokenizer.to_str())
    row = told["model"]["vocab"].pop(UNUSED)
    told["model"]["vocab"][MARKER] = row
    for token in told["added_tokens"]:
        if token["id"] == row:
            token["content"] = MARKER
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(told)),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
        image_token=MARKER,
    )


def make_model(source: ModelSource, tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """A LLaVA whose language model has SmolLM2's weights, fp32; its tower and projector are random."""
    config = LlavaConfig(
        text_config=LlamaConfig(**source.config),
        vision_config=CLIPVisionConfig(**TOWER, image_size=SIDE, patch_size=PATCH),
        image_token_index=tokenizer.get_vocab()[MARKER],
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model: LlavaForConditionalGeneration = LlavaForConditionalGeneration(config).float().eval()
    spec = source.spec
    blocks = [spec.prefix(layer) + name for layer in range(spec.num_layers) for name in spec.block_shapes()]
    state = {
        name.removeprefix("model."): torch.from_numpy(source.tensor(name).astype("float32"))
        for name in (*spec.outer_shapes(), *blocks)
        if not name.startswith("lm_head")
    }
    model.model.language_model.load_state_dict(state)
    model.tie_weights()
    model.requires_grad_(False)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def train_tower_(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, arguments: argparse.Namespace, until: float
) -> None:
    """Teaches the tower what is in pictures, through linear heads on what LLaVA reads of it."""
    tower = model.model.vision_tower.requires_grad_(True)
    classes: list[list[Any]] = [list(COLOURS), [*SHAPES, *DIGITS], list(range(1, len(COUNTS) + 1)), list(PLACES)]
    heads = torch.nn.ModuleList(torch.nn.Linear(TOWER["hidden_size"], len(names)) for names in classes)
    optimizer = torch.optim.AdamW([*tower.parameters(), *heads.parameters()], lr=5e-4, weight_decay=0.01)
    batches = _batches(arguments.tower_steps, TOWER_BATCH, _TRAINED_SEED + 10 * arguments.seed)
    for shown in track(batches, "tower", total=arguments.tower_steps):
        pooled = _seen(model, processor, shown).mean(dim=1)  # [pictures, width]
        loss = torch.zeros(())
        for head, names, kind in zip(heads, classes, ("colour", "thing", "count", "place"), strict=True):
            right = torch.tensor([names.index(getattr(drawing, kind)) for drawing in shown])
            loss = loss + functional.cross_entropy(head(pooled), right)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if time.monotonic() > until:
            break
    tower.requires_grad_(False)
    print(f"tower: last loss {loss.item():.3f}")


def train_projector_(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, arguments: argparse.Namespace, until: float
) -> None:
    """Teaches the projector to say what the tower sees in the language model's own terms."""
    projector = model.model.multi_modal_projector.requires_grad_(True)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=arguments.steps + 1)
    batches = _batches(arguments.steps, BATCH, _TRAINED_SEED + 10 * arguments.seed + 1)
    for step, shown in enumerate(track(batches, "projector", total=arguments.steps)):
        asked = [drawing.questions[(step + place) % len(drawing.questions)] for place, drawing in enumerate(shown)]
        logits, right, _ = _answers(model, processor, shown, asked)
        loss = functional.cross_entropy(logits, right)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if time.monotonic() > until:
            break
    projector.requires_grad_(False)
    print(f"projector: last loss {loss.item():.3f}")


@torch.no_grad()
def measure(model: LlavaForConditionalGeneration, processor: LlavaProcessor, pictures: int) -> dict[str, float]:
    """Share of answers, by kind of question, that greedy decoding writes word for word on unseen pairs.

    It does so where each token of the right answer is the best behind those before it: one forward pass tells.
    """
    asked, right = Counter[str](), Counter[str]()
    for drawing in track(list(drawings(pictures, _MEASURED_SEED, UNSEEN)), "measuring"):
        questions = drawing.questions
        logits, wanted, rows = _answers(model, processor, [drawing] * len(questions), questions)
        hit = logits.argmax(dim=-1) == wanted
        for row, question in enumerate(questions):
            asked[question.kind] += 1
            right[question.kind] += int(hit[rows == row].all())
    return {kind: right[kind] / asked[kind] for kind in sorted(asked)}


def _batches(count: int, size: int, seed: int) -> Iterator[list[Drawing]]:
    shown = drawings(count * size, seed)
    for _ in range(count):
        yield [next(shown) for _ in range(size)]


def _seen(model: LlavaForConditionalGeneration, processor: LlavaProcessor, shown: Sequence[Drawing]) -> torch.Tensor:
    """What LLaVA reads of the tower: [pictures, IMAGE_TOKENS, width] fp32."""
    pixels = processor.image_processor([drawing.picture() for drawing in shown], return_tensors="np")["pixel_values"]
    tensor = torch.from_numpy(np.asarray(pixels, dtype=np.float32))
    hidden = model.model.vision_tower(tensor, output_hidden_states=True).hidden_states[-2]
    features: torch.Tensor = hidden[:, 1:]
    return features


def _answers(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    shown: Sequence[Drawing],
    asked: Sequence[Question],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits [T, vocabulary] where answers stand, the right tokens [T], and which question each belongs to [T]."""
    ids, labels = _padded(processor.tokenizer, asked)
    embedded = model.get_input_embeddings()(ids)
    told = model.model.multi_modal_projector(_seen(model, processor, shown))
    where = (ids == model.config.image_token_index).unsqueeze(-1)
    embedded = embedded.masked_scatter(where, told)
    # Padding stands behind, where causal attention lets nothing see it.
    hidden = model.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    rows, columns = (labels[:, 1:] != _IGNORED).nonzero(as_tuple=True)
    return model.lm_head(hidden[rows, columns]), labels[rows, columns + 1], rows


def _padded(tokenizer: PreTrainedTokenizerFast, asked: Sequence[Question]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of conversations and of their answers alone, both [questions, longest] int64, padded behind."""
    rows = []
    for question in asked:
        before = f"<|im_start|>user\n{MARKER * IMAGE_TOKENS}\n{question.text}<|im_end|>\n<|im_start|>assistant\n"
        prompt = tokenizer(before, add_special_tokens=False)["input_ids"]
        rows.append((prompt, tokenizer(f"{question.answer}<|im_end|>", add_special_tokens=False)["input_ids"]))
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels = torch.full((len(rows), longest), _IGNORED)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor([*prompt, *answer])
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return ids, labels


if __name__ == "__main__":
    main()
