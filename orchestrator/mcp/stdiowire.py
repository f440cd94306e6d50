"""Standard input and output as the SDK's stdio server wants them, readable and writable without a thread.

The SDK's own streams wait in a thread that nothing wakes: a server that is told to end by a signal would hang until its
client closes the pipe.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import sys
from collections.abc import AsyncIterator
from typing import Any, cast

import anyio

from orchestrator.errors import InvalidInputError

_LONGEST_LINE = 16 * 1024 * 1024  # bytes of one message; a longer one is answered as malformed


class _Lines:
    """The lines of a stream, as an asynchronous text file has them."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def __aiter__(self) -> AsyncIterator[str]:
        while True:
            try:
                line = await self._reader.readline()
            except ValueError:  # too long: the reader has dropped it
                line = b"?\n"
            if not line:
                return
            yield line.decode("utf-8", "replace")


class _Sink:
    """A stream that takes text, as an asynchronous text file does."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def write(self, text: str) -> None:
        self._writer.write(text.encode("utf-8", "replace"))

    async def flush(self) -> None:
        with contextlib.suppress(ConnectionError):  # the client has gone, and the input ends too
            await self._writer.drain()


def check_stream(descriptor: int) -> None:
    """Check that the event loop can wait for a descriptor: not for a file, nor for /dev/null.

    Raises:
        InvalidInputError: it cannot.
    """
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)):
        raise InvalidInputError(
            "stdin and stdout must be pipes, sockets or terminals.",
            remedy="An MCP client starts this command with pipes. To serve over HTTP, use --http.",
        )


@contextlib.asynccontextmanager
async def standard_streams() -> AsyncIterator[tuple[anyio.AsyncFile[str], anyio.AsyncFile[str]]]:
    """Yield standard input and output. Meanwhile descriptor 0 is empty, and 1 is stderr.

    Raises:
        InvalidInputError: one of them is a file, or nothing.
    """
    for descriptor in (0, 1):
        check_stream(descriptor)
    loop = asyncio.get_running_loop()
    sys.stdout.flush()
    wires = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    reader = asyncio.StreamReader(_LONGEST_LINE)
    try:
        incoming, outgoing = os.fdopen(os.dup(wires[0]), "rb", 0), os.fdopen(os.dup(wires[1]), "wb", 0)
        source, _protocol = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), incoming)
        sink, flow = await loop.connect_write_pipe(lambda: asyncio.streams.FlowControlMixin(loop), outgoing)
        try:
            sink.set_write_buffer_limits(0)  # a flush waits until all is written
            writer = asyncio.StreamWriter(sink, flow, None, loop)
            yield cast(Any, _Lines(reader)), cast(Any, _Sink(writer))
        finally:
            source.close()
            sink.close()
    finally:
        for descriptor, wire in enumerate(wires):
            os.set_blocking(wire, True)  # a terminal is shared with the shell
            os.dup2(wire, descriptor)
            os.close(wire)
