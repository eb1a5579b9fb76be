"""The quantization methods, all declared here: what each does, needs and writes.

A new method needs a row in `METHODS`, its name in `MethodName`, and its work in `awq2trt.quantization`. Other code
reads the declaration of a method and never compares its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

MethodName = Literal["awq", "rtn", "gptq", "awq+gptq"]
"""The values of `--method` and of recipes; a test compares them with `METHODS`."""


@dataclass(frozen=True)
class Method:
    """What a method does. A method that does neither rounds to nearest, which papers call RTN.

    Attributes:
        name: Its name, as users write it.
        searches_scales: AWQ: it searches scales, folds them, then searches grids. `--effort` says how hard, and the
            checkpoint keeps the scales, so that folding can be repeated.
        rounds_columns: GPTQ: it rounds column by column, so a code need not be the nearest to its weight.
            `--act-order` says in which order.
    """

    name: MethodName
    searches_scales: bool = False
    rounds_columns: bool = False

    @property
    def uses_text(self) -> bool:
        """Whether it needs calibration text."""
        return self.searches_scales or self.rounds_columns


METHODS: Final[Mapping[str, Method]] = {
    method.name: method
    for method in (
        Method("awq", searches_scales=True),
        Method("rtn"),
        Method("gptq", rounds_columns=True),
        Method("awq+gptq", searches_scales=True, rounds_columns=True),
    )
}
"""All methods, by name. `awq` searches scales and clips; `rtn` rounds to nearest; `gptq` rounds column by column, and
corrects later columns for each error; `awq+gptq` does so with AWQ's scales and clips.

A manifest of another tool's checkpoint, or of a later version, may name a method that is not here.
"""

DEFAULT_METHOD: Final[MethodName] = "awq"
