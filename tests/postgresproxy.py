"""A relay in front of PostgreSQL: it counts round trips, delays them, loses answers and stands still."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Literal
from urllib.parse import parse_qs, urlsplit

Way = Literal["both", "questions", "answers"]
_QUESTIONS = b"SQ"  # Sync and Query: the client waits for an answer after each


class PostgresProxy:
    """Relays connections until it is closed.

    Attributes:
        url: where SQLAlchemy finds the relay.
        round_trips: how many questions came so far.
        port: where it listens.
        delay_s: how long each question is on its way, and each answer.
        lose_next: end the connection in place of the next answer.
        freeze_after: how many more answers pass until ``freeze``; None: it is not to freeze.
    """

    def __init__(self, url: str) -> None:
        self._target = url
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"postgresql+psycopg://tests@127.0.0.1:{self.port}/postgres?sslmode=disable"
        self.round_trips = 0
        self.delay_s = 0.0
        self.lose_next = False
        self.freeze_after: int | None = None
        self._asks, self._answers = threading.Event(), threading.Event()
        self.thaw()
        self._closed = False
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._made: list[tuple[socket.socket, socket.socket]] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def is_frozen(self) -> bool:
        return not self._asks.is_set() or not self._answers.is_set()

    def freeze(self, way: Way = "both") -> None:
        """Relay nothing this way until ``thaw``; connections stay open, and new ones are accepted."""
        if way != "answers":
            self._asks.clear()
        if way != "questions":
            self._answers.clear()

    def thaw(self) -> None:
        """Relay again, what was held first."""
        self._asks.set()
        self._answers.set()

    def cut(self) -> None:
        """End all connections, as a server does that is restarted."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            _end(*pair)

    def close(self) -> None:
        """End."""
        self._closed = True
        _end(self._listener)
        self.thaw()
        self.cut()
        for thread in self._threads:
            thread.join(10)
        for end in (self._listener, *(end for pair in self._made for end in pair)):
            end.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                server = self._connect()
            except OSError:  # it is being restarted
                client.close()
                continue
            self._pairs.append((client, server))
            self._made.append((client, server))
            for work in (self._ask, self._answer):
                self._threads.append(threading.Thread(target=work, args=(client, server), daemon=True))
                self._threads[-1].start()

    def _connect(self) -> socket.socket:
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(f"{parse_qs(urlsplit(self._target).query)['host'][0]}/.s.PGSQL.5432")
        except OSError:
            server.close()
            raise
        return server

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        head = True
        rest = b""
        for piece in self._pieces(client, server):
            rest += piece
            while len(rest) >= 5:
                size = int.from_bytes(rest[:4] if head else rest[1:5], "big") + (not head)
                if len(rest) < size:
                    break
                self.round_trips += not head and rest[0] in _QUESTIONS
                head, rest = False, rest[size:]
            self._pass_on(piece, server, self._asks)

    def _answer(self, client: socket.socket, server: socket.socket) -> None:
        for piece in self._pieces(server, client):
            if self.lose_next:
                self.lose_next = False
                _end(client, server)
                return
            self._pass_on(piece, client, self._answers)
            if self.freeze_after is not None:
                self.freeze_after -= 1
                if not self.freeze_after:
                    self.freeze_after = None
                    self.freeze()

    def _pieces(self, from_: socket.socket, to: socket.socket) -> Iterator[bytes]:
        with contextlib.suppress(OSError):
            while piece := from_.recv(256 * 1024):
                yield piece
        with contextlib.suppress(OSError):
            to.shutdown(socket.SHUT_RDWR)

    def _pass_on(self, piece: bytes, to: socket.socket, goes: threading.Event) -> None:
        if self.delay_s:
            time.sleep(self.delay_s)
        goes.wait()
        with contextlib.suppress(OSError):
            to.sendall(piece)


def _end(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
