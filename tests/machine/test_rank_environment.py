"""The environment of a rank is either complete or refused."""

from __future__ import annotations

import pytest

from awq2trt.errors import UsageError
from awq2trt.machine.rank_environment import (
    TIMEOUT_S,
    TIMEOUT_VARIABLE,
    RankName,
    rank_of_environment,
    rank_timeout_s,
)

WHOLE = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*WHOLE, TIMEOUT_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def _set(monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_alone_where_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank_of_environment() is None
    _set(monkeypatch, MASTER_ADDR="host")  # of another program
    assert rank_of_environment() is None


def test_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, **WHOLE)
    assert rank_of_environment() == RankName(1, 4, 0)
    monkeypatch.delenv("LOCAL_RANK")
    assert rank_of_environment() == RankName(1, 4, 1)


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_half_an_environment_is_refused(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, **{name: value for name, value in WHOLE.items() if name != missing})
    with pytest.raises(UsageError, match=f"got no {missing}"):
        rank_of_environment()


@pytest.mark.parametrize(("name", "value"), [("RANK", "-1"), ("RANK", ""), ("WORLD_SIZE", "two"), ("RANK", "4")])
def test_numbers_that_make_no_sense_are_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, **{**WHOLE, name: value})
    with pytest.raises(UsageError, match="expected a"):
        rank_of_environment()


def test_the_time_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank_timeout_s() == TIMEOUT_S
    _set(monkeypatch, **{TIMEOUT_VARIABLE: "7"})
    assert rank_timeout_s() == 7
    _set(monkeypatch, **{TIMEOUT_VARIABLE: "0"})
    with pytest.raises(UsageError, match="at least 1"):
        rank_timeout_s()
