"""Where systemd runs, the engine is its unit. A script stands for systemctl; `make test-modern` uses a real one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import EngineSetupError
from orchestrator.host import enginedaemon
from orchestrator.host.engineconfig import EnginePaths, EngineRecord


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EnginePaths:
    """A machine with systemd, whose `systemctl` writes its arguments to a file and fails for the word in `fails`."""
    programs = {
        "systemctl": f'echo "$*" >>{tmp_path}/calls; if grep -qsw "$1" {tmp_path}/fails; then echo refused; exit 4; fi',
        "journalctl": "echo 'failed to load listeners: no sockets found'",
    }
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    (tmp_path / "systemd").mkdir()
    return EnginePaths(
        config=tmp_path / "daemon.json",
        data=tmp_path / "docker",
        run=tmp_path / "run",
        pid_file=tmp_path / "docker.pid",
        record=tmp_path / "engine.json",
        log=tmp_path / "engine.log",
        lock=tmp_path / "engine.lock",
        systemd=tmp_path / "systemd",
    )


def calls(tmp_path: Path) -> list[str]:
    found = (tmp_path / "calls").read_text().splitlines()
    (tmp_path / "calls").unlink()
    return [line for line in found if not line.startswith("reset-failed")]


def test_our_engine_is_an_enabled_unit(paths: EnginePaths, tmp_path: Path) -> None:
    """It starts with the machine; `stop` stops its unit and its socket, and only what Cellblock started."""
    EngineRecord(ours=True).save(paths.record)
    enginedaemon.start(paths, lambda line: None)
    assert calls(tmp_path) == ["enable docker.service", "start docker.service"]
    assert EngineRecord.load(paths.record) == EngineRecord(ours=True, systemd=True)
    assert enginedaemon.stop(paths, lambda line: None)
    assert calls(tmp_path) == ["stop docker.service docker.socket"]
    assert not enginedaemon.stop(paths, lambda line: None)


def test_an_engine_of_somebody_else_is_started_and_not_enabled(paths: EnginePaths, tmp_path: Path) -> None:
    enginedaemon.start(paths, lambda line: None)
    assert calls(tmp_path) == ["start docker.service"]


def test_a_stale_pid_file_does_not_stop_the_unit(paths: EnginePaths, tmp_path: Path) -> None:
    """dockerd does not start, as a unit too, while any process has the pid in its pid file."""
    paths.pid_file.write_text(str(os.getpid()))
    enginedaemon.start(paths, lambda line: None)
    assert not paths.pid_file.exists()
    assert calls(tmp_path) == ["start docker.service"]


@pytest.mark.parametrize("word", ["enable", "start"])
def test_a_unit_that_fails_is_reported_with_its_journal(paths: EnginePaths, tmp_path: Path, word: str) -> None:
    (tmp_path / "fails").write_text(word)
    EngineRecord(ours=True).save(paths.record)
    with pytest.raises(EngineSetupError) as caught:
        enginedaemon.start(paths, lambda line: None)
    assert f"`systemctl {word} docker.service` failed (exit status 4):\nrefused\nfailed to load" in caught.value.message
    assert "systemctl status" in caught.value.remedy
    assert not EngineRecord.load(paths.record).systemd


def test_a_stop_that_fails_is_no_stop(paths: EnginePaths, tmp_path: Path) -> None:
    """The record stays, so that the next call stops it."""
    EngineRecord(systemd=True).save(paths.record)
    (tmp_path / "fails").write_text("stop")
    with pytest.raises(EngineSetupError, match="refused"):
        enginedaemon.stop(paths, lambda line: None)
    assert EngineRecord.load(paths.record).systemd


def test_without_systemd_no_unit_is_touched(paths: EnginePaths, tmp_path: Path) -> None:
    """A record of a machine with systemd, in a container without it, stops nothing."""
    paths = replace(paths, systemd=tmp_path / "none")
    EngineRecord(systemd=True).save(paths.record)
    assert not enginedaemon.systemd_runs(paths)
    assert not enginedaemon.stop(paths, lambda line: None)
    assert not (tmp_path / "calls").exists()
