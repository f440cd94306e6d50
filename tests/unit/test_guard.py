"""The guard: what it lets through, what it cuts, and how much it lets wait. Peers are raw sockets."""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import socket
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.kernel.endpoint import CHANNELS, Endpoint
from orchestrator.kernel.guard import Guard
from orchestrator.kernel.meter import FRAME_COST, Meter, Violation

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
BOUND = 1000


def frame(body: bytes, *, more: bool = False, command: bool = False) -> bytes:
    flags = (1 if more else 0) | (4 if command else 0)
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return bytes([flags | 2]) + struct.pack(">Q", len(body)) + body


READY = b"\x04\x06\x05READY"


def message(*bodies: bytes) -> bytes:
    return b"".join(frame(body, more=number < len(bodies) - 1) for number, body in enumerate(bodies))


def test_a_meter_counts_whole_messages_however_they_are_cut() -> None:
    """The count does not depend on where the stream is split."""
    stream = GREETING + READY + message(b"a" * 300, b"", b"bc") + message(b"d")
    for size in (1, 2, 7, 64, len(stream)):
        meter = Meter(BOUND)
        for start in range(0, len(stream), size):
            meter.feed(stream[start : start + size])
        assert meter.completed == 303 + 4 * FRAME_COST


def test_a_message_at_the_bound_passes_and_one_beyond_it_does_not() -> None:
    """The bound is on the sum of a message's frames."""
    room = BOUND - 2 * FRAME_COST
    Meter(BOUND).feed(GREETING + message(b"a" * 500, b"b" * (room - 500)))
    with pytest.raises(Violation, match="exceeds"):
        Meter(BOUND).feed(GREETING + message(b"a" * 500, b"b" * (room - 499)))


def test_empty_frames_are_not_free() -> None:
    """Each takes room in the client: a message of none but empty ones still weighs."""
    meter = Meter(BOUND)
    meter.feed(GREETING + bytes(2) * 1000)
    assert meter.completed == 64_000


def test_one_command_is_let_through() -> None:
    """READY alone: SUBSCRIBE would reach the client as a message, uncounted, and PING be answered."""
    meter = Meter(BOUND)
    meter.feed(GREETING + READY + message(b"a"))
    with pytest.raises(Violation, match="command"):
        meter.feed(frame(b"\x09SUBSCRIBE" + b"x" * 20, command=True))


def test_an_endless_multipart_message_is_cut_at_the_bound() -> None:
    """Frames that never end a message add up, however small each is."""
    meter = Meter(10**9)
    meter.feed(GREETING)
    with pytest.raises(Violation, match="frames"):
        for _ in range(1000):
            meter.feed(frame(b"x", more=True))


def test_a_frame_is_refused_by_its_announced_length() -> None:
    """A length of 2**63 is refused at the header, before any of the body came."""
    with pytest.raises(Violation):
        Meter(BOUND).feed(GREETING + b"\x02" + struct.pack(">Q", 2**63))


@pytest.mark.parametrize(
    "greeting",
    [
        b"\x01\x00" + bytes(62),  # ZMTP 1
        b"\xff" + bytes(8) + b"\x7f\x01\x05" + bytes(52),  # ZMTP 2
        b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"PLAIN".ljust(20, b"\0") + bytes(32),
        b"GET / HTTP/1.1\r\n" + bytes(48),
    ],
)
def test_other_protocols_are_refused(greeting: bytes) -> None:
    """Older ZMTP has another framing, which libzmq would follow and the meter would not."""
    with pytest.raises(Violation):
        Meter(BOUND).feed(greeting)


def test_random_streams_end_in_a_violation_or_a_count_never_in_anything_else() -> None:
    """20,000 random and mutated streams (seed 7): no other exception, and never a count beyond what was fed."""
    chance = random.Random(7)  # noqa: S311 - a repeatable test
    for _ in range(20_000):
        stream = bytearray(GREETING + message(*(chance.randbytes(chance.randrange(300)) for _ in range(3))))
        for _ in range(chance.randrange(4)):
            stream[chance.randrange(len(stream))] = chance.randrange(256)
        meter = Meter(BOUND)
        try:
            while stream:
                size = chance.randrange(1, 400)
                meter.feed(bytes(stream[:size]))
                del stream[:size]
        except Violation:
            pass
        assert 0 <= meter.completed <= 3 * 300 + 1000 * FRAME_COST


@pytest.fixture
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Guard, Endpoint]]:
    folder = Path("/tmp") / f"cbg-{random.randrange(10**9)}"  # noqa: S311 - a short path: socket paths end at 107 bytes
    endpoint, guard = Endpoint.create(folder, BOUND), Guard(10 * 1024 * 1024)
    guard.listen(endpoint)
    yield guard, endpoint
    guard.cut("the test is over")
    endpoint.remove()


async def test_bytes_pass_both_ways_unchanged(guarded: tuple[Guard, Endpoint]) -> None:
    """What one side writes the other reads, on each of the five channels; early bytes wait for the other side."""
    _, endpoint = guarded
    writers = []
    for channel in CHANNELS:
        from_kernel, to_kernel = await asyncio.open_unix_connection(endpoint.wire_path(channel))
        to_kernel.write(GREETING + message(b"from the kernel"))
        from_client, to_client = await asyncio.open_unix_connection(endpoint.client_path(channel))
        to_client.write(b"anything from our own side")
        expected = GREETING + message(b"from the kernel")
        assert await asyncio.wait_for(from_client.readexactly(len(expected)), 5) == expected
        assert await asyncio.wait_for(from_kernel.readexactly(26), 5) == b"anything from our own side"
        writers += [to_kernel, to_client]
    for writer in writers:
        writer.transport.abort()


