"""Several ranks give what one gives, to the bit or except for ties; if one is killed, a resumed run is the same."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_processes import run_ranks
from tiny_models import save_llama

from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.checkpoint.search_files import REPORT_FILE
from awq2trt.evaluation.perplexity import perplexity, torch_logits
from awq2trt.machine.ranks import joined_ranks
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.progress import Advance, SilentProgress
from awq2trt.quantization import dealing
from awq2trt.quantization.chain import Chain
from awq2trt.quantization.effort import EFFORTS
from awq2trt.quantization.job import QuantizeJob, assist
from awq2trt.quantization.store import Store
from awq2trt.recipe import QuantizeOptions

LAYERS = 4
"""Each of three ranks has one of these in turn, and one rank has two."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("chain")
    (directory / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 100)
    return save_llama(directory / "model", num_hidden_layers=LAYERS)


def _quantize(model: Path, out: Path, changes: dict[str, Any], prepare: Callable[[int], None] | None = None) -> None:
    """The work of every rank."""
    _shorten_lessons()
    for name in ("files", "scratch"):
        (out / name).mkdir(parents=True, exist_ok=True)
    options = QuantizeOptions(
        **{"calib": str(model.parent / "text.txt"), "samples": 3, "seqlen": 32, "group_size": 32, **changes}
    )
    source = SafetensorsSource.open(model)
    with joined_ranks(cuda=False) as ranks:
        if prepare is not None:
            prepare(ranks.rank)
        if not ranks.first:
            assist(source, options, ranks)
            return
        files, scratch, progress = out / "files", out / "scratch", _Blocks()
        QuantizeJob.prepare(source, options, files=files, scratch=scratch, progress=progress, ranks=ranks).run()
        (out / "blocks.json").write_text(json.dumps(progress.advances))


class _Blocks(SilentProgress):
    """Notes how the number of finished blocks grows."""

    def __init__(self) -> None:
        self.advances: list[int] = []

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        yield self.advances.append if description.startswith("quantizing blocks") else lambda units: None


def _shorten_lessons() -> None:
    search = EFFORTS["max"]
    assert search.learn is not None
    EFFORTS["max"] = replace(search, learn=replace(search.learn, steps=4))


def _hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


@pytest.mark.parametrize(
    ("changes", "others"),
    [
        ({}, {2: [2, 2], 3: [3, 1]}),  # how the number of finished blocks grows, by the number of ranks
        ({"effort": "fast", "bits": 3, "seqlen": 16}, {3: [3, 1]}),
        ({"method": "rtn"}, {2: [2, 2]}),
    ],
    ids=["default", "fast", "rtn"],
)
def test_where_blocks_do_not_depend_on_each_other_any_number_of_ranks_gives_the_same_bytes(
    changes: dict[str, Any], others: dict[int, list[int]], model: Path, tmp_path: Path
) -> None:
    for count, blocks in ({1: [1, 1, 1, 1]} | others).items():
        assert run_ranks(count, _quantize, model, tmp_path / str(count), changes) == [0] * count
        assert json.loads((tmp_path / str(count) / "blocks.json").read_text()) == blocks
    alone = _hashes(tmp_path / "1" / "files")
    assert {"model.safetensors", REPORT_FILE} < alone.keys()
    for count in others:
        assert _hashes(tmp_path / str(count) / "files") == alone


@pytest.mark.parametrize("as_gpus", [False, True], ids=["rows shared", "linears dealt out"])
def test_ranks_that_share_every_block_give_the_same_codes_but_for_ties(
    as_gpus: bool, model: Path, tmp_path: Path
) -> None:
    changes = {"method": "awq+gptq"}
    alone, shared = _checkpoints(4, changes, model, tmp_path, _deal_as_gpus if as_gpus else None)  # of three windows
    names = [alone.spec.prefix(layer) + name for layer in range(LAYERS) for name in alone.spec.block.linears]
    # In which the last bits of sums decide between equal candidates.
    assert max(np.mean(alone.linear(name).codes != shared.linear(name).codes) for name in names) < 0.03
    assert _perplexity(shared) == pytest.approx(_perplexity(alone), rel=1e-3)


