"""Methods: the names that options take are those declared, and each says what it needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from awq2trt import cli_flags
from awq2trt.methods import DEFAULT_METHOD, METHODS, MethodName
from awq2trt.recipe import QuantizeOptions

ROOT = Path(__file__).parent.parent


def test_names_of_the_type_are_the_rows() -> None:
    assert get_args(MethodName) == tuple(METHODS)
    assert QuantizeOptions().method == DEFAULT_METHOD


def test_the_flags_help_names_all_methods() -> None:
    _, option = get_args(cli_flags.Method)
    assert option.help == f"{', '.join(METHODS)}. [{DEFAULT_METHOD}]"


def test_only_plain_rounding_needs_no_text() -> None:
    assert {name: method.uses_text for name, method in METHODS.items()} == {
        "awq": True,
        "rtn": False,
        "gptq": True,
        "awq+gptq": True,
    }


def test_effort_is_for_awq_and_order_for_gptq() -> None:
    assert [name for name, method in METHODS.items() if method.searches_scales] == ["awq", "awq+gptq"]
    assert [name for name, method in METHODS.items() if method.rounds_columns] == ["gptq", "awq+gptq"]


_LOOKS = re.compile(
    r"""method\s*(==|!=)\s|(?<!for )\bmethod\s+in\s*\(|["'](awq|rtn|gptq|awq\+gptq)["']\s+(in|==|!=)\s"""
)


@pytest.mark.parametrize("code", ['"awq" in options.method', 'options.method == "rtn"', 'x.method in ("awq", "rtn")'])
def test_a_look_at_a_methods_name_is_seen(code: str) -> None:
    assert _LOOKS.search(code)


def test_nobody_looks_at_a_methods_name() -> None:
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted((*ROOT.glob("awq2trt/**/*.py"), *ROOT.glob("tools/*.py")))
        if path.name != "methods.py"
        for line in path.read_text(encoding="utf-8").splitlines()
        if _LOOKS.search(line)
    ]
    assert not found
