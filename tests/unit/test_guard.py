"""The guard: what it hands on, when it disconnects, and how much it lets wait. Kernels are raw sockets here."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import resource
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from orchestrator.kernel.endpoint import CHANNELS, Endpoint
from orchestrator.kernel.guard import Guard
from orchestrator.kernel.loopshare import LoopShare
from orchestrator.kernel.zmtp import GREETING, encode, ready
from tests.unit.zmtpframes import READY, message

BOUND = 10 * 1024 * 1024


@dataclass
class Guarded:
    """A guard that listens, and what it has handed on."""

    guard: Guard
    endpoint: Endpoint
    got: list[tuple[str, list[bytes]]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # when each came
    fails = False  # whether it cannot take one
    slowness = 0.0  # seconds that it takes to receive one

    def receive(self, channel: str, frames: list[bytes]) -> None:
        if self.fails:
            raise LookupError
        self.times.append(time.monotonic())
        time.sleep(self.slowness)
        self.got.append((channel, frames))

    async def connect(self, channel: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self.endpoint.wire_path(channel))


@pytest.fixture
async def guarded() -> AsyncIterator[Guarded]:
    folder = Path("/tmp") / f"cbg-{random.randrange(10**9)}"  # noqa: S311 - a short path: socket paths end at 107 bytes
    found = Guarded(Guard(BOUND), Endpoint.create(folder, BOUND))
    found.guard.listen(found.endpoint, found.receive)
    yield found
    found.guard.disconnect("the test is over")
    found.endpoint.remove()


async def test_messages_pass_both_ways(guarded: Guarded) -> None:
    """On each of the five channels; what is sent before the kernel is ready waits for it, behind the handshake."""
    writers = []
    for channel in CHANNELS:
        guarded.guard.send(channel, [b"sent", b"early"])
        reader, kernel = await guarded.connect(channel)
        kernel.write(GREETING + READY + message(b"from the", b"kernel"))
        hello = ready("SUB" if channel == "iopub" else "DEALER", b"host") + (
            message(b"\1") if channel == "iopub" else b""
        )
        expected = GREETING + hello + encode([b"sent", b"early"])
        assert await asyncio.wait_for(reader.readexactly(len(expected)), 5) == expected
        guarded.guard.send(channel, [b"later"])
        assert await asyncio.wait_for(reader.readexactly(7), 5) == encode([b"later"])
        writers.append(kernel)
    assert guarded.got == [(channel, [b"from the", b"kernel"]) for channel in CHANNELS]
    assert guarded.guard.connected == 5
    for writer in writers:
        writer.transport.abort()


async def test_a_kernel_whose_channel_is_held_has_to_wait(guarded: Guarded) -> None:
    """Nothing more of it is read than one socket's worth; the rest comes once it may."""
    guarded.guard.hold("iopub", True)
    _, kernel = await guarded.connect("iopub")
    kernel.write(GREETING + READY)
    block = message(b"x" * 65536)
    taken: list[int] = []
    sender = asyncio.create_task(_send(kernel, block, 100, taken))
    await asyncio.sleep(0.5)
    assert not sender.done()
    assert guarded.got == []
    assert 0 < len(taken) * len(block) <= 1024 * 1024
    guarded.guard.hold("iopub", False)
    await asyncio.wait_for(sender, 10)
    async with asyncio.timeout(10):
        while len(guarded.got) < 100:
            await asyncio.sleep(0.01)
    kernel.transport.abort()


async def _send(writer: asyncio.StreamWriter, block: bytes, times: int, taken: list[int]) -> None:
    """Send a block so many times, and note in ``taken`` each time that the wire has taken one."""
    for number in range(times):
        writer.write(block)
        await writer.drain()
        taken.append(number)


async def test_a_violation_disconnects_every_channel_with_its_reason(guarded: Guarded) -> None:
    """No channel of this kernel stays connected, and each callback is called once."""
    called: list[str] = []
    guarded.guard.on_lost(lambda: called.append(guarded.guard.reason))
    reader, kernel = await guarded.connect("shell")
    kernel.write(GREETING + READY + b"\xff")
    with contextlib.suppress(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 5)
    assert called == ["a frame has unknown flags"]
    assert guarded.guard.violated
    with pytest.raises(OSError):
        await guarded.connect("control")
    kernel.transport.abort()


async def test_a_channel_takes_one_connection(guarded: Guarded) -> None:
    """A sandbox cannot connect a channel twice."""
    _, first = await guarded.connect("shell")
    await asyncio.sleep(0.05)
    with pytest.raises(OSError):
        await guarded.connect("shell")
    first.transport.abort()


