"""The repository itself: everything that its documents mention exists, and its layout is the one in CONTRIBUTING."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

import awq2trt

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *ROOT.glob("*.md"),
        *(path for folder in ("docs", "plugins", "recipes") for path in ROOT.glob(f"{folder}/**/*.md")),
    )
)
MAKE_TARGETS = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_relative_links_resolve(document: str) -> None:
    links = re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", _text(document))
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    missing = [link for link in local if not (ROOT / document).parent.joinpath(link).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_commands_exist(document: str) -> None:
    named = set(re.findall(r"(?:`|\$ |&& )make ([a-z][a-z0-9-]*)", _text(document)))
    assert named <= MAKE_TARGETS


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_files_exist(document: str) -> None:
    named = re.findall(r"`((?:awq2trt|plugins|tests|tools|recipes)/[\w./-]+)`", _text(document))
    invented = {
        "awq2trt/models/families/lynx.py",  # the example of CONTRIBUTING, "A new model family"
        "awq2trt/awq2trt.h",  # as programs include them
        "awq2trt/awq2trt.hpp",
    }
    missing = [name for name in named if name not in invented and not (ROOT / name).exists()]
    assert not missing


def test_the_documents_that_people_look_for_exist() -> None:
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= set(DOCUMENTS)
    assert "Apache License" in _text("LICENSE")


def _shell_lines(document: str) -> list[str]:
    """Commands in console blocks, with continued lines joined, and without comments and prompts."""
    blocks = re.findall(r"```console\n(.*?)```", _text(document), re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    return [re.sub(r"(^|\s)#.*", "", line[2:]).strip() for line in text.splitlines() if line.startswith("$ ")]


def _our_commands(document: str) -> list[list[str]]:
    """Words of each call of awq2trt."""
    calls: list[list[str]] = []
    for line in _shell_lines(document):
        words = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        words.whitespace_split = True
        calls.append([])
        for word in words:
            if set(word) <= set("&|;"):
                calls.append([])
            else:
                calls[-1].append(word.removeprefix(".venv/bin/"))
    return [call[1:] for call in calls if call and call[0] == "awq2trt"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_flags_exist(document: str) -> None:
    from awq2trt.cli import app

    commands = typer.main.get_group(app).commands
    inline = re.findall(r"`awq2trt ([a-z]+)", _text(document))
    assert set(inline) <= set(commands)
    for name, *words in _our_commands(document):
        flags = {
            option for parameter in commands[name].params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        used = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert used <= flags | {"--help"}, name


def test_version_is_declared_once() -> None:
    assert re.search(r'^dynamic = \["version"\]$', _text("pyproject.toml"), re.MULTILINE)
    assert re.fullmatch(r"\d+\.\d+\.\d+", awq2trt.__version__)


def test_scripts_are_executable_and_parse() -> None:
    scripts = [ROOT / ".ci" / "run", *ROOT.glob("tools/*.sh")]
    assert len(scripts) > 1
    for script in scripts:
        assert script.stat().st_mode & 0o111, f"{script} is not executable"
        subprocess.run(["bash", "-n", script], check=True)


def test_ci_runs_make_test_and_nothing_else() -> None:
    lines = [line for line in _text(".ci/run").splitlines() if line and not line.startswith("#")]
    assert lines[-1] == "exec make --no-print-directory test"
