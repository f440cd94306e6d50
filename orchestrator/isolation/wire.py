"""Claims on what a kernel can do to the orchestrator with what it sends."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from orchestrator.errors import KernelDiedError
from orchestrator.isolation import wire_attacks
from orchestrator.isolation.claims import Claim, Probe, Verdict, verdict
from orchestrator.isolation.measure import Cost, quiet_p99, watch
from orchestrator.isolation.subject import Subject
from orchestrator.limits import MEGABYTE
from orchestrator.outputs import ExecutionResult

_BESIDE = 16 * MEGABYTE  # bytes by which memory may grow beyond the policy's output limit
_STALL = 0.1  # seconds that the event loop may stand still
_SLOWER = 2.0  # times its quiet p99 that a neighbour may be slowed to
_ATTACK = 0.6  # seconds
_CELL = 1.5  # seconds that an attacking cell may take before it is interrupted

Judge = Callable[[ExecutionResult], list[str]]


def _cut_off(result: ExecutionResult) -> list[str]:
    if result.outcome == "output_limit" and result.kernel_state == "dead":
        return []
    return [f"the cell ended as {result.outcome}, its kernel {result.kernel_state}"]


def _ended(result: ExecutionResult) -> list[str]:
    if result.outcome == "kernel_died" and result.error is not None and "was ended" in result.error.evalue:
        return []
    return [f"the cell ended as {result.outcome}, its kernel {result.kernel_state}"]


def _told(result: ExecutionResult) -> list[str]:
    return [] if result.outcome in ("ok", "timeout", "output_limit") else [f"the cell ended as {result.outcome}"]


def _probe(attacks: Mapping[str, str], judge: Judge) -> Probe:
    async def probe(subject: Subject) -> Verdict:
        assert subject.neighbour is not None
        before, total, faults = await quiet_p99(subject.neighbour), Cost(), list[str]()
        for name, attack in attacks.items():
            async with subject.twin() as attacker:
                cost, found = await assault(attacker, attack, judge)
            faults += [f"{name}: {fault}" for fault in found]
            total.add(cost)
        if total.p99 > _SLOWER * before:
            faults.append(f"neighbour p99 {1000 * total.p99:.1f} ms, {1000 * before:.1f} ms before")
        return verdict(faults, f"{len(attacks)} attacks: {total.describe()}, {total.p99 / before:.1f} times")

    return probe


async def assault(attacker: Subject, attack: str, judge: Judge) -> tuple[Cost, list[str]]:
    """Run one attack beside a neighbour's cells; return what it cost, and what was wrong."""
    async with watch(attacker.neighbour) as cost:
        try:
            faults = judge(await attacker.run(wire_attacks.cell(attack, _ATTACK), seconds=_CELL))
        except KernelDiedError as error:
            faults = [f"the attack could not be run: {error.message}"]
    most = attacker.limits.max_output_bytes + _BESIDE
    if cost.memory > most:
        faults.append(f"memory grew by {cost.memory / MEGABYTE:.0f} MB, beyond {most / MEGABYTE:.0f}")
    # A stall that the loop's own thread spent no time on is the machine's, which gave it no processor.
    if min(cost.stall, cost.loop_cpu) > _STALL:
        faults.append(f"the loop stood still for {1000 * cost.stall:.0f} ms")
    return cost, faults + cost.errors


CLAIMS = (
    Claim("wire_excess_is_cut_off", "O1", "Whoever sends more than a message may weigh is cut off, and told.",
          _probe(wire_attacks.EXCESS, _cut_off), attacks=True),
    Claim("wire_floods_are_bounded", "O1", "Floods and drips cost bounded memory and time, and no neighbour anything.",
          _probe(wire_attacks.BOUNDED, _told), attacks=True),
    Claim("wire_violations_end_the_kernel", "O3", "Malformed and forged messages end the kernel that sends them.",
          _probe(wire_attacks.VIOLATION, _ended), attacks=True),
)  # fmt: skip
