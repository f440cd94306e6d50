"""Watch the engine's events for out-of-memory kills, and notice when the engine is gone.

An out-of-memory kill does not always end the container. Under runsc it kills the process that holds the cell's address
space, and the sandbox hangs (measured: runsc 2024-07, 256 MiB, oom_kill 1, then no progress until the deadline).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any

from orchestrator.container.engine import FAILURES, Engine, clock
from orchestrator.container.hostconfig import INSTANCE_LABEL

_log = logging.getLogger(__name__)
_PAUSE = 0.1  # seconds until a broken stream is opened again
_LOST_AFTER = 1.0  # seconds without an answer on the engine's socket until the engine counts as lost


class EngineWatch:
    """Watches the engine in a thread and calls back on the event loop.

    Args:
        on_oom: called with the name of each container that had an out-of-memory kill, also of other instances.
        on_lost: called when the engine's socket has refused connections for 1 s. An engine that hangs is not lost.
    """

    def __init__(self, engine: Engine, *, on_oom: Callable[[str], None], on_lost: Callable[[], None]) -> None:
        self._api: Any = engine.client.api
        self._filters = {"label": [INSTANCE_LABEL], "event": ["oom"]}
        self._on_oom = on_oom
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._closed = threading.Event()
        self._stream: Any = None
        # A daemon thread, because it waits in a read that ends with the next event or with ``close``.
        self._thread = threading.Thread(target=self._listen, name="cellblock-engine-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening. Returns at once; the thread ends by itself."""
        self._closed.set()
        with contextlib.suppress(*FAILURES, OSError):
            if self._stream is not None:
                self._stream.close()

    def _listen(self) -> None:
        since, refused_since, lost = math.inf, 0.0, False
        while not self._closed.is_set():
            try:
                now = clock(self._api)
                since = min(since, now)  # the engine's clock may have been set back
                self._stream = self._api.events(since=f"{since:.6f}", filters=self._filters, decode=True)
                since, refused_since, lost = now, 0.0, False
                for event in self._stream:
                    self._call(self._on_oom, event.get("Actor", {}).get("Attributes", {}).get("name", ""))
            except (*FAILURES, OSError, ValueError) as error:  # ValueError: ``close`` closed the stream
                if not self._closed.is_set():
                    _log.debug("the engine's event stream broke: %s", error)
                refused_since = refused_since or time.monotonic()
            if refused_since and not lost and time.monotonic() - refused_since > _LOST_AFTER:
                lost = True
                self._call(self._on_lost)
            self._closed.wait(_PAUSE)

    def _call(self, callback: Callable[..., None], *arguments: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody needs the event
            self._loop.call_soon_threadsafe(callback, *arguments)
