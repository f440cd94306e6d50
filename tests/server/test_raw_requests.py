"""What no HTTP library sends, to the server's own socket: requests that a proxy in front may read in another way."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator

import pytest

from tests.server.conftest import Server, serving

HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"
GET = b"GET /v1/caller HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/sessions/x/execute HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"
AMBIGUOUS = {
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: %d\r\n\r\n{}" % (2 + len(HIDDEN)) + HIDDEN,
    "one length twice": POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}" + HIDDEN,
    "a list of lengths": POST + b"Content-Length: 2, 2\r\n\r\n{}" + HIDDEN,
    "a length, and chunks": CHUNKED + b"Content-Length: %d\r\n\r\n0\r\n\r\n" % (5 + len(HIDDEN)) + HIDDEN,
    "chunks are not last": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + HIDDEN,
    "an unknown encoding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a vertical tab": POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a sign": POST + b"Content-Length: +2\r\n\r\n{}" + HIDDEN,
    "hex": POST + b"Content-Length: 0x2\r\n\r\n{}" + HIDDEN,
    "a length beyond 64 bits": POST + b"Content-Length: 99999999999999999999999\r\n\r\n{}" + HIDDEN,
    "a folded header": GET + b"X: a\r\n b\r\n\r\n" + HIDDEN,
    "a folded encoding": POST + b"Transfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + HIDDEN,
    "bare line feeds": (POST + b"Content-Length: 2\r\n\r\n{}").replace(b"\r\n", b"\n") + HIDDEN,
    "bare line feeds in chunks": CHUNKED + b"\r\n2\n{}\n0\n\n" + HIDDEN,
    "bare carriage returns": GET.replace(b"\r\n", b"\r") + b"\r\n" + HIDDEN,
    "a zero byte": GET + b"X: a\0b\r\n\r\n" + HIDDEN,
    "two hosts": GET + b"Host: other\r\n\r\n" + HIDDEN,
    "a chunk beyond 64 bits": CHUNKED + b"\r\nffffffffffffffffff\r\n{}\r\n0\r\n\r\n" + HIDDEN,
    "a chunk of less than nothing": CHUNKED + b"\r\n-2\r\n{}\r\n0\r\n\r\n" + HIDDEN,
    "a chunk longer than it says": CHUNKED + b"\r\n1\r\n{}\r\n0\r\n\r\n" + HIDDEN,
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("raw"), tokens=1, CELLBLOCK_WARM_KERNELS="0") as server:
        yield server


@pytest.fixture(scope="module")
def token(guarded: Server) -> bytes:
    return guarded.token("raw").encode()


def connected(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def exchanged(server: Server, *data: bytes) -> list[int]:
    """Send bytes, and return the status of each answer once the server has closed the connection."""
    received = b""
    with connected(server) as connection:
        for each in data:
            connection.sendall(each)
        try:
            while piece := connection.recv(65536):
                received += piece
        except ConnectionResetError:
            pass
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_an_ambiguous_request_is_refused_and_ends_its_connection(guarded: Server, name: str) -> None:
    """One status of 400, and nothing of what follows is read."""
    assert exchanged(guarded, AMBIGUOUS[name]) == [400]
    assert "/hidden" not in guarded.log.read_text()


def test_pipelined_requests_have_answers_in_their_order_and_callers_of_their_own(guarded: Server, token: bytes) -> None:
    last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert exchanged(guarded, GET + b"X-API-Key: " + token + b"\r\n\r\n" + GET + b"\r\n" + last) == [200, 401, 200]


def test_a_trailer_is_no_header(guarded: Server, token: bytes) -> None:
    """A proxy in front that sets or removes headers sees no trailers."""
    body = b"\r\n2\r\n{}\r\n0\r\nX-API-Key: " + token + b"\r\n\r\n"
    assert exchanged(guarded, CHUNKED + body) == [401]


@pytest.mark.parametrize("request_line", [b"GET /health HTTP/1.1\r\n", b"POST /v1/sessions HTTP/1.1\r\n"])
@pytest.mark.parametrize("flood", [b"0\r\n" + b"a:b\r\n" * 1000, b"0\r\na:" + b"b" * 5000, b"2;" + b"x" * 5000])
def test_what_surrounds_a_body_is_bounded(guarded: Server, request_line: bytes, flood: bytes) -> None:
    """Trailers, one endless trailer, and the extensions of a chunk: the connection ends, and no memory is kept."""
    with connected(guarded) as connection:
        connection.sendall(request_line + b"Host: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n" + flood)
        with pytest.raises(OSError):
            for _ in range(4000):
                connection.sendall(flood.partition(b"\r\n")[2] or b"x" * 5000)


async def test_an_answered_request_that_never_ends_does_not_hold_its_connection(guarded: Server) -> None:
    """Nobody needs a token for that, and there are only so many connections."""
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    stuck = [
        (head + b"Content-Length: 9\r\n\r\n", b"x"),
        (head + b"Transfer-Encoding: chunked\r\n\r\n", b"2\r\nx"),
        (head + b"\r\n" + head,),
    ]
    found = await asyncio.gather(*(asyncio.to_thread(exchanged_slowly, guarded, *data) for data in stuck))
    assert found == [[200], [200], [200]]


def exchanged_slowly(server: Server, first: bytes, *more: bytes) -> list[int]:
    """Send bytes, and more after their answer. Return the statuses once the server has closed the connection."""
    with connected(server) as connection:
        connection.sendall(first)
        received = connection.recv(65536)
        for each in more:
            connection.sendall(each)
        while piece := connection.recv(65536):
            received += piece
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]
