"""A proxy for the engine's socket that sees each request, and can drop an answer or act before it."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

Hook = Callable[[int, str], None]
_ID = re.compile(r"^(/v[\d.]+)?|(?<=/containers/)(?!create|json)[^/?]+|(?<=/images/)[^/?]+|\?.*$")


class EngineProxy:
    """Forwards one process's requests to an engine.

    Attributes:
        seen: each request so far, without ids, version and query, such as "POST /containers//start".
        before: called with a request's number, from 0 on, and the request, before it is forwarded.
        after: called with the same when the engine has answered, before the answer is forwarded.
    """

    def __init__(self, engine: str, folder: Path) -> None:
        self._engine = engine.removeprefix("unix://")
        self._losing: list[str] = []
        self._lock = threading.Lock()
        self.url = f"unix://{folder}/proxy.sock"
        self.seen: list[str] = []
        self.before: Hook = lambda _number, _request: None
        self.after: Hook = lambda _number, _request: None

    def lose(self, *requests: str) -> None:
        """Drop the answer to the next request of each given kind, after the engine has carried it out."""
        with self._lock:
            self._losing += requests

    def lost_all(self) -> bool:
        """Whether every answer that should be dropped was dropped."""
        return not self._losing

    def serve(self, client: socket.socket) -> None:
        """Forward the requests of one connection, each on its own connection to the engine."""
        head, body = _read_request(client)
        if not head:
            return
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        request = f"{method} {_ID.sub('', target)}"
        with self._lock:
            number = len(self.seen)
            self.seen.append(request)
        self.before(number, request)
        with socket.socket(socket.AF_UNIX) as engine:
            engine.connect(self._engine)
            lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
            engine.sendall(b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body)
            answered = False
            while piece := engine.recv(65536):
                if not answered:
                    answered = True
                    self.after(number, request)
                    with self._lock:
                        if request in self._losing:
                            self._losing.remove(request)
                            return
                client.sendall(piece)


def _read_request(client: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = client.recv(65536)
        if not piece:
            return b"", b""
        data += piece
    head, body = data.split(b"\r\n\r\n", 1)
    length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
    while length and len(body) < int(length[1]):
        body += client.recv(65536)
    return head, body


@contextlib.contextmanager
def engine_proxy(engine: str, folder: Path) -> Iterator[EngineProxy]:
    """Serve a proxy in ``folder``, whose path must be short."""
    proxy = EngineProxy(engine, folder)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):  # either side has disconnected, as tests want
                proxy.serve(self.request)

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True
        request_queue_size = 64

    with Server(proxy.url.removeprefix("unix://"), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join(10)
