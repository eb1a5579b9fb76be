"""A kit that is finished on another machine over SSH (a server of this test on 127.0.0.1), and on this one."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from stand_in_orin import Orin
from tiny_kits import export_tiny, kit_request, make_tiny_kit

from awq2trt.artifact.manifest import MANIFEST_FILE, SUMS_FILE, Artifact
from awq2trt.errors import BuildError, ToolError, UsageError
from awq2trt.kit import delivery
from awq2trt.kit.delivery import SSH_VARIABLE, finish_here, finish_over_ssh
from awq2trt.progress import SilentProgress
from awq2trt.stages.kit import KitRequest, deliver


@pytest.fixture
def kit(tmp_path: Path) -> Artifact:
    (tmp_path / "lynx").mkdir()
    export_tiny(tmp_path / "lynx")
    return make_tiny_kit(tmp_path / "lynx", tmp_path / "lynx" / "orin", "7.2")


@dataclass(frozen=True)
class Jetson:
    """A stand-in Jetson for logging in to."""

    host: str
    home: Path
    machine: Orin


@pytest.fixture
def jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jetson]:
    """An SSH server with keys of its own, whose commands run with the stand-in's programs in a home of their own."""
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    for name, found in (("sshd", sshd), ("ssh", shutil.which("ssh")), ("rsync", shutil.which("rsync"))):
        if found is None:
            pytest.skip(f"needs {name}: apt-get install openssh-server rsync")
    assert sshd is not None
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd needs it, and there may be no init system that made it
    folder, home, machine = tmp_path / "ssh", tmp_path / "home", Orin(tmp_path / "machine")
    folder.mkdir()
    home.mkdir()
    for name in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    variables = machine.environment()
    wrapper = folder / "command"
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    wrapper.write_text(f'#!/bin/sh\ncd {home} && exec env {settings} HOME={home} sh -c "$SSH_ORIGINAL_COMMAND"\n')
    wrapper.chmod(0o755)
    public = (folder / "user.pub").read_text()
    (folder / "authorized_keys").write_text(f'command="{wrapper}" {public}')
    port = _free_port()
    config = folder / "sshd_config"
    config.write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
    )
    server = subprocess.Popen([sshd, "-D", "-e", "-f", str(config)], stderr=subprocess.PIPE, text=True)
    try:
        _wait_for(port, server)
        host_key = (folder / "host.pub").read_text()
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
        options = f"-p {port} -i {folder}/user -F none -o UserKnownHostsFile={folder}/known_hosts -o BatchMode=yes"
        monkeypatch.setenv(SSH_VARIABLE, f"ssh {options}")
        yield Jetson(f"{getpass.getuser()}@127.0.0.1", home, machine)
    finally:
        server.terminate()
        server.communicate(timeout=10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, server: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if server.poll() is not None:
            pytest.fail(f"sshd ended: {server.stderr.read() if server.stderr else ''}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("sshd does not listen")


def _names(kit: Artifact) -> tuple[str, ...]:
    return (*kit.manifest.files, MANIFEST_FILE, SUMS_FILE)


def test_the_engine_comes_back(kit: Artifact, jetson: Jetson, capfd: pytest.CaptureFixture[str]) -> None:
    finish_over_ssh(kit.directory, _names(kit), jetson.host, [])
    there = jetson.home / "awq2trt-kits" / "lynx-orin"
    assert (kit.directory / "model.engine").read_text() == "an engine of TensorRT 101600\n"
    assert (kit.directory / "model.engine.state").is_file()
    assert "--skipInference" in jetson.machine.recorded
    assert (there / "model.onnx.data").read_bytes() == (kit.directory / "model.onnx.data").read_bytes()
    assert "building model.engine with TensorRT 10.16.0" in capfd.readouterr().out
    Artifact.open(kit.directory, kind="kit")
    finish_over_ssh(kit.directory, _names(kit), jetson.host, [])
    assert "model.engine is current" in capfd.readouterr().out
    assert jetson.machine.recorded.count("--skipInference") == 1


def test_the_scripts_refusal_is_seen(kit: Artifact, jetson: Jetson, capfd: pytest.CaptureFixture[str]) -> None:
    jetson.machine.tensorrt = "101500"
    jetson.machine.environment()
    with pytest.raises(BuildError, match="ended with exit code 14 on "):
        finish_over_ssh(kit.directory, _names(kit), jetson.host, [])
    assert "needs TensorRT 10.16" in capfd.readouterr().err
    assert not (kit.directory / "model.engine").exists()


def test_a_host_that_is_not_there(kit: Artifact, jetson: Jetson, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SSH_VARIABLE, "ssh -F none -o BatchMode=yes -p 1")
    with pytest.raises(BuildError, match=r"ssh to .*127\.0\.0\.1 failed with exit code 255.*without a password"):
        finish_over_ssh(kit.directory, _names(kit), jetson.host, [])


@pytest.mark.parametrize("host", ["", "-oProxyCommand=touch /tmp/x", "a\nb", "a b", "a\0b"])
def test_a_host_is_no_option(host: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected USER@HOST"):
        finish_over_ssh(tmp_path, [], host, [])


def test_the_command_for_ssh_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SSH_VARIABLE, "ssh -i 'key")
    with pytest.raises(UsageError, match=f"{SSH_VARIABLE}: cannot be read as a command"):
        finish_over_ssh(tmp_path, [], "me@there", [])
    monkeypatch.setenv(SSH_VARIABLE, "")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match="ssh is not installed"):
        finish_over_ssh(tmp_path, [], "me@there", [])


def test_missing_programs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SSH_VARIABLE, "no-such-ssh -p 22")
    with pytest.raises(ToolError, match="no-such-ssh is not installed"):
        finish_over_ssh(tmp_path, [], "me@there", [])


def test_on_a_jetson_it_is_finished_in_place(kit: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Orin(tmp_path / "machine")
    for name, value in machine.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("awq2trt.stages.kit.is_orin", lambda: True)
    request = kit_request(kit.directory, "7.2")
    deliver(kit, request, SilentProgress())
    assert (kit.directory / "model.engine").is_file()
    machine.disk_mib = 1
    machine.environment()
    (kit.directory / "model.engine").unlink()
    with pytest.raises(BuildError, match=r"finish\.sh ended with exit code 16"):
        finish_here(kit.directory, [])


def test_elsewhere_the_kit_is_left_as_it_is(kit: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awq2trt.stages.kit.is_orin", lambda: False)
    deliver(kit, kit_request(kit.directory, "7.2"), SilentProgress())
    assert not (kit.directory / "model.engine").exists()


def test_orins_are_known_by_their_chip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "compatible"
    monkeypatch.setattr(delivery, "_DEVICE_TREE", tree)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert not delivery.is_orin()
    tree.write_bytes(b"nvidia,p3768-0000+p3767-0003\0nvidia,tegra234\0")
    assert delivery.is_orin()
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert not delivery.is_orin()


def test_a_kit_with_sources_is_compiled_without_asking(kit: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr("awq2trt.stages.kit.is_orin", lambda: True)
    monkeypatch.setattr("awq2trt.stages.kit.finish_here", lambda directory, options: asked.append(options))
    request = kit_request(kit.directory, "7.2")
    files = {name: record for name, record in kit.manifest.files.items() if not name.startswith("lib/")}
    without = Artifact(kit.directory, kit.manifest.model_copy(update={"files": files}))
    deliver(kit, request, SilentProgress())
    deliver(without, KitRequest(request.target, request.output, request.options, force=True), SilentProgress())
    assert asked == [[], ["--force", "--compile"]]
