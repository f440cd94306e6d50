"""Who may do what over E2B's wire, and what it answers to requests that no SDK sends."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2b.runningserver import RunningServer, running_server


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server("runc") as running:
        yield running


@pytest.fixture(scope="module")
def tokens(server: RunningServer) -> dict[str, str]:
    """A token of each of two groups."""
    return {group: server.token(group, group) for group in ("alpha", "beta")}


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def sandbox(server: RunningServer, tokens: dict[str, str]) -> Iterator[dict[str, Any]]:
    """A sandbox of the group alpha."""
    key = {"X-API-Key": tokens["alpha"]}
    with httpx.Client(base_url=server.url, timeout=60) as made:
        answer = made.post("/v2/sandboxes", json={"templateID": "base", "timeout": 300}, headers=key)
        assert answer.status_code == 201
        yield answer.json()
        made.delete(f"/sandboxes/{answer.json()['sandboxID']}", headers=key)


def to(sandbox: dict[str, Any], more: dict[str, str] | None = None, port: int = 49983) -> dict[str, str]:
    """Return the headers of a request to a sandbox, without any secret but those in ``more``."""
    return {"E2b-Sandbox-Id": sandbox["sandboxID"], "E2b-Sandbox-Port": str(port), **(more or {})}


def refused(answer: httpx.Response, status: int) -> None:
    """Check an error's shape: E2B's, never problem+json."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["code"] == status
    assert isinstance(answer.json()["message"], str)


def test_health_is_the_servers_own_without_a_sandbox(client: httpx.Client, sandbox: dict[str, Any]) -> None:
    assert client.get("/health").status_code == 200
    access = sandbox["envdAccessToken"]
    assert client.get("/health", headers=to(sandbox, {"X-Access-Token": access})).status_code == 204


def test_no_key_and_a_wrong_key(client: httpx.Client, tokens: dict[str, str]) -> None:
    for headers in ({}, {"X-API-Key": "e2b_00"}, {"X-API-Key": tokens["alpha"][:-1] + "!"}):
        refused(client.get("/v2/sandboxes", headers=headers), 401)
    in_hex = f"e2b_{tokens['alpha'].encode().hex()}"
    assert client.get("/v2/sandboxes", headers={"X-API-Key": in_hex}).status_code == 200
    assert client.get("/v2/sandboxes", headers={"Authorization": f"Bearer {in_hex}"}).status_code == 200


