"""Seeded random messages from a real kernel: the reader survives, handles every error and slows nobody down.

``make fuzz`` runs more cases: ``make fuzz CASES=200000 SEED=7``.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from orchestrator.errors import KernelDiedError
from orchestrator.isolation.measure import Cost, watch
from orchestrator.isolation.verification import Laboratory
from orchestrator.kernel.transfer import put_file
from orchestrator.limits import MIB

pytestmark = pytest.mark.asyncio(loop_scope="module")

FUZZER = Path(__file__).with_name("wire_fuzzer.py")
SEED = int(os.environ.get("CELLBLOCK_FUZZ_SEED", "20261123"))
CASES = int(os.environ.get("CELLBLOCK_FUZZ_CASES", "0")) or {"runc": 10_000, "runsc": 2_000}
BATCH = 500  # cases for one kernel: fewer malformed messages than the number that kills a kernel
RUN = "exec(open('/tmp/fuzzer.py').read()); fuzz(get_ipython().kernel, {seed}, {cases}, raw={raw}, dry={dry})"
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
    assert fuzzed.errors == []
    assert fuzzed.memory <= bench.instance.config.limits.max_output_bytes + 16 * MIB
    assert min(fuzzed.stall, fuzzed.loop_cpu) <= 0.1
    assert fuzzed.p99 <= 2 * dry.p99
