"""WebSocketProtocol: uvicorn's, with a bound on how long a client reads nothing."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One connection. One that is only closed keeps what its client has not read for as long as the client lives."""

    patience = 60.0  # seconds
    _stuck: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        """Called by asyncio."""
        super().pause_writing()
        self._stuck = self.loop.call_later(self.patience, self.transport.abort)

    def resume_writing(self) -> None:
        """Called by asyncio."""
        self._go_on()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._go_on()
        super().connection_lost(exc)

    def _go_on(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