def test_another_groups_sandbox_is_not_there(
    client: httpx.Client, sandbox: dict[str, Any], tokens: dict[str, str]
) -> None:
    """Nor is it for its API key on the data plane."""
    beta, path = {"X-API-Key": tokens["beta"]}, f"/sandboxes/{sandbox['sandboxID']}"
    for method, below in (("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("POST", "/fork"), ("POST", "/snapshots"),
                          ("GET", "/metrics"), ("GET", "/logs")):  # fmt: skip
        refused(client.request(method, path + below, headers=beta), 404)
    refused(client.post(path + "/timeout", json={"timeout": 1}, headers=beta), 404)
    refused(client.post(f"/v2{path}/connect", json={}, headers=beta), 404)
    assert client.get("/v2/sandboxes", headers=beta).json() == []
    refused(client.get("/health", headers=to(sandbox, beta)), 502)
    refused(client.post("/v2/sandboxes", json={"templateID": "x", "volumeMounts": [{}]}, headers=beta), 400)


def test_access_tokens(client: httpx.Client, sandbox: dict[str, Any], tokens: dict[str, str]) -> None:
    """Only that of the sandbox passes; one that looks right for a sandbox that is not there is wrong, too."""
    key, access = {"X-API-Key": tokens["alpha"]}, sandbox["envdAccessToken"]
    other = client.post("/sandboxes", json={"templateID": "base", "timeout": 60}, headers=key).json()
    for headers in (
        to(sandbox),
        to(sandbox, {"X-Access-Token": other["envdAccessToken"]}),
        to(sandbox, {"X-Access-Token": access[:-1]}),
        to(sandbox, {"X-Access-Token": "open." + access.partition(".")[2]}),
        to({"sandboxID": "0" * 32}, {"X-Access-Token": access}),
        to({"sandboxID": "../../etc"}, {"X-Access-Token": access}),
    ):
        for path in ("/health", "/files?path=/etc/hostname"):
            refused(client.get(path, headers=headers), 401)
        refused(client.post("/process.Process/List", json={}, headers=headers), 401)
        refused(client.post("/execute", json={"code": "1"}, headers={**headers, "E2b-Sandbox-Port": "49999"}), 401)
    for name in ("X-Access-Token", "E2B-Traffic-Access-Token"):
        assert client.get("/contexts", headers=to(sandbox, {name: access}, 49999)).status_code == 200
    host = {"Host": f"49983-{sandbox['sandboxID']}.sandboxes.test", "X-Access-Token": access}
    assert client.get("/health", headers=host).status_code == 204
    assert client.delete(f"/sandboxes/{other['sandboxID']}", headers=key).status_code == 204
    refused(client.get("/health", headers=to(other, {"X-Access-Token": other["envdAccessToken"]})), 502)
    refused(client.delete(f"/sandboxes/{other['sandboxID']}", headers=key), 404)


def test_an_access_token_dies_with_the_token_it_was_made_for(server: RunningServer, client: httpx.Client) -> None:
    """The group's other tokens still have the sandbox."""
    token, second = server.token("short", "gamma"), server.token("long", "gamma")
    body = {"templateID": "base", "timeout": 60}
    answer = client.post("/v2/sandboxes", json=body, headers={"X-API-Key": token})
    assert answer.status_code == 201, answer.text
    made = answer.json()
    again = client.post(f"/v2/sandboxes/{made['sandboxID']}/connect", json={}, headers={"X-API-Key": second}).json()
    server.command("token", "revoke", token.split("_")[1])
    time.sleep(1.2)  # a token is looked up once a second
    refused(client.get("/health", headers=to(made, {"X-Access-Token": made["envdAccessToken"]})), 401)
    assert client.get("/health", headers=to(again, {"X-Access-Token": again["envdAccessToken"]})).status_code == 204
    client.delete(f"/sandboxes/{made['sandboxID']}", headers={"X-API-Key": second})


def test_an_upload_with_a_signature_needs_nothing_else(client: httpx.Client, sandbox: dict[str, Any]) -> None:
    raw = f"signed.txt:write::{sandbox['envdAccessToken']}"
    signature = "v1_" + base64.b64encode(hashlib.sha256(raw.encode()).digest()).decode().rstrip("=")
    query = {"path": "signed.txt", "signature": signature}
    assert client.post("/files", params=query, files={"file": ("x", b"signed")}).status_code == 200
    read = client.get("/files?path=signed.txt", headers=to(sandbox, {"X-Access-Token": sandbox["envdAccessToken"]}))
    assert read.content == b"signed"
    refused(client.post("/files", params={**query, "path": "other.txt"}, files={"file": ("x", b"")}), 401)


def test_the_same_idempotency_key_makes_one_sandbox(client: httpx.Client, tokens: dict[str, str]) -> None:
    headers = {"X-API-Key": tokens["alpha"], "Idempotency-Key": "once"}
    body = {"templateID": "base", "timeout": 60}
    made = [client.post("/v2/sandboxes", json=body, headers=headers).json()["sandboxID"] for _ in range(2)]
    assert made[0] == made[1]
    refused(client.post("/v2/sandboxes", json={**body, "timeout": 61}, headers=headers), 400)
    client.delete(f"/sandboxes/{made[0]}", headers=headers)


HOSTILE: list[tuple[str, str, int, bytes, str]] = [
    ("GET", "/nothing", 49983, b"", "application/json"),
    ("GET", "/nothing", 49999, b"", "application/json"),
    ("GET", "/", 8000, b"", "application/json"),
    ("PUT", "/files", 49983, b"", "application/json"),
    ("GET", "/files", 49983, b"", "application/json"),
    ("GET", "/files?path=%00", 49983, b"", "application/json"),
    ("GET", "/files?path=/work", 49983, b"", "application/json"),
    ("GET", "/files?path=/dev/zero", 49983, b"", "application/json"),
    ("POST", "/files?path=x", 49983, b"nonsense", "multipart/form-data; boundary=B"),
    ("POST", "/files?path=x", 49983, b"nonsense", "multipart/form-data"),
    ("POST", "/files?path=/proc/x", 49983, b"a", "application/octet-stream"),
    ("POST", "/execute", 49999, b"{", "application/json"),
    ("POST", "/execute", 49999, b"[" * 100_000, "application/json"),
    ("POST", "/execute", 49999, b'{"code": 5}', "application/json"),
    ("POST", "/execute", 49999, b'{"code": "1", "context_id": "no"}', "application/json"),
    ("POST", "/execute", 49999, b'{"code": "1", "env_vars": {"A": 5}}', "application/json"),
    ("POST", "/contexts", 49999, b'{"language": "r"}', "application/json"),
    ("DELETE", "/contexts/no", 49999, b"", "application/json"),
    ("DELETE", "/contexts/python", 49999, b"", "application/json"),
    ("POST", "/filesystem.Filesystem/Nothing", 49983, b"{}", "application/json"),
    ("POST", "/filesystem.Filesystem/Stat", 49983, b'{"path": 5}', "application/json"),
    ("POST", "/filesystem.Filesystem/Stat", 49983, b'{"path": "\\ud800"}', "application/json"),
    ("POST", "/filesystem.Filesystem/ListDir", 49983, b'{"path": "/", "depth": 1e999}', "application/json"),
    ("POST", "/filesystem.Filesystem/GetWatcherEvents", 49983, b'{"watcherId": "no"}', "application/json"),
    ("POST", "/process.Process/SendSignal", 49983, b'{"process": {"pid": 1}, "signal": 9}', "application/json"),
    ("POST", "/process.Process/SendSignal", 49983, b'{"process": [], "signal": {}}', "application/json"),
    ("POST", "/process.Process/SendInput", 49983, b'{"process": {"pid": 99999999999999999999}}', "application/json"),
    ("POST", "/process.Process/Start", 49983, b"{}", "application/connect+json"),
    ("POST", "/process.Process/Start", 49983, b"\0\xff\xff\xff\xff", "application/connect+json"),
]


@pytest.mark.parametrize(("method", "path", "port", "body", "kind"), HOSTILE)
def test_what_no_client_sends(
    client: httpx.Client, sandbox: dict[str, Any], method: str, path: str, port: int, body: bytes, kind: str
) -> None:
    """It is refused in E2B's shape, and nothing fails."""
    headers = to(sandbox, {"X-Access-Token": sandbox["envdAccessToken"], "Content-Type": kind}, port)
    answer = client.request(method, path, content=body, headers=headers)
    assert 400 <= answer.status_code < 500 or answer.status_code in (501, 502, 507), answer.text
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) >= {"code", "message"}


