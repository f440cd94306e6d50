"""Claims about what a command, and a kernel that lies about one, can do to the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.command import CONFIRM, Command, CommandLimits
from orchestrator.isolation import wire_attacks
from orchestrator.isolation.claims import Claim, Verdict, verdict
from orchestrator.isolation.measure import Cost, quiet_p99, watch
from orchestrator.isolation.subject import Subject
from orchestrator.kernel.commands import CommandSpec
from orchestrator.limits import MIB
from orchestrator.output.commandresult import CommandResult

_ALLOWANCE = 16 * MIB  # by how much memory may grow beyond the output limit
_STALL = 0.1  # seconds for which the event loop may stall
_TIME = 0.7  # seconds that a command may take
_LATE = CONFIRM + 3.0  # seconds after that in which its result has to be there


@dataclass(frozen=True, slots=True)
class _Attack:
    """A command, and what the kernel is changed to before it."""

    line: str
    prelude: str = ""
    outcomes: tuple[str, ...] = ("timeout",)


_ATTACKS: Mapping[str, _Attack] = {
    "a flood": _Attack("yes"),
    "a flood on both streams": _Attack("yes >&2 & yes"),
    "single bytes": _Attack("while :; do printf x; done"),
    "processes without end": _Attack("while :; do sleep 9 & (sleep 9 &); done"),
    "ignored signals": _Attack("trap '' TERM INT HUP; while :; do sleep 1; done"),
    "a kernel that ignores its window": _Attack("true", wire_attacks.LYING_COMMANDS["endless output"]),
    "a kernel that sends empty output": _Attack("true", wire_attacks.LYING_COMMANDS["empty output"]),
    "a kernel that reports two ends": _Attack("true", wire_attacks.LYING_COMMANDS["two ends"], ("ok",)),
    "a kernel that reports nonsense": _Attack("true", wire_attacks.LYING_COMMANDS["nonsense"], ("error",)),
    "a kernel that never answers": _Attack("true", wire_attacks.LYING_COMMANDS["silence"]),
}


async def _bounded(subject: Subject) -> Verdict:
    """Run hostile commands, and commands in kernels that lie about them."""
    assert subject.neighbour is not None
    total, faults = Cost(), list[str]()
    before = await quiet_p99(subject.neighbour)
    most = subject.policy.resource_limits().max_output_bytes + _ALLOWANCE
    for name, attack in _ATTACKS.items():
        async with subject.twins(1) as (attacker,):
            if attack.prelude:
                await attacker.run(wire_attacks.cell(attack.prelude, _TIME))
            async with watch(subject.neighbour) as cost:
                result = await _run(attacker, attack.line)
        total.add(cost)
        if result.outcome not in attack.outcomes:
            faults.append(f"{name}: the command ended as {result.outcome}")
        if result.duration_s > _TIME + _LATE:
            faults.append(f"{name}: the result took {result.duration_s:.1f} s")
        if (kept := len(result.stdout) + len(result.stderr)) > most:
            faults.append(f"{name}: the result has {kept / MIB:.0f} MiB of output, more than {most / MIB:.0f} MiB")
        if cost.memory > most:
            faults.append(f"{name}: memory grew by {cost.memory / MIB:.0f} MiB, more than {most / MIB:.0f} MiB")
        if min(cost.stall, cost.loop_cpu) > _STALL:
            faults.append(f"{name}: the event loop stalled for {1000 * cost.stall:.0f} ms")
        faults += cost.errors
        if faults and not subject.whole:
            break
    faults += total.slowdown(before)
    return verdict(faults, f"{len(_ATTACKS)} commands: {total.describe()}, {total.p99 / before:.1f} times")


async def _run(subject: Subject, line: str) -> CommandResult:
    limits = CommandLimits(_TIME, subject.limits.max_output_bytes)
    spec = CommandSpec(("/bin/bash", "-c", line), "/work")
    command = Command(subject.kernel, spec, limits, number=1, command=(line,), shell=True, attached=False)  # noqa: S604
    await command.start()
    await command.ended()
    return await command.result()


CLAIMS = (
    Claim(
        "command_output_is_bounded",
        "O7",
        "A command, or a kernel that lies about one, costs bounded memory and time, and its result comes in time.",
        _bounded,
        attacks=True,
    ),
)
