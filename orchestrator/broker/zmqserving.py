"""Serves stock Jupyter clients on one session over ZMQ."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from orchestrator.broker.broker import Broker
from orchestrator.broker.sessioncalls import SessionCalls
from orchestrator.broker.zmqfront import ZmqFront
from orchestrator.errors import KernelStartError
from orchestrator.sessions.session import KernelSession


@asynccontextmanager
async def serve_zmq(
    manager: SessionCalls,
    session: KernelSession,
    connection: Mapping[str, Any],
    *,
    on_shutdown: Callable[[bool], None],
    caller: str = "",
) -> AsyncIterator[Broker]:
    """Bind the five sockets of a connection file, and serve any number of clients until the context ends.

    Args:
        connection: see ``ZmqFront``.
        on_shutdown, caller: see ``Broker``.

    Raises:
        KernelStartError: an address cannot be bound, or the connection lacks a field.
    """
    broker = Broker(manager, session, on_shutdown, caller)
    try:
        front = _bound(broker, connection)
        try:
            broker.announce("starting")
            yield broker
        finally:
            await front.close()
    finally:
        await broker.close()


def _bound(broker: Broker, connection: Mapping[str, Any]) -> ZmqFront:
    try:
        return ZmqFront(broker, connection)
    except (OSError, LookupError, ValueError) as error:
        raise KernelStartError(f"the connection file cannot be served: {error}.", cause="host") from error
