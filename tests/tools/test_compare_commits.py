"""The comparison of two commits, in a repository with two commits that only print and sleep."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import compare_commits
import pytest

PACKAGE = """
import json, pathlib, sys
block = bytearray({megabytes} << 20)
print(*sys.argv[1:])
if sys.argv[1] == "eval":
    results = [{{"perplexity": {{"value": float(pathlib.Path(path).read_text())}}}} for path in sys.argv[2:4]]
    pathlib.Path(sys.argv[-1]).write_text(json.dumps({{"results": results}}))
elif "--fail" in sys.argv:
    sys.exit(3)
else:
    pathlib.Path(sys.argv[sys.argv.index("-o") + 1]).write_text("{perplexity}")
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two commits: the first takes more memory."""
    repository = tmp_path / "repository"
    (repository / "awq2trt").mkdir(parents=True)
    (repository / "awq2trt" / "__init__.py").touch()
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    for megabytes, perplexity in ((300, 12.5), (10, 12.25)):
        text = PACKAGE.format(megabytes=megabytes, perplexity=perplexity)
        (repository / "awq2trt" / "__main__.py").write_text(text)
        subprocess.run([*git, "add", "-A"], check=True)
        subprocess.run([*git, "commit", "--quiet", "-m", "x"], check=True)
    monkeypatch.setattr(compare_commits, "REPOSITORY", repository)
    return repository


def test_both_commits_are_measured(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("x")
    arguments = ["x", "HEAD~1", "HEAD", "a-model", "--rounds", "2", "--text", str(text), "--", "--bits", "3"]
    monkeypatch.setattr(sys, "argv", arguments)
    compare_commits.main()
    printed = capfd.readouterr().out.splitlines()
    assert sum(line.startswith("quantize a-model") and line.endswith("--bits 3") for line in printed) == 4
    assert printed[-1].split() == ["perplexity", "12.500", "12.250", "1.020"]
    before, after = map(float, printed[-2].split()[-3:-1])
    assert before > after + 200
    worktrees = subprocess.run(["git", "-C", str(repository), "worktree", "list"], capture_output=True, check=True)
    assert len(worktrees.stdout.splitlines()) == 1


def test_a_run_that_fails_is_said(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "HEAD~1", "HEAD", "a-model", "--", "--fail"])
    with pytest.raises(SystemExit, match=r"quantize a-model .* failed"):
        compare_commits.main()
    worktrees = subprocess.run(["git", "-C", str(repository), "worktree", "list"], capture_output=True, check=True)
    assert len(worktrees.stdout.splitlines()) == 1
