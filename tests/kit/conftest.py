"""What the tests of a kit's script share: a stand-in Jetson, and the shells that may run the script."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from stand_in_orin import Orin


@pytest.fixture
def orin(tmp_path: Path) -> Orin:
    return Orin(tmp_path / "machine")


@pytest.fixture(params=["dash", "bash"])
def shell(request: pytest.FixtureRequest) -> str:
    path = shutil.which(request.param)
    if path is None:
        pytest.skip(f"needs {request.param}")
    return str(path)
