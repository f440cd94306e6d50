"""The host's end against a kernel that is a raw libzmq peer: genuine, forged and malformed messages."""

from __future__ import annotations

import asyncio
import json
import pickle
import random
import struct
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio
from jupyter_client.session import DELIM, Session

from orchestrator.isolation.measure import quantile
from orchestrator.kernel.channel import Message
from orchestrator.kernel.endpoint import Endpoint
from orchestrator.kernel.guard import Guard
from orchestrator.kernel.kernelclient import KernelClient
from orchestrator.kernel.wire import RawMessage, Wire


@dataclass
class Wired:
    """A client, and the kernel's side of its wire."""

    host: Wire
    client: KernelClient
    kernel: Session
    iopub: zmq.asyncio.Socket
    guard: Guard
    got: list[Message]
    request: str

    async def publish(self, frames: list[bytes]) -> None:
        await self.iopub.send_multipart(frames)

    async def settle(self) -> None:
        """Publish one genuine message and wait until it is there: whatever came before it was handled."""
        marker = len(self.got)
        await self.publish(self.genuine("settled", {}))
        async with asyncio.timeout(30):
            while not any(message.kind == "settled" for message in self.got[marker:]):
                await asyncio.sleep(0.005)
        self.got.pop()

    def genuine(self, kind: str, content: dict[str, Any]) -> list[bytes]:
        message = self.kernel.msg(kind, content, parent={"msg_id": self.request})
        return [b"topic", *self.kernel.serialize(message)]

    def signed(self, header: bytes, parent: bytes, metadata: bytes, content: bytes) -> list[bytes]:
        parts = [header, parent, metadata, content]
        return [b"topic", DELIM, self.kernel.sign(parts), *parts]


@pytest.fixture
async def wire() -> AsyncIterator[Wired]:
    folder = Path("/tmp") / f"cbc-{random.randrange(10**9)}"  # noqa: S311 - a short path
    endpoint, guard = Endpoint.create(folder, 2**20), Guard(2**20)
    host = Wire(endpoint.key, guard)
    client = KernelClient(host)
    guard.listen(endpoint, host.receive)
    kernel_context = zmq.asyncio.Context()
    sockets = {}
    for channel, kind in (("shell", zmq.ROUTER), ("control", zmq.ROUTER), ("iopub", zmq.XPUB)):
        sockets[channel] = kernel_context.socket(kind)
        sockets[channel].sndhwm = 0  # nothing of the flood is dropped on this side
        sockets[channel].connect(f"ipc://{endpoint.wire_path(channel)}")
    await asyncio.wait_for(sockets["iopub"].recv(), 5)  # the subscription is in place
    got: list[Message] = []
    request = client.send("shell", "execute_request", {"code": "1"}, got.append)
    yield Wired(host, client, Session(key=endpoint.key), sockets["iopub"], guard, got, request)
    host.close()
    guard.disconnect("the test is over")
    kernel_context.destroy(linger=0)
    endpoint.remove()


async def test_a_genuine_message_arrives_once(wire: Wired) -> None:
    """Kind, content and buffers reach the handler of the request that they belong to."""
    await wire.publish([*wire.genuine("stream", {"name": "stdout", "text": "x"}), b"buffer"])
    await wire.settle()
    assert [(m.kind, m.content, list(m.buffers)) for m in wire.got] == [
        ("stream", {"name": "stdout", "text": "x"}, [b"buffer"])
    ]
    assert wire.host.rejected == 0


def packed(frames: list[bytes]) -> bytes:
    return struct.pack(f">H{len(frames)}I", len(frames), *map(len, frames)) + b"".join(frames)


async def test_a_message_in_one_frame_is_as_good(wire: Wired) -> None:
    """The kernel's main thread sends messages in this form, so that no part of one can be missing."""
    whole = [*wire.genuine("stream", {"name": "stdout", "text": "x"}), b"buffer", b""]
    await wire.publish([packed(whole)])
    await wire.settle()
    assert [(m.kind, m.content, list(m.buffers)) for m in wire.got] == [
        ("stream", {"name": "stdout", "text": "x"}, [b"buffer", b""])
    ]
    assert wire.host.rejected == 0


