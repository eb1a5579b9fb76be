"""Model descriptions in manifests: they say the same as the model's own description."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_checkpoints import LLAMA

from awq2trt.models.families import FAMILIES, describe_model
from awq2trt.models.families.description import Family
from awq2trt.models.spec import ModelSpec

GEMMA_3 = next(family for family in FAMILIES if "Gemma3ForCausalLM" in family.architectures)


def test_sizes_of_a_llama() -> None:
    record = ModelSpec(describe_model(LLAMA)).record()
    assert record.vision is None
    decoder = record.decoder
    assert (decoder.hidden_size, decoder.intermediate_size, decoder.vocab_size) == (72, 96, 120)
    assert (decoder.num_heads, decoder.num_kv_heads, decoder.head_dim) == (6, 2, 16)
    assert (decoder.num_layers, decoder.max_positions, decoder.tie_embeddings) == (2, 64, False)
    (rope,) = decoder.ropes
    np.testing.assert_allclose(rope.inv_freq, 10000.0 ** (-np.arange(0, 16, 2) / 16), rtol=1e-6)
    assert (rope.factor, rope.sections, decoder.rope_of_layer) == (1.0, None, (0, 0))
    assert decoder.window_of_layer == (None, None)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_layer_by_layer(family: Family) -> None:
    spec = family.describe(family.example)
    decoder = ModelSpec(spec).record().decoder
    for layer, rope, window in zip(spec.layers, decoder.rope_of_layer, decoder.window_of_layer, strict=True):
        assert (None if rope is None else decoder.ropes[rope].inv_freq) == (layer.rope and layer.rope.inv_freq)
        assert window == layer.sliding_window


def test_gemma_3_has_two_ropes_and_windows_in_some_layers() -> None:
    decoder = ModelSpec(GEMMA_3.describe(GEMMA_3.example)).record().decoder
    assert len(decoder.ropes) == 2
    assert set(decoder.rope_of_layer) == {0, 1}
    assert None in decoder.window_of_layer
    assert len(set(decoder.window_of_layer)) == 2
