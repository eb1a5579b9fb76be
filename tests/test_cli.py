"""The command line as users see it: what it prints, where, and its exit code; a failure is one message."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from published_configs import LLAMA_2_7B, LLAMA_2_70B

from awq2trt.checking.outcome import GoldenOutcome
from awq2trt.cli import app
from awq2trt.errors import BuildError, UnsupportedError
from awq2trt.evaluation.results import CaptionedImages, EvalRequest, TaskExamples, TextWindows
from awq2trt.recipe import BuildOptions, ExportOptions, QuantizeOptions
from awq2trt.runtime.golden import GoldenResult
from awq2trt.stages.build import BuildRequest
from awq2trt.stages.export import ExportRequest
from awq2trt.stages.quantize import QuantizeRequest
from awq2trt.version import __version__

ROOT = Path(__file__).parent.parent


class Outcome:
    """The result of a command."""

    def __init__(self, code: object, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def awq2trt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Runs a command in this process."""
    monkeypatch.delenv("AWQ2TRT_DEBUG", raising=False)
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")  # the command line would set it for good

    def call(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as raised:
            app(list(arguments), prog_name="awq2trt")
        captured = capsys.readouterr()
        return Outcome(raised.value.code, captured.out, captured.err)

    return call


def _fails(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Makes `quantize` raise."""

    def quantize_stage(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("awq2trt.stages.quantize.quantize_stage", quantize_stage)


def _taken(monkeypatch: pytest.MonkeyPatch, stage: str) -> list[Any]:
    """Replaces a stage; the list receives the requests with which it is called."""
    requests: list[Any] = []

    class Made:
        directory = Path("somewhere")

    def take(request: object, progress: object) -> object:
        requests.append(request)
        return [Made] if stage == "build" else Made

    monkeypatch.setattr(f"awq2trt.stages.{stage}.{stage}_stage", take)
    return requests


def test_version(awq2trt: Callable[..., Outcome]) -> None:
    outcome = awq2trt("--version")
    assert (outcome.code, outcome.out) == (0, f"awq2trt {__version__}\n")


def test_help_lists_every_command(awq2trt: Callable[..., Outcome]) -> None:
    listed = re.findall(r"^  ([a-z]+)  ", awq2trt("--help").out, re.MULTILINE)
    assert listed == ["build", "quantize", "export", "eval", "run", "check", "bench", "inspect", "targets", "doctor"]


@pytest.mark.parametrize("options", [QuantizeOptions(), ExportOptions()], ids=["quantize", "export"])
def test_help_tells_the_defaults_that_recipes_have(
    awq2trt: Callable[..., Outcome], options: QuantizeOptions | ExportOptions
) -> None:
    text = " ".join(awq2trt("build", "--help").out.split())
    for name, value in options.model_dump().items():
        if isinstance(value, str | int) and not isinstance(value, bool):
            flag = "--" + name.replace("_", "-")
            assert re.search(rf"{flag} [^\[]*\[{value}\]", text), f"{flag}: help does not say [{value}]"


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("quantize",), ("targets", "--colour"), ("run", "x", "--top-k", "a")]
)
def test_wrong_usage_exits_with_2(awq2trt: Callable[..., Outcome], arguments: tuple[str, ...]) -> None:
    outcome = awq2trt(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert "Error" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("arguments", "on"),
    [
        (("--text", "t.txt", "--windows", "2"), TextWindows("t.txt", 2)),
        (("--task", "piqa", "--data", "p.jsonl"), TaskExamples("piqa", Path("p.jsonl"))),
        (("--images", "photos", "--limit", "3"), CaptionedImages(Path("photos"), 3)),
        (("--images", "rows.jsonl", "--task", "choice"), CaptionedImages(Path("rows.jsonl"), task="choice")),
    ],
)
def test_what_eval_measures(
    awq2trt: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], on: object
) -> None:
    requests: list[EvalRequest] = []

    def take(request: EvalRequest, progress: object) -> tuple[()]:
        requests.append(request)
        return ()

    monkeypatch.setattr("awq2trt.stages.evaluate.eval_stage", take)
    assert awq2trt("eval", "model", *arguments).code == 0
    assert [request.on for request in requests] == [on]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "one of --text, --task with --data, and --images is needed"),
        (("--text", "t.txt", "--images", "photos"), "one of --text"),
        (("--text", "t.txt", "--task", "piqa"), "one of --text"),
        (("--images", "photos", "--task", "piqa", "--data", "p.jsonl"), "one of --text"),
        (("--task", "piqa"), "no file for the task"),
    ],
)
def test_eval_is_told_one_thing_to_measure(
    awq2trt: Callable[..., Outcome], arguments: tuple[str, ...], says: str
) -> None:
    outcome = awq2trt("eval", "model", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert says in outcome.err


def test_flags_reach_quantize(awq2trt: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("quantize: {group_size: 64, samples: 3}")
    requests = _taken(monkeypatch, "quantize")
    outcome = awq2trt(
        "quantize", "model", "-o", "out", "--recipe", str(tmp_path / "recipe.yaml"), "--method", "gptq", "--bits", "4",
        "--group_size", "32", "--symmetric", "--calib", "text.txt", "--seqlen", "64", "--seed", "5", "--resume",
        "--no-act-order", "--effort", "best", "--init-from", "other", "--tune",
    )  # fmt: skip
    assert (outcome.code, outcome.out) == (0, "somewhere\n")
    options = QuantizeOptions(
        method="gptq",
        act_order=False,
        effort="best",
        init_from="other",
        tune=True,
        bits=4,
        group_size=32,
        symmetric=True,
        calib="text.txt",
        samples=3,
        seqlen=64,
        seed=5,
    )
    assert requests == [QuantizeRequest("model", Path("out"), options, resume=True)]


def test_flags_reach_export(awq2trt: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    requests = _taken(monkeypatch, "export")
    awq2trt(
        "export",
        "in",
        "-o",
        "out",
        "--max-seq-len",
        "64",
        "--max-image-tokens",
        "9",
        "--max-images",
        "3",
        "--dtype",
        "bfloat16",
        "--no-function-bodies",
        "--overwrite",
    )
    options = ExportOptions(max_seq_len=64, max_image_tokens=9, max_images=3, dtype="bfloat16", function_bodies=False)
    assert requests == [ExportRequest(Path("in"), Path("out"), options, overwrite=True)]


def test_flags_reach_build(awq2trt: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[BuildRequest] = _taken(monkeypatch, "build")
    awq2trt("build", "m", "-o", "out", "--target", "rtx3090", "--max-seq-len", "99", "--zero-points", "--plugin")
    (request,) = requests
    assert (request.model, request.output, request.overwrite) == ("m", Path("out"), False)
    assert (request.options.build.target, request.options.build.plugin) == ("rtx3090", True)
    assert request.options.export.max_seq_len == 99
    assert request.options.quantize == QuantizeOptions()


def test_an_error_has_three_parts_and_its_exit_code(
    awq2trt: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    _fails(monkeypatch, UnsupportedError("got x, expected y.", where="layer 3", fix="use y."))
    outcome = awq2trt("quantize", "m", "-o", "out")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "error: got x, expected y.\n  where: layer 3\n  fix: use y.\n"


def test_an_error_may_have_one_part(awq2trt: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    _fails(monkeypatch, BuildError("no."))
    outcome = awq2trt("quantize", "m", "-o", "out")
    assert (outcome.code, outcome.err) == (1, "error: no.\n")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
        (PermissionError(13, "Permission denied", "/etc/x"), 1, "error: permission denied\n  where: /etc/x\n"),
        (OSError(28, "No space left on device"), 1, "error: no space left on device\n"),
        (MemoryError(), 1, "error: out of memory\n  fix: close other programs, or use a machine with more memory.\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_machine_does_is_one_message(
    awq2trt: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    _fails(monkeypatch, error)
    outcome = awq2trt("quantize", "m", "-o", "out")
    assert (outcome.code, outcome.out, outcome.err) == (code, "", message)


def test_a_bug_says_so_and_shows_its_traceback_only_when_asked(
    awq2trt: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    _fails(monkeypatch, ZeroDivisionError("division by zero"))
    outcome = awq2trt("quantize", "m", "-o", "out")
    assert outcome.code == 1
    assert outcome.err.startswith("error: ZeroDivisionError: division by zero\n  This is a bug in awq2trt.")
    assert "Traceback" not in outcome.err
    monkeypatch.setenv("AWQ2TRT_DEBUG", "1")
    assert "Traceback" in awq2trt("quantize", "m", "-o", "out").err
    monkeypatch.setenv("AWQ2TRT_DEBUG", "")
    assert "Traceback" in awq2trt("--debug", "quantize", "m", "-o", "out").err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (
            ("quantize", "/no/such/model", "-o", "{tmp}/out"),
            2,
            "no such directory, .gguf file, packaged model or hub id",
        ),
        (("quantize", "{tmp}/empty", "-o", "{tmp}/out"), 1, "no config.json"),
        (("quantize", "{tmp}/weights.bin", "-o", "{tmp}/out"), 1, "pickled weights"),
        (("quantize", "{tmp}/broken.gguf", "-o", "{tmp}/out"), 1, "not a readable GGUF file"),
        (("quantize", "m", "-o", "{tmp}/out", "--group-size", "100"), 2, "where: --group-size"),
        (("quantize", "m", "-o", "{tmp}/out", "--bits", "5"), 2, "where: --bits"),
        (("quantize", "m", "-o", "{tmp}/out", "--method", "magic"), 2, "where: --method"),
        (("quantize", "m", "-o", "{tmp}/out", "--samples", "0"), 2, "where: --samples"),
        (("quantize", "m", "-o", "{tmp}/out", "--seed", str(2**63)), 2, "where: --seed"),
        (("quantize", "m", "-o", "{tmp}/out", "--recipe", "{tmp}/none.yaml"), 2, "no such file"),
        (("export", "{tmp}/empty", "-o", "{tmp}/out"), 1, "no config.json"),
        (("export", "{tmp}/empty", "-o", "{tmp}/empty"), 2, "the output directory is the checkpoint's own"),
        (("build", "m", "-o", "{tmp}/out"), 2, "no target given"),
        (("build", "m", "-o", "{tmp}/out", "--target", "rtx4080"), 2, "unknown target 'rtx4080'"),
        (("run", "{tmp}/empty", "--prompt", "x"), 1, "awq2trt did not write this directory"),
        (("run", "{tmp}/empty", "--prompt", "x", "--backend", "cuda"), 2, "unknown backend 'cuda'"),
        (("run", "{tmp}/empty", "--prompt", "x", "--temperature", "-1"), 2, "where: --temperature"),
        (("inspect", "{tmp}/nowhere"), 1, "no such directory"),
        (("inspect", "{tmp}/weights.bin"), 1, "expected a directory, got a file"),
        (("check", "{tmp}/weights.bin"), 2, "expected a directory, got a file"),
        (("export", "{tmp}/weights.bin", "-o", "{tmp}/out"), 1, "expected a directory, got a file"),
        (("bench",), 2, "awq2trt bench --kernels"),
        (("run", "DIR", "--prompt", "a\udcff"), 2, "expected text in UTF-8, got other bytes at character 1"),
        (("run", "DIR", "--prompt", "a", "--system", "\udcff"), 2, "expected text in UTF-8"),
        (("bench", "--kernels", "--dtype", "float32"), 2, "got float32, expected one of: float16, bfloat16"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(
    awq2trt: Callable[..., Outcome], tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.bin").write_bytes(b"pickle")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF\x03")
    outcome = awq2trt(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert outcome.code == code
    assert outcome.out == ""
    assert says in outcome.err
    assert "Traceback" not in outcome.err
    assert "bug" not in outcome.err
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "empty").iterdir())


def test_flags_reach_the_kit(awq2trt: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[BuildRequest] = _taken(monkeypatch, "build")
    awq2trt(
        "build", "m", "-o", "out", "--target", "orin-nx", "--jetpack", "6.2", "--tar", "--ssh", "me@jetson", "--force"
    )  # fmt: skip
    (request,) = requests
    assert request.options.build == BuildOptions(target="orin-nx", jetpack="6.2")
    assert (request.tar, request.ssh, request.force) == (True, "me@jetson", True)
    outcome = awq2trt("build", "m", "-o", "out", "--target", "orin", "--jetpack", "5.1")
    assert outcome.code == 2
    assert "unknown JetPack '5.1', expected one of: 7.2, 6.2" in outcome.err


def test_targets_of_a_model_needs_its_config_alone(awq2trt: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_2_70B))
    built = awq2trt("targets", str(tmp_path), "--max-seq-len", "4096")
    assert built.out.startswith("weights 33.9, cache 1.25, ")  # with the INT8 head of a build
    outcome = awq2trt("targets", str(tmp_path), "--max-seq-len", "4096", "--head", "fp16")
    assert outcome.code == 0
    rows = {line.split()[0]: line for line in outcome.out.splitlines()}
    assert rows["weights"].startswith("weights 34.1, cache 1.25, ")
    assert "yes, with" in rows["orin"]
    assert rows["orin-nx"].endswith("  no")
    assert "5.7 .. 5.5" in rows["orin"]
    symmetric = awq2trt("targets", str(tmp_path), "--symmetric", "--group-size", "-1", "--jetpack", "6.2").out
    assert symmetric != outcome.out
    longer = awq2trt("targets", str(tmp_path), "--max-seq-len", str(10**18))
    assert (longer.code, "expected at most 4096 tokens" in longer.err) == (2, True)


def test_targets_counts_a_tower_as_it_will_be_quantized(awq2trt: Callable[..., Outcome], tmp_path: Path) -> None:
    tower = {"hidden_size": 1024, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 16}
    text = LLAMA_2_7B | {"model_type": "llama"}
    config = {"architectures": ["LlavaForConditionalGeneration"], "text_config": text, "image_token_index": 31999}
    config["vision_config"] = tower | {"image_size": 336, "patch_size": 14, "model_type": "clip_vision_model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    gib = []
    for flag in ("--no-quantize-vision", "--quantize-vision"):
        lines = awq2trt("targets", str(tmp_path), "--max-seq-len", "4096", flag).out.splitlines()
        gib.append(next(float(line.split()[2]) for line in lines if line.startswith("orin ")))
    linears = 23 * (4 * 1024**2 + 2 * 1024 * 8192) + 1024 * 4096 + 4096**2  # the last of 24 layers is not run
    assert gib[0] - gib[1] == pytest.approx(linears * (16 - 4.15625) / 8 / 2**30, abs=0.02)


@pytest.mark.parametrize(
    ("shape", "positions", "target", "answer"),
    [
        ("llama-2-70b", "4096", "orin", r"64 +37\.1 .* yes, with 41\.1 GiB of swap to build"),
        ("mpt-30b", "2048", "orin-32gb", r"32 +18\.9 .* yes, with 15\.1 GiB of swap to build"),
        ("llama-2-13b", "512", "rtx4070-laptop", r"8 +8\.29 .* no"),
    ],
)
def test_targets_answers_for_what_the_paper_runs(
    awq2trt: Callable[..., Outcome], shape: str, positions: str, target: str, answer: str
) -> None:
    lines = awq2trt("targets", "--shape", shape, "--max-seq-len", positions).out.splitlines()
    (line,) = (line for line in lines if line.split()[0] == target)
    assert re.search(rf"^{target} +{answer}$", line)
    page = Path(__file__).parents[1] / "docs" / "quickstart-orin.md"
    shown = re.sub(r"\s+", " ", page.read_text(encoding="utf-8"))
    assert re.sub(r"\s+", " ", line) in shown


def test_targets_wants_a_model_or_a_known_shape(awq2trt: Callable[..., Outcome], tmp_path: Path) -> None:
    both = awq2trt("targets", str(tmp_path), "--shape", "mpt-30b")
    assert (both.code, "expected either a model or a shape" in both.err) == (2, True)
    unknown = awq2trt("targets", "--shape", "llama-2-70")
    assert (unknown.code, "did you mean llama-2-70b?" in unknown.err) == (2, True)


def test_targets_lists_all(awq2trt: Callable[..., Outcome]) -> None:
    from awq2trt.target import TARGETS

    lines = awq2trt("targets").out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(TARGETS)
    assert re.search(
        r"rtx4090 +8\.9 +24 GB +1008 +engine +GeForce RTX 4090, TensorRT-RTX 1\.7 or later", "\n".join(lines)
    )


def test_doctor_exits_with_0_and_speaks_json(awq2trt: Callable[..., Outcome]) -> None:
    outcome = awq2trt("doctor", "--json")
    assert outcome.code == 0
    assert {finding["name"] for finding in json.loads(outcome.out)} >= {"awq2trt", "PyTorch", "TensorRT-RTX", "GPU"}


def _process(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Runs some Python in a real process whose output is piped."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_a_closed_pipe_is_no_drama() -> None:
    with _process("import awq2trt.__main__", "targets") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


SLEEPING_STAGE = """
import signal
import time
from awq2trt import cli
from awq2trt.stages import quantize

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job, as CI may be, inherits an ignored one

def quantize_stage(*arguments):
    print("ready", flush=True)
    time.sleep(60)

quantize.quantize_stage = quantize_stage
cli.main()
"""


def test_ctrl_c_ends_a_process_with_130_and_one_line() -> None:
    with _process(SLEEPING_STAGE, "quantize", "model", "-o", "out") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        error = process.stderr.read()
    assert (process.returncode, error) == (130, "\ninterrupted\n")


@pytest.mark.parametrize(("passed", "code", "verdict"), [(True, 0, "passed"), (False, 1, "failed: decode-1")])
def test_golden_outputs_decide_the_exit_code(
    awq2trt: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, passed: bool, code: int, verdict: str
) -> None:
    results = [GoldenResult("prefill", 1e-4, True, True), GoldenResult("decode-1", math.nan, passed, passed)]
    monkeypatch.setattr("awq2trt.stages.check.golden_stage", lambda directory, device: GoldenOutcome(tuple(results)))
    outcome = awq2trt("check", "somewhere", "--golden")
    assert outcome.code == code
    assert verdict in outcome.out.splitlines()[-1]