async def test_several_messages_in_one_frame_come_in_order(wire: Wired) -> None:
    """The first bytes that are no message end the frame; the messages before them count."""
    whole = [packed(wire.genuine("stream", {"name": "stdout", "text": str(number)})) for number in range(50)]
    await wire.publish([b"".join(whole)])
    await wire.publish([whole[0] + b"no message" + whole[1]])
    await wire.settle()
    assert [message.content["text"] for message in wire.got] == [*map(str, range(50)), "0"]
    assert wire.host.rejected == 1


async def test_one_frame_that_is_no_message_is_rejected(wire: Wired) -> None:
    """Wherever it is truncated, whatever sizes it names, and however often it is packed."""
    whole = packed(wire.genuine("stream", {"name": "stdout", "text": "x"}))
    wrong = [whole[:end] for end in range(len(whole))] + [packed([whole]), bytes(9), b"\xff" * 2000]
    for position in range(whole[1] * 4 + 2):
        changed = bytearray(whole)
        changed[position] ^= 0x81
        wrong.append(bytes(changed))
    for frame in wrong:
        await wire.publish([frame])
    await wire.settle()
    assert wire.got == []
    assert wire.host.rejected >= len(wrong)


async def test_messages_of_unknown_requests_are_dropped(wire: Wired) -> None:
    """A message for a request that was never sent, or is forgotten, does not count as rejected."""
    wire_message = wire.kernel.msg("status", {"execution_state": "idle"}, parent={"msg_id": "forged"})
    await wire.publish([b"t", *wire.kernel.serialize(wire_message)])
    await wire.settle()
    assert wire.got == []


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b"[]", b"null", b"1", b'"text"', b"", b"{", b"\xff\xfe",
        pickle.dumps({"name": "stdout"}),
    ],
)  # fmt: skip
async def test_malformed_content_is_rejected_and_counted(wire: Wired, content: bytes) -> None:
    """Signed nonsense is dropped, and the next genuine message still arrives: the reader lives."""
    header = json.dumps({"msg_type": "stream", "msg_id": "x"}).encode()
    parent = json.dumps({"msg_id": wire.request}).encode()
    await wire.publish(wire.signed(header, parent, b"{}", content))
    await wire.settle()
    assert wire.got == []
    assert wire.host.rejected == 1


async def test_bad_signatures_and_frame_counts_are_rejected(wire: Wired) -> None:
    """A wrong key, no delimiter, and too few frames: dropped, each counted."""
    forged = Session(key=b"another key").serialize(wire.kernel.msg("stream", {}, parent={"msg_id": wire.request}))
    for frames in ([b"t", *forged], [b"t"], [b"t", DELIM], [b"t", DELIM, b"", b"{}"], [b"t", b"{}", b"{}"]):
        await wire.publish(frames)
    await wire.settle()
    assert wire.got == []
    assert wire.host.rejected == 5


@pytest.mark.parametrize("header", [b'{"msg_type": 5}', b"{}", b'{"msg_type": null}', b'{"msg_type": ["stream"]}'])
async def test_headers_of_the_wrong_shape_are_rejected(wire: Wired, header: bytes) -> None:
    """A message whose type is no text is dropped."""
    await wire.publish(wire.signed(header, json.dumps({"msg_id": wire.request}).encode(), b"{}", b"{}"))
    await wire.settle()
    assert wire.host.rejected == 1


async def test_random_frames_never_end_the_reader(wire: Wired) -> None:
    """900 seeded mutations of genuine messages: no exception escapes, and the channel works after."""
    chance = random.Random(11)  # noqa: S311 - a repeatable test
    for _ in range(900):
        frames = [bytearray(f) for f in wire.genuine("stream", {"name": "stdout", "text": "x"})]
        for _ in range(chance.randrange(1, 4)):
            frame = chance.choice(frames)
            if frame:
                frame[chance.randrange(len(frame))] = chance.randrange(256)
            if chance.random() < 0.1 and len(frames) > 1:
                frames.remove(frame)
        await wire.publish([bytes(frame) for frame in frames])
    await wire.settle()
    assert not wire.guard.lost.is_set()
    assert wire.host.rejected > 500


