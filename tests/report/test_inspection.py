"""What `inspect` reports about a checkpoint, and the page it draws, in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from safetensors.numpy import load_file

from awq2trt.artifact.manifest import Artifact
from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.errors import ArtifactError, UsageError
from awq2trt.models.sources.opening import open_source
from awq2trt.progress import SilentProgress
from awq2trt.recipe import QuantizeOptions
from awq2trt.report.html import draw_alphas, read_perplexities, render_page
from awq2trt.report.inspection import input_channels, inspect_checkpoint, worst_block
from awq2trt.report.lines import inspection_json, linear_lines
from awq2trt.stages.inspect import inspect_stage, report_stage
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage

LAYERS = 3
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
RESULTS = {
    "results": [
        {"model": "smollm2-135m-instruct", "executor": "PyTorch", "perplexity": {"value": 29.25}},
        {"model": "build/demo/rtn", "executor": "PyTorch", "perplexity": {"value": 34.75}},
    ]
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny-llama"
    return tiny_models.save_llama(directory, num_hidden_layers=LAYERS, attention_bias=True)


@pytest.fixture(scope="module")
def checkpoint(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    directory = tmp_path_factory.mktemp("build")
    (directory / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 100)
    options = QuantizeOptions(group_size=32, samples=4, seqlen=64, calib=str(directory / "text.txt"))
    return quantize_stage(QuantizeRequest(str(model), directory / "checkpoint", options), SilentProgress())


def test_rows_are_what_quantize_reported(checkpoint: Artifact) -> None:
    inspection = inspect_checkpoint(checkpoint)
    reports = json.loads((checkpoint.directory / "quantization.json").read_text())
    assert [row.name for row in inspection.linears] == list(reports)
    assert [row.block for row in inspection.linears] == [layer for layer in range(LAYERS) for _ in range(7)]
    for row in inspection.linears:
        assert (row.alpha, row.error) == (reports[row.name]["alpha"], reports[row.name]["error"])
        assert (row.bits, row.group_length) == (4, 32)


def test_sizes_add_up_to_the_file(checkpoint: Artifact) -> None:
    inspection = inspect_checkpoint(checkpoint)
    tensors = load_file(checkpoint.directory / "model.safetensors")
    assert inspection.size_bytes == sum(value.nbytes for value in tensors.values())
    gate = next(row for row in inspection.linears if row.name.endswith("0.mlp.gate_proj"))
    assert gate.size_bytes == 80 * 48 // 2 + 80 * 2 * 2 + 80 * 2 // 2  # codes, fp16 scales, zero points of 4 bits
    assert inspection.sizes["biases"] == LAYERS * 2 * (48 + 16 + 16 + 48)
    assert list(inspection.sizes.values()) == sorted(inspection.sizes.values(), reverse=True)
    assert 4.0 < inspection.bits_per_weight < 6.0


def test_channels_are_the_originals(checkpoint: Artifact, model: Path) -> None:
    inputs = input_channels(checkpoint, 1)
    prefix = "model.layers.1."
    names = ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"]
    assert [entry.name for entry in inputs] == [prefix + name for name in names]
    original = np.abs(open_source(str(model)).tensor(prefix + "mlp.gate_proj.weight")).mean(axis=0)
    np.testing.assert_allclose(inputs[2].weight, original, rtol=0.1)
    down = inputs[3]
    assert len(down.salient) == 1
    assert down.activation[down.salient[0]] == down.activation.max()


def test_the_worst_block_has_the_largest_errors(checkpoint: Artifact) -> None:
    inspection = inspect_checkpoint(checkpoint)
    errors = np.array([row.error for row in inspection.linears]).reshape(LAYERS, 7).mean(axis=1)
    assert worst_block(inspection) == int(errors.argmax())


def test_plain_rounding_has_sizes_and_no_search(model: Path, tmp_path: Path) -> None:
    options = QuantizeOptions(group_size=32, method="rtn")
    artifact = quantize_stage(QuantizeRequest(str(model), tmp_path / "checkpoint", options), SilentProgress())
    inspection = inspect_checkpoint(artifact)
    assert input_channels(artifact, 0) == ()
    assert all(row.alpha is None and row.error is None for row in inspection.linears)
    assert "not measured" in render_page(inspection, ())


def test_a_damaged_report_is_named(checkpoint: Artifact, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(checkpoint.directory, tmp_path / "checkpoint"))
    (directory / "quantization.json").write_text("[1, 2]")
    with pytest.raises(ArtifactError, match="quantization.json"):  # noqa: RUF043
        inspect_checkpoint(Artifact(directory, checkpoint.manifest))


def test_what_is_printed(checkpoint: Artifact) -> None:
    artifact, inspection = inspect_stage(checkpoint.directory)
    assert inspection is not None
    lines = list(linear_lines(inspection))
    assert len([line for line in lines if line.startswith("model.layers.")]) == LAYERS * 7
    assert lines[-1].startswith("quantized linears")
    value = json.loads(inspection_json(artifact, inspection))
    assert value["manifest"]["kind"] == "checkpoint"
    assert len(value["inspection"]["linears"]) == LAYERS * 7
    assert value["inspection"]["size_bytes"] == inspection.size_bytes


def test_perplexities_come_from_eval(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    assert [(entry.label, entry.value) for entry in read_perplexities(tmp_path / "results.json")] == [
        ("smollm2-135m-instruct, PyTorch", 29.25),
        ("rtn, PyTorch", 34.75),
    ]
    (tmp_path / "other.json").write_text('{"results": [{"score": 1}]}')
    for name in ("other.json", "missing.json"):
        with pytest.raises(UsageError, match="cannot be read as perplexities"):
            read_perplexities(tmp_path / name)


# The page.


@pytest.fixture(scope="module")
def page(checkpoint: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("page")
    (directory / "results.json").write_text(json.dumps(RESULTS))
    return report_stage(checkpoint.directory.parent, directory / "report.html", directory / "results.json")


class _Page(HTMLParser):
    """Collects what a page would load from elsewhere, its plots, and the ids they use."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.plots: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "object", "embed"):
            self.loaded.append(tag)
        if tag == "link":
            self.loaded.append(str(values["href"]))
        if tag == "svg":
            self.plots.append(str(values["aria-label"]))