@pytest.mark.parametrize("effort", ["best", "max"])
def test_ranks_that_are_held_to_the_original_get_as_far_as_one(effort: str, model: Path, tmp_path: Path) -> None:
    # Each block makes up for the errors of the one before, so that a tie that is broken differently changes everything
    # after it; and if steps follow the signs of gradients, the last bit of a sum over ranks can turn a complete step.
    alone, shared = _checkpoints(3, {"effort": effort}, model, tmp_path)
    assert _perplexity(shared) == pytest.approx(_perplexity(alone), rel=0.05)


def _deal_as_gpus(_: int) -> None:
    """Ranks are dealt whole linears."""
    dealing.calls_set_the_time = lambda: True


def _checkpoints(
    count: int,
    changes: dict[str, Any],
    model: Path,
    tmp_path: Path,
    prepare: Callable[[int], None] | None = None,
) -> tuple[QuantizedCheckpoint, QuantizedCheckpoint]:
    """The checkpoints that one rank makes, and that several make."""
    assert run_ranks(1, _quantize, model, tmp_path / "alone", changes) == [0]
    assert run_ranks(count, _quantize, model, tmp_path / "shared", changes, prepare) == [0] * count
    return QuantizedCheckpoint.open(tmp_path / "alone" / "files"), QuantizedCheckpoint.open(
        tmp_path / "shared" / "files"
    )


def _perplexity(checkpoint: QuantizedCheckpoint) -> float:
    tokens, silent = torch.randint(0, 250, (2, 64), generator=torch.Generator().manual_seed(7)), SilentProgress()
    return perplexity(tokens, torch_logits(checkpoint, tokens, silent, ""), silent, "").value


@pytest.fixture(scope="module")
def effort(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(effort: str, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of an uninterrupted run of two ranks."""
    out = tmp_path_factory.mktemp("whole")
    assert run_ranks(2, _quantize, model, out, {"effort": effort}) == [0, 0]
    return out / "files"


def _die_at_block_1(rank: int) -> None:
    """Kills the other rank when it comes to a block."""
    if rank == 1:
        quantize = Chain._quantize_block

        def dying(self: Chain, layer: int, *arguments: Any) -> Any:
            if layer == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return quantize(self, layer, *arguments)

        setattr(Chain, quantize.__name__, dying)


def _writer_dies(rank: int) -> None:
    """Kills the first rank while it stores a block: the stream behind it is on disk, but its tensors are not."""
    if rank == 0:
        keep = Store.keep_block

        def dying(self: Store, layer: int, block: Any) -> None:
            if layer == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            keep(self, layer, block)

        Store.keep_block = dying  # type: ignore[method-assign]


def _writer_dies_at_the_end(rank: int) -> None:
    """Kills the first rank after the others have left it alone."""
    if rank == 0:

        def dying(self: QuantizeJob) -> str:
            os.kill(os.getpid(), signal.SIGKILL)
            return ""

        QuantizeJob._write_checkpoint = dying  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("effort", "die", "killed", "blocks"),
    [
        ("default", _die_at_block_1, 1, 1),  # blocks in turn
        ("default", _writer_dies, 0, 1),
        ("best", _die_at_block_1, 1, 1),  # blocks shared
        ("best", _writer_dies, 0, 1),
        ("best", _writer_dies_at_the_end, 0, LAYERS),
    ],
    indirect=["effort"],
)
def test_whichever_rank_is_killed_a_resumed_run_has_the_same_bytes(
    die: Callable[[int], None], killed: int, blocks: int, effort: str, model: Path, whole: Path, tmp_path: Path
) -> None:
    changes = {"effort": effort}
    codes = run_ranks(2, _quantize, model, tmp_path / "killed", changes, die)
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] == (0 if blocks == LAYERS else 1)
    assert Store(tmp_path / "killed" / "scratch", LAYERS).finished_blocks() == blocks
    count = 2 if effort == "best" else 3  # any number, where ranks take blocks in turn
    assert run_ranks(count, _quantize, model, tmp_path / "killed", changes) == [0] * count
    assert _hashes(tmp_path / "killed" / "files") == _hashes(whole)
