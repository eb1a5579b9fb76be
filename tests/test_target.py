"""The target table: names, capabilities, specifications, and the error for a name that is not in it."""

from __future__ import annotations

import dataclasses

import pytest

from awq2trt.errors import UsageError
from awq2trt.target import ANY_CPU, TARGETS, Flavour, Target, find_target


def test_the_promised_targets_exist() -> None:
    assert list(TARGETS) == [
        "orin", "orin-32gb", "orin-nx", "orin-nano", "rtx3090", "rtx4070-laptop", "rtx4090", "rtx5090", "rtx", "host",
        "cuda", "cpu",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "capabilities", "memory_gib", "bandwidth_gb"),
    [
        ("orin", ("8.7",), 64, 204.8),
        ("orin-32gb", ("8.7",), 32, 204.8),
        ("orin-nx", ("8.7",), 16, 102.4),
        ("orin-nano", ("8.7",), 8, 102.0),
        ("rtx3090", ("8.6",), 24, 936.0),
        ("rtx4070-laptop", ("8.9",), 8, 256.0),
        ("rtx4090", ("8.9",), 24, 1008.0),
        ("rtx5090", ("12.0",), 32, 1792.0),
    ],
)
def test_specifications(name: str, capabilities: tuple[str, ...], memory_gib: int, bandwidth_gb: float) -> None:
    target = find_target(name)
    assert target.name == name
    assert target.capability_names == capabilities
    assert target.memory_bytes == memory_gib * 1024**3
    assert target.bandwidth_bytes_per_s == pytest.approx(bandwidth_gb * 1e9)


PROVIDERS = ("cuda", "cpu")


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_provider_of_onnx_runtime_runs_beside_every_cpu(name: str) -> None:
    target = find_target(name)
    assert (target.cpu, target.flavour, target.minimum_version) == (ANY_CPU, Flavour.ONNXRUNTIME, (1, 27))
    assert target.is_lowered
    assert not target.is_kit
    assert (target.cuda is None) is (name == "cpu")


@pytest.mark.parametrize(
    "target", [each for each in TARGETS.values() if each.name not in PROVIDERS], ids=lambda target: target.name
)
def test_orin_finishes_kits_and_rtx_takes_engines(target: Target) -> None:
    orin = target.name.startswith("orin")
    assert target.is_kit is orin
    assert target.cpu == ("aarch64" if orin else "x86_64")
    assert target.flavour is (Flavour.TENSORRT if orin else Flavour.TENSORRT_RTX)


def test_rtx_is_one_engine_for_three_generations() -> None:
    assert find_target("rtx").capability_names == ("8.6", "8.9", "12.0")


def test_host_leaves_the_gpu_to_the_machine() -> None:
    assert find_target("host").compute_capabilities == ()


@pytest.mark.parametrize(
    ("typed", "meant"), [("rtx-4090", "rtx4090"), ("RTX5090", "rtx5090"), ("orin_nano", "orin-nano")]
)
def test_unknown_target_names_the_closest(typed: str, meant: str) -> None:
    with pytest.raises(UsageError) as raised:
        find_target(typed)
    assert raised.value.exit_code == 2
    assert raised.value.where == "--target"
    assert f"did you mean {meant}" in str(raised.value)
    assert repr(typed) in str(raised.value)


def test_targets_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        find_target("orin").memory_bytes = 1  # type: ignore[misc]