@pytest.mark.parametrize("code", ["", "   ", "\ud800", "x" * 2_000_000], ids=["empty", "blank", "no text", "long"])
def test_code_that_cannot_run(client: httpx.Client, sandbox: dict[str, Any], code: str) -> None:
    """It ends like any other: with the end of the execution, or it is too large to be read."""
    headers = to(sandbox, {"X-Access-Token": sandbox["envdAccessToken"]}, 49999)
    answer = client.post("/execute", content=json.dumps({"code": code}), headers=headers)
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert lines[-1]["type"] == "end_of_execution"


@pytest.mark.parametrize(
    "message",
    [
        {"process": {"cmd": "/bin/sh", "args": [5]}},
        {"process": {"cmd": ""}},
        {"process": {"cmd": "x\0y"}},
        {"process": {"cmd": "/bin/sh", "envs": {"A=B": "c"}}},
        {"process": {"cmd": "/bin/sh", "cwd": "/nothing"}},
        {"process": {"cmd": "/bin/sh", "args": ["\ud800"]}},
    ],
)
def test_commands_that_cannot_start(client: httpx.Client, sandbox: dict[str, Any], message: dict[str, Any]) -> None:
    """The stream ends with an error of Connect."""
    data = json.dumps(message).encode()
    headers = to(sandbox, {"X-Access-Token": sandbox["envdAccessToken"], "Content-Type": "application/connect+json"})
    answer = client.post("/process.Process/Start", content=struct.pack(">BI", 0, len(data)) + data, headers=headers)
    assert answer.status_code == 200
    flags, length = struct.unpack(">BI", answer.content[:5])
    assert (flags, length) == (2, len(answer.content) - 5)
    assert json.loads(answer.content[5:])["error"]["code"] == "invalid_argument"


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b'{"timeout": -1}', b'{"timeout": 1e999}', b'{"timeout": NaN}', b'{"metadata": {"a": 1}}',
     b'{"envVars": {"": "x"}}', b'{"metadata": {"cellblock.e2b": "x"}}', b'{"templateID": 5}', b'{"autoResume": 5}',
     b'{"timeout": true}']
)  # fmt: skip
def test_sandboxes_that_cannot_be_made(client: httpx.Client, tokens: dict[str, str], body: bytes) -> None:
    refused(client.post("/v2/sandboxes", content=body, headers={"X-API-Key": tokens["beta"]}), 400)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v2/sandboxes?limit=0", 400), ("GET", "/v2/sandboxes?nextToken=x", 400),
     ("GET", "/v2/sandboxes?startedAfter=x", 400), ("PATCH", "/v2/sandboxes", 405), ("GET", "/sandboxes/a/b", 404),
     ("POST", "/v3/templates", 400), ("GET", "/templates", 400), ("GET", "/volumes", 400), ("GET", "/secrets", 400),
     ("DELETE", "/templates/none", 404), ("PUT", "/sandboxes/a/network", 400), ("GET", "/sandboxes/%00", 404)]
)  # fmt: skip
def test_the_rest_of_the_control_plane(
    client: httpx.Client, tokens: dict[str, str], method: str, path: str, status: int
) -> None:
    refused(client.request(method, path, headers={"X-API-Key": tokens["alpha"]}), status)
