"""The measure of climbs, on small packages whose moves can be counted by hand, and on the package itself."""

from __future__ import annotations

import textwrap
from pathlib import Path

import call_graph
import measure_climbs
import pytest

LAYERS = {"api": 3, "high": 2, "middle": 1, "low": 0}

LOW = """
    from collections.abc import Callable
    from typing import Protocol

    class Reader(Protocol):
        def read(self) -> int:
            '''A number.'''

    class Base:
        def name(self) -> str:
            return "base"

    def apply(function: Callable[[], int]) -> int:
        return function()

    def consume(reader: Reader) -> int:
        return reader.read()

    def describe(base: Base | None) -> str:
        return base.name()

    def add(a: int) -> int:
        return a + 1
"""


def _measured(tmp_path: Path, high: str) -> measure_climbs.Moves:
    """Moves of `api.entry`, which calls `high.work`."""
    package = tmp_path / "awq2trt"
    (package / "low").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "low" / "__init__.py").write_text("from awq2trt.low.things import add, apply, consume, describe\n")
    (package / "low" / "things.py").write_text(textwrap.dedent(LOW))
    (package / "high.py").write_text(textwrap.dedent(high))
    (package / "api.py").write_text("def entry():\n    from awq2trt.high import work\n    return work()\n")
    return measure_climbs.measure(call_graph.Source.read(tmp_path), LAYERS, "entry")


def test_calls_that_go_down_are_moves_and_no_climbs(tmp_path: Path) -> None:
    moves = _measured(
        tmp_path,
        """
        from awq2trt.low import add

        def work():
            return add(add(1))

        def never_called():
            return work()
        """,
    )
    assert moves.moves == {("awq2trt.api", "awq2trt.high"), ("awq2trt.high", "awq2trt.low.things")}
    assert (moves.functions, moves.climbs) == (3, {})


UP = ("awq2trt.low.things", "awq2trt.high")


@pytest.mark.parametrize(
    ("high", "call"),
    [
        pytest.param(
            """
            from awq2trt.low import apply

            def work():
                return apply(lambda: 1)
            """,
            ("awq2trt.low.things.apply", "awq2trt.high.work"),
            id="a lambda",
        ),
        pytest.param(
            """
            from functools import partial
            from awq2trt.low import apply

            def give(number):
                return number

            def work():
                return apply(function=partial(give, 1))
            """,
            ("awq2trt.low.things.apply", "awq2trt.high.give"),
            id="a partial",
        ),
        pytest.param(
            """
            from awq2trt import low

            class Own:
                def read(self):
                    return 1

                @classmethod
                def open(cls) -> "Own":
                    return cls()

            def work():
                return low.consume(Own.open())
            """,
            ("awq2trt.low.things.consume", "awq2trt.high.Own.read"),
            id="a protocol",
        ),
        pytest.param(
            """
            from awq2trt.low.things import Base, describe

            class Own(Base):
                def name(self):
                    return "own"

            def work():
                return describe(Own())
            """,
            ("awq2trt.low.things.describe", "awq2trt.high.Own.name"),
            id="an override",
        ),
    ],
)
def test_what_is_handed_down_climbs_when_it_is_called(high: str, call: tuple[str, str], tmp_path: Path) -> None:
    assert _measured(tmp_path, high).climbs == {UP: call}


def test_a_class_that_the_request_does_not_make_is_not_called(tmp_path: Path) -> None:
    moves = _measured(
        tmp_path,
        """
        from awq2trt.low.things import Base, describe

        class Other(Base):
            def name(self):
                return "other"

        def work():
            return describe(Base())
        """,
    )
    assert moves.climbs == {}


def test_layers_are_those_of_the_contract() -> None:
    layers = measure_climbs.read_layers(measure_climbs.ROOT / "pyproject.toml")
    assert layers["errors"] == 0
    assert layers["models"] < layers["quantization"] == layers["onnx_export"] < layers["stages"] < layers["api"]


@pytest.mark.parametrize("entry", measure_climbs.ENTRIES)
def test_a_request_walks_down(entry: str) -> None:
    source = call_graph.Source.read(measure_climbs.ROOT)
    layers = measure_climbs.read_layers(measure_climbs.ROOT / "pyproject.toml")
    moves = measure_climbs.measure(source, layers, entry)
    assert len(moves.moves) > 20
    assert len(moves.climbs) <= 8