def test_a_page_loads_nothing_and_is_small(page: Path) -> None:
    text = page.read_text()
    parsed = _Page()
    parsed.feed(text)
    assert parsed.loaded == ["data:,"]  # an empty icon, so that browsers do not ask for one
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(parsed.plots) == 3 + 4 + 1
    assert len(text.encode()) < 3_000_000
    assert '<meta name="viewport"' in text


def test_the_same_checkpoint_gives_the_same_page(checkpoint: Artifact, page: Path, tmp_path: Path) -> None:
    again = report_stage(checkpoint.directory, tmp_path / "again.html", page.parent / "results.json")
    assert again.read_bytes() == page.read_bytes()


def test_an_alpha_beyond_one_is_in_the_plot(checkpoint: Artifact) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="needs matplotlib")
    inspection = inspect_checkpoint(checkpoint)
    highest = replace(inspection.linears[0], alpha=1.075)
    figure, axes = pyplot.subplots()
    assert draw_alphas(replace(inspection, linears=(highest, *inspection.linears[1:])), axes)
    assert axes.get_ylim()[1] > 1.075
    pyplot.close(figure)


def test_names_cannot_break_the_page(checkpoint: Artifact) -> None:
    inspection = replace(inspect_checkpoint(checkpoint), model="<script>alert(1)</script>", method="<b>")
    text = render_page(inspection, ())
    assert "<script>" not in text
    assert "<b><b>" not in text


def _browser() -> str:
    """A Chromium that starts."""
    for name in BROWSERS:
        path = shutil.which(name)
        if path and subprocess.run([path, "--version"], capture_output=True, check=False, timeout=60).returncode == 0:
            return path
    pytest.skip("needs Chromium: apt-get install chromium")


def _screenshot(page: Path, width: int, height: int, *, dark: bool = False) -> tuple[np.ndarray, list[str]]:
    """Pixels [height, width, 3] in [0, 1], and what the page wrote to the console."""
    from matplotlib.image import imread

    picture = page.parent / f"{page.stem}-{width}-{dark}.png"
    command = [
        _browser(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
        f"--user-data-dir={page.parent / 'profile'}", f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        f"--window-size={width},{height}", f"--screenshot={picture}", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return imread(picture)[:, :, :3], console


def _share(pixels: np.ndarray, color: tuple[int, int, int]) -> float:
    """Share of pixels that have about this color."""
    return float((np.abs(pixels - np.array(color) / 255).max(axis=-1) < 0.05).mean())


def test_plots_are_drawn_on_a_desktop_and_on_a_phone(page: Path) -> None:
    for width, height in ((1200, 1900), (500, 3000)):
        pixels, console = _screenshot(page, width, height)
        assert console == []
        blue, orange = _share(pixels, (0x3D, 0x85, 0xC6)), _share(pixels, (0xE0, 0x74, 0x2C))
        assert blue > 0.005, f"{width} wide: {blue:.3%} of the page is blue"
        assert orange > 0.001
        # Nothing sticks out: the page's margin stays paper.
        assert _share(pixels[:, -8:], (255, 255, 255)) == 1.0


def test_the_page_follows_a_dark_theme(page: Path) -> None:
    pixels, _ = _screenshot(page, 1200, 900, dark=True)
    assert pixels.mean() < 0.25
    assert _share(pixels, (0xE6, 0xEB, 0xF0)) > 0.001  # text, that of plots too


def test_the_console_is_heard(tmp_path: Path) -> None:
    """The test above could not fail if errors were not reported."""
    (tmp_path / "broken.html").write_text("<!DOCTYPE html><script>missing()</script>")
    _, console = _screenshot(tmp_path / "broken.html", 500, 300)
    assert any("missing is not defined" in line for line in console)


def test_a_checkpoint_is_needed(tmp_path: Path, checkpoint: Artifact) -> None:
    assert QuantizedCheckpoint.open(checkpoint.directory).spec.num_layers == LAYERS
    with pytest.raises(ArtifactError):
        report_stage(tmp_path, tmp_path / "report.html")
