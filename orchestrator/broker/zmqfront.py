"""ZmqFront: a broker's clients over the five ZMQ sockets of a Jupyter connection file."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jupyter_client.session import DELIM, Session

from orchestrator.broker.broker import Broker
from orchestrator.broker.client import Client
from orchestrator.broker.messages import Channel, JupyterMessage
from orchestrator.broker.zmtpserver import Peer, SocketType, ZmtpServer
from orchestrator.kernel import zmtp

_MOST_REJECTS = 100  # malformed messages of one connection, after which it is closed
_MOST_TOPICS = 100  # of one subscriber; Jupyter's clients have one, which is empty
_SUBSCRIBES = 1.0  # seconds in which a client that waits for the sockets has subscribed; libzmq tries each 0.1 to 0.2 s
_REQUESTS: tuple[Channel, ...] = ("shell", "control", "stdin")


class ZmqFront:
    """Five bound sockets. A client is known by the routing identity that its sockets share.

    Args:
        connection: a connection file's content: "transport", "ip", the five ports, "key" and "signature_scheme".

    Attributes:
        rejected: how many messages were dropped because they were malformed or wrongly signed.

    Raises:
        OSError: an address cannot be bound.
        KeyError: the connection lacks a field.
    """

    def __init__(self, broker: Broker, connection: Mapping[str, Any]) -> None:
        self._broker = broker
        key = connection.get("key", "")
        self._session = Session(
            key=key if isinstance(key, bytes) else str(key).encode(),
            signature_scheme=str(connection.get("signature_scheme", "hmac-sha256")),
            packer="json",
            unpacker="json",
        )
        self.rejected = 0
        self._parent: tuple[Mapping[str, Any], bytes] = ({}, b"{}")
        self._clients: dict[bytes, Client] = {}
        self._routes: dict[tuple[str, bytes], Peer] = {}
        self._servers: dict[str, ZmtpServer] = {}
        # A client that has waited for the sockets reaches each at another moment. Its first cell would be over, and its
        # outputs lost, before it has subscribed.
        self._heard = asyncio.Event()
        self._patience = asyncio.get_running_loop().call_later(_SUBSCRIBES, self._heard.set)
        try:
            for channel in _REQUESTS:
                calls = (partial(call, channel) for call in (self._take, self._greeted, self._gone))
                self._bind(channel, "ROUTER", connection, *calls)
            self._bind("iopub", "XPUB", connection, self._subscribe)
            self._bind("hb", "ROUTER", connection, Peer.send)
        except BaseException:
            self._patience.cancel()
            for server in self._servers.values():
                server.abandon()
            raise
        self._unsubscribe = broker.subscribe(self._publish)

    async def close(self) -> None:
        """Close the sockets, once what was sent has gone out: a second at most."""
        self._unsubscribe()
        self._patience.cancel()
        for server in self._servers.values():
            await server.close()

    def _bind(self, channel: str, kind: SocketType, connection: Mapping[str, Any], *calls: Any) -> None:
        ip, port = str(connection["ip"]), connection[f"{channel}_port"]
        address = Path(f"{ip}-{port}") if connection["transport"] == "ipc" else (ip.replace("*", ""), int(port))
        self._servers[channel] = ZmtpServer(kind, address, *calls)

    # What clients send

    def _take(self, channel: Channel, peer: Peer, frames: list[bytes]) -> None:
        try:
            message = self._parsed(frames)
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            self.rejected += 1
            peer.rejected += 1
            if peer.rejected >= _MOST_REJECTS:
                peer.disconnect()
            return
        peer.trust()
        self._routes[channel, peer.identity] = peer
        client = self._clients.get(peer.identity)
        if client is None:
            client = self._clients[peer.identity] = Client(partial(self._send, peer.identity), self._heard)
            self._broker.add(client)
        self._broker.take(client, channel, message)

    def _parsed(self, frames: list[bytes]) -> JupyterMessage:
        """Check a message's signature, and parse it.

        Raises:
            ValueError, KeyError, TypeError, IndexError, RecursionError: it is malformed, wrongly signed, or came
                before.
        """
        _identities, rest = self._session.feed_identities(frames)
        parsed = self._session.deserialize(rest, content=True)
        header, content, metadata = parsed["header"], parsed["content"], parsed["metadata"]
        if not isinstance(header.get("msg_type"), str) or not isinstance(header.get("msg_id"), str):
            raise ValueError("a header without type or id")
        if not isinstance(content, dict) or not isinstance(metadata, dict):
            raise TypeError("a part that is no object")
        buffers = [bytes(each) for each in parsed["buffers"]]
        return JupyterMessage(header, {}, content, metadata, buffers, sum(map(len, frames)))

    def _greeted(self, channel: Channel, peer: Peer) -> None:
        """Note where questions go to. A stranger who names another's identity does not take its place."""
        self._routes.setdefault((channel, peer.identity), peer)

    def _gone(self, channel: Channel, peer: Peer) -> None:
        """Forget a client once none of its connections is left. What it has asked for goes on."""
        if self._routes.get((channel, peer.identity)) is peer:
            del self._routes[channel, peer.identity]
        if not any((each, peer.identity) in self._routes for each in _REQUESTS):
            client = self._clients.pop(peer.identity, None)
            if client is not None:
                self._broker.remove(client)

    def _subscribe(self, peer: Peer, frames: list[bytes]) -> None:
        """Note what a client subscribes to, and greet it: it knows then that it gets what comes from now on."""
        act, topic = frames[0][:1], frames[0][1:]
        if act == b"\x00" and topic in peer.topics:
            peer.topics.remove(topic)
        elif act == b"\x01" and len(peer.topics) < _MOST_TOPICS:
            peer.topics.append(topic)
            self._heard.set()
            form = {"subscription": topic.decode("utf-8", "replace")}
            peer.send(self._frames([topic], self._broker.maker.make("iopub_welcome", form, {})))

    # What they get

    def _send(self, identity: bytes, channel: Channel, message: JupyterMessage) -> None:
        peer = self._routes.get((channel, identity))
        if peer is not None:
            peer.send(self._frames([], message))

    def _publish(self, message: JupyterMessage) -> None:
        subscribers = self._servers["iopub"].peers
        if not subscribers:
            return
        topic = message.kind.encode()
        data = zmtp.encode(self._frames([topic], message))
        for peer in list(subscribers):
            if any(topic.startswith(prefix) for prefix in peer.topics):
                peer.write(data)

    def _frames(self, route: list[bytes], message: JupyterMessage) -> list[bytes]:
        pack = self._session.pack
        if message.parent is not self._parent[0]:  # one request has many messages
            self._parent = message.parent, pack(message.parent)
        metadata = pack(message.metadata) if message.metadata else b"{}"
        parts = [pack(message.header), self._parent[1], metadata, pack(message.content)]
        return [*route, DELIM, self._session.sign(parts), *parts, *message.buffers]
