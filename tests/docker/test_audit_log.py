"""The audit log of real kernels: what was started, ended, and cut off, and why."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import re
from pathlib import Path

import docker
import pytest
from prometheus_client import generate_latest

from orchestrator.isolation.wire_attacks import EXCESS, FORGERY, VIOLATION, cell
from orchestrator.logs import JsonFormatter
from orchestrator.store.auditreading import verify
from tests.conftest import make_manager, one_session


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
    """Too much, malformed and forged, each with its reason; and an honest kernel's life in six lines."""
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
    last = [entry["kernel"] for entry in log if "kernel" in entry][-1]
    assert [entry["event"] for entry in log if entry.get("kernel") == last] == [
        "kernel.started",
        "session.started",
        "cell.started",
        "cell.ended",
        "session.ended",
        "kernel.ended",
    ]


async def test_the_log_says_who_ran_what_where_and_how_it_ended(runtime: str, tmp_path: Path) -> None:
    """Agent and caller, the code's digest and never the code, container, image, policy, limits, evidence, files."""
    path = tmp_path / "audit.jsonl"
    code = "print('hidden-7291')"
    (tmp_path / "in.txt").write_bytes(b"into the sandbox")
    async with make_manager(runtime, max_kernels=1, audit_log=str(path)) as manager:
        async with manager.acquire_kernel("agent-1", timeout=60, caller="service-a") as (kernel, session):
            await manager.execute_code(session, code)
            await manager.put_file(session, tmp_path / "in.txt", "in.txt")
            await manager.get_file(session, "in.txt", tmp_path / "out.txt")
        image, policy = session.live_kernel().description()["image"], manager.policy.digest
        with contextlib.closing(docker.from_env()) as client:
            assert client.api.inspect_container(kernel.container_name)["Image"] == image
    log = [json.loads(line) for line in path.read_text().splitlines()]
    assert "hidden-7291" not in path.read_text()
    started, ended = (next(entry for entry in log if entry["event"] == f"cell.{end}") for end in ("started", "ended"))
    for entry in (started, ended):
        assert (entry["agent"], entry["caller"], entry["cell"]) == ("agent-1", "service-a", 1)
        assert entry["session"] == session.session_id
        assert entry["kernel"] == kernel.kernel_id
    assert started["code_sha256"] == hashlib.sha256(code.encode()).hexdigest()
    assert (started["image"], started["policy"], started["runtime"]) == (image, policy, runtime)
    assert started["container"] == kernel.container_name
    assert started["limits"]["memory_mb"] == manager.resource_limits.max_memory_mb
    assert (ended["outcome"], ended["kernel_state"]) == ("ok", "idle")
    assert ended["evidence"]["output_bytes"] > 0
    files = {entry["event"]: entry["sha256"] for entry in log if entry["event"].startswith("file.")}
    assert files == dict.fromkeys(("file.in", "file.out"), hashlib.sha256(b"into the sandbox").hexdigest())
    assert next(entry["event"] for entry in log) == "instance.opened"
    assert [entry["event"] for entry in log][-1] == "instance.closed"
    assert verify(path).fault is None


async def test_a_policy_may_have_the_code_itself_written_down(tmp_path: Path) -> None:
    """``audit.code = "full"``: an investigation may need it; and a long one is whole."""
    path, policy = tmp_path / "audit.jsonl", tmp_path / "full.toml"
    policy.write_text('[audit]\ncode = "full"\nfsync = true\n')
    code = f"kept = {'x' * 5000!r}"
    async with one_session("runc", max_kernels=1, audit_log=str(path), policy=str(policy)) as (manager, session):
        await manager.execute_code(session, code)
    log = [json.loads(line) for line in path.read_text().splitlines()]
    assert [entry["code"] for entry in log if entry["event"] == "cell.started"] == [code]


@pytest.mark.one_runtime
async def test_the_program_log_has_neither_code_nor_what_a_sandbox_makes_long(
    runtime: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Every event at INFO, with fields of bounded length: an error's name is the sandbox's own choice."""
    with caplog.at_level(logging.INFO, "orchestrator"):
        async with one_session(runtime) as (manager, session):
            code = "kept = 'hidden-7291'; print(kept)\nraise type('N' * 1_000_000, (Exception,), {})(kept)"
            assert (await manager.execute_code(session, code))["outcome"] == "error"
    lines = [JsonFormatter().format(record) for record in caplog.records]
    assert any('"event": "cell.ended"' in line for line in lines)
    assert "hidden-7291" not in "".join(lines)
    assert max(map(len, lines)) < 3000


@pytest.mark.one_runtime
async def test_a_session_ends_once(runtime: str, tmp_path: Path) -> None:
    """Its kernel dies and its agent ends it at the same moment: one entry says that it has ended, and one count."""
    path = tmp_path / "audit.jsonl"
    async with make_manager(runtime, max_kernels=1, audit_log=str(path)) as manager:
        for number in range(3):
            async with manager.acquire_kernel(f"agent-{number}", timeout=60) as (_kernel, session):
                await manager.execute_code(session, "import os; os._exit(3)")
            await manager.end_session(f"agent-{number}")
        await asyncio.sleep(1)
        metrics = generate_latest(manager.telemetry.registry).decode()
    log = [json.loads(line) for line in path.read_text().splitlines()]
    assert [entry["agent"] for entry in log if entry["event"] == "session.ended"] == ["agent-0", "agent-1", "agent-2"]
    ends = re.findall(r"^cellblock_kernel_ends_total\{.*\} (.*)$", metrics, re.MULTILINE)
    assert sum(map(float, ends)) == 3
