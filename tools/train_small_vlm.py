"""Trains a small vision-language model on generated pictures: SmolLM2-135M behind a small CLIP tower, as a LLaVA 1.5.

    python tools/train_small_vlm.py OUTPUT --device cuda
    python tools/train_small_vlm.py OUTPUT --learned FOLDER

In: the packaged SmolLM2-135M-Instruct and the pictures of `vlm_pictures`. Out: a Hugging Face directory that
transformers' `AutoProcessor` and `LlavaForConditionalGeneration` open; `accuracy.json` in it and printed, which share
of questions on pictures of unseen pairs of colour and thing it answers word for word, by kind of question; and
`learned/`, what was learned, from which the second command makes the same model without training.

First the tower learns alone to tell colours, things, counts and places apart, with linear heads that are thrown away.
Then it learns together with the projector, and with matrices of low rank beside those of the language model (LoRA,
arXiv:2106.09685), which are added to them at the end. What is learned is rounded to fp16. On a GPU, products are in
bf16, and an H100 takes 160 s; a step on two cores takes minutes. The same seed gives the same lessons, and sums differ
between machines in their last bits.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import parametrize
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from vlm_lessons import MARKER, Gallery, Lesson, Teacher, Turn
from vlm_pictures import COLOURS, COUNTS, DIGITS, PLACES, SHAPES, SIDE, UNSEEN, drawings

from awq2trt.models.sources.base import ModelSource
from awq2trt.models.sources.opening import open_source
from awq2trt.text.tokenizer import tokenizer_of

MODEL: Final = "smollm2-135m-instruct"
UNUSED: Final = "<jupyter_script>"
"""A special token of SmolLM2 that chats never have: `MARKER` takes its row, so that the embedding keeps its size."""

PATCH: Final = 8
IMAGE_TOKENS: Final = (SIDE // PATCH) ** 2
TOWER: Final[dict[str, Any]] = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
}
"""The last of the layers is not used: LLaVA 1.5 reads what comes out of the last but one."""

RANK: Final = 16
"""Rank of what is added to the language model's matrices."""

TEMPLATE: Final = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n' }}ASSISTANT:{% endif %}"
)
"""As LLaVA 1.5 is asked."""

TOWER_RATE, JOINT_TOWER_RATE, RATE = 5e-4, 1e-4, 1e-3
"""AdamW's: of the tower alone, of the tower with the rest, of the rest."""

LEARNED: Final = "learned"
_TOWER_FILE, _LANGUAGE_FILE = "tower.safetensors", "language.safetensors"
_TRAINED_SEED, _MEASURED_SEED = 1, 2
_MEASURED_AT_ONCE: Final = 32


class LowRank(torch.nn.Module):
    """What a linear learns beside its frozen weight W: W + up down.

    Args:
        rows: Rows of the weight.
        columns: Columns of the weight.
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.down = torch.nn.Parameter(torch.randn(RANK, columns) / math.sqrt(columns))
        self.up = torch.nn.Parameter(torch.zeros(rows, RANK))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the linear uses, fp32 [rows, columns]."""
        return weight + self.up @ self.down


