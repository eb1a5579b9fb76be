"""Beginning at a quantized checkpoint: its codes to the bit, its scales recovered, and mismatches refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import save_family, save_llama

from awq2trt.artifact.arrays import read_arrays
from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.checkpoint.search_files import SEARCH_FILE
from awq2trt.errors import UsageError
from awq2trt.models.block_weights import load_block
from awq2trt.models.decoder import BlockRunner, Ends, run_model
from awq2trt.models.families import FAMILIES
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.progress import SilentProgress
from awq2trt.quantization.beginning import begin_block, open_beginning
from awq2trt.quantization.job import QuantizeJob
from awq2trt.recipe import QuantizeOptions
from awq2trt.scheme import QuantScheme


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 100)
    return save_llama(tmp_path / "model")


def _quantized(model: Path, name: str, **changes: object) -> Path:
    return _quantized_on(model, name, **changes)[0]


def _quantized_on(model: Path, name: str, **changes: object) -> tuple[Path, torch.Tensor | None]:
    """The checkpoint, and the tokens on which it was calibrated."""
    files, scratch = model.parent / name / "files", model.parent / name / "scratch"
    for directory in (files, scratch):
        directory.mkdir(parents=True)
    text = {"calib": str(model.parent / "text.txt"), "samples": 4, "seqlen": 64, "group_size": 32}
    options = QuantizeOptions.model_validate({**text, **changes})
    source = SafetensorsSource.open(model)
    job = QuantizeJob.prepare(source, options, files=files, scratch=scratch, progress=SilentProgress())
    return files, job.run().tokens


@pytest.mark.parametrize("method", ["awq", "rtn"])
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_scales_that_a_checkpoint_does_not_tell_are_found_again(family: str, method: str, model: Path) -> None:
    if family == "gemma":
        (example,) = (known.example for known in FAMILIES if known.name == family)
        save_family(model, {**example, "vocab_size": 272})
    directory = _quantized(model, "first", method=method)
    original, checkpoint = SafetensorsSource.open(model), QuantizedCheckpoint.open(directory)
    weights = load_block(original, 1)
    known = begin_block(checkpoint, 1, weights, checkpoint.scheme)
    (directory / SEARCH_FILE).unlink(missing_ok=True)  # as another tool's
    found = begin_block(checkpoint, 1, weights, checkpoint.scheme)
    for first, scales in known.scales.items():
        assert (method == "rtn") == bool((scales == 1).all())
        torch.testing.assert_close(found.scales[first], scales, rtol=0.12, atol=0)
        weight = f"{first}.weight"
        off = (found.tensors[weight] - known.tensors[weight]).norm()
        assert float(off) <= 0.4 * float(
            (known.rounded[first].dequantize(checkpoint.scheme) - known.tensors[weight]).norm()
        )


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_a_block_begins_at_the_checkpoints_codes(method: str, model: Path) -> None:
    original, checkpoint = (
        SafetensorsSource.open(model),
        QuantizedCheckpoint.open(_quantized(model, "first", method=method)),
    )
    for layer in range(original.spec.num_layers):
        stored = load_block(checkpoint, layer)
        begun = begin_block(checkpoint, layer, load_block(original, layer), checkpoint.scheme)
        for name in original.spec.block.linears:
            weight = begun.rounded[name].dequantize(checkpoint.scheme)
            torch.testing.assert_close(weight, stored[f"{name}.weight"], rtol=0, atol=0)
        # Before rounding, it computes what the original does: the fitted scales cancel, as folded ones do.
        runner, hidden = (
            BlockRunner.for_positions(original.spec, 20),
            Ends(original).embed(torch.arange(20).view(1, -1)),
        )
        exact = runner.run(load_block(original, layer), hidden, layer=layer)
        rounded, unrounded = (runner.run(tensors, hidden, layer=layer) for tensors in (stored, begun.tensors))
        assert float((unrounded - exact).norm()) < 0.5 * float((rounded - exact).norm())


@pytest.mark.parametrize("method", ["awq", "rtn", "gptq"])
def test_max_brings_a_checkpoint_nearer_to_the_model(method: str, model: Path) -> None:
    chosen = {"method": method, "bits": 3, **({"effort": "fast"} if method == "awq" else {})}
    first = _quantized(model, "first", **chosen)
    refined, ids = _quantized_on(model, "refined", bits=3, effort="max", init_from=str(first))
    assert ids is not None
    original = SafetensorsSource.open(model)
    expected, before, after = (
        run_model(source, ids)
        for source in (original, QuantizedCheckpoint.open(first), QuantizedCheckpoint.open(refined))
    )
    assert float((after - expected).norm()) < float((before - expected).norm())


def test_best_moves_codes_only_and_folds_nothing_again(model: Path) -> None:
    first = _quantized(model, "first", bits=3, effort="fast")
    refined = _quantized(model, "refined", bits=3, effort="best", init_from=str(first))
    before, after = QuantizedCheckpoint.open(first), QuantizedCheckpoint.open(refined)
    for kind in ("scales", "magnitude"):  # for the model's own inputs, which `check` and `inspect` use
        name = f"model.layers.0.mlp.down_proj.{kind}"
        was, now = (read_arrays(directory / SEARCH_FILE, fix="")[name] for directory in (first, refined))
        assert now == pytest.approx(was, rel=1e-2)  # `best` runs blocks by fp32 factors, the default by bf16
    for layer in range(before.spec.num_layers):
        prefix = before.spec.prefix(layer)
        for name in before.spec.block.linears:
            old, new = before.linear(prefix + name), after.linear(prefix + name)
            assert (old.scales == new.scales).all()
            assert 0 < (old.codes != new.codes).mean() < 0.5
        for norm in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            assert (before.tensor(prefix + norm) == after.tensor(prefix + norm)).all()


def test_a_checkpoint_of_something_else_is_refused(model: Path, tmp_path: Path) -> None:
    first, source = _quantized(model, "first", method="rtn"), SafetensorsSource.open(model)
    scheme = QuantScheme(group_size=32)
    assert open_beginning(first, source, scheme).scheme == scheme
    with pytest.raises(UsageError, match=r"int4-g32-asym, but int3-g32-asym") as raised:
        open_beginning(first, source, QuantScheme(bits=3, group_size=32))
    assert "--bits 4 --group-size 32" in str(raised.value.fix)
    with pytest.raises(UsageError, match=r"blocks 2, but .* has 3"):
        open_beginning(first, SafetensorsSource.open(save_llama(tmp_path / "other", num_hidden_layers=3)), scheme)
    for refused in ({"effort": "default"}, {"method": "gptq"}, {"method": "rtn"}, {"method": "awq+gptq"}):
        with pytest.raises(UsageError, match="cannot refine the codes"):
            _quantized(model, "-".join(refused.values()), init_from=str(first), **refused)
