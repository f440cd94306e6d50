"""What operators type: refusals, permissions, plain tables and who is named, without an engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.kernelrows import HostView, Row, find_kernel, look
from orchestrator.container.folders import instance_folder
from orchestrator.errors import InvalidInputError, SettingsError
from orchestrator.operator.controlsocket import ControlClient, ControlSocket, Peer, control_clients_of_host
from orchestrator.operator.overviewform import is_overview
from orchestrator.settings import Settings
from orchestrator.store.auditchain import append
from orchestrator.telemetry import Telemetry
from tests.conftest import REPOSITORY

COMMAND = str(Path(sys.executable).with_name("cellblock"))
NOBODY = 65534
AS_NOBODY = (
    "import os, sys\nimport encodings.utf_8_sig, encodings.idna, typer.rich_utils\n"
    "from orchestrator.cli.app import main\n"
    f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); os.environ['HOME'] = '/nonexistent'\n"
    "sys.argv[0] = 'cellblock'; main()"
)
SERVE_AS_NOBODY = """
import asyncio, os, sys
from pathlib import Path
from orchestrator.operator.controlsocket import ControlSocket
os.setgroups([]); os.setgid(65534); os.setuid(65534)
async def main():
    folder = Path(sys.argv[1]); folder.mkdir(parents=True)
    async def overview(request): return {"pool": {}, "kernels": [], "asked": request["operator"]}
    server = ControlSocket({"overview": overview}); await server.listen(folder)
    print("ready", flush=True); await asyncio.sleep(60)
asyncio.run(main())
"""
POOL = {"max": 1, "ready": 0, "leased": 1, "starting": 0, "ending": 0, "waiting": 0}
KERNEL: dict[str, Any] = {
    "kernel_id": "k" * 16, "session": "s" * 32, "agent": "ann", "runtime": "runc", "state": "idle", "cells": 1,
    "cell": None, "age_s": 1.0, "usage": None,
}  # fmt: skip


def cellblock(*arguments: str, code: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", code] if code else [COMMAND]
    variables = os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment
    return subprocess.run(
        [*program, *arguments], env=variables, capture_output=True, text=True, timeout=60, check=False, cwd="/"
    )


def said(done: subprocess.CompletedProcess[str]) -> str:
    """Return what was printed, without the lines and the wrapping of boxes."""
    return " ".join((done.stdout + done.stderr).replace("│", " ").split())


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Write an audit log with one entry, in a folder of root's own."""
    path = tmp_path / "audit.jsonl"
    entry = {"time": "2026-01-01T10:00:01.500+00:00", "event": "cell.ended", "outcome": "oom", "agent": "a" * 300}
    append(path, [entry], fsync=False, rotate_at=2**40)
    tmp_path.chmod(0o700)
    return path


@pytest.mark.parametrize(
    ("option", "value", "accepted"),
    [
        *((option, value, "2026-01-31T12:00") for option in ("--since", "--until") for value in (
            "yesterday", "2026-13-45", "2026-02-30", "2026", "12:00", "2026-01-01T25:00", "20260101", "1767225600",
        )),
        ("--outcome", "nosuch", "'timeout'"),
        ("--kernel", "xyz", "hexadecimal"),
        ("--code", "abc", "64 hexadecimal"),
        ("--event", "Cell Ended", "cell.ended"),
    ],
)  # fmt: skip
def test_a_value_that_no_entry_can_have_is_refused(log: Path, option: str, value: str, accepted: str) -> None:
    """Exit status 2 and the accepted forms, instead of "no matching entries"."""
    done = cellblock("audit", "search", "--log", str(log), option, value)
    assert done.returncode == 2, said(done)
    assert accepted in said(done)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--since", "2026-01-01T11:00+01:00"], 0),
        (["--since", "2026-01-01T10:00:01.5Z"], 0),
        (["--since", "2026-01-01T10:00:02"], 1),
        (["--until", "2026-01-01 10:00"], 0),
        (["--until", "2026-01-01T10:00:01"], 0),
        (["--until", "2026-01-01T10:00:00"], 1),
        (["--until", "2026-01-01T10:30:00+01:00"], 1),
    ],
)
def test_times_are_compared_as_times(log: Path, arguments: list[str], status: int) -> None:
    """A day, minute or second, in UTC or with an offset; --until includes all of what it names."""
    assert cellblock("audit", "search", "--log", str(log), *arguments).returncode == status


