"""Serves stock Jupyter clients on one session over ZMQ."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from orchestrator.broker.broker import Broker
from orchestrator.broker.sessioncalls import SessionCalls
from orchestrator.broker.zmqfront import ZmqFront
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
        zmq.ZMQError: an address cannot be bound.
        KeyError: the connection lacks a field.
    """
    broker = Broker(manager, session, on_shutdown, caller)
    try:
        front = ZmqFront(broker, connection)
        try:
            broker.announce("starting")
            yield broker
        finally:
            await front.close()
    finally:
        await broker.close()
