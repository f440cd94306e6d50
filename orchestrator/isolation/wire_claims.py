"""Claims about the harm that a kernel can do to the orchestrator by sending messages."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping

from orchestrator.errors import KernelDiedError
from orchestrator.isolation import wire_attacks
from orchestrator.isolation.claims import Claim, Probe, Verdict, verdict
from orchestrator.isolation.measure import Cost, quiet_p99, watch
from orchestrator.isolation.subject import Subject
from orchestrator.limits import MIB
from orchestrator.output.events import ExecutionResult

_ALLOWANCE = 16 * MIB  # by how much memory may grow beyond the policy's output limit
_STALL = 0.1  # seconds for which the event loop may stall
_ATTACK = 0.5  # seconds that an attack lasts
_CELL = 6.0  # seconds until an attacking cell is interrupted; attacks took 0.2 to 2 s
_DETECTED = 2.0  # seconds until a forged end of a cell must be detected

Judge = Callable[[Subject, ExecutionResult], Awaitable[list[str]]]


async def _disconnected(_: Subject, result: ExecutionResult) -> list[str]:
    return [] if result.outcome == "output_limit" and result.kernel_state == "dead" else [_ended(result)]


async def _violated(_: Subject, result: ExecutionResult) -> list[str]:
    reported = result.error is not None and "was ended" in result.error.evalue
    return [] if result.outcome == "kernel_died" and reported else [_ended(result)]


async def _forged(attacker: Subject, result: ExecutionResult) -> list[str]:
    """Check that the kernel is killed: a cell may forge its own end, but the true end reveals the forgery."""
    end = time.monotonic() + _DETECTED
    while attacker.is_alive and time.monotonic() < end:  # noqa: ASYNC110 - polls as a user would
        await asyncio.sleep(0.01)
    if attacker.is_alive:
        return [f"{_ended(result)} and its kernel is still alive"]
    return [] if attacker.kernel.violated else [f"{_ended(result)} but not for a violation"]


async def is_reported(attacker: Subject, result: ExecutionResult) -> list[str]:
    """Return faults unless the cell ended well, or was stopped for its output, and its result is within the limit."""
    faults = [] if result.outcome in ("ok", "output_limit") else [_ended(result)]
    most = attacker.policy.resource_limits().max_output_bytes
    if result.kept_bytes > most:
        faults.append(f"the result has {result.kept_bytes / MIB:.0f} MiB of output, more than {most / MIB:.0f} MiB")
    return faults


def _ended(result: ExecutionResult) -> str:
    return f"the cell ended as {result.outcome}, its kernel {result.kernel_state}"


def probe_of(attacks: Mapping[str, str], judge: Judge, *, fatal: bool = True, seconds: float = _CELL) -> Probe:
    """Return a probe that runs several attacks.

    Args:
        fatal: whether each attack kills its kernel if the promise holds. Otherwise one kernel runs all attacks.
        seconds: until an attacking cell is interrupted.
    """

    async def probe(subject: Subject) -> Verdict:
        assert subject.neighbour is not None
        total, faults = Cost(), list[str]()
        async with contextlib.AsyncExitStack() as stack:
            count = len(attacks) if fatal and subject.whole else 1
            attackers = deque(await stack.enter_async_context(subject.twins(count)))
            before = await quiet_p99(subject.neighbour)
            for name, attack in attacks.items():
                while attackers and not attackers[0].is_alive:
                    attackers.popleft()
                if not attackers:
                    attackers.extend(await stack.enter_async_context(subject.twins(1)))
                cost, found = await assault(attackers[0], attack, judge, seconds)
                faults += [f"{name}: {fault}" for fault in found]
                total.add(cost)
                if faults and not subject.whole:
                    break
        faults += total.slowdown(before)
        return verdict(faults, f"{len(attacks)} attacks: {total.describe()}, {total.p99 / before:.1f} times")

    return probe


async def assault(attacker: Subject, attack: str, judge: Judge, seconds: float = _CELL) -> tuple[Cost, list[str]]:
    """Run one attack while a neighbour runs cells; return its cost and the faults."""
    async with watch(attacker.neighbour) as cost:
        try:
            faults = await judge(attacker, await attacker.run(wire_attacks.cell(attack, _ATTACK), seconds=seconds))
        except KernelDiedError as error:
            faults = [f"the attack could not run: {error.message}"]
    most = attacker.policy.resource_limits().max_output_bytes + _ALLOWANCE
    if cost.memory > most:
        faults.append(f"memory grew by {cost.memory / MIB:.0f} MiB, more than {most / MIB:.0f} MiB")
    # If the loop's thread used no CPU during a stall, the machine caused the stall by not scheduling the thread.
    if min(cost.stall, cost.loop_cpu) > _STALL:
        faults.append(f"the event loop stalled for {1000 * cost.stall:.0f} ms")
    return cost, faults + cost.errors


CLAIMS = (
    Claim(
        "wire_excess_disconnects_the_kernel",
        "O1",
        "A kernel whose message exceeds the size limit is disconnected, and the result says why.",
        probe_of(wire_attacks.EXCESS, _disconnected),
        attacks=True,
    ),
    Claim(
        "wire_floods_are_bounded",
        "O1",
        "Floods and slow drips cost bounded memory and time, and no neighbour is slowed down.",
        probe_of(wire_attacks.BOUNDED, is_reported, fatal=False),
        attacks=True,
    ),
    Claim(
        "wire_violations_end_the_kernel",
        "O3",
        "A kernel that sends malformed messages is killed, and the result says why.",
        probe_of(wire_attacks.VIOLATION, _violated),
        attacks=True,
    ),
    Claim(
        "wire_forgeries_end_the_kernel",
        "O2",
        "A kernel that forges the end of a cell is detected and killed.",
        probe_of(wire_attacks.FORGERY, _forged),
        attacks=True,
    ),
)
