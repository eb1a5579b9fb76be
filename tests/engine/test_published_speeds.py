"""Published speeds of other software on Jetsons fit the line that predictions use."""

from __future__ import annotations

import pytest

from awq2trt.engine.outlook import Outlook, outlook_lines
from awq2trt.engine.predict import predict_footprint
from awq2trt.engine.published_speeds import TOKENS_PER_S, DecodeLine, published_footprint, published_line
from awq2trt.models.families import describe_model
from awq2trt.models.published_shapes import shape_config
from awq2trt.scheme import QuantScheme
from awq2trt.target import TARGETS, find_target

PUBLISHED = [(target, shape) for target, speeds in TOKENS_PER_S.items() for shape in speeds]


def test_what_an_engine_of_qwen3_8b_reads_by_hand() -> None:
    footprint = published_footprint("qwen3-8b")
    # 36 blocks: q, k, v, o of 4096 x (4096 + 2 x 1024 + 4096), three of 4096 x 12288; norms; an fp16 head.
    codes = 36 * (4096 * 10240 + 3 * 4096 * 12288) * (4 + 16 / 128) / 8
    norms = (36 * (2 * 4096 + 2 * 128) + 4096) * 2
    assert footprint.read_bytes == codes + norms + 151936 * 4096 * 2
    assert footprint.cache_bytes == 2 * 36 * 8 * 2048 * 128 * 2


@pytest.mark.parametrize(("target", "shape"), PUBLISHED)
def test_every_published_speed_is_on_its_devices_line(target: str, shape: str) -> None:
    bandwidth = TARGETS[target].bandwidth_bytes_per_s or 0.0
    line = published_line(bandwidth)
    assert line is not None
    footprint = published_footprint(shape)
    floor_s = (footprint.read_bytes + footprint.cache_bytes) / bandwidth
    assert 1 / line.token_s(floor_s) == pytest.approx(TOKENS_PER_S[target][shape], rel=0.015)
    assert 0.75 < line.share < 0.95
    assert 1e-3 < line.fixed_s < 2e-3


def test_a_line_is_a_share_and_a_constant() -> None:
    assert DecodeLine(share=0.8, fixed_s=0.001).token_s(0.008) == pytest.approx(0.011)


def test_both_sizes_of_agx_orin_have_a_line_and_cards_have_none() -> None:
    assert published_line(find_target("orin-32gb").bandwidth_bytes_per_s or 0.0) == published_line(204.8e9)
    assert published_line(find_target("rtx4090").bandwidth_bytes_per_s or 0.0) is None


def test_the_expected_speed_lies_above_what_others_publish_and_below_the_bandwidths() -> None:
    spec = describe_model(shape_config("qwen3-8b"))
    scheme, head = QuantScheme(4, 128, zero_point=True), QuantScheme(8, 128, zero_point=True)
    outlook = Outlook(find_target("orin"), predict_footprint(spec, scheme, 2048, head=head))
    assert outlook.expected_tokens_per_s is not None
    low, high = outlook.expected_tokens_per_s
    assert TOKENS_PER_S["orin"]["qwen3-8b"] < low < high < outlook.tokens_per_s[1]
    card = Outlook(find_target("rtx4090"), outlook.footprint)
    assert card.expected_tokens_per_s is None
    header, orin, rtx = list(outlook_lines([outlook, card]))[1:]
    assert header.index("expected") < orin.index(f"{low:.1f} .. {high:.1f}") + 20
    assert f"{low:.1f} .. {high:.1f}" in orin
    assert rtx.split()[-2] == "-"
