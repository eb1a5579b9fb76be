"""Writes tests/data/kernels/*.bin: small layers, their packed bytes and their exact results, for the C++ tests.

python tools/make_kernel_golden.py [FOLDER]

The bytes come from `awq2trt.checkpoint.pack`, the results from the oracle `QuantizedLinear.dequantize` in float64, so
that the C++ reference, the packers and the oracle are compared with each other.
tests/plugins/kernels/w4a16_linear/reference_test.cpp describes the layout of a file. Running it again changes nothing.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from awq2trt.checkpoint.pack import pack_int4
from awq2trt.scheme import WHOLE_ROW, QuantizedLinear, QuantScheme

MAGIC = b"W4A16GLD"
VERSION = 1
SEED = 20260101


@dataclass(frozen=True)
class Case:
    """One golden layer."""

    m: int
    n: int
    k: int
    group_size: int
    zero_point: bool
    bias: bool

    @property
    def name(self) -> str:
        """File name."""
        group = "row" if self.group_size == WHOLE_ROW else self.group_size
        return f"m{self.m}_n{self.n}_k{self.k}_g{group}{'_zeros' * self.zero_point}{'_bias' * self.bias}.bin"


CASES = (
    Case(m=2, n=3, k=64, group_size=32, zero_point=False, bias=False),
    Case(m=1, n=5, k=200, group_size=128, zero_point=True, bias=True),  # short last group, odd N
    Case(m=3, n=7, k=576, group_size=128, zero_point=True, bias=False),  # 5 groups: rows of zeros start mid-byte
    Case(m=2, n=4, k=96, group_size=64, zero_point=True, bias=True),
    Case(m=1, n=6, k=40, group_size=WHOLE_ROW, zero_point=True, bias=True),
)


def main() -> None:
    """Writes every case."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "tests" / "data" / "kernels"
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(SEED)
    for case in CASES:
        (folder / case.name).write_bytes(_golden_bytes(case, random))


def _golden_bytes(case: Case, random: np.random.Generator) -> bytes:
    scheme = QuantScheme(group_size=case.group_size, zero_point=case.zero_point)
    group_size = case.k if case.group_size == WHOLE_ROW else case.group_size
    groups = -(-case.k // group_size)
    linear = QuantizedLinear(
        codes=random.integers(0, 16, (case.n, case.k), dtype=np.uint8),
        scales=random.uniform(0.005, 0.02, (case.n, groups)).astype(np.float16),
        zeros=random.integers(0, 16, (case.n, groups), dtype=np.uint8) if case.zero_point else None,
        scheme=scheme,
        bias=random.standard_normal(case.n).astype(np.float16) if case.bias else None,
    )
    x = random.standard_normal((case.m, case.k)).astype(np.float16).astype(np.float64)
    y = x @ linear.dequantize().astype(np.float64).T
    header = np.array([VERSION, case.m, case.n, case.k, group_size, case.zero_point, case.bias, 0], dtype="<i4")
    parts = [MAGIC, header.tobytes(), pack_int4(linear.codes).tobytes()]
    if linear.zeros is not None:
        parts.append(pack_int4(linear.zeros).tobytes())
    parts.append(linear.scales.astype("<f8").tobytes())
    if linear.bias is not None:
        y += linear.bias.astype(np.float64)
        parts.append(linear.bias.astype("<f8").tobytes())
    parts += [x.astype("<f8").tobytes(), y.astype("<f8").tobytes()]
    return b"".join(parts)


if __name__ == "__main__":
    main()
