"""Measures all subjects in turn: once per round, in a random order, so that load on the machine affects all of them."""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.progress import Progress

from benchmarks.peers import subjects
from benchmarks.peers.catalogue import Peer
from benchmarks.peers.preparation import Place
from benchmarks.peers.subjects import Subject
from benchmarks.subjects import engine_runtimes
from orchestrator.errors import CellblockError

WARM_UP = 2  # rounds of executes before the measurement
BURST = 5  # executes per turn, without a pause
FAILURES = 3  # failed turns after which a subject is skipped
QUIET = 0.3  # seconds of low load before each turn
BUSY = 25.0  # percent of all cores; low load is below this
PATIENCE = 2.0  # maximum seconds to wait for low load
_ORDER = random.Random(1)  # noqa: S311 - the same order in every run


@dataclass(frozen=True)
class Bounds:
    """How much to measure.

    Attributes:
        executes: rounds of executes; each subject runs BURST executes per round.
        leases: rounds of leases; each subject has one lease per round.
        seconds: the time limit of each measure. A started round is finished.
    """

    executes: int
    leases: int
    seconds: float


async def measure(
    peers: dict[Peer, Path], place: Place, logs: Path, bounds: Bounds, progress: Progress
) -> list[Subject]:
    """Return all subjects with their times, Cellblock first.

    Args:
        peers: the Python of each peer's environment.
        logs: the folder for the drivers' logs.
    """
    async with AsyncExitStack() as stack:
        everyone = [subjects.local()]
        contexts = [
            *(subjects.cellblock(runtime, warm=1) for runtime in engine_runtimes()),
            subjects.cellblock("runc", warm=0),
            *(subjects.driven(peer, python, place, logs) for peer, python in peers.items()),
        ]
        everyone += [await stack.enter_async_context(context) for context in contexts]
        async with opened([subject for subject in everyone if subject.repeated], progress) as repeated:
            await _rounds(repeated, _execute, WARM_UP + bounds.executes, bounds.seconds, progress, "executes")
        await _rounds(everyone, _lease, bounds.leases, bounds.seconds, progress, "leases")
        for subject in everyone:
            del subject.executes[: WARM_UP * BURST]
    return everyone


@asynccontextmanager
async def opened(chosen: list[Subject], progress: Progress) -> AsyncIterator[list[Subject]]:
    """Open a sandbox for each subject, and close all of them when the context ends."""
    task = progress.add_task("opening a sandbox for each subject", total=len(chosen))
    try:
        for subject in chosen:
            await _attempt(subject, subject.orders.open)
            progress.advance(task)
        yield chosen
    finally:
        for subject in chosen:
            await _attempt(subject, subject.orders.shut)


async def _rounds(
    chosen: Sequence[Subject],
    measured: Callable[[Subject], Awaitable[None]],
    rounds: int,
    seconds: float,
    progress: Progress,
    name: str,
) -> None:
    end = time.monotonic() + seconds
    task = progress.add_task(name, total=rounds)
    for _ in range(rounds):
        if time.monotonic() > end:
            break
        for subject in _ORDER.sample(chosen, len(chosen)):
            progress.update(task, description=f"{name}: {subject.name}")
            await _attempt(subject, functools.partial(_turn, subject, measured))
        progress.advance(task)
    progress.update(task, description=name, total=progress.tasks[task].completed)


async def _turn(subject: Subject, measured: Callable[[Subject], Awaitable[None]]) -> None:
    await subject.ready()
    await _quiet()
    await measured(subject)


async def _execute(subject: Subject) -> None:
    for _ in range(BURST):
        subject.executes.append(await subject.orders.execute())


async def _lease(subject: Subject) -> None:
    subject.leases.append(await subject.orders.lease())


async def _quiet() -> None:
    """Wait for low load on the machine, for at most ``PATIENCE`` seconds."""
    end = time.monotonic() + PATIENCE
    psutil.cpu_percent()
    while time.monotonic() < end:
        await asyncio.sleep(QUIET)
        if psutil.cpu_percent() < BUSY:
            return


async def _attempt(subject: Subject, turn: Callable[[], Awaitable[object]]) -> None:
    """Run one turn of a subject and record its failure. Skip a subject that has failed too often."""
    if len(subject.failures) >= FAILURES:
        return
    try:
        await turn()
    except (subjects.PeerError, CellblockError, RuntimeError, TimeoutError) as error:
        subject.failures.append(str(error) or type(error).__name__)
