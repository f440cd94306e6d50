"""The pure parts of E2B's wire: envelopes, lines, errors, entries, pages, changes of folders, and access tokens."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.errors import (
    FileTransferError,
    InvalidInputError,
    SessionEndedError,
    UnauthorizedError,
    UnknownSessionError,
)
from orchestrator.outcome import Outcome
from orchestrator.output.commandresult import CommandFinished, CommandOutput, CommandResult
from orchestrator.output.events import (
    ClearOutput,
    DisplayData,
    ErrorOutput,
    Event,
    ExecuteResult,
    ExecutionResult,
    OutputDropped,
    StreamOutput,
)
from orchestrator.output.fileinfo import FileInfo
from orchestrator.output.result import Evidence
from orchestrator.server.e2b.accesskeys import AccessKeys, token_in
from orchestrator.server.e2b.addresses import address_of, is_control
from orchestrator.server.e2b.connectwire import STATUS, Envelopes, envelope, last_envelope
from orchestrator.server.e2b.e2berrors import (
    Refusal,
    connect_error,
    control_error,
    data_error,
    gone,
    not_supported,
    not_there,
    port_closed,
    timed_out,
)
from orchestrator.server.e2b.fileentries import entry, inside
from orchestrator.server.e2b.liveprocesses import told_of
from orchestrator.server.e2b.multipartfiles import MultipartFiles
from orchestrator.server.e2b.resultlines import END, ending, line_of
from orchestrator.server.e2b.sandboxes import Mark
from orchestrator.server.e2b.sandboxforms import page
from orchestrator.server.e2b.watching import changes

RESULT = ExecutionResult(
    status="ok", outcome=Outcome.OK, outputs=(), error=None, msg_id="m", execution_count=5, duration_s=1.0,
    truncated=None, kernel_state="idle", runtime="runc",
)  # fmt: skip
FILE = FileInfo("f", "/home/user/f", "file", 3, 1.5, 0o644)


def without_time(line: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if line is None else {name: value for name, value in line.items() if name != "timestamp"}


def test_envelopes_come_in_pieces_of_any_size() -> None:
    """Each message is told once it is complete; the end of the stream is none."""
    wire = envelope({"a": 1}) + envelope({"b": 2}) + last_envelope()
    for size in (1, 3, 1000):
        envelopes = Envelopes()
        found = [message for at in range(0, len(wire), size) for message in envelopes.feed(wire[at : at + size])]
        assert found == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize(
    "wire", [struct.pack(">BI", 1, 2) + b"{}", struct.pack(">BI", 0, 2**31), struct.pack(">BI", 0, 2) + b"[]",
             struct.pack(">BI", 0, 1) + b"{"]
)  # fmt: skip
def test_malformed_envelopes_are_refused(wire: bytes) -> None:
    """Compressed, too long, or no object."""
    with pytest.raises(InvalidInputError):
        Envelopes().feed(wire)


LINES: list[tuple[Event, dict[str, Any] | None]] = [
    (StreamOutput("stdout", "a\n"), {"type": "stdout", "text": "a\n"}),
    (StreamOutput("stderr", "b"), {"type": "stderr", "text": "b"}),
    (ExecuteResult({"text/plain": "'quoted'"}), {"type": "result", "text": "quoted", "is_main_result": True}),
    (ExecuteResult({"text/plain": "'"}), {"type": "result", "text": "'", "is_main_result": True}),
    (
        DisplayData({"image/png": "cG5n", "text/html": "<b>", "application/x-own": 1}),
        {"type": "result", "png": "cG5n", "html": "<b>", "extra": {"application/x-own": 1}, "is_main_result": False},
    ),
    (
        DisplayData({"application/vnd.cellblock.e2b-data+json": {"a": [1]}}),
        {"type": "result", "data": {"a": [1]}, "is_main_result": False},
    ),
    (ErrorOutput("E", "v", ("t", "u")), {"type": "error", "name": "E", "value": "v", "traceback": "t\nu"}),
    (
        OutputDropped(7, 1),
        {"type": "stderr", "text": "[Cellblock left out 7 bytes of output: it exceeds the limit.]\n"},
    ),
    (ClearOutput(False), None),
]


@pytest.mark.parametrize(("event", "line"), LINES)
def test_the_line_of_each_event(event: Event, line: dict[str, Any] | None) -> None:
    assert without_time(line_of(event)) == line


def test_the_end_of_a_cell() -> None:
    """Its number, and an error that no output told."""
    assert ending(RESULT, None) == [
        {"type": "number_of_executions", "execution_count": 5},
        END,
    ]
    died = replace(RESULT, status="error", error=ErrorOutput("KernelDied", "oom"), execution_count=None)
    assert ending(died, None)[0]["name"] == "KernelDied"
    assert [line.get("name") for line in ending(RESULT, ErrorOutput("Shown", "v"))] == ["Shown", None, None]
    slow = replace(RESULT, outcome=Outcome.TIMEOUT, duration_s=30.0)
    told = ending(slow, ErrorOutput("KeyboardInterrupt", "", ("t",)))[0]
    assert (told["name"], "30 s" in told["value"], told["traceback"]) == ("TimeoutError", True, "t")


ERRORS: list[tuple[Refusal, int, int, str]] = [
    (gone("s"), 404, 502, "unavailable"),
    (SessionEndedError("x", reason="r"), 404, 502, "unavailable"),
    (UnknownSessionError("x", session_id="s"), 404, 502, "unavailable"),
    (port_closed("s", 80), 502, 502, "unavailable"),
    (not_supported("x"), 400, 400, "unimplemented"),
    (not_there("x"), 404, 404, "not_found"),
    (timed_out(), 504, 504, "deadline_exceeded"),
    (InvalidInputError("x"), 400, 400, "invalid_argument"),
    (UnauthorizedError("x"), 401, 401, "unauthenticated"),
    (FileTransferError("x", path="p", fault="missing"), 404, 404, "not_found"),
    (FileTransferError("x", path="p", fault="exists"), 409, 400, "already_exists"),
    (FileTransferError("x", path="p", fault="full"), 409, 507, "resource_exhausted"),
    (FileTransferError("x", path="p", fault="permission"), 403, 403, "permission_denied"),
    (FileTransferError("x", path="p", fault="is_folder"), 409, 400, "invalid_argument"),
]


@pytest.mark.parametrize(("error", "control", "data", "code"), ERRORS)
def test_each_error_on_each_plane(error: Refusal, control: int, data: int, code: str) -> None:
    """A status of HTTP on two planes, and a code of Connect that has a status."""
    status, form = control_error(error)
    assert (status, form["code"]) == (control, control)
    status, form = data_error(error)
    assert (status, form["code"]) == (data, data)
    assert connect_error(error)[0] == code
    assert code in STATUS


def test_a_sandbox_that_is_gone_is_said_in_the_words_that_clients_look_for() -> None:
    assert "was not found" in data_error(gone("s"))[1]["message"]
    assert "port is not open" in data_error(port_closed("s", 80))[1]["message"]


@pytest.mark.parametrize(
    ("path", "meant"),
    [("a", "/home/user/a"), ("/tmp/a", "/tmp/a"), ("~", "/home/user"), ("~/a", "/home/user/a"), ("", "/home/user"),
     (".", "/home/user"), ("a~", "/home/user/a~")],
)  # fmt: skip
def test_what_a_path_means(path: str, meant: str) -> None:
    assert inside(path) == meant


def test_entries() -> None:
    """A file, and a link with the absolute path that it leads to. A time beyond all bounds is no error."""
    form = entry(FILE)
    assert (form["type"], form["size"], form["permissions"]) == ("FILE_TYPE_FILE", "3", "-rw-r--r--")
    assert form["modifiedTime"] == "1970-01-01T00:00:01.500000Z"
    link = entry(FileInfo("l", "/home/user/a/l", "link", 1, 9e18, 0o777, "../f"))
    assert (link["symlinkTarget"], link["isSymlink"], link["permissions"]) == ("/home/user/f", True, "lrwxrwxrwx")


def test_changes_of_a_folder() -> None:
    before = {"gone": ("file", 1, 1.0, 0o644), "same": ("file", 1, 1.0, 0o644), "mode": ("file", 1, 1.0, 0o644),
              "text": ("file", 1, 1.0, 0o644)}  # fmt: skip
    now = {"same": ("file", 1, 1.0, 0o644), "mode": ("file", 1, 1.0, 0o600), "text": ("file", 2, 1.0, 0o644),
           "dir": ("dir", 0, 1.0, 0o755), "new": ("file", 0, 1.0, 0o644)}  # fmt: skip
    found = changes(before, now)  # type: ignore[arg-type]
    assert [(kind.removeprefix("EVENT_TYPE_"), name) for kind, name in found] == [
        ("REMOVE", "gone"), ("CHMOD", "mode"), ("WRITE", "text"), ("CREATE", "dir"), ("CREATE", "new"),
        ("CHMOD", "new"), ("WRITE", "new"),
    ]  # fmt: skip


@pytest.mark.parametrize(("newest_first", "names"), [(True, "edcba"), (False, "abcde")])
def test_pages(newest_first: bool, names: str) -> None:
    """All rows come once, in order, also those that began at the same moment."""
    rows = [(name, SimpleNamespace(created_at=float(at // 2), session_id=name)) for at, name in enumerate("abcde")]
    seen, token = "", ""
    while True:
        chosen, token = page(rows, "2", token, newest_first=newest_first)
        seen += "".join(name for name, _ in chosen)
        if not token:
            break
    assert seen == names


@pytest.mark.parametrize(("limit", "token"), [("0", ""), ("x", ""), ("99999", ""), ("", "!!"), ("", "YQ==")])
def test_pages_that_cannot_be_had(limit: str, token: str) -> None:
    with pytest.raises(InvalidInputError):
        page([], limit, token, newest_first=True)


def test_output_and_end_of_a_command() -> None:
    assert told_of(CommandOutput("stderr", b"x"), is_terminal=False) == {"data": {"stderr": "eA=="}}
    assert told_of(CommandOutput("stdout", b"x"), is_terminal=True) == {"data": {"pty": "eA=="}}
    assert list(told_of(OutputDropped(7, 1), is_terminal=False)["data"]) == ["stderr"]
    result = CommandResult(1, ("a",), False, Outcome.ERROR, 3, b"", b"", 1.0, None, "idle", "runc", Evidence())
    told = told_of(CommandFinished(result), is_terminal=False)
    assert told == {"end": {"exitCode": 3, "exited": True, "status": "exit status 3", "error": "exit status 3"}}


def test_the_mark_of_a_session() -> None:
    """It is kept in one label, and no client's metadata can pose as it."""
    mark = Mark("base", resumes=True)
    labels = mark.on({"a": "b"})
    assert Mark.of(SimpleNamespace(labels=labels)) == mark  # type: ignore[arg-type]
    assert Mark.of(SimpleNamespace(labels={})) == Mark()  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        mark.on(labels)


