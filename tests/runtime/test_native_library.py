"""The C interface as Python declares it: structures with the library's layout, codes as in the header."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest
from native_sessions import require_runtime_library

from awq2trt.errors import ArtifactError, Awq2trtError, NoGpuError, ToolError, UsageError
from awq2trt.runtime import native_library
from awq2trt.runtime.native import FINISH_REASONS

HEADER = Path(__file__).parents[2] / "plugins" / "runtime" / "include" / "awq2trt" / "awq2trt.hpp"


@pytest.fixture
def _built() -> None:
    require_runtime_library()


@pytest.mark.usefixtures("_built")
def test_structures_are_laid_out_as_in_the_library() -> None:
    declared = {}
    for name, structure in native_library.STRUCTURES.items():
        declared[name, ""] = (0, ctypes.sizeof(structure))
        for field, *_ in structure._fields_:
            place = getattr(structure, field)
            declared[name, field] = (place.offset, place.size)
    assert declared == native_library.layouts()


def test_codes_are_those_of_the_header() -> None:
    text = HEADER.read_text()
    body = text.partition("enum class ErrorCode")[2].partition("};")[0]
    codes = {
        re.sub(r"(?<!^)([A-Z])", r"_\1", name).upper(): int(number)
        for name, number in re.findall(r"k(\w+) = (\d+)", body)
    }
    assert len(codes) == 27
    assert codes == {name: getattr(native_library, name) for name in codes}


def test_finish_reasons_are_those_of_the_header() -> None:
    body = HEADER.read_text().partition("enum class FinishReason")[2].partition("};")[0]
    assert {int(number) for number in re.findall(r"= (\d+)", body)} == set(FINISH_REASONS)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (native_library.TOO_LONG, UsageError),
        (native_library.CHANGED_FILE, ArtifactError),
        (native_library.NO_DRIVER, NoGpuError),
        (native_library.INTERNAL, ToolError),
    ],
)
def test_errors_keep_their_parts(code: int, kind: type[Awq2trtError]) -> None:
    error = native_library.error_of(code, "here: it is wrong\n  fix: mend it.")
    assert type(error) is kind
    assert (error.what, error.fix) == ("here: it is wrong", "mend it.")
    assert vars(error)["code"] == code
