"""A connection to servers that are hostile, stopped, or not who they say."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.errors import CellblockError, ServerError, ServerUnavailableError, SettingsError, UntrustedServerError
from orchestrator.limits import MIB
from orchestrator.remote.connection import Connection
from tests.unit.rawserver import RawServer, said


def problem(**fields: object) -> bytes:
    """Return a refusal whose fields have not their form."""
    return said(json.dumps({"code": "store", "message": "full.", **fields}).encode(), "500 Oh")


HOSTILE = {
    "no JSON": said(b"{"),
    "no text": said(b"\xff\xfe"),
    "no object": said(b"[]"),
    "deep": said(b"[" * 1_000_000),
    "compressed": said(gzip.compress(b"{}" + b" " * MIB), "200 OK", "Content-Encoding: gzip"),
    "redirected": said(b'{"a": 1}', "302 Found", "Location: /other"),
    "a deep refusal": said(b"[" * 100_000, "500 Oh"),
    "a list for fields": problem(fields=[1]),
    "a result without form": problem(fields={"result": {}}),
    "faults without form": problem(fields={"faults": [1]}),
    "more than is read": b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (3 * MIB),
    "many headers": said(b"{}", "200 OK", *(f"X-{number}: 1" for number in range(10_000))),
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
}


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE.keys())
async def test_an_answer_without_form_is_an_error_of_the_servers(answer: bytes) -> None:
    """Whatever comes is one typed error, of a message that can be shown."""
    server = RawServer(answer)
    async with server.at() as url:
        connection = Connection(url, "secret", None)
        with pytest.raises(CellblockError) as caught:
            await connection.ask("GET", "/v1/caller", largest=2 * MIB)
        await connection.close()
    assert isinstance(caught.value, ServerError | ServerUnavailableError)
    assert len(str(caught.value)) < 2000
    assert server.heard.count(b"GET ") == 1, "it was redirected, or asked again"


@pytest.mark.parametrize("data", [b"{", b"[]", b"[" * 100_000, b'{"type": "problem"}'], ids=range(4))
async def test_an_event_without_form_is_an_error_of_the_servers(data: bytes) -> None:
    async with RawServer(said(b"data: " + data + b"\n\n")).at() as url:
        connection = Connection(url, None, None)
        with pytest.raises(ServerError):
            async with connection.events("GET", "/v1/events") as events:
                await anext(events)
        await connection.close()


async def test_nothing_of_the_surroundings_changes_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither proxies of the environment nor cookies of the server."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server = RawServer(said(b"{}", "200 OK", "Set-Cookie: a=b"), ends=False)
    async with server.at() as url:
        connection = Connection(url, "secret", None)
        assert [await connection.ask("GET", "/a") for _ in range(2)] == [{}, {}]
        await connection.close()
    assert server.heard.count(b"Bearer secret") == 2
    assert b"ookie" not in server.heard


@pytest.mark.parametrize(
    "address", ["", "host", "http://", "ftp://h/", "http://h:99999999", "http://[h", "http://a:b@h"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    """At once; an address with a user beside a token would be a request with two."""
    with pytest.raises(SettingsError, match="no address"):
        Connection(address, "secret", None)


async def test_a_server_that_takes_nothing_is_given_up(tmp_path: Path) -> None:
    """A stopped server takes nothing from a unix socket: the kernel does not notice, as it does over TCP."""
    async with RawServer().at(tmp_path / "s") as url:
        connection = Connection(url, None, str(tmp_path / "s"), stuck=0.2)
        for sent in (bytes(8 * MIB), _slowly(bytes(MIB), 8, 0.0)):
            with pytest.raises(ServerUnavailableError, match=r"nothing of the request for 0\.2 s"):
                await connection.upload("/v1/f", {}, sent)
        with pytest.raises(ServerUnavailableError):
            await connection.ask("POST", "/v1/f", {"code": "x" * 8 * MIB})
        await connection.close()


async def test_data_that_comes_slowly_is_sent_whole(tmp_path: Path) -> None:
    """Only the server's time counts, not that of the caller's data. Large bytes are sent with their length."""
    server = RawServer(said(b"{}"), ends=False)
    async with server.at(tmp_path / "s") as url:
        connection = Connection(url, None, str(tmp_path / "s"), stuck=0.2)
        assert await connection.upload("/v1/f", {}, _slowly(b"piece", 3, 0.3)) == {}
        assert await connection.upload("/v1/f", {}, bytes(3 * MIB)) == {}
        await connection.close()
    assert f"Content-Length: {3 * MIB}".encode() in server.heard


async def _slowly(piece: bytes, count: int, seconds: float) -> AsyncIterator[bytes]:
    for _ in range(count):
        await asyncio.sleep(seconds)
        yield piece


async def test_a_cancelled_request_leaves_no_connection(tmp_path: Path) -> None:
    server = RawServer(b"HTTP/1.1 200 OK\r\n\r\n{", ends=False)
    async with server.at(tmp_path / "s") as url:
        connection = Connection(url, None, str(tmp_path / "s"))
        asking = asyncio.create_task(connection.ask("GET", "/v1/caller"))
        while not server.heard:
            await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.wait({asking})
        async with asyncio.timeout(10):
            while not server.closed:
                await asyncio.sleep(0.01)
        await connection.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with certificates that nobody has signed: for localhost, for another name, and one that is over."""
    folder = tmp_path_factory.mktemp("tls")
    new = "openssl req -x509 -newkey rsa:2048 -nodes -days 2"
    for name, host in (("right", "localhost"), ("other", "other.example")):
        command = f"{new} -subj /CN={host} -addext subjectAltName=DNS:{host} -keyout {name}.key -out {name}.pem"
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    (folder / "over.key").write_bytes((folder / "right.key").read_bytes())
    again = "openssl x509 -in right.pem -signkey right.key -days -1 -out over.pem"
    subprocess.run(again.split(), cwd=folder, check=True, capture_output=True)
    return folder


