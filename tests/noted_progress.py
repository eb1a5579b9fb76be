"""A progress that keeps the notes which a user would read."""

from __future__ import annotations

from awq2trt.progress import SilentProgress


class NotedProgress(SilentProgress):
    """Records the notes that it receives."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)