@pytest.mark.parametrize(
    ("headers", "path", "address"),
    [
        ({"e2b-sandbox-id": "a", "e2b-sandbox-port": "49999"}, "/x", ("a", 49999)),
        ({"e2b-sandbox-id": "a"}, "/health", ("a", 49983)),
        ({"e2b-sandbox-id": "a", "e2b-sandbox-port": "-1"}, "/x", ("a", 0)),
        ({"host": f"49983-{'0' * 32}.sandbox.host:80"}, "/x", ("0" * 32, 49983)),
        ({"host": "localhost"}, "/health", None),
        ({}, "/files", None),
    ],
)
def test_which_sandbox_a_request_is_for(headers: dict[str, str], path: str, address: tuple[str, int] | None) -> None:
    scope = {
        "path": path,
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    assert address_of(scope) == address


def test_paths_of_the_control_plane() -> None:
    assert all(map(is_control, ("/sandboxes", "/v2/sandboxes/a/connect", "/snapshots", "/v3/templates")))
    assert not any(map(is_control, ("/v1/sessions", "/sandboxesx", "/health", "/v1/sandboxes")))


async def test_access_tokens(tmp_path: Path) -> None:
    """They are for one sandbox and one token, outlive the process, and nothing else passes."""
    keys = AccessKeys(tmp_path)
    await keys.load()
    access = keys.issue("sandbox", "0123")
    again = AccessKeys(tmp_path)
    await again.load()
    assert again.token_id("sandbox", access) == "0123"
    assert again.token_id("sandbox", keys.issue("sandbox", "")) == ""
    assert (tmp_path / "e2b.key").stat().st_mode & 0o077 == 0
    mac = access.partition(".")[2]
    for wrong in ("", "x", access[:-1], access + "0", f"4567.{mac}", f"open.{mac}", "é", f".{mac}"):
        with pytest.raises(UnauthorizedError):
            again.token_id("sandbox", wrong)
    with pytest.raises(UnauthorizedError):
        again.token_id("other", access)


async def test_signatures(tmp_path: Path) -> None:
    keys = AccessKeys(tmp_path)
    await keys.load()
    access = keys.issue("sandbox", "t")

    def signature(*parts: str) -> str:
        digest = hashlib.sha256(":".join(parts).encode()).digest()
        return "v1_" + base64.b64encode(digest).decode().rstrip("=")

    later, earlier = str(int(time.time()) + 60), str(int(time.time()) - 60)
    assert keys.signer(signature("p", "read", "", access), "p", "read", "", "") == ("sandbox", "t")
    assert keys.signer(signature("p", "read", "u", access, later), "p", "read", "u", later) == ("sandbox", "t")
    for wrong in (("p", "write", "", ""), ("q", "read", "", ""), ("p", "read", "", later), ("p", "read", "root", "")):
        with pytest.raises(UnauthorizedError):
            keys.signer(signature("p", "read", "", access), *wrong)
    with pytest.raises(UnauthorizedError, match=re.escape("signature is already expired")):
        keys.signer(signature("p", "read", "", access, earlier), "p", "read", "", earlier)


def test_api_keys_in_hex() -> None:
    """For clients that take only keys of this form."""
    token = "cb_0123456789abcdef_secret"  # noqa: S105
    assert token_in(f"e2b_{token.encode().hex()}") == token_in(token) == token
    assert token_in("e2b_zz") == "e2b_zz"


async def test_files_of_a_multipart_body_in_pieces_of_any_size() -> None:
    body = (
        b'--B\r\nContent-Disposition: form-data; name="file"; filename="a/\xc3\xa9.txt"\r\n\r\none\r\n--B\r\n'
        b'Content-Disposition: form-data; name="other"\r\n\r\nno\r\n--B\r\n'
        b'Content-Disposition: form-data; name="file"; filename="b"\r\nContent-Type: x/y\r\n\r\n\r\n--B--\r\n'
    )
    for size in (1, 7, 1000):
        found: list[tuple[bytes, bytes]] = []
        async for kind, data in MultipartFiles("multipart/form-data; boundary=B", pieces(body, size)).steps():
            if kind == "begin":
                found.append((data, b""))
            elif kind == "data":
                found[-1] = (found[-1][0], found[-1][1] + data)
        assert found == [("a/é.txt".encode(), b"one"), (b"b", b"")]


@pytest.mark.parametrize("body", [b"nonsense", b"--B\r\nContent-Disp", b'--B\r\nX: "\r\n\r\nabc'])
async def test_malformed_multipart_bodies_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidInputError):
        [step async for step in MultipartFiles("multipart/form-data; boundary=B", pieces(body, 100)).steps()]
    with pytest.raises(InvalidInputError):
        MultipartFiles("text/plain", pieces(body, 100))


async def pieces(body: bytes, size: int) -> AsyncGenerator[bytes, None]:
    for at in range(0, len(body), size):
        yield body[at : at + size]


def test_lines_are_json_in_ascii() -> None:
    """Also for what has no form in UTF-8."""
    from orchestrator.server.answers import dumps

    assert json.loads(dumps(line_of(StreamOutput("stdout", "\ud800")))) is not None
