"""The block interpreter against transformers' Llama and Mistral, and against itself with a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import save_family, save_llama, save_mistral, tokens
from transformers import AutoModelForCausalLM

from awq2trt.errors import UsageError
from awq2trt.models.block_weights import load_block
from awq2trt.models.decoder import BlockRunner, Ends, KeyValueCache, matmul_transposed, run_model
from awq2trt.models.families import family_named
from awq2trt.models.sources.safetensors import SafetensorsSource

VARIANTS: dict[str, dict[str, Any]] = {
    "grouped-query": {},
    "multi-head": {"num_key_value_heads": 6},
    "multi-query": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 24},
}


def _reference(directory: Path, ids: torch.Tensor) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        return model(ids).logits  # type: ignore[no-any-return]


def _logits(source: SafetensorsSource, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return Ends(source).logits(run_model(source, ids))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llama(tmp_path, **VARIANTS[variant]))
    ids = tokens(2, 33)
    torch.testing.assert_close(_logits(source, ids), _reference(tmp_path, ids), rtol=1e-4, atol=1e-4)


def test_sliding_window_is_that_of_mistral(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_mistral(tmp_path, sliding_window=7))
    ids = tokens(1, 40)
    torch.testing.assert_close(_logits(source, ids), _reference(tmp_path, ids), rtol=1e-4, atol=1e-4)
    wide = SafetensorsSource.open(save_mistral(tmp_path / "wide", sliding_window=None))
    assert not torch.allclose(_logits(wide, ids), _logits(source, ids))


@pytest.mark.parametrize("window", [None, 5])
def test_one_token_at_a_time_gives_the_same_as_all_at_once(window: int | None, tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_mistral(tmp_path, sliding_window=window))
    ids = tokens(3, 12)
    torch.testing.assert_close(_one_by_one(source, ids), run_model(source, ids), rtol=1e-4, atol=1e-5)


def test_attention_may_come_back_in_any_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SafetensorsSource.open(save_llama(tmp_path))
    ids, attend = tokens(2, 9), F.scaled_dot_product_attention

    def attend_as_cuda(*arguments: Any, **options: Any) -> torch.Tensor:
        """Positions outside of heads, in memory."""
        return attend(*arguments, **options).transpose(1, 2).contiguous().transpose(1, 2)

    expected = run_model(source, ids)
    monkeypatch.setattr(F, "scaled_dot_product_attention", attend_as_cuda)
    torch.testing.assert_close(run_model(source, ids), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(_one_by_one(source, ids), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom"])  # plain scores, capped ones, and ALiBi's
def test_a_narrow_cache_changes_little(family: str, tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_family(tmp_path, family_named(family).example))
    ids = tokens(2, 9)
    narrow, exact = _one_by_one(source, ids, torch.bfloat16), _one_by_one(source, ids)
    assert not torch.equal(narrow, exact)
    torch.testing.assert_close(narrow, exact, rtol=0.05, atol=0.02 * float(exact.abs().max()))


def _one_by_one(source: SafetensorsSource, ids: torch.Tensor, cached: torch.dtype = torch.float32) -> torch.Tensor:
    """The residual stream after all blocks, computed one position at a time."""
    batch, positions = ids.shape
    runner = BlockRunner.for_positions(source.spec, positions)
    blocks = [load_block(source, layer) for layer in range(source.spec.num_layers)]
    caches = [KeyValueCache.empty(source.spec, batch=batch, capacity=positions, dtype=cached) for _ in blocks]
    steps = []
    with torch.inference_mode():
        for position in range(positions):
            hidden = Ends(source).embed(ids[:, position : position + 1], start=position)
            for layer, (weights, cache) in enumerate(zip(blocks, caches, strict=True)):
                hidden = runner.run(weights, hidden, layer=layer, cache=cache)
            steps.append(hidden)
    return torch.cat(steps, dim=1)


@pytest.mark.parametrize("family", ["llama", "opt"])  # positions by angles, and positions of a table
def test_texts_beyond_the_model_s_positions_are_refused(family: str, tmp_path: Path) -> None:
    source = SafetensorsSource.open(
        save_family(tmp_path, {**family_named(family).example, "max_position_embeddings": 16})
    )
    assert run_model(source, tokens(1, 16)).shape[1] == 16
    with pytest.raises(UsageError, match=r"expected at most 16 tokens.*got 17"):
        run_model(source, tokens(1, 17))


@pytest.mark.parametrize("rows", [3, 40])
def test_a_narrow_weight_is_multiplied_as_it_is(rows: int) -> None:
    """Only the rounding of the factors and of the product to 8 bits of mantissa may be visible."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, rows, 24), torch.randn(7, 24)
    found = matmul_transposed(x, weight.bfloat16())
    exact = x.bfloat16().float() @ weight.bfloat16().float().T
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=2**-8, atol=1e-5)


def test_the_head_s_factors_may_be_narrow(tmp_path: Path) -> None:
    source, hidden = SafetensorsSource.open(save_llama(tmp_path)), torch.randn(2, 3, 48)
    narrow, wide = Ends(source, head_type=torch.bfloat16).logits(hidden), Ends(source).logits(hidden)
    assert not torch.equal(narrow, wide)
    torch.testing.assert_close(narrow, wide, rtol=0.02, atol=0.02 * float(wide.abs().max()))