def tls(certificates: Path, name: str) -> ssl.SSLContext:
    """Return what a server has."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    return context


@pytest.mark.parametrize(
    ("name", "authority"), [("right", True), ("right", "other"), ("other", "other"), ("over", "over")]
)
@pytest.mark.parametrize("as_context", [False, True], ids=["file", "context"])
async def test_a_server_that_is_not_trusted_hears_nothing(
    certificates: Path, name: str, authority: str | bool, as_context: bool
) -> None:
    """An unknown authority, another name and a certificate that is over are named, before the token is sent."""
    known = str(certificates / f"{authority}.pem") if isinstance(authority, str) else authority
    verify = ssl.create_default_context(cafile=known if isinstance(known, str) else None) if as_context else known
    server = RawServer(said(b"{}"))
    async with server.at(tls(certificates, name)) as url:
        for address in (url, url.replace("https", "HTTPS")):
            connection = Connection(address, "secret", None, verify)
            with pytest.raises(UntrustedServerError, match="certificate"):
                await connection.ask("POST", "/v1/sessions", {"code": "x"})
            await connection.close()
    assert not server.heard


@pytest.mark.parametrize("how", ["file", "context", "unverified"])
async def test_a_server_that_is_trusted_is_asked(certificates: Path, how: str) -> None:
    file = str(certificates / "right.pem")
    verify = {"file": file, "context": ssl.create_default_context(cafile=file), "unverified": False}[how]
    server = RawServer(said(b"{}"))
    async with server.at(tls(certificates, "right")) as url:
        for address in (url, url.replace("https", "HTTPS")):
            connection = Connection(address, "secret", None, verify)  # type: ignore[arg-type]
            assert await connection.ask("GET", "/v1/caller") == {}
            await connection.close()
    assert server.heard.count(b"Bearer secret") == 2