@pytest.mark.alone
async def test_intricate_json_is_dropped_unparsed(wire: Wired) -> None:
    """A megabyte of empty lists costs no time; the same bytes as text, or as one long string, are fine."""
    header, parent = b'{"msg_type": "display_data"}', json.dumps({"msg_id": wire.request}).encode()
    lists = b'{"data": {"a": [' + b"[]," * 300_000 + b"1]}}"
    escapes = b'{"data": {"a": "' + b'\\"' * 300_000 + b'", "b": [' + b"[]," * 100_000 + b"1]}}"
    words = b'{"data": {"a": [' + b'"a",' * 40_000 + b"1]}}"
    honest = json.dumps({"data": {"text/html": "<td>1, 2</td>" * 70_000}}).encode()
    begun = time.monotonic()
    for content in (lists, escapes, words, honest):
        await wire.publish(wire.signed(header, parent, b"{}", content))
    await wire.settle()
    assert time.monotonic() - begun < 2
    assert wire.host.rejected == 3
    assert [len(message.content["data"]["text/html"]) for message in wire.got] == [13 * 70_000]


async def test_what_no_client_waits_for_is_not_parsed(wire: Wired) -> None:
    """Content for another request is not even looked at: it may be no JSON at all."""
    await wire.publish(wire.signed(b'{"msg_type": "stream"}', b'{"msg_id": "nobody"}', b"{}", b"[" * 100_000))
    await wire.settle()
    assert wire.host.rejected == 0


async def test_long_integers_do_not_cost_their_square(wire: Wired) -> None:
    """Numbers that no machine word holds become floats."""
    await wire.publish(wire.genuine("display_data", {"data": {"application/json": [10**4000] * 3}}))
    await wire.settle()
    assert wire.got[0].content["data"]["application/json"] == [float("inf")] * 3


