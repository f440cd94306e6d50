"""LiveCommands: the commands of one session that were started in the background, and that clients come back to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from functools import partial

from orchestrator.errors import InvalidInputError
from orchestrator.output.commandresult import CommandResult
from orchestrator.server.directory import Served
from orchestrator.server.eventstream import Numbered
from orchestrator.server.service import Forget
from orchestrator.sessions.commandhandle import CommandEvent, RunningCommand
from orchestrator.sessions.kept import Kept

_PLACE = "commands"


def remember(served: Served, running: RunningCommand, ended: Kept[Forget]) -> None:
    """Keep a command that was started, so that its result can be asked for after its end.

    Args:
        ended: those of the whole server that are over.
    """
    commands: dict[int, RunningCommand] = served.attachments.setdefault(_PLACE, {})
    commands[running.number] = running
    forget = partial(commands.pop, running.number, None)

    def keep(settled: asyncio.Task[CommandResult]) -> None:
        has_result = not settled.cancelled() and settled.exception() is None
        for forget_other in ended.add(forget, served.handle.group, size_of(settled.result()) if has_result else 0):
            forget_other()

    running.when_over(keep)


def size_of(result: CommandResult) -> int:
    """Return how many bytes of output a result has."""
    return len(result.stdout) + len(result.stderr)


def find(served: Served, number: int) -> RunningCommand:
    """Return a command of the session.

    Raises:
        InvalidInputError: the session has no command of this number that was started in the background, or it ended
            long ago.
    """
    commands: dict[int, RunningCommand] = served.attachments.get(_PLACE, {})
    if number not in commands:
        raise InvalidInputError(
            f"the session has no background command #{number}.", remedy="Its history has the commands that ended."
        )
    return commands[number]


async def numbered(events: AsyncGenerator[CommandEvent, None]) -> AsyncGenerator[Numbered, None]:
    """Yield a command's events as JSON. They have no numbers: a command's output is read once."""
    async with contextlib.aclosing(events):
        async for event in events:
            yield None, event.as_dict()


async def wait(running: RunningCommand, seconds: float) -> CommandResult | None:
    """Return a command's result; None if it still runs after so many seconds."""
    with contextlib.suppress(TimeoutError):
        return await running.wait(seconds if running.is_running else None)
    await asyncio.sleep(0)
    return None
