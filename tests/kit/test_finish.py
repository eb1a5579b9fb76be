"""`finish.sh` on a stand-in Jetson, under dash and bash: how it calls trtexec, and each refusal by its exit code."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from stand_in_orin import Orin, write_sums
from tiny_kits import export_tiny, kit_request, make_tiny_kit

import awq2trt
from awq2trt import opset
from awq2trt.artifact.manifest import Artifact
from awq2trt.machine import foreign_library
from awq2trt.machine.foreign_library import PATH_VARIABLE
from awq2trt.progress import SilentProgress
from awq2trt.stages.kit import make_kit, model_spec

REPOSITORY = Path(__file__).parents[2]
LIBRARY = "lib/libawq2trt_plugins.so"
BUILT = ("model.engine", "model.engine.state", "build.log", "timing.cache")


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model's kits for both JetPacks, `7.2` and `6.2`."""
    folder = tmp_path_factory.mktemp("kits")
    export_tiny(folder)
    for jetpack in ("7.2", "6.2"):
        make_tiny_kit(folder, folder / jetpack, jetpack)
    return folder


@pytest.fixture
def kit(kits: Path, tmp_path: Path) -> Path:
    """A kit for JetPack 7.2 that a test may damage; the space in its path is deliberate."""
    return Path(shutil.copytree(kits / "7.2", tmp_path / "a kit"))


def _files(kit: Path) -> dict[str, bytes]:
    return {str(path.relative_to(kit)): path.read_bytes() for path in kit.rglob("*") if path.is_file()}


def test_shellcheck_finds_nothing(kit: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck")
    # In a kit, so that the file that the script reads is beside it.
    result = subprocess.run(
        ["shellcheck", "--external-sources", "finish.sh"], cwd=kit, capture_output=True, text=True, check=False
    )
    assert result.stdout == ""
    assert result.returncode == 0


@pytest.mark.parametrize(("jetpack", "longest"), [("7.2", 64), ("6.2", 64)])
def test_what_trtexec_is_called_with(
    shell: str, jetpack: str, longest: int, kits: Path, orin: Orin, tmp_path: Path
) -> None:
    kit = Path(shutil.copytree(kits / jetpack, tmp_path / "kit"))
    if jetpack == "6.2":
        orin.jetson_linux, orin.tensorrt = "R36", "100300"
    result = orin.finish(shell, kit)
    assert result.returncode == 0, result.stderr
    assert orin.recorded == [
        "--onnx=model.onnx",
        "--saveEngine=model.engine.partial",
        "--skipInference",
        "--stronglyTyped",
        "--preview=+aliasedPluginIO1003",
        f"--dynamicPlugins={LIBRARY}",
        f"--setPluginsToSerialize={LIBRARY}",
        "--profile=0",
        "--minShapes=input_ids:1x1",
        "--optShapes=input_ids:1x64",
        f"--maxShapes=input_ids:1x{longest}",
        "--profile=1",
        "--minShapes=input_ids:1x1",
        "--optShapes=input_ids:1x1",
        "--maxShapes=input_ids:1x1",
        "--memPoolSize=workspace:512M",
        "--timingCacheFile=timing.cache",
    ]
    state = dict(line.split("=") for line in (kit / "model.engine.state").read_text().splitlines())
    assert state == {
        "kit": hashlib.sha256((kit / "SHA256SUMS").read_bytes()).hexdigest(),
        "tensorrt": orin.tensorrt,
        "sha256": hashlib.sha256((kit / "model.engine").read_bytes()).hexdigest(),
    }
    assert set(_files(kit)) - set(_files(kits / jetpack)) == set(BUILT)


def test_a_second_run_does_nothing(shell: str, kit: Path, orin: Orin) -> None:
    assert orin.finish(shell, kit).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in kit.rglob("*")}
    recorded = orin.recorded
    result = orin.finish(shell, kit)
    assert (result.returncode, result.stdout, result.stderr) == (0, "model.engine is current\n", "")
    assert orin.recorded == recorded
    assert {path: path.stat().st_mtime_ns for path in kit.rglob("*")} == before
    assert orin.finish(shell, kit, "--rebuild").returncode == 0
    assert len(orin.recorded) == 2 * len(recorded)


