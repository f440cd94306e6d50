"""The event loops of the launcher's own threads. What a cell does to Python's objects must not end or deafen them."""

import time
from collections.abc import Callable
from typing import Any

from ipykernel.control import ControlThread

from cellblock_kernel.originals import BUILTINS

__builtins__ = BUILTINS

_PAUSE = 0.01  # seconds between two starts of a loop that cannot run while a cell's changes last
_sleep = time.sleep


def run(loop: Any, stopped: Callable[[], bool]) -> None:
    """Run a thread's loop until ``stopped``. A cell can end it: with ``len`` replaced, asyncio's loop raises.

    What fails meanwhile is not logged: a log entry is output, and to send it would fail again.
    """
    loop.asyncio_loop.set_exception_handler(lambda *_: None)
    while not stopped():
        try:
            loop.start()
        except BaseException:  # noqa: BLE001 - caused by the session
            _sleep(_PAUSE)


def listen_again(stream: Any) -> None:
    """Look for messages that a ZMQStream has missed.

    Its file descriptor signals a message once. If the handler fails, the stream waits for ever.
    """
    stream.io_loop.add_callback(stream._handle_events, stream.socket, 0)


class LastingControlThread(ControlThread):
    """ipykernel's thread for the control channel."""

    _stopped = False

    def run(self) -> None:
        run(self.io_loop, lambda: self._stopped)
        self.io_loop.close()

    def stop(self) -> None:
        self._stopped = True
        super().stop()
