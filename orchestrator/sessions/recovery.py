"""Recovery: a new process goes on with the sessions of one that has died.

A kernel that is whole is adopted, with its variables. Where there is none, the session sleeps, to be woken from its
newest checkpoint; without one it has ended. A cell that ran is noted as interrupted, and never run again.

A kernel that answers no more costs its own session only. What concerns them all (a store that cannot be written, a
start that is called off) costs none: the caller leaves those that were adopted by then to the next start.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from orchestrator.container.reaper import Leftover
from orchestrator.errors import EngineError, KernelDiedError, KernelStartError
from orchestrator.instance import Instance
from orchestrator.sessions.acquiring import SessionKeeper
from orchestrator.store.history import History, SessionRecord

_log = logging.getLogger(__name__)
_AT_ONCE = 8  # kernels that are adopted at the same time
_INTERRUPTED = {
    "status": "error",
    "outcome": "interrupted",
    "outputs": [],
    "error": {
        "ename": "OrchestratorLost",
        "evalue": "the orchestrator ended while this cell ran; it was not run again",
        "traceback": [],
        "traceback_text": "",
    },
}


@dataclass(frozen=True, slots=True)
class Recovery:
    """What dead processes had left.

    Attributes:
        sessions: the ids of their sessions, which this process has now.
        containers: how many containers they had.
    """

    sessions: tuple[str, ...] = ()
    containers: int = 0


async def recover(store: History, keeper: SessionKeeper, instance: Instance, max_kernels: int) -> Recovery:
    """Take over the sessions of this host whose process is dead, and remove what else dead processes left.

    Args:
        max_kernels: sessions beyond that, those used least recently, sleep.

    Raises:
        StoreError: the history, or the state of a kernel that cannot stay, cannot be read or written.
        EngineError: the engine does not answer.
    """
    records = [
        record
        for record in await store.run(History.unended)
        if record.owner is not None and Instance.is_dead(record.owner)
    ]
    inherited, others = await instance.inherit({record.kernel_id for record in records})
    left = {found.kernel_id: found for found in inherited}
    mine = [
        record
        for record in records
        if record.kernel_id not in others
        and await store.run(History.take_ownership, record.session_id, record.owner, instance.name)
    ]
    mine.sort(key=lambda record: record.last_used_at, reverse=True)
    places = asyncio.Semaphore(_AT_ONCE)

    async def take(record: SessionRecord, *, stays: bool) -> None:
        async with places:
            await _take(store, keeper, instance, record, left.get(record.kernel_id), stays=stays)

    work = [take(record, stays=number < max_kernels) for number, record in enumerate(mine)]
    for failure in await asyncio.gather(*work, return_exceptions=True):
        if failure is not None:
            raise failure
    return Recovery(tuple(record.session_id for record in mine), len(left) + await _sweep(instance))


async def _take(
    store: History,
    keeper: SessionKeeper,
    instance: Instance,
    record: SessionRecord,
    left: Leftover | None,
    *,
    stays: bool,
) -> None:
    interrupted = await store.run(History.has_running_cells, record.session_id)
    if interrupted:
        store.submit(History.end_running_cells, record.session_id, _INTERRUPTED)
    if left is None or record.state != "live":
        await keeper.inherit(record)
        return
    try:
        session = keeper.adopt(record, await instance.adopt(left), interrupted=interrupted)
    except (KernelStartError, KernelDiedError, EngineError) as error:
        _log.warning("the kernel of agent %s could not be adopted: %s", record.agent_id, error)
        await keeper.inherit(record)
        return
    if not instance.would_start_alike(left):  # its variables go on in a kernel that is locked as one is now
        await keeper.hand_over(session, "reconfigured")
    elif not stays:
        await keeper.hand_over(session, "evicted")


async def _sweep(instance: Instance) -> int:
    """Remove what nobody goes on with; what the engine refuses is the next start's. Returns how many containers."""
    try:
        return await instance.sweep()
    except EngineError as error:
        _log.warning("what dead processes left is not all removed yet: %s", error)
        return 0
