"""LiveCells: the cells of one session that clients follow, or come back to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

from orchestrator.errors import InvalidInputError
from orchestrator.output.events import Event
from orchestrator.server.directory import Served
from orchestrator.server.eventstream import Numbered
from orchestrator.server.native.bodies import NewCell
from orchestrator.server.native.questions import Questions
from orchestrator.server.readahead import ReadAhead
from orchestrator.sessions.cellhandle import RunningCell

ABANDONED = 30.0  # seconds without a follower after which a cell is interrupted that needs its client
_PLACE = "cells"


class LiveCell:
    """A cell, and what it asks its client.

    Args:
        patience: seconds without a follower after which it is interrupted; None: it needs nobody.
    """

    def __init__(self, cell: RunningCell, questions: Questions, *, patience: float | None) -> None:
        self.cell = cell
        self.questions = questions
        self._patience = patience
        self._followers = 0
        self._abandoned: asyncio.TimerHandle | None = None
        self._wait_for_follower()

    def as_dict(self) -> dict[str, Any]:
        return {
            "cell_id": self.cell.id,
            "code": self.cell.code,
            "started_at": self.cell.started_at,
            "is_running": self.cell.is_running,
        }

    async def follow(self, after: int = 0) -> AsyncGenerator[Numbered, None]:
        """Yield the cell's events after the first ``after`` ones with their numbers, and what it asks.

        Raises:
            See ``RunningCell.events``.
        """
        self._followers += 1
        if self._abandoned is not None:
            self._abandoned.cancel()
        try:
            async with (
                contextlib.aclosing(self.cell.numbered_events(after)) as events,
                contextlib.aclosing(self.questions.follow()) as questions,
            ):
                yield None, {"type": "cell_started", **self.as_dict()}
                async with ReadAhead(_events(events), _questions(questions)) as ahead:
                    while await ahead.come() and (come := ahead.take()):
                        for item in come:
                            yield item
        finally:
            self._followers -= 1
            self._wait_for_follower()

    def _wait_for_follower(self) -> None:
        """Interrupt the cell after a while, unless somebody follows it or it needs nobody."""
        if self._patience is not None and not self._followers and self.cell.is_running:
            self._abandoned = asyncio.get_running_loop().call_later(self._patience, self.cell.interrupt)


async def _events(events: AsyncGenerator[tuple[int, Event], None]) -> AsyncGenerator[Numbered, None]:
    async for number, event in events:
        yield number, event.as_dict()


async def _questions(questions: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[Numbered, None]:
    async for question in questions:
        yield None, question


async def start(served: Served, body: NewCell, *, patience: float | None) -> LiveCell:
    """Start a cell. See ``LiveCell`` for ``patience``.

    Raises:
        See ``AgentKernelManager.start_code``.
    """
    questions = Questions()
    cell = await served.manager.start_code(
        served.session,
        body.code,
        answer=questions.line if body.input else None,
        timeout=body.timeout,
        output_limit=body.output_limit,
        environment=served.environment(body.environment),
        tools=[questions.tool(definition) for definition in body.tools],
    )
    live = LiveCell(cell, questions, patience=patience)
    cells: dict[str, LiveCell] = served.attachments.setdefault(_PLACE, {})
    cells[cell.id] = live
    cell.when_forgotten(partial(cells.pop, cell.id, None))
    return live


def find(served: Served, cell_id: str) -> LiveCell:
    """Return a cell of the session.

    Raises:
        InvalidInputError: the session has no cell of this id, or it ended long ago.
    """
    cells: dict[str, LiveCell] = served.attachments.get(_PLACE, {})
    if cell_id not in cells:
        raise InvalidInputError(
            f"the session has no cell {cell_id[:64]!r}.", remedy="Its history has the cells that ended."
        )
    return cells[cell_id]


def listed(served: Served) -> list[LiveCell]:
    """Return the session's cells that run, or ended not long ago, in the order of their start."""
    return list(served.attachments.get(_PLACE, {}).values())
