"""Setting up an engine: who owns daemon.json, where backports come from, and cleanup after a killed daemon."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import EngineSetupError
from orchestrator.host import aptsources, engineconfig, enginedaemon, hostcommand
from orchestrator.host.engineconfig import EnginePaths, EngineRecord

ONE_LINE = """\
# deb http://old.example/debian bookworm main
deb [arch=amd64 signed-by=/k/vendor.gpg] https://vendor.example/debian bookworm main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror.example/debian bookworm main contrib
deb http://mirror.example/debian bookworm-updates main
deb-src http://mirror.example/debian bookworm main
"""
DEB822 = """\
Types: deb deb-src
# a comment inside
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: https://vendor.example/apt
Suites: bookworm
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----

Enabled: no
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm-backports
Components: main
"""


@pytest.fixture
def paths(tmp_path: Path) -> EnginePaths:
    return EnginePaths(
        config=tmp_path / "etc/daemon.json",
        data=tmp_path / "lib/docker",
        run=tmp_path / "run/docker",
        pid_file=tmp_path / "run/docker.pid",
        record=tmp_path / "lib/cellblock/engine.json",
        log=tmp_path / "log/engine.log",
        lock=tmp_path / "engine.lock",
    )


@pytest.mark.parametrize(("name", "text"), [("sources.list", ONE_LINE), ("sources.list.d/debian.sources", DEB822)])
def test_backports_come_from_the_hosts_own_mirror(tmp_path: Path, name: str, text: str) -> None:
    """In both formats, the distribution's mirror and keyring are used, never a third party's."""
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / name).write_text(text)
    source = aptsources.backports(aptsources.read(tmp_path), "bookworm")
    assert source is not None
    assert source.uris == ("http://mirror.example/debian",)
    assert source.suites == ("bookworm-backports",)
    assert source.options["Signed-By"] == "/usr/share/keyrings/debian-archive-keyring.gpg"
    assert "Suites: bookworm-backports\n" in source.render()


def test_backports_that_are_enabled_are_not_added_again(tmp_path: Path) -> None:
    """A host that has backports keeps its own entry."""
    (tmp_path / "sources.list").write_text(ONE_LINE + "deb http://mirror.example/debian bookworm-backports main\n")
    assert aptsources.backports(aptsources.read(tmp_path), "bookworm") is None


def test_without_a_source_of_the_release_there_are_no_backports(tmp_path: Path) -> None:
    """A host without apt sources, or with those of another release, gets no backports."""
    (tmp_path / "sources.list").write_text(ONE_LINE)
    assert aptsources.backports(aptsources.read(tmp_path), "trixie") is None
    assert aptsources.backports([], "bookworm") is None


def test_sources_survive_being_written_and_read(tmp_path: Path) -> None:
    """A rendered source is read as the same source, including an embedded key."""
    (tmp_path / "sources.list.d").mkdir()
    target = tmp_path / "sources.list.d/x.sources"
    target.write_text(DEB822)
    sources = aptsources.read(tmp_path)
    target.write_text("\n".join(source.render() for source in sources))
    assert aptsources.read(tmp_path) == sources
    assert "BEGIN PGP" in sources[1].options["Signed-By"]


def test_engine_that_never_ran_is_configured(paths: EnginePaths) -> None:
    """On a bare machine Cellblock writes daemon.json, with gVisor, and only once."""
    assert engineconfig.configure(paths, "/usr/bin/runsc")
    runtimes = json.loads(paths.config.read_text())["runtimes"]
    assert runtimes["runsc"]["runtimeArgs"] == ["--host-uds=open", "--network=none"]
    assert not engineconfig.configure(paths, "/usr/bin/runsc")


def test_foreign_configuration_is_left_alone(paths: EnginePaths) -> None:
    """A daemon.json that somebody else wrote raises an error and is not changed."""
    paths.config.parent.mkdir(parents=True)
    paths.config.write_text("{}")
    with pytest.raises(EngineSetupError):
        engineconfig.configure(paths, "/usr/bin/runsc")
    assert paths.config.read_text() == "{}"


def test_engine_that_somebody_used_is_left_alone(paths: EnginePaths) -> None:
    """An engine without a daemon.json that has run before belongs to somebody else."""
    paths.data.mkdir(parents=True)
    assert not engineconfig.may_configure(paths)


def test_configuration_that_its_owner_edits_becomes_theirs(paths: EnginePaths) -> None:
    """Our daemon.json is not overwritten once somebody has edited it."""
    engineconfig.configure(paths, "/usr/bin/runsc")
    paths.config.write_text(paths.config.read_text().replace("none", "docker0", 1))
    assert not engineconfig.may_configure(paths)


def test_our_engine_whose_configuration_was_purged_gets_it_back(paths: EnginePaths) -> None:
    """Purging the package removes daemon.json. Cellblock writes it again for its own engine."""
    engineconfig.configure(paths, "/usr/bin/runsc")
    paths.data.mkdir(parents=True)
    paths.config.unlink()
    assert engineconfig.configure(paths, "/usr/bin/runsc")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"unknown": 1}'])
def test_unreadable_record_makes_no_engine_ours(paths: EnginePaths, text: str) -> None:
    """A damaged record, or one of another version, never makes an engine ours."""
    paths.record.parent.mkdir(parents=True)
    paths.record.write_text(text)
    assert EngineRecord.load(paths.record) == EngineRecord()


def test_another_process_with_our_daemons_pid_is_not_ours() -> None:
    """A pid alone proves nothing: the start time and the boot must match too."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    record = EngineRecord(ours=True, pid=os.getpid(), started=enginedaemon.start_ticks(os.getpid()), boot=boot)
    assert enginedaemon.is_ours(record)
    assert not enginedaemon.is_ours(replace(record, started=record.started - 1))
    assert not enginedaemon.is_ours(replace(record, boot="another"))


def test_stale_pid_file_is_removed_although_its_pid_is_in_use(paths: EnginePaths) -> None:
    """dockerd does not start while any process has the pid in its pid file."""
    paths.pid_file.parent.mkdir(parents=True)
    paths.pid_file.write_text(str(os.getpid()))
    enginedaemon.clear_stale(paths)
    assert not paths.pid_file.exists()


def test_nothing_is_stopped_that_was_not_started(paths: EnginePaths) -> None:
    """Without a record of a daemon, ``stop`` stops nothing."""
    assert not enginedaemon.stop(paths, lambda line: None)


def test_command_reports_its_lines_and_its_end() -> None:
    """Each line is reported when it is printed. The result has the exit status and the last lines."""
    lines: list[str] = []
    finished = hostcommand.run(["sh", "-c", "echo one; echo two >&2; exit 3"], seconds=10, on_line=lines.append)
    assert lines == ["one", "two"]
    assert (finished.code, finished.tail, finished.expired) == (3, "one\ntwo", False)


def test_command_ends_at_its_deadline() -> None:
    """A command that hangs is killed at its deadline together with its children."""
    begun = time.monotonic()
    finished = hostcommand.run(["sh", "-c", "sleep 100 & sleep 100"], seconds=0.2)
    assert finished.expired
    assert time.monotonic() - begun < 10


def test_command_ends_when_its_caller_is_interrupted() -> None:
    """Ctrl-C while a command runs leaves none of its processes running."""
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hostcommand.run(["sh", "-c", "echo $$; exec sleep 100"], seconds=60, on_line=interrupt)
    assert enginedaemon.start_ticks(pids[0]) == 0
