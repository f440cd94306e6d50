"""What an operator can see and do in a running manager, as commands for ``controlsocket``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from typing import Any, Protocol

from orchestrator.errors import InvalidInputError
from orchestrator.limits import KernelResourceLimits
from orchestrator.operator.commandline import CommandLine, Held
from orchestrator.operator.controlsocket import Command, Conversation
from orchestrator.operator.monitor import Monitor
from orchestrator.pool.kernelpool import KernelPool, KernelResource
from orchestrator.sessions.session import KernelSession


class EndSession(Protocol):
    """Ends a session and kills its kernel: ``Acquiring.end``."""

    def __call__(self, agent_id: str, *, reason: str) -> Awaitable[bool]: ...


class Operations:
    """Implements the commands of one manager's control socket.

    Args:
        limits: the limits that usage is shown beside.
        instance: returns the description of the instance. ``overview`` calls it.
        end_session: ends the session whose kernel an operator kills.
        hibernate: puts a session to sleep, and returns whether it does.
        held_back: returns the agents whose next kernel has to wait, each with the seconds.
        held: keeps a session awake.
    """

    def __init__(
        self,
        *,
        pool: KernelPool,
        sessions: Mapping[str, KernelSession],
        monitor: Monitor,
        limits: KernelResourceLimits,
        instance: Callable[[], dict[str, Any]],
        end_session: EndSession,
        hibernate: Callable[[KernelSession], Awaitable[bool]],
        held_back: Callable[[], dict[str, float]] = dict,
        held: Held = lambda _session: nullcontext(),
    ) -> None:
        self._pool = pool
        self._sessions = sessions
        self._monitor = monitor
        self._limits = limits
        self._instance = instance
        self._end_session = end_session
        self._hibernate_session = hibernate
        self._held_back = held_back
        self._command_line = CommandLine(limits, held)

    def commands(self) -> dict[str, Command]:
        """Return the commands by name."""
        return {
            "overview": self._overview,
            "interrupt": self._interrupt,
            "hibernate": self._hibernate,
            "kill": self._kill,
        }

    def conversations(self) -> dict[str, Conversation]:
        """Return the commands that use their connection for more than one reply."""
        return {"exec": self._exec}

    def overview(self) -> dict[str, Any]:
        """Return the instance, its pool, and one row per kernel. It never contains code or outputs."""
        kernels = [self._row(resource) for resource in self._pool.kernels.values() if resource.kernel is not None]
        return {
            **self._instance(),
            "pool": self._pool.counts(),
            "held_back": self._held_back(),
            "kernels": kernels,
        }

    def _row(self, resource: KernelResource) -> dict[str, Any]:
        kernel = resource.kernel
        assert kernel is not None
        session = self._session_of(resource.kernel_id)
        sample = self._monitor.latest.get(resource.kernel_id)
        cell = None if session is None else session.running_cell
        state = "ready" if session is None else "busy" if cell is not None else "idle"
        return {
            "kernel_id": resource.kernel_id,
            "container": kernel.container_name,
            "runtime": kernel.runtime,
            "state": "ending" if resource.is_shutting_down or not kernel.is_alive else state,
            "agent": None if session is None else session.agent_id,
            "session": None if session is None else session.session_id,
            "cells": 0 if session is None else session.cell_count,
            "cell": None if cell is None else {"number": cell[0], "age_s": cell[1]},
            "age_s": time.monotonic() - resource.begun,
            "usage": None if sample is None else sample.as_dict(self._limits),
        }

    def _session_of(self, kernel_id: str) -> KernelSession | None:
        return next((session for session in self._sessions.values() if session.kernel_id == kernel_id), None)

    async def _overview(self, _request: dict[str, Any]) -> dict[str, Any]:
        return self.overview()

    async def _interrupt(self, request: dict[str, Any]) -> dict[str, Any]:
        session = self._known(request)
        session.note_operator("interrupt", request.get("operator"))
        return {"interrupted": session.interrupt()}

    async def _hibernate(self, request: dict[str, Any]) -> dict[str, Any]:
        session = self._known(request)
        session.note_operator("hibernate", request.get("operator"))
        return {"hibernated": await self._hibernate_session(session)}

    async def _kill(self, request: dict[str, Any]) -> dict[str, Any]:
        session = self._known(request)
        session.note_operator("kill", request.get("operator"))
        return {"killed": await self._end_session(session.agent_id, reason="killed")}

    async def _exec(self, request: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._command_line.serve(self._known(request), request, reader, writer)

    def _known(self, request: dict[str, Any]) -> KernelSession:
        session = self._session_of(str(request.get("kernel")))
        if session is None:
            raise InvalidInputError("no session has this kernel.")
        return session