def _flip_a_byte(kit: Path, orin: Orin) -> None:
    weights = bytearray((kit / "model.onnx.data").read_bytes())
    weights[len(weights) // 2] ^= 1
    (kit / "model.onnx.data").write_bytes(weights)


def _flip_a_byte_of_the_manifest(kit: Path, orin: Orin) -> None:
    (kit / "manifest.json").write_text((kit / "manifest.json").read_text().replace("orin", "Orin", 1))


def _lose_a_file(kit: Path, orin: Orin) -> None:
    (kit / LIBRARY).unlink()


def _sums(change: Callable[[list[str]], list[str]]) -> Callable[[Path, Orin], None]:
    """Writes SHA256SUMS again, and damages the weights, which the script must then not notice."""

    def apply(kit: Path, orin: Orin) -> None:
        lines = (kit / "SHA256SUMS").read_text().splitlines(keepends=True)
        (kit / "SHA256SUMS").write_text("".join(change(lines)))
        _flip_a_byte(kit, orin)

    return apply


def _without(name: str) -> Callable[[Path, Orin], None]:
    return _sums(lambda lines: [line for line in lines if not line.endswith(f"  {name}\n")])


def _spoil_the_hash(lines: list[str]) -> list[str]:
    return [f"?{line[1:]}" if line.endswith("  model.onnx.data\n") else line for line in lines]


def _up_to_the_conf(lines: list[str]) -> list[str]:
    return [line for line in lines if line.endswith("  kit.conf\n")]


def _set(**facts: object) -> Callable[[Path, Orin], None]:
    def change(kit: Path, orin: Orin) -> None:
        for name, value in facts.items():
            setattr(orin, name, value)

    return change


BROKEN = [
    pytest.param(_flip_a_byte, 10, r"changed since the kit was made: model\.onnx\.data\.", "copy the kit", id="byte"),
    pytest.param(_flip_a_byte_of_the_manifest, 10, r"kit was made: manifest\.json\.", "copy the kit", id="manifest"),
    pytest.param(_sums(lambda lines: []), 10, "SHA256SUMS is empty, or not as", "copy the kit", id="byte-no-sums"),
    pytest.param(_sums(_spoil_the_hash), 10, "SHA256SUMS is empty, or not as", "copy the kit", id="byte-not-a-hash"),
    pytest.param(_sums(_up_to_the_conf), 10, r"names 1 files, and this kit has \d+:", "copy the kit", id="byte-cut"),
    pytest.param(
        _without("model.onnx.data"), 10, r"names \d+ files, and this kit has \d+:", "copy the kit", id="byte-one-less"
    ),
    pytest.param(_sums(lambda lines: lines[:1]), 10, r"does not name kit\.conf", "copy the kit", id="byte-no-conf"),
    pytest.param(_lose_a_file, 11, rf"{LIBRARY} is missing", "copy the kit", id="missing"),
    pytest.param(_set(cpu="x86_64"), 12, r"for aarch64 .*this machine is x86_64", "run it there", id="cpu"),
    pytest.param(_set(jetson_linux="R36"), 13, r"JetPack 7\.2, .* has JetPack 6\.", "--jetpack", id="jetpack"),
    pytest.param(_set(jetpack_package="6.2+b77"), 13, r"has JetPack 6\.", "--jetpack", id="jetpack-package"),
    pytest.param(_set(jetson_linux="R99x"), 13, "has none that is known", "--jetpack", id="jetpack-unknown"),
    pytest.param(_set(tensorrt="101500"), 14, r"needs TensorRT 10\.16, .* has 10\.15\.0", "--jetpack", id="tensorrt"),
    pytest.param(_set(chip="nvidia,tegra264"), 15, r"capability 8\.7 .* has 11\.0", "use it on a Jetson AGX", id="gpu"),
    pytest.param(_set(chip=None), 15, "this GPU has none that is known", "use it on a Jetson AGX", id="gpu-unknown"),
    pytest.param(_set(disk_mib=3), 16, r"needs \d+ MiB of disk, and 3 MiB are free", "free some space", id="disk"),
    pytest.param(_set(memory_mib=99, swap_mib=1), 17, r"about \d+ MiB .* 100 MiB are free", "mkswap", id="memory"),
    pytest.param(
        _set(trtexec=False), 18, r"no trtexec: .*/usr/src/tensorrt/bin/trtexec", "libnvinfer-bin", id="trtexec"
    ),
    pytest.param(_set(exit=7), 25, r"exit code 7: \[E\] what went wrong", r"build\.log", id="fails"),
]


@pytest.mark.parametrize(("break_it", "code", "reason", "fix"), BROKEN)
def test_refusals(
    shell: str, break_it: Callable[[Path, Orin], None], code: int, reason: str, fix: str, kit: Path, orin: Orin
) -> None:
    break_it(kit, orin)
    before = _files(kit)
    result = orin.finish(shell, kit)
    assert result.returncode == code, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert re.search(rf"^error: .*{reason}", lines[0])
    assert re.search(rf"^  fix: .*{fix}", lines[1])
    left = _files(kit)
    assert {name: left[name] for name in left if name not in ("build.log", "timing.cache")} == before
    assert not (kit / ".finish").exists()


def test_refusals_have_codes_of_their_own() -> None:
    codes = {str(parameter.id): parameter.values[1] for parameter in BROKEN}
    kinds = {name.split("-")[0] for name in codes} - {"manifest"}
    assert len(set(codes.values())) == len(kinds)


def test_a_folder_that_cannot_be_written(shell: str, kits: Path, orin: Orin) -> None:
    folder = Path(tempfile.mkdtemp(prefix="awq2trt-read-only-"))  # below pytest's folder nobody else may look
    try:
        folder.chmod(0o755)
        kit = Path(shutil.copytree(kits / "7.2", folder / "kit"))
        machine = Orin(folder / "machine")
        machine.environment()
        kit.chmod(0o555)
        nobody = {"user": 65534} if os.geteuid() == 0 else {}  # root writes everywhere
        result = machine.finish(shell, kit, **nobody)
        assert result.returncode == 19, result.stderr
        assert f"cannot write to {kit}" in result.stderr
        assert "copy the kit to a folder that you may write to" in result.stderr
    finally:
        (folder / "kit").chmod(0o755)
        shutil.rmtree(folder)


def _wait_for_trtexec(orin: Orin) -> int:
    deadline = time.monotonic() + 30
    while not orin.trtexec_pid():
        assert time.monotonic() < deadline, "trtexec was not started"
        time.sleep(0.02)
    return orin.trtexec_pid()


def _gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_interrupted_build_leaves_nothing(shell: str, sent: signal.Signals, kit: Path, orin: Orin) -> None:
    before = _files(kit)
    process = orin.start(shell, kit)
    trtexec = _wait_for_trtexec(orin)
    process.send_signal(sent)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 20
    assert err == "error: interrupted; the kit is as it was.\n  fix: run ./finish.sh again\n"
    assert _gone(trtexec)
    assert {name: content for name, content in _files(kit).items() if name != "build.log"} == before
    orin.hurry()
    assert orin.finish(shell, kit).returncode == 0


def test_a_killed_build_is_cleared_away(shell: str, kit: Path, orin: Orin) -> None:
    process = orin.start(shell, kit)
    _wait_for_trtexec(orin)
    second = orin.finish(shell, kit)
    assert second.returncode == 26
    assert "finish.sh runs already" in second.stderr
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert (kit / "model.engine.partial").exists()
    assert not (kit / "model.engine").exists()
    orin.hurry()
    result = orin.finish(shell, kit)
    assert result.returncode == 0, result.stderr
    assert "removing what an interrupted run left" in result.stdout
    assert not (kit / "model.engine.partial").exists()
    assert not (kit / ".finish").exists()


def test_of_several_at_once_one_builds(shell: str, kit: Path, orin: Orin, monkeypatch: pytest.MonkeyPatch) -> None:
    """This must also hold if each of them finds what a killed run left."""
    environment = orin.environment()
    monkeypatch.setattr(orin, "environment", lambda: environment)  # which writes the machine's programs anew
    for _ in range(4):
        (kit / ".finish").mkdir(exist_ok=True)
        (kit / ".finish" / "shell").write_text("999999999\n")
        processes = [orin.start(shell, kit) for _ in range(6)]
        trtexec = _wait_for_trtexec(orin)
        deadline = time.monotonic() + 30
        while sum(process.poll() is None for process in processes) > 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert sorted(process.poll() or 0 for process in processes) == [0, 26, 26, 26, 26, 26]
        building = next(process for process in processes if process.poll() is None)
        building.send_signal(signal.SIGTERM)
        for process in processes:
            process.communicate(timeout=30)
        assert building.returncode == 20
        assert _gone(trtexec)
        assert not [path.name for path in kit.iterdir() if path.name.startswith(".finish")]
        orin.hurry()


def test_an_engine_of_another_tensorrt(shell: str, kit: Path, orin: Orin) -> None:
    assert orin.finish(shell, kit).returncode == 0
    orin.tensorrt = "101700"
    result = orin.finish(shell, kit)
    assert result.returncode == 21
    assert "built by TensorRT 10.16.0, and this machine has 10.17.0" in result.stderr
    assert "--rebuild" in result.stderr
    assert orin.finish(shell, kit, "--rebuild").returncode == 0
    assert "tensorrt=101700" in (kit / "model.engine.state").read_text()


def test_an_engine_that_was_changed(shell: str, kit: Path, orin: Orin) -> None:
    assert orin.finish(shell, kit).returncode == 0
    with (kit / "model.engine").open("ab") as engine:
        engine.write(b"!")
    result = orin.finish(shell, kit)
    assert result.returncode == 22
    assert "not what finish.sh built" in result.stderr


def test_a_newer_kit_is_built_again(shell: str, kit: Path, orin: Orin) -> None:
    assert orin.finish(shell, kit).returncode == 0
    (kit / "README.md").write_text("another kit")
    write_sums(kit)
    result = orin.finish(shell, kit)
    assert result.returncode == 0
    assert "built from an earlier kit" in result.stdout
    assert len(orin.recorded) == 34


def test_force_passes_over_memory_alone(shell: str, kit: Path, orin: Orin) -> None:
    orin.memory_mib = 100
    assert orin.finish(shell, kit, "--force").returncode == 0
    orin.disk_mib = 1
    assert orin.finish(shell, kit, "--force", "--rebuild").returncode == 16


def test_trtexec_may_lie_where_jetpack_has_it_or_be_named(shell: str, kit: Path, orin: Orin) -> None:
    orin.environment()
    orin.trtexec = False
    usual = orin.folder / "root/usr/src/tensorrt/bin/trtexec"
    usual.parent.mkdir(parents=True)
    (orin.tools / "trtexec").rename(usual)
    result = orin.finish(shell, kit)
    assert "no trtexec" not in result.stderr


def test_a_gpu_may_be_known_by_its_driver(shell: str, kit: Path, orin: Orin) -> None:
    orin.chip = None
    orin.program("nvidia-smi", "#!/bin/sh\necho 8.7\n")
    assert orin.finish(shell, kit).returncode == 0


@pytest.mark.parametrize("wrong", ["--nonsense", "model"])
def test_wrong_options(shell: str, wrong: str, kit: Path, orin: Orin) -> None:
    result = orin.finish(shell, kit, wrong)
    assert (result.returncode, result.stdout) == (2, "")
    assert "usage: ./finish.sh" in result.stderr
    assert orin.finish(shell, kit, "--help").stdout == result.stderr


@pytest.fixture
def source_kit(kits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kit for JetPack 6.2 with the library's sources."""
    monkeypatch.setenv(PATH_VARIABLE, "")
    monkeypatch.setattr(foreign_library, "_candidates", lambda: iter([tmp_path / "none.so"]))
    request = kit_request(tmp_path / "sources", "6.2")
    make_kit(Artifact.open(kits / "onnx"), model_spec(str(kits / "model")), request, SilentProgress())
    return tmp_path / "sources"


def test_a_kit_with_sources_compiles_them(shell: str, source_kit: Path, orin: Orin) -> None:
    orin.jetson_linux, orin.tensorrt = "R36", "100300"
    refused = orin.finish(shell, source_kit)
    assert refused.returncode == 23
    assert "--compile" in refused.stderr
    refused = orin.finish(shell, source_kit, "--compile")
    assert refused.returncode == 24
    assert "no nvcc" in refused.stderr
    orin.add_compiler()
    result = orin.finish(shell, source_kit, "--compile")
    assert result.returncode == 0, result.stderr
    assert (source_kit / LIBRARY).read_text() == "library\n"
    compiled = orin.recorded[: orin.recorded.index("--onnx=model.onnx")]
    assert compiled[compiled.index("-gencode") + 1] == "arch=compute_87,code=sm_87"
    assert compiled[compiled.index("-include") + 1] == "src/version.h"
    sources = ("kernels/w4a16_linear/tile_kernel.cu", "ops/w4a16_linear.cpp", "trt/library.cpp")
    assert {f"src/{name}" for name in sources} <= set(compiled)
    assert f"--dynamicPlugins={LIBRARY}" in orin.recorded


@pytest.mark.slow
def test_the_sources_of_a_kit_make_the_library(source_kit: Path, orin: Orin) -> None:
    """It runs the script's own compiler command, with the cross-compiler in the place of the Jetson's."""
    cross, emulator = REPOSITORY / "build" / "plugins-aarch64", shutil.which("qemu-aarch64-static")
    if not (cross / "list_creators").is_file() or emulator is None:
        pytest.skip("needs the cross-compiler and an emulator: make plugins-aarch64, qemu-user-static")
    orin.jetson_linux, orin.tensorrt = "R36", "100300"
    orin.add_compiler()
    nvcc = cross / "cuda-aarch64" / "bin" / "nvcc"
    orin.program("nvcc", f'#!/bin/sh\nexec {nvcc} -ccbin aarch64-linux-gnu-g++ -I {cross}/tensorrt_headers "$@"\n')
    (orin.folder / "root/usr/include/aarch64-linux-gnu/NvInferRuntime.h").write_text(
        "#include_next <NvInferRuntime.h>\n"
    )
    result = subprocess.run(
        ["sh", source_kit / "finish.sh", "--compile"],
        env=orin.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    command = [emulator, "-L", "/usr/aarch64-linux-gnu", str(cross / "list_creators"), str(source_kit / LIBRARY)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"version {awq2trt.__version__}\narchitectures 87-real\n" in said
    assert f"creator {opset.W4A16_LINEAR} {opset.PLUGIN_VERSION} {opset.PLUGIN_NAMESPACE}" in said


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_check_compares_answers(shell: str, dtype: str, kit: Path, orin: Orin) -> None:
    kind = np.dtype(np.float16 if dtype == "float16" else ml_dtypes.bfloat16)
    if dtype == "bfloat16":
        conf = (kit / "kit.conf").read_text()
        (kit / "kit.conf").write_text(conf.replace("kit_fraction_bits=10", "kit_fraction_bits=7"))
    # Only one call, since the stand-in has one answer.
    conf = (kit / "kit.conf").read_text()
    (kit / "kit.conf").write_text(conf.replace("kit_golden_calls='prefill first'", "kit_golden_calls=prefill"))
    write_sums(kit)
    expected = np.fromfile(kit / "golden.prefill.logits.bin", np.float32)
    answer = orin.folder / "answers" / f"logits.output.1.1.{expected.size}.raw"
    answer.write_bytes(expected.astype(kind).tobytes())
    result = orin.finish(shell, kit, "--check")
    assert result.returncode == 0, result.stderr + result.stdout
    rounded = expected.astype(kind).astype(np.float64)
    error = np.linalg.norm(rounded - expected) / np.linalg.norm(expected - expected.mean())
    assert f"prefill: relative error of the logits {error:.6f}, allowed" in result.stdout
    assert f"--loadInputs=input_ids:{kit}/golden.prefill.input_ids.bin," in " ".join(orin.recorded)
    tokens = (kit / "golden.prefill.input_ids.bin").stat().st_size // 8
    assert f"--shapes=input_ids:1x{tokens}" in orin.recorded
    wrong = expected.copy()
    wrong[np.argmax(wrong)] *= -1
    for bad in (wrong, np.full_like(expected, np.nan), expected[:-1]):
        answer.write_bytes(bad.astype(kind).tobytes())
        result = orin.finish(shell, kit, "--check")
        assert result.returncode == 27, result.stdout
        assert "answers are wrong: prefill differs by" in result.stderr
