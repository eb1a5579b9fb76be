"""What is found where each stage is held to the one before: places, stages, the whole chain, and its first failure.

In: numbers of `measures` and findings of `weights`. Out: the records that reports are written from, and the names of
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
"""Stages in order, and what each is compared with."""


@dataclass(frozen=True)
class Place:
    """A stage at one place.

    Attributes:
        name: Of the block, or `logits`; of a graph beside the decoder, `vision` or `embedding`.
        difference: From the stage before.
        error: The relative difference that is held to the limit: the largest of a position, or, where it is that of
            quantization, the mean.
        limit: Of it.
    """

    name: str
    difference: Difference
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Within the limit; NaN is not."""
        return self.error <= self.limit

    @property
    def share(self) -> float:
        """Part of the limit that the error takes: 1 is all of it."""
        return self.error / self.limit


@dataclass(frozen=True)
class StageResult:
    """A stage held to the one before.

    Attributes:
        stage: Its name.
        against: The stage before; None for the first.
        skipped: Why it was not run; None if it was.
        places: Graphs beside the decoder, blocks in order, then the logits.
        agreement: Of next-token distributions.
        findings: What is wrong with its weights.
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
        """Nothing found, nothing beyond its limit. A stage that was not run has not failed, nor has it passed."""
        return not self.findings and all(place.passed for place in self.places)


@dataclass(frozen=True)
class Failure:
    """Where the chain breaks first.

    Attributes:
        stage: Of it.
        place: Block, or tensor outside the blocks, or `logits`.
        message: What was measured there.
    """

    stage: str
    place: str
    message: str


@dataclass(frozen=True)
class CheckResult:
    """The whole chain.

    Attributes:
        stages: In order.
        tokens: Of the text.
        prefixes: Of the blocks.
        dtype: Of the exported model's activations.
        changed: As of the subject.
    """

    stages: tuple[StageResult, ...]
    tokens: tuple[int, ...]
    prefixes: tuple[str, ...]
    dtype: str = "float16"
    changed: tuple[str, ...] = ()

    def title(self, stage: str) -> str:
        """What a stage is, for people."""
        widened = self.dtype == BFLOAT16 and stage in (ONNX, ONNX_CUDA)
        return f"{TITLES[stage]}, which has no bf16 kernels: in fp32" if widened else TITLES[stage]

    @property
    def passed(self) -> bool:
        """Every stage that was run passed, at least one was compared with another, and no file was changed."""
        compared = [stage for stage in self.stages if stage.against and not stage.skipped]
        return bool(compared) and not self.changed and all(stage.passed for stage in self.stages)

    def first_failure(self) -> Failure | None:
        """The first stage that fails, and there the first block."""
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
                message = f"relative error {place.error:.2g}, at most {place.limit:.2g} expected."
                layer = len(self.prefixes) if place.name == LOGITS else self._layer(f"{place.name}.")
                yield (layer, 1), Failure(stage.stage, place.name, message)

    def _layer(self, name: str) -> int:
        """Block that a tensor belongs to; -1 for one that stands before them all, or concerns them all."""
        return next((index for index, prefix in enumerate(self.prefixes) if name.startswith(prefix)), -1)
