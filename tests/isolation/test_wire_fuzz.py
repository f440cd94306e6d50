"""Seeded random messages from a real kernel: the reader survives, handles every error and slows nobody down.

``make fuzz`` runs more cases: ``make fuzz CASES=200000 SEED=7``.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from orchestrator.command import Command, CommandLimits
from orchestrator.errors import KernelDiedError
from orchestrator.isolation.measure import Cost, watch
from orchestrator.isolation.verification import Laboratory
from orchestrator.kernel.commands import CommandSpec
from orchestrator.kernel.transfer import put_file
from orchestrator.limits import MIB
from tests.conftest import one_session

pytestmark = pytest.mark.asyncio(loop_scope="module")

FUZZER = Path(__file__).with_name("wire_fuzzer.py")
SEED = int(os.environ.get("CELLBLOCK_FUZZ_SEED", "20261123"))
CASES = int(os.environ.get("CELLBLOCK_FUZZ_CASES", "0")) or {"runc": 10_000, "runsc": 2_000}
BATCH = 500  # cases for one kernel: fewer malformed messages than the number that kills a kernel
RUN = "exec(open('/tmp/fuzzer.py').read()); fuzz(get_ipython().kernel, {seed}, {cases}, raw={raw}, dry={dry})"
COMMAND_OUTCOMES = {"ok", "error", "timeout", "output_limit"}
IDS = 60  # different ids with which valid calls may come, among 300 random messages
OUTCOMES = {"ok", "kernel_died", "output_limit", "timeout"}


async def test_random_messages_are_withstood(bench: Laboratory, runtime: str) -> None:
    """Every batch ends with a result, and memory, event loop and neighbour stay within the threat model's bounds.

    The neighbour's latency is compared with its latency beside a kernel that does the same work and sends nothing.
    """
    cases = CASES if isinstance(CASES, int) else CASES[runtime]
    fuzzed, dry, outcomes = Cost(), Cost(), list[str]()
    begun = time.monotonic()
    for seed in range(SEED, SEED + cases // BATCH):
        raw = seed % 2 == 1
        async with bench.subject(whole=False) as subject:
            await put_file(subject.kernel, FUZZER.read_bytes(), "/tmp/fuzzer.py")
            async with watch(bench.neighbour) as cost:
                await subject.run(RUN.format(seed=seed, cases=BATCH, raw=raw, dry=True))
            dry.add(cost)
            async with watch(bench.neighbour) as cost:
                result = await subject.run(RUN.format(seed=seed, cases=BATCH, raw=raw, dry=False))
            fuzzed.add(cost)
            outcomes.append(result.outcome)
            assert result.outcome in (OUTCOMES if raw else {"ok"}), f"seed {seed}: {result.outcome} {result.error}"
            if subject.is_alive:
                assert (await subject.run("6 * 7")).result == "42", f"seed {seed}"
            else:
                with pytest.raises(KernelDiedError):
                    await subject.run("1")
    counted = {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}
    print(f"\n{cases} cases from seed {SEED} in {time.monotonic() - begun:.0f} s: {fuzzed.describe()}, "
          f"{1000 * dry.p99:.0f} ms without sending; {counted}")  # fmt: skip
    check_cost(bench, fuzzed)
    assert fuzzed.p99 <= 2 * dry.p99


async def test_random_messages_about_a_command_are_withstood(bench: Laboratory, runtime: str) -> None:
    """Each command of a kernel that lies ends with a result in time, and costs bounded memory and no stall."""
    commands = (CASES if isinstance(CASES, int) else CASES[runtime]) // BATCH
    spent, begun = Cost(), time.monotonic()
    async with bench.subject(whole=False) as subject:
        await put_file(subject.kernel, FUZZER.read_bytes(), "/tmp/fuzzer.py")
        for seed in range(SEED, SEED + commands):
            lie = f"exec(open('/tmp/fuzzer.py').read()); lie_about_commands(get_ipython().kernel, {seed}, 100)"
            assert (await subject.run(lie)).outcome == "ok"
            async with watch() as cost:
                command = Command(
                    subject.kernel, CommandSpec(("/bin/true",), "/work"), CommandLimits(5.0, 10 * MIB), number=seed,
                    command=("true",), shell=False, attached=False,
                )  # fmt: skip
                await command.start()
                await command.ended()
                result = await command.result()
            spent.add(cost)
            assert result.outcome in COMMAND_OUTCOMES, f"seed {seed}: {result}"
            json.dumps(result.as_dict(), allow_nan=False)
            assert (await subject.run("6 * 7")).result == "42", f"seed {seed}"
    print(f"\n{commands} commands of 100 random messages in {time.monotonic() - begun:.0f} s: {spent.describe()}")
    check_cost(bench, spent)


async def test_random_calls_of_tools_are_withstood(bench: Laboratory, runtime: str) -> None:
    """A forged call reaches a tool only with valid arguments and once for each id, and the cell ends as it does."""
    cells = (CASES if isinstance(CASES, int) else CASES[runtime]) // BATCH
    spent, called = Cost(), 0

    async def count() -> int:
        nonlocal called
        called += 1
        return called

    async with one_session(runtime) as (manager, session):
        await manager.write_file(session, "/tmp/fuzzer.py", FUZZER.read_bytes())
        for seed in range(SEED, SEED + cells):
            before = called
            forge = f"exec(open('/tmp/fuzzer.py').read()); forge_calls(get_ipython().kernel, {seed}, 300)"
            async with watch() as cost:
                result = await manager.execute(session, f"{forge}\nimport time; time.sleep(0.2)", tools=[count])
            spent.add(cost)
            assert result.outcome == "ok", f"seed {seed}: {result.outcome} {result.error}"
            assert called - before <= IDS, f"seed {seed}"
            assert (await manager.execute(session, "6 * 7")).result == "42", f"seed {seed}"
    assert called > 0
    print(f"\n{cells} cells of 300 random calls: {spent.describe()}; {called} calls were valid")
    check_cost(bench, spent)


def check_cost(bench: Laboratory, cost: Cost) -> None:
    """Check that nothing was left unhandled, and that memory and event loop keep the threat model's bounds."""
    assert cost.errors == []
    assert cost.memory <= bench.instance.config.limits.max_output_bytes + 16 * MIB
    assert min(cost.stall, cost.loop_cpu) <= 0.1