async def test_a_kernel_that_nobody_reads_is_stopped(guarded: tuple[Guard, Endpoint]) -> None:
    """Past the window of whole messages that wait for the client, the kernel's side is read no further."""
    guard, endpoint = guarded
    _, kernel = await asyncio.open_unix_connection(endpoint.wire_path("iopub"))
    client_reader, client = await asyncio.open_unix_connection(endpoint.client_path("iopub"))
    kernel.write(GREETING)
    passed = 0

    async def drain() -> None:  # libzmq reads whatever comes; only ``consumed`` tells that somebody took it
        nonlocal passed
        while data := await client_reader.read(65536):
            passed += len(data)

    drainer = asyncio.create_task(drain())
    block = message(b"x" * 65536)
    sender = asyncio.create_task(_send(kernel, block, 400))
    await asyncio.sleep(1)
    assert not sender.done()
    assert 2 * 2**20 < passed < 4 * 2**20
    while not sender.done():
        guard.consumed("iopub", 2**20)
        await asyncio.sleep(0.01)
    drainer.cancel()
    kernel.transport.abort()
    client.transport.abort()


async def _send(writer: asyncio.StreamWriter, block: bytes, times: int) -> None:
    for _ in range(times):
        writer.write(block)
        await writer.drain()


async def test_a_violation_cuts_every_channel_and_says_why(guarded: tuple[Guard, Endpoint]) -> None:
    """After the cut nothing of this kernel is connected any more, and whoever waits is called once."""
    guard, endpoint = guarded
    called: list[str] = []
    guard.when_lost(lambda: called.append(guard.reason))
    reader, kernel = await asyncio.open_unix_connection(endpoint.wire_path("shell"))
    _, client = await asyncio.open_unix_connection(endpoint.client_path("shell"))
    kernel.write(GREETING + b"\xff")
    assert await asyncio.wait_for(reader.read(), 5) == b""
    assert called == ["a frame has unknown flags"]
    assert guard.violated
    with pytest.raises(OSError):
        await asyncio.open_unix_connection(endpoint.wire_path("control"))
    kernel.transport.abort()
    client.transport.abort()


async def test_the_door_is_shut_behind_the_first_connection(guarded: tuple[Guard, Endpoint]) -> None:
    """A sandbox cannot dial a channel twice."""
    _, endpoint = guarded
    _, first = await asyncio.open_unix_connection(endpoint.wire_path("shell"))
    await asyncio.sleep(0.05)
    with pytest.raises(OSError):
        await asyncio.open_unix_connection(endpoint.wire_path("shell"))
    first.transport.abort()


async def test_a_closed_connection_is_a_loss_but_no_violation(guarded: tuple[Guard, Endpoint]) -> None:
    """When the kernel hangs up the guard says which channel, and leaves the verdict to the engine."""
    guard, endpoint = guarded
    _, kernel = await asyncio.open_unix_connection(endpoint.wire_path("control"))
    _, client = await asyncio.open_unix_connection(endpoint.client_path("control"))
    await asyncio.sleep(0.05)
    kernel.transport.abort()
    await asyncio.wait_for(guard.lost.wait(), 5)
    client.transport.abort()
    assert guard.reason == "the control connection closed"
    assert not guard.violated


async def test_who_dials_while_the_wire_is_cut_is_hung_up_on() -> None:
    """Whichever step of being accepted it had come to."""
    for steps in range(8):
        folder = Path("/tmp") / f"cbg-{random.randrange(10**9)}"  # noqa: S311 - as above
        endpoint, guard = Endpoint.create(folder, BOUND), Guard(BOUND)
        guard.listen(endpoint)
        with socket.socket(socket.AF_UNIX) as kernel:
            kernel.connect(str(endpoint.wire_path("shell")))
            for _ in range(steps):
                await asyncio.sleep(0)
            guard.cut("the test cut it")
            await asyncio.sleep(0.05)
            kernel.settimeout(0)
            with contextlib.suppress(ConnectionResetError):
                assert kernel.recv(1) == b""
        for path in (side(channel) for channel in CHANNELS for side in (endpoint.wire_path, endpoint.client_path)):
            with pytest.raises(OSError):
                await asyncio.open_unix_connection(path)
        endpoint.remove()


async def test_without_descriptors_a_dial_waits_and_the_loop_goes_on(guarded: tuple[Guard, Endpoint]) -> None:
    """A process at its limit takes the connection once it can; until then it does not spin on it."""
    guard, endpoint = guarded
    kernel = socket.socket(socket.AF_UNIX)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    begun = time.thread_time()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (kernel.fileno() + 1, hard))
        kernel.connect(str(endpoint.wire_path("shell")))
        await asyncio.sleep(0.5)
        assert guard.dialled == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert time.thread_time() - begun < 0.25
    async with asyncio.timeout(10):
        while not guard.dialled:
            await asyncio.sleep(0.05)
    kernel.close()