@pytest.mark.parametrize(
    "arguments", [["audit", "tail"], ["audit", "verify"], ["audit", "search"], ["sessions", "list"], ["run"],
                  ["policy", "check"]], ids=" ".join,
)  # fmt: skip
def test_a_file_without_permission_gives_one_message(log: Path, arguments: list[str]) -> None:
    """Exit status 1, the file and "Permission denied", without a traceback."""
    file = [] if arguments[0] == "sessions" else ["--log"] if arguments[0] == "audit" else [""]
    target = [*file, str(log)] if file == ["--log"] else [str(log)] if file else []
    done = cellblock(*arguments, *target, code=AS_NOBODY, CELLBLOCK_DATA_DIR=str(log.parent / "data"))
    assert done.returncode == 1, said(done)
    assert "ermission denied" in said(done)
    assert "Traceback" not in done.stderr


def test_doctor_says_that_the_user_may_not_use_the_engine() -> None:
    """The weakness has its text and its remedy, as lines and as JSON."""
    done = cellblock("doctor", code=AS_NOBODY)
    assert done.returncode == 1
    assert "broken engine: this user may not use the Docker engine." in said(done)
    assert "`docker` group" in said(done)
    found = json.loads(cellblock("doctor", "--json", code=AS_NOBODY).stdout)
    assert found["usable"] == []
    assert [one["subject"] for one in found["diagnoses"] if one["condition"] == "broken"] == ["engine"]


def test_an_unknown_variable_is_reported_with_the_nearest_name(tmp_path: Path) -> None:
    """In the environment and in .env, once, and the command goes on."""
    (tmp_path / ".env").write_text("CELLBLOCK_METRICS_PROT=1\nOTHER=1\n")
    code = f"import os; os.chdir({str(tmp_path)!r})\nfrom orchestrator.cli.app import main\nmain()"
    done = cellblock("policy", "list", code=code, CELLBLOCK_WRAM_KERNELS="2", CELLBLOCK_XQZ="1")
    assert done.returncode == 0
    assert done.stderr.count("did you mean CELLBLOCK_WARM_KERNELS?") == 1
    assert done.stderr.count("did you mean CELLBLOCK_METRICS_PORT?") == 1
    assert "CELLBLOCK_XQZ is not a setting and has no effect: docs/settings.md" in done.stderr
    assert "OTHER" not in done.stderr


def test_a_second_worker_starts_without_metrics(caplog: pytest.LogCaptureFixture) -> None:
    """The port that the first worker has is reported, and no error; an address of another host is an error."""
    first, second = Telemetry(), Telemetry()
    port = first.serve("127.0.0.1", 0)
    try:
        assert second.serve_if_free("127.0.0.1", port) is None
        assert f"127.0.0.1:{port} is in use" in caplog.text
        with pytest.raises(SettingsError, match="CELLBLOCK_METRICS_PORT"):
            second.serve_if_free("192.0.2.1", 0)
    finally:
        first.close()


def test_tables_are_plain_lines_when_piped(log: Path) -> None:
    """No boxes, one line for each row, and nothing is truncated; 80 columns change nothing."""
    done = cellblock("audit", "tail", "--log", str(log), COLUMNS="80")
    header, row = done.stdout.splitlines()
    assert header.startswith("entry  time (UTC)")
    assert row.split() == ["1", "2026-01-01", "10:00:01", "cell.ended", "a" * 300, "outcome=oom"]
    cell = cellblock(code="from orchestrator.cli.render import shorten; print(shorten('a' * 300, 40))")
    assert cell.stdout == "a" * 300 + "\n"
    policies = cellblock("policy", "explain", "default", COLUMNS="40").stdout
    assert not set("│┃━─┏") & set(policies)