def main() -> None:
    """Trains, measures and saves."""
    arguments = _arguments()
    torch.manual_seed(arguments.seed)
    tested = Gallery.draw(list(drawings(arguments.measured, _MEASURED_SEED, UNSEEN)))
    shown = drawings(arguments.gallery, _TRAINED_SEED + 10 * arguments.seed)
    gallery = Gallery.draw(list(shown)) if arguments.learned is None else tested
    source = open_source(arguments.model)
    processor = make_processor(source)
    teacher = Teacher(processor.tokenizer, IMAGE_TOKENS)
    model = make_model(source, processor.tokenizer).to(arguments.device)
    add_low_rank_(model)
    started = time.monotonic()
    if arguments.learned is None:
        gallery = gallery.on(arguments.device)
        train_tower_(model, gallery, arguments)
        print(f"{time.monotonic() - started:.0f} s", flush=True)
        train_language_(model, gallery, teacher, arguments)
        print(f"trained for {time.monotonic() - started:.0f} s", flush=True)
        save_learned(model, arguments.output / LEARNED)
    load_learned_(model, arguments.learned or arguments.output / LEARNED)
    merge_low_rank_(model)
    model.to(torch.float16).save_pretrained(arguments.output)
    processor.save_pretrained(arguments.output)
    processor.image_processor.save_pretrained(arguments.output)
    accuracy = measure(model.float(), tested.on(arguments.device), teacher)
    (arguments.output / "accuracy.json").write_text(json.dumps(accuracy, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(accuracy, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder to write to")
    parser.add_argument("--model", default=MODEL, help="SmolLM2-135M-Instruct, if it is not the packaged one")
    parser.add_argument("--learned", type=Path, metavar="FOLDER", help="what an earlier run learned: no training")
    parser.add_argument("--device", default="cpu", help="where to compute")
    parser.add_argument("--gallery", type=int, default=32768, help="pictures to learn from")
    parser.add_argument("--tower-steps", type=int, default=2000, help="of the tower alone")
    parser.add_argument("--tower-batch", type=int, default=256, help="pictures of such a step")
    parser.add_argument("--steps", type=int, default=600, help="of projector and language model")
    parser.add_argument("--pictures", type=int, default=192, help="pictures of such a step")
    parser.add_argument("--measured", type=int, default=256, help="pictures to measure on")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name in ("gallery", "tower_steps", "tower_batch", "steps", "pictures", "measured"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected 1 or more, got {getattr(arguments, name)}")
    if arguments.output.exists() and any(arguments.output.iterdir()):
        parser.error(f"{arguments.output}: expected an empty folder or none, got one with files")
    if arguments.learned is not None:
        for file in (_TOWER_FILE, _LANGUAGE_FILE):
            if not (arguments.learned / file).is_file():
                parser.error(f"--learned: expected {file} in {arguments.learned}, got no such file")
    arguments.output.mkdir(parents=True, exist_ok=True)
    return arguments


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


def add_low_rank_(model: LlavaForConditionalGeneration) -> None:
    """Puts `LowRank` beside the weight of every linear of the language model's blocks."""
    for module in model.model.language_model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            added = LowRank(*module.weight.shape).to(module.weight.device)
            parametrize.register_parametrization(module, "weight", added)


def merge_low_rank_(model: LlavaForConditionalGeneration) -> None:
    """Adds what was learned to the weights of the language model's blocks."""
    for module in model.model.language_model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            with torch.no_grad():
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    model.requires_grad_(False)


def save_learned(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Writes what was learned, fp16: the tower, and the projector with what the language model learned."""
    folder.mkdir()
    learned = {name: value.to("cpu", torch.float16).contiguous() for name, value in _learned(model).items()}
    tower = {name: value for name, value in learned.items() if _is_of_tower(name)}
    save_file(tower, folder / _TOWER_FILE)
    save_file({name: value for name, value in learned.items() if name not in tower}, folder / _LANGUAGE_FILE)


def load_learned_(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Puts what `save_learned` wrote into a model with `LowRank`s.

    Raises:
        SystemExit: It is of a model of another form.
    """
    stored = load_file(folder / _TOWER_FILE) | load_file(folder / _LANGUAGE_FILE)
    places = _learned(model)
    wrong = [
        name
        for name in {**stored, **places}
        if name not in stored or name not in places or stored[name].shape != places[name].shape
    ]
    if wrong:
        raise SystemExit(f"{folder}: expected what this program learned; {min(wrong)} is missing or has another shape")
    with torch.no_grad():
        for name, value in stored.items():
            places[name].copy_(value)


def _learned(model: LlavaForConditionalGeneration) -> Mapping[str, torch.nn.Parameter]:
    """All tensors that training changes, by name."""
    return {
        name: value
        for name, value in model.named_parameters()
        if _is_of_tower(name) or "multi_modal_projector" in name or name.endswith((".up", ".down"))
    }


def _is_of_tower(name: str) -> bool:
    return "vision_tower" in name


def train_tower_(model: LlavaForConditionalGeneration, gallery: Gallery, arguments: argparse.Namespace) -> None:
    """Teaches the tower what is in pictures, through linear heads on what LLaVA reads of it."""
    device = arguments.device
    tower = model.model.vision_tower.requires_grad_(True)
    classes: dict[str, Sequence[Any]] = {
        "colour": list(COLOURS),
        "thing": [*SHAPES, *DIGITS],
        "count": range(1, len(COUNTS) + 1),
        "place": list(PLACES),
    }
    heads = torch.nn.ModuleDict(
        {kind: torch.nn.Linear(TOWER["hidden_size"], len(names)) for kind, names in classes.items()}
    )
    right = {
        kind: torch.tensor([names.index(getattr(drawing, kind)) for drawing in gallery.drawings], device=device)
        for kind, names in classes.items()
    }
    learned = [*tower.parameters(), *heads.to(device).parameters()]
    learner = _Learner({TOWER_RATE: learned}, arguments.tower_steps)
    generator = torch.Generator().manual_seed(arguments.seed)
    for _ in track(range(arguments.tower_steps), "tower"):
        numbers = torch.randint(len(gallery.drawings), (arguments.tower_batch,), generator=generator)
        with _narrow(device):
            pooled = _seen(model, gallery.prepared(numbers)).mean(dim=1)  # [pictures, width]
            losses = [
                functional.cross_entropy(heads[kind](pooled), right[kind][numbers.to(device)]) for kind in classes
            ]
        learner.step_(torch.stack(losses).sum())
    tower.requires_grad_(False)
    told = ", ".join(f"{kind} {loss.item():.4f}" for kind, loss in zip(classes, losses, strict=True))
    print(f"tower: last losses {told}", flush=True)


def train_language_(
    model: LlavaForConditionalGeneration, gallery: Gallery, teacher: Teacher, arguments: argparse.Namespace
) -> None:
    """Teaches the projector to say what the tower sees, and the language model to answer."""
    learned = _learned(model)
    for value in learned.values():
        value.requires_grad_(True)
    tower = [value for name, value in learned.items() if _is_of_tower(name)]
    rest = [value for name, value in learned.items() if not _is_of_tower(name)]
    learner = _Learner({JOINT_TOWER_RATE: tower, RATE: rest}, arguments.steps)
    lessons = teacher.lessons(gallery, arguments.steps, arguments.pictures, arguments.seed)
    every, told = max(1, arguments.steps // 10), []
    for number, lesson in enumerate(track(lessons, "language", total=arguments.steps), start=1):
        with _narrow(arguments.device):
            logits, right, _ = _answers(model, gallery, lesson)
            loss = functional.cross_entropy(logits.float(), right)
        learner.step_(loss)
        told.append(loss.detach())
        if number % every == 0:
            print(f"step {number}: loss {torch.stack(told[-every:]).mean().item():.4f}", flush=True)


@torch.no_grad()
def measure(model: LlavaForConditionalGeneration, gallery: Gallery, teacher: Teacher) -> dict[str, float]:
    """Share of answers, by kind of question, that greedy decoding writes word for word.

    It does so where each token of the right answer is the best behind those before it: one forward pass tells.
    """
    asked, right = Counter[str](), Counter[str]()
    turns = [[Turn(number, question)] for number, one in enumerate(gallery.drawings) for question in one.questions]
    for start in track(range(0, len(turns), _MEASURED_AT_ONCE), "measuring"):
        several = turns[start : start + _MEASURED_AT_ONCE]
        logits, wanted, rows = _answers(model, gallery, teacher.lesson(several))
        hit = logits.argmax(dim=-1) == wanted
        for row, (turn,) in enumerate(several):
            asked[turn.question.kind] += 1
            right[turn.question.kind] += int(hit[rows == row].all())
    return {kind: right[kind] / asked[kind] for kind in sorted(asked)}


class _Learner:
    """Steps of AdamW whose rates rise and fall once; `learned` is what has each rate."""

    def __init__(self, learned: Mapping[float, Sequence[torch.nn.Parameter]], steps: int) -> None:
        self._learned = [value for values in learned.values() for value in values]
        groups = [{"params": values, "lr": rate} for rate, values in learned.items()]
        self._optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimizer, list(learned), total_steps=steps + 1)

    def step_(self, loss: Tensor) -> None:
        """Moves what is learned down the gradient."""
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._learned, 1.0)
        self._optimizer.step()
        self._schedule.step()


def _narrow(device: str) -> AbstractContextManager[object]:
    """Products in bf16, on a GPU."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda")


def _seen(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """What LLaVA reads of the tower: [pictures, IMAGE_TOKENS, width]."""
    hidden = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
    features: Tensor = hidden[:, 1:]
    return features


def _answers(model: LlavaForConditionalGeneration, gallery: Gallery, lesson: Lesson) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [T, vocabulary] where something is to be said, the right tokens [T], and of which conversation [T]."""
    rows, columns = lesson.said()
    ids, device = lesson.ids.to(model.device), model.device
    embedded = model.get_input_embeddings()(ids)
    told = model.model.multi_modal_projector(_seen(model, gallery.prepared(lesson.pictures)))
    where = (ids == model.config.image_token_index).unsqueeze(-1)
    embedded = embedded.masked_scatter(where, told.to(embedded.dtype))
    hidden = model.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    logits: Tensor = model.lm_head(hidden[rows.to(device), columns.to(device)])
    return logits, lesson.labels[rows, columns].to(device), rows.to(device)


if __name__ == "__main__":
    main()
