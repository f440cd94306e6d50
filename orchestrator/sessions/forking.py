"""Forking: make sleeping sessions with the state of a live one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

from orchestrator.errors import InvalidInputError
from orchestrator.inputs import LONGEST_AGENT_ID, check_agent_id
from orchestrator.sessions.checkpoint import capture, copy
from orchestrator.sessions.registry import SessionRegistry
from orchestrator.sessions.session import KernelSession
from orchestrator.store.history import CheckpointRecord, History

_SUFFIX = 12  # characters that a numbered fork's agent id may have more than its parent's


class Forking:
    """Forks the sessions of one manager."""

    def __init__(self, registry: SessionRegistry) -> None:
        self._registry = registry

    async def fork(
        self, session: KernelSession, count: int, agent_ids: Sequence[str] | None = None
    ) -> list[KernelSession]:
        """Return sleeping sessions with this one's state, one for each agent id, or with ids that are free.

        Raises:
            InvalidInputError: an agent id is invalid, appears twice, or has a session.
            CheckpointError, StoreError, KernelDiedError: see ``checkpoint.capture``. No session was made.
        """
        async with session.between_cells():  # two forks at once find different ids, and have a checkpoint each
            return await self._fork(session, await self._free_ids(session.agent_id, count, agent_ids))

    async def _fork(self, session: KernelSession, agent_ids: Sequence[str]) -> list[KernelSession]:
        files = self._registry.files
        made = await capture(session, files, asked_for=False)
        copies: list[CheckpointRecord] = []

        async def copy_for(fork: KernelSession) -> CheckpointRecord:
            copies.append(await copy(made, fork, files))
            return copies[-1]

        try:
            forks = await session.fork(agent_ids, copy_for)
        except BaseException:
            for record in copies:
                await asyncio.to_thread(files.remove, record.checkpoint_id)
            raise
        self._registry.asleep.update({fork.session_id: fork for fork in forks})
        return forks

    async def _free_ids(self, agent_id: str, count: int, wanted: Sequence[str] | None) -> list[str]:
        numbered = (f"{agent_id[: LONGEST_AGENT_ID - _SUFFIX]}~{number}" for number in itertools.count(1))
        free: list[str] = []
        for candidate in numbered if wanted is None else wanted:
            check_agent_id(candidate)
            taken = candidate in free or bool(await self._registry.store.run(History.sessions_of, candidate))
            if taken and wanted is not None:
                raise InvalidInputError(f"agent {candidate!r} has a session already.")
            if not taken:
                free.append(candidate)
            if len(free) == count:
                break
        return free
