"""Several ranks: what one gives, but for ties; whichever is killed, the others end, and a resumed run is the same."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_processes import run_ranks
from tiny_models import save_llama

from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.evaluation.perplexity import perplexity, torch_logits
from awq2trt.machine.ranks import joined_ranks
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.progress import SilentProgress
from awq2trt.quantization.chain import Chain
from awq2trt.quantization.effort import EFFORTS
from awq2trt.quantization.job import QuantizeJob, assist
from awq2trt.quantization.store import Store
from awq2trt.recipe import QuantizeOptions

LAYERS = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("chain")
    (directory / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 100)
    return save_llama(directory / "model", num_hidden_layers=LAYERS)


def _quantize(model: Path, out: Path, changes: dict[str, Any], prepare: Callable[[int], None] | None = None) -> None:
    """What every rank runs."""
    _shorten_lessons()
    for name in ("files", "scratch"):
        (out / name).mkdir(parents=True, exist_ok=True)
    options = QuantizeOptions(
        **{"calib": str(model.parent / "text.txt"), "samples": 5, "seqlen": 48, "group_size": 32, **changes}
    )
    source = SafetensorsSource.open(model)
    with joined_ranks(cuda=False) as ranks:
        if prepare is not None:
            prepare(ranks.rank)
        if not ranks.first:
            assist(source, options, ranks)
            return
        files, scratch = out / "files", out / "scratch"
        QuantizeJob.prepare(source, options, files=files, scratch=scratch, progress=SilentProgress(), ranks=ranks).run()


def _shorten_lessons() -> None:
    search = EFFORTS["max"]
    assert search.learn is not None
    EFFORTS["max"] = replace(search, learn=replace(search.learn, steps=4))


def _hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


@pytest.mark.parametrize(
    "changes",
    [{}, {"effort": "best"}, {"effort": "max"}, {"method": "awq+gptq"}, {"method": "rtn"}],
    ids=["default", "best", "max", "awq+gptq", "rtn"],
)
def test_any_number_of_ranks_gives_the_same_codes_but_for_ties(
    changes: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    outs = [tmp_path / str(count) for count in (1, 2, 3)]
    for count, out in enumerate(outs, start=1):
        assert run_ranks(count, _quantize, model, out, changes) == [0] * count
    alone, *shared = [QuantizedCheckpoint.open(out / "files") for out in outs]
    names = [alone.spec.prefix(layer) + name for layer in range(LAYERS) for name in alone.spec.block.linears]
    tokens = torch.randint(0, 250, (2, 64), generator=torch.Generator().manual_seed(7))
    for other in shared:
        differing = [np.mean(alone.linear(name).codes != other.linear(name).codes) for name in names]
        assert max(differing) < 0.01
        assert _perplexity(other, tokens) == pytest.approx(_perplexity(alone, tokens), rel=1e-3)


def _perplexity(checkpoint: QuantizedCheckpoint, tokens: torch.Tensor) -> float:
    silent = SilentProgress()
    return perplexity(tokens, torch_logits(checkpoint, tokens, silent, ""), silent, "").value


def _die_before(layer: int, rank: int) -> None:
    """Rank 1 is killed when it comes to a block."""
    quantize = Chain._quantize_block

    def dying(self: Chain, reached: int, *arguments: Any) -> Any:
        if self.ranks.rank == rank and reached == layer:
            os.kill(os.getpid(), signal.SIGKILL)
        return quantize(self, reached, *arguments)

    setattr(Chain, quantize.__name__, dying)


def _die_at_block_1(rank: int) -> None:
    if rank == 1:
        _die_before(1, rank)


def _die_at_the_first_block(rank: int) -> None:
    if rank == 1:
        _die_before(0, rank)


def _writer_dies(rank: int) -> None:
    """The first rank is killed while it keeps a block: the stream after it is on disk, its tensors are not."""
    if rank == 0:
        keep = Store.keep_block

        def dying(self: Store, layer: int, block: Any) -> None:
            if layer == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            keep(self, layer, block)

        Store.keep_block = dying  # type: ignore[method-assign]


def _writer_dies_at_the_end(rank: int) -> None:
    """The first rank is killed when the others have left it alone."""
    if rank == 0:

        def dying(self: QuantizeJob) -> str:
            os.kill(os.getpid(), signal.SIGKILL)
            return ""

        QuantizeJob._write_checkpoint = dying  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("die", "killed", "blocks"),
    [
        (_die_at_the_first_block, 1, 0),
        (_die_at_block_1, 1, 1),
        (_writer_dies, 0, 1),
        (_writer_dies_at_the_end, 0, LAYERS),
    ],
)
def test_whichever_rank_is_killed_a_resumed_run_has_the_same_bytes(
    die: Callable[[int], None], killed: int, blocks: int, model: Path, tmp_path: Path
) -> None:
    changes = {"effort": "best"}
    assert run_ranks(2, _quantize, model, tmp_path / "whole", changes) == [0, 0]
    codes = run_ranks(2, _quantize, model, tmp_path / "killed", changes, die)
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] == (0 if blocks == LAYERS else 1)
    assert Store(tmp_path / "killed" / "scratch", LAYERS).finished_blocks() == blocks
    assert run_ranks(2, _quantize, model, tmp_path / "killed", changes) == [0, 0]
    assert _hashes(tmp_path / "killed" / "files") == _hashes(tmp_path / "whole" / "files")
