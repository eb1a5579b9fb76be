"""Lets a model describe pictures itself, so that calibration on images needs no captions.

In: pictures. Out: a folder of them and of random crops of them, each with what the model says of it, as many as the
calibration windows need. It is the same idea as for text (`awq2trt.text.self_written`): what the model itself writes of
an image is close to what it will write in use.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from PIL import Image

from awq2trt.images.crops import random_crop
from awq2trt.images.pairs import ImageText, read_pairs
from awq2trt.images.read import read_image
from awq2trt.progress import Progress
from awq2trt.quantization.image_texts import ImagePrompts, first_line, require_memory, stop_tokens
from awq2trt.quantization.image_windows import Sight, WindowSizes, conversation_tokens, written
from awq2trt.text.self_written import drawn_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LONGEST: Final = 64
"""Tokens of a description at most."""


@dataclass(frozen=True)
class Describer:
    """A model that describes pictures.

    Attributes:
        tokenizer: Its tokenizer.
        sight: How it sees images.
        sizes: The windows that are to be filled.
        seed: Seed of crops and of words.
    """

    tokenizer: PreTrainedTokenizerBase
    sight: Sight
    sizes: WindowSizes
    seed: int

    def describe(self, pictures: Sequence[Path], folder: Path, progress: Progress) -> tuple[ImageText, ...]:
        """Describes pictures: first each as it is, then random crops, until all windows are full.

        Args:
            pictures: Image files.
            folder: Where crops and descriptions go. If it is there, it holds those of an interrupted run.
            progress: Counts descriptions.

        Raises:
            UsageError: A picture cannot be read, or the model does not fit in memory.
        """
        if not folder.is_dir():
            require_memory(
                self.sight.source,
                where="--calib",
                fix="put a caption beside each picture: then only one block at a time is in memory.",
            )
            partial_folder = folder.with_name(folder.name + ".partial")
            shutil.rmtree(partial_folder, ignore_errors=True)
            partial_folder.mkdir()
            self._say([*self._asked(pictures, partial_folder)], progress)
            partial_folder.rename(folder)
        return read_pairs(folder)

    def _asked(self, pictures: Sequence[Path], folder: Path) -> Iterator[tuple[Path, list[int]]]:
        """Pictures and crops in a folder, with the request to describe each: enough even if nothing is said."""
        sizes, generator = self.sizes, np.random.default_rng(self.seed)
        start = [] if sizes.bos is None else [sizes.bos]
        full, used = 0, len(start)
        for number in count():
            if full == sizes.samples:
                return
            picture = read_image(pictures[number % len(pictures)])
            path = folder / f"{number:05}.png"
            Image.fromarray(picture if number < len(pictures) else random_crop(picture, generator)).save(path)
            text = written(self.sight.vision, ImageText.of_picture(path).described("")).rstrip()
            tokens = [*conversation_tokens(self.tokenizer, self.sight, text, (path,))]
            yield path, [*start, *tokens]
            used += len(tokens)
            if used >= sizes.seqlen:
                full, used = full + 1, len(start)

    def _say(self, asked: Sequence[tuple[Path, list[int]]], progress: Progress) -> None:
        """Writes the description of each picture into a file beside it."""
        draw = partial(drawn_tokens, generator=torch.Generator("cpu").manual_seed(self.seed))
        stops = stop_tokens(self.sight.source, self.tokenizer)
        prompts = ImagePrompts(self.sight, [tokens for _, tokens in asked], [(path,) for path, _ in asked])
        with progress.task("the model describes the pictures", total=len(asked)) as advance:
            said = prompts.continued(_LONGEST, stops, advance, draw)
        for (path, _), tokens in zip(asked, said, strict=True):
            path.with_suffix(".txt").write_text(first_line(self.tokenizer, tokens), encoding="utf-8")