async def test_a_closed_connection_is_a_loss_but_no_violation(guarded: Guarded) -> None:
    """The reason names the channel that the kernel closed. How the kernel ended is the engine's to say."""
    _, kernel = await guarded.connect("control")
    await asyncio.sleep(0.05)
    kernel.transport.abort()
    await asyncio.wait_for(guarded.guard.lost.wait(), 5)
    assert guarded.guard.reason == "the control connection closed"
    assert not guarded.guard.violated


async def test_what_a_kernel_sent_before_it_died_arrives(guarded: Guarded) -> None:
    """Even when another of its channels closes first and its share of the loop is used up."""
    _, shell = await guarded.connect("shell")
    with socket.socket(socket.AF_UNIX) as iopub:
        iopub.connect(str(guarded.endpoint.wire_path("iopub")))
        iopub.sendall(GREETING + READY)
        await asyncio.sleep(0.05)
        iopub.settimeout(0)
        stream = message(bytes(1021)) * 150
        sent = iopub.send(stream)
        shell.transport.abort()
        await asyncio.wait_for(guarded.guard.lost.wait(), 5)
    assert sent > 100_000
    assert len(guarded.got) == sent // len(message(bytes(1021)))


async def test_a_dead_kernels_last_messages_are_bounded(guarded: Guarded) -> None:
    """A receiver that takes 1 ms for each message is not held up by a whole socket of them."""
    guarded.slowness = 0.001
    _, shell = await guarded.connect("shell")
    with socket.socket(socket.AF_UNIX) as iopub:
        iopub.connect(str(guarded.endpoint.wire_path("iopub")))
        iopub.sendall(GREETING + READY)
        await asyncio.sleep(0.05)
        iopub.sendall(message(b"x") * 10_000)
        shell.transport.abort()
        await asyncio.wait_for(guarded.guard.lost.wait(), 5)
    assert 0 < len(guarded.got) < 1000


async def test_a_disconnected_kernel_counts_as_inactive(guarded: Guarded) -> None:
    """Also one that is disconnected while one of its messages is handled."""
    shared = LoopShare(lambda: 100.0)  # on a clock that stands still, nothing is forgotten with time
    folder = Path("/tmp") / f"cbg-{random.randrange(10**9)}"  # noqa: S311 - as above
    endpoint, guard = Endpoint.create(folder, BOUND), Guard(BOUND, shared.of_kernel())
    guard.listen(endpoint, lambda _channel, _frames: guard.disconnect("the receiver disconnected it", violated=True))
    _, kernel = await asyncio.open_unix_connection(endpoint.wire_path("shell"))
    kernel.write(GREETING + READY + message(b"x"))
    await asyncio.wait_for(guard.lost.wait(), 5)
    await asyncio.sleep(0.05)
    assert shared.others(shared.of_kernel(), 100.0) == 0
    kernel.transport.abort()
    endpoint.remove()


async def test_a_kernels_channels_rest_together(guarded: Guarded) -> None:
    """After a message on one channel has held the loop, a message on another one has to wait too."""
    guarded.slowness = 0.02
    writers = [(await guarded.connect(channel))[1] for channel in ("shell", "iopub", "control")]
    for writer in writers:
        writer.write(GREETING + READY)
    await asyncio.sleep(0.05)
    for writer in writers:
        writer.write(message(b"x"))
    async with asyncio.timeout(10):
        while len(guarded.got) < 3:
            await asyncio.sleep(0.005)
    assert all(later - earlier >= 0.028 for earlier, later in itertools.pairwise(guarded.times))
    for writer in writers:
        writer.transport.abort()


async def test_a_kernel_that_closes_one_half_is_lost(guarded: Guarded) -> None:
    """Even when it has not read what it was sent."""
    guarded.guard.send("shell", [bytes(5_000_000)])
    with socket.socket(socket.AF_UNIX) as shell:
        shell.connect(str(guarded.endpoint.wire_path("shell")))
        shell.sendall(GREETING + READY)
        await asyncio.sleep(0.1)
        shell.shutdown(socket.SHUT_WR)
        await asyncio.wait_for(guarded.guard.lost.wait(), 5)
    assert guarded.guard.reason == "the shell connection closed"


