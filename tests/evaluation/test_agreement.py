"""Agreement of two models, compared with arithmetic by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from awq2trt.evaluation.agreement import agreement


def test_agreement_is_kl_and_top1() -> None:
    p = np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], np.float32)
    q = np.array([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]], np.float32)
    found = agreement(np.log(p), np.log(q) + np.float32(3.0), [0, 2])
    assert found.top1 == 0.5
    assert found.mean_kl == pytest.approx((0.5 * math.log(2) - 0.25 * math.log(2)) / 2)
    assert found.perplexity == pytest.approx(4)


def test_one_token_alone_has_no_perplexity() -> None:
    found = agreement(np.zeros((1, 3)), np.zeros((1, 3)), [2])
    assert (found.top1, found.mean_kl) == (1.0, 0.0)
    assert math.isnan(found.perplexity)