@pytest.mark.parametrize(
    "arguments",
    [["policy", "list"], ["policy", "show", "strict"], ["policy", "explain", "strict"],
     ["policy", "check", str(REPOSITORY / "policies/strict.toml")], ["ps"], ["sessions", "list"], ["audit", "verify"]],
    ids=" ".join,
)  # fmt: skip
def test_commands_print_json(log: Path, state: Path, arguments: list[str]) -> None:
    """`--json` prints a JSON document and nothing else on standard output."""
    done = cellblock(*arguments, "--json", CELLBLOCK_AUDIT_LOG=str(log), CELLBLOCK_STATE_DIR=str(state))
    assert done.returncode == 0, said(done)
    json.loads(done.stdout)


def test_the_shell_completes_commands() -> None:
    """The script of `--show-completion` asks the command, which answers with its subcommands."""
    done = cellblock(
        _CELLBLOCK_COMPLETE="complete_bash", COMP_WORDS="cellblock int", COMP_CWORD="1",
        _TYPER_COMPLETE_ARGS="cellblock int",
    )  # fmt: skip
    assert done.stdout.split() == ["interrupt"]


def row(uid: int = 0, **changes: Any) -> Row:
    return Row(ControlClient("one", Path(f"/run/{uid}"), uid), KERNEL | changes)


def test_a_kernel_is_named_by_its_session_agent_or_kernel() -> None:
    """A whole id wins over the beginning of another; what several match is refused, with their users."""
    ann, annabel = row(), row(NOBODY, kernel_id="f" * 16, session="e" * 32, agent="annabel")
    host = HostView((), (ann, annabel), ())
    assert [find_kernel(host, name) for name in ("ann", "kk", "sss")] == [ann] * 3
    assert [find_kernel(host, name) for name in ("annab", "ff", "eee")] == [annabel] * 3
    with pytest.raises(InvalidInputError, match=r"2 kernels match 'an': .*user root.*user nobody"):
        find_kernel(host, "an")
    for name in ("", "nosuch"):
        with pytest.raises(InvalidInputError, match="cellblock ps"):
            find_kernel(host, name)


@pytest.mark.parametrize(
    "change",
    [{"kernel_id": 5}, {"usage": []}, {"usage": {"cpu_percent": "x"}}, {"age_s": float("nan")}, {"age_s": 10**400},
     {"cell": {"number": 1}}, {"agent": ["x"]}, {"cells": None}],
    ids=str,
)  # fmt: skip
def test_an_overview_of_another_users_program_is_checked(change: dict[str, Any]) -> None:
    """What is no overview counts as no answer, so that it breaks neither `ps` nor `top`."""
    assert is_overview({"pool": POOL, "kernels": [KERNEL]})
    assert not is_overview({"pool": POOL, "kernels": [KERNEL | change]})
    assert not is_overview({"pool": POOL, "kernels": [{key: KERNEL[key] for key in KERNEL if key != "cell"}]})


async def _serving_as_nobody(folder: Path, *abroad: str) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        *abroad, sys.executable, "-c", SERVE_AS_NOBODY, str(folder), stdout=asyncio.subprocess.PIPE, cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 30) == b"ready\n"
    return process


