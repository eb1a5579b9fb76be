"""Counts how often a request goes back up: moves between rooms of the package, by the call graph of its source.

In: the source of awq2trt, the import layers of pyproject.toml, and functions of `awq2trt.api`. Out: a table, and every
climb with a call that causes it.

    python tools/measure_climbs.py [quantize export build ...]

A room is one name in the layers: a folder of the package, or a module beside the folders. A move is a pair of modules
in different rooms of which one calls the other, anywhere on the way from the entry point; several such calls count as
one move. It is a climb if the caller's room is on a lower layer than the callee's. Returning from a call is no move.

The import contract forbids that a module names anything above it, so the only climbs left are calls of things that were
passed down: functions that a caller passed, and methods that a class of an upper room overrides. `call_graph` describes
which of those it finds; the figures are lower bounds, found in the same way for every state of the source.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from call_graph import PACKAGE, Source, Walk

ROOT: Final = Path(__file__).parent.parent
ENTRIES: Final = ("quantize", "export", "build")


@dataclass(frozen=True)
class Moves:
    """The moves of an entry point.

    Attributes:
        functions: Number of functions that it can reach.
        moves: Pairs of the caller's and the callee's module, in different rooms.
        climbs: The moves that go up, each with a call.
    """

    functions: int
    moves: frozenset[tuple[str, str]]
    climbs: dict[tuple[str, str], tuple[str, str]]


def measure(source: Source, layers: dict[str, int], entry: str) -> Moves:
    """Counts the moves of one entry point of the API.

    Args:
        source: Source of the package.
        layers: The layer of each room; 0 is the lowest.
        entry: Name of a function of `awq2trt.api`.
    """
    walk = Walk.from_entry(source, f"{PACKAGE}.api.{entry}")
    moves: set[tuple[str, str]] = set()
    climbs: dict[tuple[str, str], tuple[str, str]] = {}
    for caller, callee in sorted(walk.calls):
        modules = (source.functions[caller][0], source.functions[callee][0])
        rooms = [_room(module) for module in modules]
        if rooms[0] != rooms[1]:
            moves.add(modules)
            if layers[rooms[0]] < layers[rooms[1]]:
                climbs.setdefault(modules, (caller, callee))
    return Moves(len(walk.reached), frozenset(moves), climbs)


def read_layers(pyproject: Path) -> dict[str, int]:
    """Reads the layer of each room from the import contract; 0 is the lowest. Python 3.10 has no reader of TOML."""
    listed = re.search(r"^layers = \[(.*?)^\]", pyproject.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    if listed is None:
        raise SystemExit(f"{pyproject}: no import layers")
    layers = re.findall(r'"([^"]+)"', listed[1])
    return {room.strip(): rank for rank, layer in enumerate(reversed(layers)) for room in layer.split("|")}


def main() -> None:
    """Prints the table, then every climb."""
    parser = argparse.ArgumentParser(description="Moves between rooms, and how many of them climb.")
    parser.add_argument("entries", nargs="*", default=ENTRIES, metavar="FUNCTION", help="functions of awq2trt.api")
    source, layers = Source.read(ROOT), read_layers(ROOT / "pyproject.toml")
    found = {entry: measure(source, layers, entry) for entry in parser.parse_args().entries}
    print(f"{'request':10} {'functions':>9} {'moves':>6} {'climbs':>6}")
    for entry, moves in found.items():
        print(f"{entry:10} {moves.functions:9} {len(moves.moves):6} {len(moves.climbs):6}")
    for entry, moves in found.items():
        print(f"\n{entry} climbs")
        for caller, callee in moves.climbs.values():
            print(f"  {caller.removeprefix(PACKAGE + '.')} -> {callee.removeprefix(PACKAGE + '.')}")


def _room(module: str) -> str:
    """The part of a module's name that appears in the layers."""
    return module.split(".")[1] if "." in module else module


if __name__ == "__main__":
    main()
