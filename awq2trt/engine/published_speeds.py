"""How fast other software decodes on a Jetson, as published, and what that implies for a model of another size.

In: the bytes that one of our tokens reads. Out: the time it takes if our kernels are as good as the published ones. The
table is that of NVIDIA's TensorRT Edge-LLM 0.10 (`llm_bench`, JetPack 7.2, TensorRT 10.16): INT4 AWQ in groups of 128
without zero points, a half-precision head, batch 1, 2,048 tokens before the one that is timed. On each device, its
times fit a line within 1 %: reading at a share of the memory's bandwidth, plus some milliseconds for models of any
size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np

from awq2trt.engine.predict import Footprint, predict_footprint
from awq2trt.models.families import describe_model
from awq2trt.models.published_shapes import shape_config
from awq2trt.scheme import QuantScheme
from awq2trt.target import TARGETS

_SCHEME: Final = QuantScheme(bits=4, group_size=128, zero_point=False)
_TOKENS_BEFORE: Final = 2048

TOKENS_PER_S: Final[Mapping[str, Mapping[str, float]]] = {
    "orin": {"qwen3-8b": 30.6, "qwen3-4b": 50.7, "qwen3-1.7b": 89.5, "qwen3-0.6b": 162.5},
    "orin-nx": {"qwen3-8b": 17.5, "qwen3-4b": 29.2, "qwen3-1.7b": 52.2, "qwen3-0.6b": 98.9},
}
"""Target -> shape -> tokens a second. Both sizes of AGX Orin have the same bandwidth, so `orin` stands for both.

Orin Nano is left out. Its figures are half of what the bandwidth of Super mode allows, and four fifths of what the
original modes allow; the table does not say which mode was used.
"""


@dataclass(frozen=True)
class DecodeLine:
    """The time of a token on a device as a line over its bytes.

    Attributes:
        share: Share of the memory's bandwidth that reading reaches.
        fixed_s: Seconds that a token takes in addition, for a model of any size.
    """

    share: float
    fixed_s: float

    def token_s(self, floor_s: float) -> float:
        """Seconds for a token that would take `floor_s` at full bandwidth."""
        return floor_s / self.share + self.fixed_s


def published_line(bandwidth_bytes_per_s: float) -> DecodeLine | None:
    """The line through the published figures of devices with this bandwidth; None if nothing was published."""
    names = [name for name in TOKENS_PER_S if TARGETS[name].bandwidth_bytes_per_s == bandwidth_bytes_per_s]
    return _line(names[0]) if names else None


@cache
def _line(target: str) -> DecodeLine:
    """Fits a line by least squares of relative errors, since models differ tenfold."""
    bandwidth = TARGETS[target].bandwidth_bytes_per_s or 0.0
    seconds = np.array([1 / speed for speed in TOKENS_PER_S[target].values()])
    floors = np.array([_read_bytes(published_footprint(shape)) / bandwidth for shape in TOKENS_PER_S[target]])
    terms = np.stack([floors / seconds, 1 / seconds], axis=1)
    (slope, fixed), *_ = np.linalg.lstsq(terms, np.ones(len(seconds)))
    return DecodeLine(share=float(1 / slope), fixed_s=float(fixed))


def published_footprint(shape: str) -> Footprint:
    """What Edge-LLM's engine of a shape holds, with the table's number of tokens."""
    return predict_footprint(describe_model(shape_config(shape)), _SCHEME, _TOKENS_BEFORE)


def _read_bytes(footprint: Footprint) -> int:
    return footprint.read_bytes + footprint.cache_bytes