@pytest.mark.parametrize("abroad", [(), ("unshare", "-n"), ("unshare", "-n", "-p", "-f", "--kill-child")], ids=str)
async def test_root_sees_the_managers_of_other_users_and_is_named_to_them(
    abroad: tuple[str, ...], state: Path, tmp_path: Path
) -> None:
    """Root finds a socket in any state folder and network namespace; root and the manager are named to each other."""
    state.chmod(0o777)
    process = await _serving_as_nobody(state / "theirs" / "i-0123456789ab", *abroad)
    try:
        found = control_clients_of_host(tmp_path, only=True)
        (client,) = [client for client in found if client.instance == "0123456789ab" and state in client.path.parents]
        assert client.uid == NOBODY
        answer = await client.ask({"do": "overview", "operator": {"uid": 5}}, 10)
        assert answer is not None
        asked = answer["asked"]
        assert (asked["uid"], asked["user"]) == (0, "root")
        assert asked["pid"] == (0 if "-p" in abroad else os.getpid())  # no process of its namespace
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.parametrize(
    "arguments",
    [["verify", "--control", "nosuch"], ["verify", "--policy", "nosuch"], ["verify", "--policy", "/nosuch.toml"],
     ["verify", "--runtime", "nosuch"], ["verify", "--cis", "--runtime", "nosuch"], ["verify", "--json", "/nosuch/x"],
     ["verify", "--junit", "/"], ["run", "--policy", "nosuch", "x.py"]],
    ids=" ".join,
)  # fmt: skip
def test_an_option_with_a_wrong_value_is_wrong_usage(arguments: list[str], state: Path) -> None:
    """Exit status 2, the option and the value, before anything starts."""
    done = cellblock(*arguments, CELLBLOCK_STATE_DIR=str(state / "s"))
    assert done.returncode == 2, said(done)
    option, value = [each for each in arguments if each != "--cis"][1:3]
    assert f"Invalid value for {option}" in said(done).replace("'", "")
    assert value in said(done)
    assert not (state / "s").exists()


async def test_a_socket_that_another_user_serves_gets_no_request(state: Path) -> None:
    """The process that listens is not one of the file's owner: nothing is sent to it. A link is no socket."""
    folder = instance_folder(state, "0123456789ab")
    folder.mkdir()
    asked = []

    async def overview(request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request)
        return {}

    server = ControlSocket({"overview": overview})
    await server.listen(folder)
    os.chown(folder, NOBODY, NOBODY)
    os.chown(folder / "control.sock", NOBODY, NOBODY)
    (client,) = control_clients_of_host(state, only=True)[:1]
    assert (client.uid, await client.ask({"do": "overview"}, 5), asked) == (NOBODY, None, [])
    await server.close()
    (folder / "control.sock").unlink(missing_ok=True)
    (folder / "control.sock").symlink_to("/run/docker.sock")
    assert [client for client in control_clients_of_host(state, only=True) if state in client.path.parents] == []


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def _flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"[" * 64 * 1024 * 1024)
    with contextlib.suppress(OSError):  # the reader gives up
        await writer.drain()
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _deep(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"[" * 100_000 + b"\n")
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@pytest.mark.parametrize("handler", [_flood, _deep])
async def test_a_hostile_answer_is_no_answer(state: Path, handler: Handler) -> None:
    """An endless line and deep nesting are read in bounds, and the instance counts as silent."""
    folder = instance_folder(state, "0123456789ab")
    folder.mkdir()
    served = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            served.set()

    server = await asyncio.start_unix_server(serve, folder / "control.sock")
    async with asyncio.timeout(60):  # the handler ends with its reader: nothing of it is left for the loop's end
        host = await look(Settings(state_dir=str(state)))
        await served.wait()
    server.close()
    assert "0123456789ab" in host.silent
    assert host.rows == ()


def test_who_asks_is_taken_from_the_kernel() -> None:
    """A user that is neither root nor the manager's own is refused, should it ever reach the socket."""
    left, right = socket.socketpair()
    with left, right:
        assert Peer.of(left).as_dict() == {"uid": 0, "user": "root", "pid": os.getpid()}
        refusal = ControlSocket({})._read(b"{}", Peer(NOBODY, 1))
        assert "may not operate" in refusal["error"]
