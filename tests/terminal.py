"""A command in a real terminal: what a person would see, and the keys that a person would press."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import struct
import termios
import time
from collections.abc import Callable, Mapping
from fcntl import ioctl

import pyte


class Terminal:
    """Runs a command on a terminal of its own.

    Attributes:
        screen: what the terminal shows now.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], lines: int = 30, columns: int = 140) -> None:
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self._size = struct.pack("HHHH", lines, columns, 0, 0)
        self.pid, self._descriptor = pty.fork()
        if self.pid == 0:
            ioctl(0, termios.TIOCSWINSZ, self._size)
            os.execve(command[0], command, {**environment, "TERM": "xterm-256color"})  # noqa: S606 - in a pty's child
        os.set_blocking(self._descriptor, False)

    def press(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    async def until(self, seen: Callable[[str], bool], seconds: float = 30) -> str:
        """Wait until the screen is as asked for.

        Raises:
            AssertionError: it never was; with what it shows instead.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                self._stream.feed(os.read(self._descriptor, 65536))
            except BlockingIOError:
                await asyncio.sleep(0.05)
            except OSError:  # the command has ended
                break
            if seen(text := "\n".join(self.screen.display)):
                return text
        raise AssertionError("\n".join(self.screen.display))

    async def wait(self, seconds: float = 10) -> int:
        """Return the command's exit status. Its last words are on the screen.

        Raises:
            AssertionError: it did not end.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(OSError):  # what it prints at its end must be taken, or it waits
                self._stream.feed(os.read(self._descriptor, 65536))
                continue
            pid, status = os.waitpid(self.pid, os.WNOHANG)  # noqa: ASYNC222 - it does not wait
            if pid:
                os.close(self._descriptor)
                return os.waitstatus_to_exitcode(status)
            await asyncio.sleep(0.05)
        raise AssertionError("it does not end")
