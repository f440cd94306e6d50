"""ZmqFront: a broker's clients over the five ZMQ sockets of a Jupyter connection file."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any

import zmq
from jupyter_client.session import Session

from orchestrator.broker.broker import Broker
from orchestrator.broker.client import Client
from orchestrator.broker.messages import Channel, JupyterMessage
from orchestrator.broker.zmqport import ZmqPort

_MOST_CLIENTS = 1000  # that are remembered; ZMQ does not tell when one goes
_MOST_REJECTS = 100  # malformed messages of one client, after which all of its messages are dropped unread
_REQUESTS: tuple[Channel, ...] = ("shell", "control", "stdin")


class ZmqFront:
    """Five bound sockets.

    Args:
        connection: a connection file's content: "transport", "ip", the five ports, "key", "signature_scheme", and the
            CurveZMQ keys where it has them.

    Attributes:
        rejected: how many messages were dropped because they were malformed or wrongly signed.

    Raises:
        zmq.ZMQError: an address cannot be bound.
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
        self._rejects: OrderedDict[bytes, int] = OrderedDict()
        self._clients: OrderedDict[bytes, Client] = OrderedDict()
        self._removals: set[asyncio.Task[None]] = set()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._ports: dict[str, ZmqPort] = {}
        try:
            for channel in _REQUESTS:
                self._bind(channel, zmq.ROUTER, partial(self._take, channel), connection)
            self._bind("iopub", zmq.XPUB, self._welcome, connection)
            self._bind("hb", zmq.ROUTER, self._beat, connection)
        except BaseException:
            self._close_sockets()
            self._context.term()
            raise
        self._unsubscribe = broker.subscribe(self._publish)

    async def close(self) -> None:
        """Close the sockets, once what was sent has gone out: a second at most."""
        self._unsubscribe()
        self._close_sockets()
        for task in list(self._removals):
            await task
        for client in self._clients.values():
            await self._broker.remove(client)
        await asyncio.to_thread(self._context.term)

    def _bind(self, channel: str, kind: int, take: Any, connection: Mapping[str, Any]) -> None:
        between = "-" if connection["transport"] == "ipc" else ":"
        address = f"{connection['transport']}://{connection['ip']}{between}{connection[f'{channel}_port']}"
        self._ports[channel] = ZmqPort(self._context, kind, address, take, connection)

    def _close_sockets(self) -> None:
        for port in self._ports.values():
            port.close()

    # What clients send

    def _take(self, channel: Channel, frames: list[bytes]) -> None:
        identity = frames[0]
        if self._rejects.get(identity, 0) >= _MOST_REJECTS:
            return
        try:
            message = self._parsed(frames)
        except (ValueError, KeyError, TypeError, RecursionError):
            self._reject(identity)
            return
        self._broker.take(self._client(identity), channel, message)

    def _parsed(self, frames: list[bytes]) -> JupyterMessage:
        """Check a message's signature, and parse it.

        Raises:
            ValueError, KeyError, TypeError, RecursionError: it is malformed, wrongly signed, or came before.
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

    def _reject(self, identity: bytes) -> None:
        self.rejected += 1
        self._rejects[identity] = self._rejects.get(identity, 0) + 1
        if len(self._rejects) > _MOST_CLIENTS:
            self._rejects.popitem(last=False)

    def _client(self, identity: bytes) -> Client:
        client = self._clients.get(identity)
        if client is None:
            client = self._clients[identity] = Client(partial(self._send, identity))
            self._broker.add(client)
            self._forget_clients()
        self._clients.move_to_end(identity)
        return client

    def _forget_clients(self) -> None:
        """Forget those that have asked for nothing for the longest, where there are too many."""
        if len(self._clients) <= _MOST_CLIENTS:
            return
        for identity, client in self._clients.items():
            if client.shell.is_idle and client.control.is_idle:
                del self._clients[identity]
                task = asyncio.get_running_loop().create_task(self._broker.remove(client))
                self._removals.add(task)
                task.add_done_callback(self._removals.discard)
                return

    def _beat(self, frames: list[bytes]) -> None:
        self._ports["hb"].send(frames)

    def _welcome(self, frames: list[bytes]) -> None:
        """Greet a client that subscribes: it knows then that it gets what comes from now on."""
        if frames[0][:1] == b"\x01":
            topic = frames[0][1:]
            form = {"subscription": topic.decode("utf-8", "replace")}
            message = self._broker.maker.make("iopub_welcome", form, {})
            self._ports["iopub"].send(self._frames([topic], message))

    # What they get

    def _send(self, identity: bytes, channel: Channel, message: JupyterMessage) -> None:
        self._ports[channel].send(self._frames([identity], message))

    def _publish(self, message: JupyterMessage) -> None:
        if not self._ports["iopub"].send(self._frames([message.kind.encode()], message)):
            text = "[cellblock] an output was left out: a client that does not read keeps too many waiting\n"
            note = self._broker.maker.make("stream", {"name": "stderr", "text": text}, message.parent)
            self._ports["iopub"].send(self._frames([b"stream"], note))

    def _frames(self, route: list[bytes], message: JupyterMessage) -> list[bytes]:
        form = {
            "header": message.header,
            "parent_header": message.parent,
            "metadata": message.metadata,
            "content": message.content,
        }
        return [*self._session.serialize(form, ident=route), *message.buffers]
