"""The tool that measures what quantizing costs of what a model sees."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pictures import save_pictures
from study_towers import SEARCHES, measured, pictures_of, sight_of
from tiny_llava import save_llava
from tiny_models import save_llama

from awq2trt.errors import CalibrationError, UsageError
from awq2trt.recipe import QuantizeOptions


def test_searches_err_less_than_rounding_on_other_pictures(tmp_path: Path) -> None:
    save_pictures(tmp_path / "pictures", 10)
    shown = pictures_of(tmp_path / "pictures")
    searches = {name: QuantizeOptions(group_size=32, **changes) for name, changes in SEARCHES.items()}
    with torch.no_grad():
        found = measured(sight_of(str(save_llava(tmp_path / "model"))), shown[:6], shown[6:], searches)
        errors = {name: error for name, error, _ in found}
    assert list(errors) == list(SEARCHES)
    assert all(0 < error < errors["rtn"] for name, error in errors.items() if name != "rtn")


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got a model of text"):
        sight_of(str(save_llama(tmp_path / "model")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CalibrationError, match="found none"):
        pictures_of(tmp_path / "empty")