@pytest.mark.alone
@pytest.mark.parametrize("together", [1, 1000])
async def test_a_flood_leaves_the_loop_to_others(wire: Wired, together: int) -> None:
    """While 20,000 messages come in, a thousand to a frame or each by itself, others get their turn within 100 ms."""
    frames = wire.genuine("stream", {"name": "stdout", "text": "x"})
    sent = frames if together == 1 else [packed(frames) * together]
    turns: list[float] = []

    async def watch() -> None:
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0.001)
            turns.append(time.monotonic() - begun)

    watcher = asyncio.create_task(watch())
    for _ in range(20_000 // together):
        await wire.publish(sent)
    await wire.settle()
    watcher.cancel()
    assert len(wire.got) == 20_000
    assert len(turns) > 100
    assert quantile(turns, 0.99) < 0.1


async def test_a_thousand_malformed_messages_are_the_end(wire: Wired) -> None:
    """No honest kernel sends that many: the wire is disconnected, as a violation and not as an excess."""
    for _ in range(1000):
        await wire.publish([b"t", DELIM, b"", b"{}"])
    await asyncio.wait_for(wire.guard.lost.wait(), 10)
    assert wire.guard.violated
    assert not wire.guard.excess
    assert "malformed" in wire.guard.reason


async def test_a_request_that_ends_twice_is_forged(wire: Wired) -> None:
    """The second idle of one request disconnects the wire; busy may come any number of times."""
    for state in ("busy", "busy", "idle", "busy"):
        await wire.publish(wire.genuine("status", {"execution_state": state}))
    await wire.settle()
    assert not wire.guard.lost.is_set()
    await wire.publish(wire.genuine("status", {"execution_state": "idle"}))
    await asyncio.wait_for(wire.guard.lost.wait(), 10)
    assert wire.guard.reason == "it sent a second status for one request"


async def test_what_is_not_accepted_is_not_parsed(wire: Wired) -> None:
    """The owner of a request is asked with the kind and what the content may take, before anything is read of it."""
    asked: list[tuple[str, int]] = []

    def refuse(kind: str, size: int) -> bool:
        asked.append((kind, size))
        return False

    wire.request = wire.client.send("shell", "execute_request", {"code": "1"}, wire.got.append, accept=refuse)
    header, parent = b'{"msg_type": "stream"}', json.dumps({"msg_id": wire.request}).encode()
    for content in (b"x" * 1000, "\u00e9".encode() * 500, b"x" * 996 + "\U0001f600".encode(), b"\\ud83d" + b"x" * 994):
        await wire.publish(wire.signed(header, parent, b"{}", content))
    await wire.publish([b"t", *wire.kernel.serialize(wire.kernel.msg("stream", {}))])
    async with asyncio.timeout(10):
        while len(asked) < 4:
            await asyncio.sleep(0.01)
    assert asked == [("stream", 1000), ("stream", 2000), ("stream", 4000), ("stream", 4000)]
    assert wire.got == []


async def test_a_requests_id_does_not_reveal_the_next(wire: Wired) -> None:
    """A kernel that could guess it would answer before it has read the question."""
    ids = [wire.client.send("control", "interrupt_request", {}, wire.got.append) for _ in range(20)]
    for place in range(0, 32, 8):
        assert len({message_id[place : place + 8] for message_id in ids}) == len(ids)


async def test_every_message_on_the_heartbeat_channel_is_rejected(wire: Wired) -> None:
    """The host sends nothing there, so even a genuine message is malformed."""
    wire.host.receive("hb", wire.genuine("stream", {"name": "stdout", "text": "x"}))
    assert wire.got == []
    assert wire.host.rejected == 1


async def test_a_subscriber_gets_the_outputs_of_every_clients_request(wire: Wired) -> None:
    """As bytes, also of requests that are nobody's, until it ends its subscription; each may have several."""
    first: list[RawMessage] = []
    second: list[RawMessage] = []
    unsubscribe = wire.host.subscribe(first.append)
    wire.host.subscribe(second.append)
    await wire.publish(wire.genuine("stream", {"name": "stdout", "text": "x"}))
    other = wire.kernel.msg("stream", {"name": "stdout", "text": "y"}, parent={"msg_id": "another client's"})
    await wire.publish([b"t", *wire.kernel.serialize(other), b"buffer"])
    await wire.settle()
    unsubscribe()
    unsubscribe()
    await wire.publish(wire.genuine("stream", {"name": "stdout", "text": "z"}))
    await wire.settle()
    assert [json.loads(raw.content).get("text") for raw in first] == ["x", "y", None]
    assert [json.loads(raw.content).get("text") for raw in second] == ["x", "y", None, "z", None]
    assert [raw.parent_id for raw in first[:2]] == [wire.request, "another client's"]
    assert list(first[1].buffers) == [b"buffer"]
    assert [message.content["text"] for message in wire.got] == ["x", "z"]


async def test_a_subscriber_gets_no_replies(wire: Wired) -> None:
    """They are for the client that asked."""
    seen: list[RawMessage] = []
    wire.host.subscribe(seen.append)
    wire.host.receive("shell", wire.genuine("execute_reply", {"status": "ok"}))
    assert [message.kind for message in wire.got] == ["execute_reply"]
    assert seen == []


async def test_two_clients_get_the_answers_to_their_own_requests(wire: Wired) -> None:
    """One may send what another program has packed; an id that is in use is refused."""
    raw: list[RawMessage] = []
    header = json.dumps({"msg_id": "f00", "msg_type": "kernel_info_request"}).encode()
    parts = [header, b"{}", b"{}", b"{}"]
    wire.host.send("shell", "kernel_info_request", "f00", parts, raw.append)
    with pytest.raises(ValueError, match="already"):
        wire.host.send("shell", "kernel_info_request", "f00", parts, raw.append)
    answer = wire.kernel.msg("kernel_info_reply", {"status": "ok"}, parent={"msg_id": "f00"})
    wire.host.receive("shell", wire.kernel.serialize(answer))
    wire.host.receive("iopub", wire.genuine("stream", {"name": "stdout", "text": "x"}))
    assert [message.kind for message in raw] == ["kernel_info_reply"]
    assert [message.kind for message in wire.got] == ["stream"]
    wire.host.forget("f00")
    wire.host.receive("shell", wire.kernel.serialize(answer))
    assert len(raw) == 1
