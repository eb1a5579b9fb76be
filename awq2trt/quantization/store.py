"""Stores what a resumed quantization needs, in a scratch directory of the job.

In: calibration tokens, the residual stream after a block, finished blocks with their reports. Out: the same in a later
process. A block is complete when its file of tensors has its final name, which `keep_block` gives it last. A run
continues behind the last complete block whose residual stream is there, too: that stream is stored before the block,
and the one before it dropped after it, so that a kill at any moment leaves one to continue from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from awq2trt.artifact.arrays import read_arrays, write_arrays
from awq2trt.checkpoint.writer import write_tensors
from awq2trt.errors import UsageError
from awq2trt.machine.ranks import Ranks
from awq2trt.models.sources.base import Array
from awq2trt.quantization.block import LinearReport
from awq2trt.quantization.head import HeadReport

_TOKENS_FILE: Final = "calibration.safetensors"
_COMPUTED_FILE: Final = "computed.json"

_AGAIN: Final = "quantize again without --resume."


@dataclass(frozen=True)
class StoredBlock:
    """A finished block as the checkpoint will store it, with full names.

    Attributes:
        tensors: Tensors for the checkpoint.
        reports: Reports by linear.
        search: What the search saw and found, see `QuantizedBlock.search`.
    """

    tensors: Mapping[str, Array]
    reports: Mapping[str, LinearReport]
    search: Mapping[str, Array]


@dataclass(frozen=True)
class Store:
    """The state of one job.

    Attributes:
        directory: The directory, which a resumed run gets again.
        layers: Number of blocks in the model.
    """

    directory: Path
    layers: int

    def finished_blocks(self) -> int:
        """Number of blocks after which a run continues; blocks are finished in order."""
        complete = next((layer for layer, path in enumerate(self.block_files()) if not path.is_file()), self.layers)
        if complete == self.layers:
            return complete  # what remains may have dropped the last stream already
        return next((layer for layer in range(complete, 0, -1) if self._hidden(layer).is_file()), 0)

    def block_files(self) -> list[Path]:
        """Files with the tensors of every block, finished or not."""
        return [self._block(layer) for layer in range(self.layers)]

    def keep_tuned(self, layer: int, tensors: Mapping[str, Array]) -> None:
        """Stores a block's tensors as they are after the tuning of the complete model."""
        write_tensors(self._tuned(layer), tensors)

    def final_files(self) -> list[Path]:
        """Files with the final tensors of every block: the tuned ones if there are any."""
        return [self._tuned(layer) for layer in range(self.layers)] if self.tuned() else self.block_files()

    def tuned(self) -> bool:
        """Whether all blocks were tuned."""
        return all(self._tuned(layer).is_file() for layer in range(self.layers))

    def tokens(self) -> Tensor | None:
        """Calibration windows, int64 [samples, seqlen]; None if none were stored."""
        path = self.directory / _TOKENS_FILE
        return _load_whole(path) if path.is_file() else None

    def keep_tokens(self, tokens: Tensor) -> Tensor:
        """Stores calibration windows; returns them as a resumed run will read them."""
        _save_whole(self.directory / _TOKENS_FILE, tokens)
        return _load_whole(self.directory / _TOKENS_FILE)

    def hidden(self, layer: int) -> Tensor:
        """Residual stream before block `layer`, fp32 [samples, seqlen, hidden_size]."""
        return _load_whole(self._hidden(layer))

    def keep_hidden(self, layer: int, hidden: Tensor) -> None:
        """Stores the residual stream before block `layer`."""
        _save_whole(self._hidden(layer), hidden)

    def original(self, layer: int) -> Tensor:
        """The original model's residual stream before block `layer`, for a method that compares blocks with it."""
        return _load_whole(self._original(layer))

    def keep_original(self, layer: int, hidden: Tensor) -> None:
        """Stores the original model's residual stream before block `layer`."""
        _save_whole(self._original(layer), hidden)

    def largest_activation(self, layer: int) -> float:
        """Largest magnitude among the activations of block `layer`."""
        return float(json.loads(self._range(layer).read_text(encoding="utf-8")))

    def keep_largest_activation(self, layer: int, value: float) -> None:
        """Stores the largest magnitude among the activations of block `layer`."""
        self._range(layer).write_text(json.dumps(value), encoding="utf-8")

    def step_dtype(self) -> str | None:
        """The type for which step sizes are chosen; None if none was stored."""
        return str(json.loads(self._steps.read_text(encoding="utf-8"))) if self._steps.is_file() else None

    def keep_step_dtype(self, dtype: str) -> str:
        """Stores the type for which step sizes are chosen, and returns it."""
        partial = self._steps.with_name(self._steps.name + ".partial")
        partial.write_text(json.dumps(dtype), encoding="utf-8")
        partial.replace(self._steps)
        return dtype

    def keep_block(self, layer: int, block: StoredBlock) -> None:
        """Stores a block, its tensors last; then removes all streams before those behind it, if those are stored."""
        write_arrays(self._search(layer), block.search)
        reports = {name: asdict(report) for name, report in block.reports.items()}
        self._report(layer).write_text(json.dumps(reports), encoding="utf-8")
        write_tensors(self._block(layer), block.tensors)
        if self._hidden(layer + 1).is_file():
            for before in range(layer + 1):
                self._hidden(before).unlink(missing_ok=True)
                self._original(before).unlink(missing_ok=True)

    @property
    def head_file(self) -> Path:
        """The tensors of a quantized head."""
        return self.directory / "head.safetensors"

    def keep_head(self, tensors: Mapping[str, Array], report: HeadReport) -> None:
        """Stores a quantized head, its tensors last; then removes the residual stream before it."""
        self._head_report.write_text(json.dumps(asdict(report)), encoding="utf-8")
        write_tensors(self.head_file, tensors)
        self._hidden(self.layers).unlink(missing_ok=True)

    def head_report(self) -> HeadReport | None:
        """The report of a quantized head; None if there is none."""
        if not self.head_file.is_file():
            return None
        return HeadReport(**json.loads(self._head_report.read_text(encoding="utf-8")))

    @property
    def vision_file(self) -> Path:
        """The tensors of the quantized linears that a model sees with."""
        return self.directory / "vision.safetensors"

    def keep_vision(self, vision: StoredBlock) -> None:
        """Stores the quantized linears that a model sees with, their tensors last."""
        written = {name: asdict(report) for name, report in vision.reports.items()}
        self._vision_reports.write_text(json.dumps(written), encoding="utf-8")
        write_arrays(self._vision_search, vision.search)
        write_tensors(self.vision_file, vision.tensors)

    def vision_reports(self) -> dict[str, LinearReport]:
        """Reports of the quantized linears that a model sees with, by full name; empty if none were stored."""
        if not self.vision_file.is_file():
            return {}
        stored = json.loads(self._vision_reports.read_text(encoding="utf-8"))
        return {name: LinearReport(**entry) for name, entry in stored.items()}

    def reports(self) -> dict[str, LinearReport]:
        """Reports of all blocks, which must be finished, by the linear's full name."""
        reports: dict[str, LinearReport] = {}
        for layer in range(self.layers):
            stored = json.loads(self._report(layer).read_text(encoding="utf-8"))
            reports.update({name: LinearReport(**entry) for name, entry in stored.items()})
        return reports

    def search(self) -> dict[str, Array]:
        """What the search saw and found in all blocks, which must be finished.

        Raises:
            ArtifactError: A file is damaged.
        """
        search: dict[str, Array] = {}
        for layer in range(self.layers):
            search |= read_arrays(self._search(layer), fix=_AGAIN)
        if self.vision_file.is_file():
            search |= read_arrays(self._vision_search, fix=_AGAIN)
        return search

    def same_computer_(self, ranks: Ranks, *, shared: bool) -> None:
        """Makes a resumed run compute like the first one: the bits of products and sums depend on how they are split.

        Args:
            ranks: The current ranks; those other than the first are told how many threads to use.
            shared: Whether ranks share the work on every block, so that their number matters.

        Raises:
            UsageError: The first run computed on another kind of device, or with another number of ranks that matters.
        """
        path, device = self.directory / _COMPUTED_FILE, torch.get_default_device().type
        if path.is_file():
            first = json.loads(path.read_text(encoding="utf-8"))
            if first["device"] != device:
                raise UsageError(
                    f"the interrupted run computed on {first['device']}, whose last bits differ from {device}'s.",
                    where="--device",
                    fix=f"continue with --device {first['device']}, or start again with --overwrite.",
                )
            began = first.get("ranks", 1)
            if shared and began != ranks.count:
                raise UsageError(
                    f"the interrupted run had {began} ranks, whose last bits differ from those of {ranks.count}.",
                    where="--resume",
                    fix=f"continue with {began} ranks, or start again with --overwrite.",
                )
            torch.set_num_threads(first["threads"])
        else:
            partial = path.with_name(path.name + ".partial")
            computing = {"device": device, "threads": torch.get_num_threads(), "ranks": ranks.count}
            partial.write_text(json.dumps(computing), encoding="utf-8")
            partial.replace(path)
        ranks.told(torch.get_num_threads())

    def _block(self, layer: int) -> Path:
        return self.directory / f"block-{layer:05}.safetensors"

    def _tuned(self, layer: int) -> Path:
        return self.directory / f"tuned-{layer:05}.safetensors"

    def _report(self, layer: int) -> Path:
        return self.directory / f"block-{layer:05}.json"

    def _search(self, layer: int) -> Path:
        return self.directory / f"block-{layer:05}.npz"

    @property
    def _head_report(self) -> Path:
        return self.directory / "head.json"

    @property
    def _vision_search(self) -> Path:
        return self.directory / "vision.npz"

    @property
    def _vision_reports(self) -> Path:
        return self.directory / "vision.json"

    @property
    def _steps(self) -> Path:
        return self.directory / "steps.json"

    def _range(self, layer: int) -> Path:
        return self.directory / f"range-{layer:05}.json"

    def _hidden(self, layer: int) -> Path:
        return self.directory / f"hidden-{layer:05}.safetensors"

    def _original(self, layer: int) -> Path:
        return self.directory / f"original-{layer:05}.safetensors"


def _save_whole(path: Path, value: Tensor) -> None:
    partial = path.with_name(path.name + ".partial")
    save_file({"value": value.contiguous()}, partial)
    partial.replace(path)


def _load_whole(path: Path) -> Tensor:
    """Loads what `_save_whole` wrote to the device where PyTorch computes."""
    return load_file(path, device=str(torch.get_default_device()))["value"]
