"""The results of comparing each stage with the one before: places, stages, the complete chain, and its first failure.

In: numbers of `measures` and findings of `weights`. Out: the records from which reports are written, and the names of
the stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from awq2trt.checking.measures import Difference
from awq2trt.checking.weights import Finding
from awq2trt.evaluation.agreement import Agreement
from awq2trt.io_contract import EMBEDDING, LOGITS, VISION
from awq2trt.scheme import BFLOAT16

ORIGINAL: Final = "original"
FOLDED: Final = "folded"
QUANTIZED: Final = "quantized"
ONNX: Final = "onnx"
ONNX_CUDA: Final = "onnx-cuda"
RUNTIME: Final = "runtime"
ON_GPU: Final = "cuda"
ENGINE: Final = "engine"

TITLES: Final[Mapping[str, str]] = {
    ORIGINAL: "original, PyTorch fp32",
    FOLDED: "scales folded, PyTorch fp32",
    QUANTIZED: "quantized, PyTorch fp32",
    ONNX: "ONNX as exported, ONNX Runtime CPU",
    ONNX_CUDA: "ONNX as exported, ONNX Runtime CUDA",
    RUNTIME: "ONNX as `run` runs it, ONNX Runtime CPU",
    ON_GPU: "model for CUDA as `run` runs it, every node on the GPU, ONNX Runtime CUDA",
    ENGINE: "model.engine on the GPU, one token at a time and the text at once",
}

AGAINST: Final[Mapping[str, tuple[str, ...]]] = {
    ORIGINAL: (),
    FOLDED: (ORIGINAL,),
    QUANTIZED: (FOLDED,),
    ONNX: (QUANTIZED,),
    ONNX_CUDA: (QUANTIZED,),
    RUNTIME: (QUANTIZED,),
    ON_GPU: (QUANTIZED,),
    ENGINE: (QUANTIZED,),
}
"""The stages in order, each with the stage that it is compared with."""


@dataclass(frozen=True)
class Place:
    """A stage at one place.

    Attributes:
        name: Name of the block, or `logits`; for a graph beside the decoder, `vision` or `embedding`.
        difference: Difference from the stage before.
        error: The relative difference that is compared with the limit: the largest of any position or, for
            quantization, the mean.
        limit: The limit of that error.
    """

    name: str
    difference: Difference
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the limit; NaN is not."""
        return self.error <= self.limit

    @property
    def share(self) -> float:
        """The error as a share of the limit; 1 is all of it."""
        return self.error / self.limit


@dataclass(frozen=True)
class StageResult:
    """A stage, compared with the one before.

    Attributes:
        stage: Its name.
        against: The stage before; None for the first.
        skipped: Why it was not run; None if it was.
        places: Graphs beside the decoder, blocks in order, then the logits.
        agreement: How well distributions of the next token agree.
        findings: Whatever is wrong with its weights.
        seconds: Wall time.
    """

    stage: str
    against: str | None = None
    skipped: str | None = None
    places: tuple[Place, ...] = ()
    agreement: Agreement | None = None
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0

    @property
    def blocks(self) -> tuple[Place, ...]:
        """Blocks alone."""
        return tuple(place for place in self.places if place.name not in (VISION, EMBEDDING, LOGITS))

    @property
    def passed(self) -> bool:
        """Whether there are no findings and no errors beyond limits; a stage that was not run has neither."""
        return not self.findings and all(place.passed for place in self.places)


@dataclass(frozen=True)
class Failure:
    """The first place at which the chain fails.

    Attributes:
        stage: The stage.
        place: A block, a tensor outside the blocks, or `logits`.
        message: What was measured there.
    """

    stage: str
    place: str
    message: str


@dataclass(frozen=True)
class CheckResult:
    """The result for the complete chain.

    Attributes:
        stages: The stages, in order.
        tokens: Tokens of the text.
        prefixes: Prefixes of the blocks' names.
        dtype: Type of the exported model's activations.
        changed: The same as in `Subject`.
    """

    stages: tuple[StageResult, ...]
    tokens: tuple[int, ...]
    prefixes: tuple[str, ...]
    dtype: str = "float16"
    changed: tuple[str, ...] = ()

    def title(self, stage: str) -> str:
        """Describes a stage in words."""
        widened = self.dtype == BFLOAT16 and stage in (ONNX, ONNX_CUDA)
        return f"{TITLES[stage]}, which has no bf16 kernels: in fp32" if widened else TITLES[stage]

    @property
    def passed(self) -> bool:
        """Whether all stages that were run passed, at least one was compared with another, and no file was changed."""
        compared = [stage for stage in self.stages if stage.against and not stage.skipped]
        return bool(compared) and not self.changed and all(stage.passed for stage in self.stages)

    def first_failure(self) -> Failure | None:
        """The first stage that fails, and the first failing block in it."""
        for stage in self.stages:
            failures = [*self._weight_failures(stage), *self._value_failures(stage)]
            if failures:
                return min(failures, key=lambda ranked: ranked[0])[1]
        return None

    def _weight_failures(self, stage: StageResult) -> Iterator[tuple[tuple[int, int], Failure]]:
        for finding in stage.findings:
            layer = self._layer(finding.place)
            place = self.prefixes[layer].rstrip(".") if layer >= 0 else finding.place
            yield (layer, 0), Failure(stage.stage, place, f"{finding.place}: {finding.message}")

    def _value_failures(self, stage: StageResult) -> Iterator[tuple[tuple[int, int], Failure]]:
        for place in stage.places:
            if not place.passed:
                message = f"the relative error is {place.error:.2g}, but at most {place.limit:.2g} is expected."
                layer = len(self.prefixes) if place.name == LOGITS else self._layer(f"{place.name}.")
                yield (layer, 1), Failure(stage.stage, place.name, message)

    def _layer(self, name: str) -> int:
        """The block that a tensor belongs to; -1 if it precedes or concerns all blocks."""
        return next((index for index, prefix in enumerate(self.prefixes) if name.startswith(prefix)), -1)
