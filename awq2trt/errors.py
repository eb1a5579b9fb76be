"""The errors a user meets: what went wrong, where, and how to fix it.

Every error that bad input or a bad machine can cause derives from `Awq2trtError`; the command line
prints its three parts and exits with its `exit_code`. Anything else that escapes is a bug of ours.
"""

from __future__ import annotations

from typing import ClassVar


class Awq2trtError(Exception):
    """The base of all errors that this package raises on purpose.

    Args:
        what: What was got and what was expected, in one sentence.
        where: The layer, tensor or file it concerns.
        fix: What the user can do about it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what = what
        self.where = where
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        fix = f" Fix: {self.fix}" if self.fix else ""
        return f"{where}{self.what}{fix}"


class UsageError(Awq2trtError):
    """An option, a recipe or a combination of them that makes no sense."""

    exit_code = 2


class UnsupportedError(Awq2trtError):
    """Valid input that this version cannot handle: a model family, a target, a format."""

    exit_code = 2


class CheckpointError(Awq2trtError):
    """A model or checkpoint on disk that cannot be read, or does not hold what it should."""


class CalibrationError(Awq2trtError):
    """Calibration text that is missing, too short, or gives non-finite activations."""


class ArtifactError(Awq2trtError):
    """An output directory that is in use, incomplete, damaged, or made for something else."""


class ToolError(Awq2trtError):
    """This machine lacks, or has the wrong version of, something a stage needs."""


class OutOfMemoryError(ToolError):
    """A GPU has too little memory."""


class RankLostError(ToolError):
    """Another of the processes that quantize together has ended or does not answer."""


class PeerFailedError(Awq2trtError):
    """Another of the processes that quantize together failed first and has reported why; nothing more need be said."""


class NoGpuError(ToolError):
    """There is no GPU that could run the model, or no driver for it; nothing is wrong with the model."""

    exit_code = 3


class BuildError(Awq2trtError):
    """TensorRT refused the network, or the engine could not be built."""
