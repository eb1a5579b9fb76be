"""The version of this package and of all its outputs; `pyproject.toml` and `plugins/CMakeLists.txt` read it here."""

from __future__ import annotations

__version__ = "0.1.0"
