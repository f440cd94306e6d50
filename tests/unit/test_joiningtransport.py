"""Writes that reach the socket together."""

from __future__ import annotations

import asyncio

from orchestrator.server.joiningtransport import JoiningTransport


class Recorder(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": "a client"})
        self.written: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.is_closed
        self.written.append(bytes(data))

    def close(self) -> None:
        self.is_closed = True


async def test_what_is_written_in_one_turn_of_the_loop_is_one_write() -> None:
    """It goes out before the loop waits again, in order."""
    recorder = Recorder()
    joining = JoiningTransport(recorder, asyncio.get_running_loop())
    for piece in (b"head", b"", b"body"):
        joining.write(piece)
    assert recorder.written == []
    await asyncio.sleep(0)
    assert recorder.written == [b"headbody"]
    joining.write(b"next")
    await asyncio.sleep(0)
    assert recorder.written == [b"headbody", b"next"]


async def test_large_data_is_written_at_once_and_behind_what_was_before_it() -> None:
    """So asyncio sees how much is on its way, and pauses the writer; small pieces too are held to 64 KiB."""
    recorder = Recorder()
    joining = JoiningTransport(recorder, asyncio.get_running_loop())
    joining.write(b"head")
    joining.write(b"x" * 100_000)
    assert recorder.written == [b"head", b"x" * 100_000]
    for _ in range(100):
        joining.write(b"y" * 1000)
    assert sum(map(len, recorder.written)) > 100_000 + 60_000
    await asyncio.sleep(0)
    assert b"".join(recorder.written) == b"head" + b"x" * 100_000 + b"y" * 100_000


async def test_closing_writes_what_is_held_first() -> None:
    """All else is the transport's."""
    recorder = Recorder()
    joining = JoiningTransport(recorder, asyncio.get_running_loop())
    joining.write(b"last")
    joining.close()
    assert (recorder.written, recorder.is_closed) == ([b"last"], True)
    await asyncio.sleep(0)
    assert recorder.written == [b"last"]
    assert joining.get_extra_info("peername") == "a client"
