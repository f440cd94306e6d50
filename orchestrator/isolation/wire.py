"""Claims on what a kernel can do to the orchestrator with what it sends."""

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

_BESIDE = 16 * MIB  # bytes by which memory may grow beyond the policy's output limit
_STALL = 0.1  # seconds that the event loop may stand still
_SLOWER = 2.0  # times its quiet p99 that a neighbour may be slowed to
_ATTACK = 0.5  # seconds
_CELL = 6.0  # seconds that an attacking cell may take before it is interrupted; 0.2 to 2 were seen
_FOUND_OUT = 2.0  # seconds after a forged end in which the true one must have come

Judge = Callable[[Subject, ExecutionResult], Awaitable[list[str]]]


async def _cut_off(_: Subject, result: ExecutionResult) -> list[str]:
    return [] if result.outcome == "output_limit" and result.kernel_state == "dead" else [_ended(result)]


async def _violated(_: Subject, result: ExecutionResult) -> list[str]:
    told = result.error is not None and "was ended" in result.error.evalue
    return [] if result.outcome == "kernel_died" and told else [_ended(result)]


async def _forged(attacker: Subject, result: ExecutionResult) -> list[str]:
    """A cell may forge its own end; with the true one its kernel is found out, and nothing runs there any more."""
    end = time.monotonic() + _FOUND_OUT
    while attacker.is_alive and time.monotonic() < end:  # noqa: ASYNC110 - it is looked at from outside, as a user does
        await asyncio.sleep(0.01)
    if attacker.is_alive:
        return [f"{_ended(result)} and lives on"]
    return [] if attacker.kernel.violated else [f"{_ended(result)} but for no violation"]


async def _told(_: Subject, result: ExecutionResult) -> list[str]:
    return [] if result.outcome in ("ok", "output_limit") else [_ended(result)]


def _ended(result: ExecutionResult) -> str:
    return f"the cell ended as {result.outcome}, its kernel {result.kernel_state}"


def _probe(attacks: Mapping[str, str], judge: Judge, *, fatal: bool = True) -> Probe:
    """Make a probe of several attacks.

    Args:
        fatal: each ends its kernel, if the promise holds. Else one kernel takes all of them, as long as it lives.
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
                cost, found = await assault(attackers[0], attack, judge)
                faults += [f"{name}: {fault}" for fault in found]
                total.add(cost)
                if faults and not subject.whole:
                    break
        if total.p99 > _SLOWER * before:
            faults.append(f"neighbour p99 {1000 * total.p99:.1f} ms, {1000 * before:.1f} ms before")
        return verdict(faults, f"{len(attacks)} attacks: {total.describe()}, {total.p99 / before:.1f} times")

    return probe


async def assault(attacker: Subject, attack: str, judge: Judge) -> tuple[Cost, list[str]]:
    """Run one attack beside a neighbour's cells; return what it cost, and what was wrong."""
    async with watch(attacker.neighbour) as cost:
        try:
            faults = await judge(attacker, await attacker.run(wire_attacks.cell(attack, _ATTACK), seconds=_CELL))
        except KernelDiedError as error:
            faults = [f"the attack could not be run: {error.message}"]
    most = attacker.policy.resource_limits().max_output_bytes + _BESIDE
    if cost.memory > most:
        faults.append(f"memory grew by {cost.memory / MIB:.0f} MB, beyond {most / MIB:.0f}")
    # A stall that the loop's own thread spent no time on is the machine's, which gave it no processor.
    if min(cost.stall, cost.loop_cpu) > _STALL:
        faults.append(f"the loop stood still for {1000 * cost.stall:.0f} ms")
    return cost, faults + cost.errors


CLAIMS = (
    Claim("wire_excess_is_cut_off", "O1", "Whoever sends more than a message may weigh is cut off, and told.",
          _probe(wire_attacks.EXCESS, _cut_off), attacks=True),
    Claim("wire_floods_are_bounded", "O1", "Floods and drips cost bounded memory and time, and no neighbour anything.",
          _probe(wire_attacks.BOUNDED, _told, fatal=False), attacks=True),
    Claim("wire_violations_end_the_kernel", "O3", "Malformed messages end the kernel that sends them, and it is told.",
          _probe(wire_attacks.VIOLATION, _violated), attacks=True),
    Claim("wire_forgeries_end_the_kernel", "O2", "A kernel that forges the end of a cell is found out, and ended.",
          _probe(wire_attacks.FORGERY, _forged), attacks=True),
)  # fmt: skip
