"""Every seed of the fuzzer keeps its bounds of time, event loop and memory, and its result can be kept and shown.

``make fuzz`` tries more variants of each: ``make fuzz CASES=500000 SEED=7``.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from pathlib import Path

import pytest

from orchestrator.errors import FileTransferError
from orchestrator.isolation.measure import watch
from orchestrator.isolation.subject import Subject
from orchestrator.isolation.verification import Laboratory
from orchestrator.kernel.pace import Pace
from orchestrator.kernel.transfer import get_file
from orchestrator.limits import MIB
from orchestrator.output.events import ExecutionResult
from orchestrator.sessions.notebook import session_notebook
from tests.isolation.fuzz_seeds import SEEDS, Seed

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEED = int(os.environ.get("CELLBLOCK_FUZZ_SEED", "20261129"))
VARIANTS = max(1, int(os.environ.get("CELLBLOCK_FUZZ_CASES", "0")) // 20_000)
STALL = 0.1  # seconds
ALLOWANCE = 16 * MIB
SLOW_FILE = """
kernel = get_ipython().kernel
def slow(stream, ident, parent):
    import time
    time.sleep(0.05)
    kernel.session.send(stream, "file_read_reply", {"status": "ok"}, parent, ident=ident,
                        buffers=[bytes(parent["content"]["length"])])
kernel.control_handlers["file_read_request"] = slow
"""


def check_result(result: ExecutionResult) -> None:
    """Check that every reader can take a result: JSON, a notebook, and a terminal that shows its names."""
    form = result.as_dict()
    json.dumps(form, allow_nan=False).encode()
    session_notebook([{"code": "x", "result": form}], "seed")
    assert all(name.isprintable() for name in (*result.mime_dropped, *result.warnings))
    assert "\x1b" not in (result.error.traceback_text if result.error is not None else "")


async def try_seed(subject: Subject, seed: Seed, chance: random.Random) -> list[str]:
    """Run a variant and a plain cell after it; return the faults."""
    code = seed.code(chance)
    async with watch() as cost:
        async with asyncio.timeout(3 * seed.seconds):  # the machine may be busy
            result = await subject.run(code, seconds=2 * seed.seconds)
            await asyncio.sleep(0.4 if "setitimer" in code else 0)
            after = await subject.run("6 * 7")
    check_result(result)
    most = subject.policy.resource_limits().max_output_bytes + ALLOWANCE
    faults = [] if result.outcome in seed.outcomes else [f"ended as {result.outcome}: {result.error}"]
    faults += [] if after.result == "42" else [f"then: {after.outcome} {after.error}"]
    faults += [] if min(cost.stall, cost.loop_cpu) <= STALL else [f"stalled: {cost.describe()}"]
    faults += [] if cost.memory <= most else [f"memory: {cost.describe()}"]
    return [f"{fault[:300]} after {code[-200:]!r}" for fault in faults + cost.errors]


@pytest.mark.parametrize("name", SEEDS)
async def test_a_seed_is_withstood(bench: Laboratory, name: str) -> None:
    """Each variant ends in time, stalls the loop for 100 ms at most, and takes the output limit and 16 MiB at most."""
    faults: list[str] = []
    for number in range(VARIANTS):
        chance = random.Random(f"{SEED + number} {name}")  # noqa: S311 - a repeatable test
        async with bench.subject(whole=False) as subject:
            faults += await try_seed(subject, SEEDS[name], chance)
    assert faults == []


async def test_a_file_that_is_served_slowly_is_given_up(bench: Laboratory, tmp_path: Path) -> None:
    """E10: pieces that come slowly end with an error when the time of the whole transfer is over."""
    async with bench.subject(whole=False) as subject:
        await subject.run(SLOW_FILE)
        async with asyncio.timeout(20):
            with pytest.raises(FileTransferError, match="too slowly"):
                await get_file(subject.kernel, "f", tmp_path / "f", 4096 * MIB, Pace(1.0, 100 * MIB))
    assert list(tmp_path.iterdir()) == []
