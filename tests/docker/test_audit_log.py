"""The audit log of real kernels: what was started, ended, and cut off, and why."""

from __future__ import annotations

import json
from pathlib import Path

from orchestrator.isolation.wire_attacks import EXCESS, FORGERY, VIOLATION, cell
from tests.conftest import make_manager


async def events_of(runtime: str, path: Path, *codes: str) -> tuple[list[str], list[dict[str, str]]]:
    """Run each cell in a kernel of its own; return their outcomes, and the log."""
    outcomes = []
    async with make_manager(runtime, max_kernels=1, audit_log=str(path)) as manager:
        for number, code in enumerate(codes):
            async with manager.acquire_kernel(f"agent-{number}", timeout=60) as (_kernel, session):
                outcomes.append((await manager.execute_code(session, code))["outcome"])
            await manager.end_session(f"agent-{number}")
    return outcomes, [json.loads(line) for line in path.read_text().splitlines()]


async def test_what_a_kernel_was_cut_off_for_is_written_down(runtime: str, tmp_path: Path) -> None:
    """Too much, malformed and forged, each with its reason; and an honest kernel's life in two lines."""
    codes = (
        cell(EXCESS["a frame announced with 2**62 bytes"], 0.5),
        cell(VIOLATION["unknown flags"], 0.5),
        cell(FORGERY["two idles"], 0.5) + "\ntime.sleep(1)",
        "1 + 1",
    )
    outcomes, log = await events_of(runtime, tmp_path / "audit.jsonl", *codes)
    assert outcomes[:2] == ["output_limit", "kernel_died"]
    assert outcomes[3] == "ok"
    cuts = [entry for entry in log if entry["event"] == "kernel.cut"]
    assert "exceeds" in cuts[0]["reason"]
    assert "unknown flags" in cuts[1]["reason"]
    assert "second" in cuts[2]["reason"]
    assert [entry["event"] for entry in log].count("kernel.started") == 4
    told = [entry for entry in log if entry["event"] == "cell.cut"]
    assert [entry["outcome"] for entry in told][:2] == ["output_limit", "kernel_died"]
    honest = [entry["event"] for entry in log if entry["kernel"] == log[-1]["kernel"]]
    assert honest == ["kernel.started", "kernel.ended"]
