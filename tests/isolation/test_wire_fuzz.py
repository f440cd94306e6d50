"""Seeded nonsense from a real kernel: nothing ends the reader, nothing is left unhandled, and nobody else notices.

``make fuzz`` goes on for longer: ``make fuzz CASES=200000 SEED=7``.
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
BATCH = 500  # cases for one kernel: fewer than the malformed messages that would be its end
RUN = "exec(open('/tmp/fuzzer.py').read()); fuzz(get_ipython().kernel, {seed}, {cases}, raw={raw}, dry={dry})"
FATES = {"ok", "kernel_died", "output_limit", "timeout"}


async def test_seeded_nonsense_is_withstood(bench: Laboratory, runtime: str) -> None:
    """Every batch ends as a result; memory, loop and neighbour stay within the bounds of the threat model.

    The neighbour's latency is compared with that beside the same kernel at the same work, sending nothing.
    """
    cases = CASES if isinstance(CASES, int) else CASES[runtime]
    fuzzed, dry, fates = Cost(), Cost(), list[str]()
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
            fates.append(result.outcome)
            assert result.outcome in (FATES if raw else {"ok"}), f"seed {seed}: {result.outcome} {result.error}"
            if subject.is_alive:
                assert (await subject.run("6 * 7")).result == "42", f"seed {seed}"
            else:
                with pytest.raises(KernelDiedError):
                    await subject.run("1")
    counted = {fate: fates.count(fate) for fate in sorted(set(fates))}
    print(f"\n{cases} cases from seed {SEED} in {time.monotonic() - begun:.0f} s: {fuzzed.describe()}, "
          f"{1000 * dry.p99:.0f} ms beside the same work; {counted}")  # fmt: skip
    assert fuzzed.errors == []
    assert fuzzed.memory <= bench.instance.config.limits.max_output_bytes + 16 * MIB
    assert min(fuzzed.stall, fuzzed.loop_cpu) <= 0.1
    assert fuzzed.p99 <= 2 * dry.p99