@pytest.mark.parametrize("steps", range(8))
async def test_a_kernel_that_connects_while_the_wire_is_disconnected_gets_nowhere(steps: int) -> None:
    """Whichever step of being accepted it had come to: the wire is lost, nothing listens, and little of it is read."""
    folder = Path("/tmp") / f"cbg-{random.randrange(10**9)}"  # noqa: S311 - as above
    found = Guarded(Guard(BOUND), Endpoint.create(folder, BOUND))
    found.guard.listen(found.endpoint, found.receive)
    with socket.socket(socket.AF_UNIX) as kernel:
        kernel.connect(str(found.endpoint.wire_path("shell")))
        kernel.sendall(GREETING + READY + message(b"x"))
        for _ in range(steps):
            await asyncio.sleep(0)
        connected = found.guard.connected
        found.guard.disconnect("the test disconnected it")
        assert found.guard.lost.is_set()
        await asyncio.sleep(0.05)
        assert found.got == ([("shell", [b"x"])] if connected else [])
        kernel.settimeout(0)
        with contextlib.suppress(ConnectionResetError):
            while received := kernel.recv(1000):
                assert received.startswith(GREETING)
    for channel in CHANNELS:
        with pytest.raises(OSError):
            await found.connect(channel)
    found.endpoint.remove()


async def test_without_file_descriptors_a_connection_waits_and_the_loop_goes_on(guarded: Guarded) -> None:
    """A process at its limit accepts the connection once it can. Until then the loop does not spin."""
    kernel = socket.socket(socket.AF_UNIX)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    begun = time.thread_time()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (kernel.fileno() + 1, hard))
        kernel.connect(str(guarded.endpoint.wire_path("shell")))
        await asyncio.sleep(0.5)
        assert guarded.guard.connected == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert time.thread_time() - begun < 0.25
    async with asyncio.timeout(10):
        while not guarded.guard.connected:
            await asyncio.sleep(0.05)
    kernel.close()


async def test_a_handler_that_fails_at_the_last_messages_keeps_nobody_waiting(guarded: Guarded) -> None:
    """The wire is disconnected all the same, and the callbacks are called."""
    guarded.guard.hold("iopub", True)
    _, kernel = await guarded.connect("iopub")
    kernel.write(GREETING + READY + message(b"last"))
    await kernel.drain()
    called: list[bool] = []
    guarded.guard.on_lost(lambda: called.append(True))

    guarded.fails = True
    async with asyncio.timeout(5):
        while not guarded.guard.connected:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    with pytest.raises(LookupError):
        guarded.guard.disconnect("the kernel is gone")
    assert guarded.guard.lost.is_set()
    assert called == [True]
    kernel.transport.abort()


class Memory:
    """A transport in memory."""

    def __init__(self, rest: bytes = b"") -> None:
        self.sent = b""
        self.rest = rest
        self.paused = self.aborted = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def take_rest(self) -> bytes:
        return self.rest

    def abort(self) -> None:
        self.aborted = True


async def test_any_transport_can_carry_the_lines() -> None:
    """The same parser takes its bytes, with the same bounds, and it is paused and aborted like a socket."""
    got: list[tuple[str, list[bytes]]] = []
    guard = Guard(1000)
    lines = guard.lines(lambda channel, frames: got.append((channel, frames)))
    shell, iopub = Memory(), Memory(rest=message(b"last"))
    lines["shell"].begin(shell)
    lines["iopub"].begin(iopub)
    assert guard.connected == 2
    guard.send("shell", [b"early"])
    for line in (lines["shell"], lines["iopub"]):
        for byte in GREETING + READY + message(b"a", b"b"):
            line.feed(bytes([byte]))
    assert got == [("shell", [b"a", b"b"]), ("iopub", [b"a", b"b"])]
    assert shell.sent == GREETING + ready("DEALER", b"host") + encode([b"early"])
    guard.hold("iopub", True)
    lines["iopub"].feed(message(b"held"))
    assert iopub.paused
    lines["shell"].feed(message(bytes(1001)))
    assert (guard.violated, guard.excess, guard.reason) == (True, True, "a message exceeds 1000 bytes")
    assert shell.aborted
    assert iopub.aborted
    assert len(got) == 2


async def test_what_a_transport_still_holds_is_handed_on_when_it_is_lost() -> None:
    """Unless the kernel broke a rule."""
    got: list[list[bytes]] = []
    guard = Guard(1000)
    lines = guard.lines(lambda _channel, frames: got.append(frames))
    lines["iopub"].begin(Memory(rest=message(b"last")))
    lines["iopub"].feed(GREETING + READY)
    lines["shell"].lose()
    assert guard.reason == "the shell connection closed"
    assert got == [[b"last"]]
