"""What an agent learns in time: deadlines, interrupts and cancellations, warnings, and what its kernel uses."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import statistics
import time
import urllib.request

import pytest

from benchmarks.reactions import DEAF, REACTIONS, measure
from orchestrator import AgentKernelManager, CellFinished, KernelDiedError, KernelResourceLimits, KernelTimeoutError
from orchestrator.isolation import wire_attacks
from orchestrator.kernel.containerkernel import ContainerKernel
from tests.conftest import make_manager, one_session


@pytest.mark.alone
async def test_reactions_keep_to_their_bounds(runtime: str) -> None:
    """Deadlines, cancellations, out of memory, a killed kernel: the median of three is within the bound of each."""
    taken = await measure(runtime, 3)
    late = {name: times for name, times in taken.items() if statistics.median(times) > REACTIONS[name][1]}
    assert not late


async def test_an_interrupt_on_demand_keeps_the_kernel(runtime: str) -> None:
    """manager.interrupt: the cell ends as interrupted, and its variables are there; between cells it does nothing."""
    async with one_session(runtime) as (manager, session):
        assert manager.interrupt(session) is False
        running = asyncio.create_task(manager.execute_code(session, "kept = 7\nimport time; time.sleep(60)"))
        await asyncio.sleep(0.5)
        assert manager.interrupt(session) is True
        result = await asyncio.wait_for(running, 10)
        assert (result["outcome"], result["status"], result["kernel_state"]) == ("interrupted", "error", "idle")
        assert result["error"]["ename"] == "KeyboardInterrupt"
        assert result["evidence"]["interrupts"] == 1
        assert (await manager.execute_code(session, "kept"))["result"] == "7"


@pytest.mark.one_runtime
async def test_outputs_come_on_their_own_channel_only(runtime: str) -> None:
    """What a cell writes to the control channel in the form of an output is none, signed or not."""
    forged = 'once(signed(\'stream\', b\'{{"name": "stdout", "text": "forged"}}\'), number=4)\nprint(\'own\')'
    async with one_session(runtime) as (manager, session):
        result = await manager.execute_code(session, wire_attacks.cell(forged, 1))
    assert (result["outcome"], result["stdout"]) == ("ok", "attacking\nown\n")


async def test_every_interrupt_counts(runtime: str) -> None:
    """The next cell is interrupted as well, however soon after the one before."""
    async with one_session(runtime) as (manager, session):
        outcomes = []
        for _ in range(6):
            running = asyncio.create_task(manager.execute_code(session, "import time; time.sleep(2)"))
            await asyncio.sleep(0.2)
            manager.interrupt(session)
            outcomes.append((await running)["outcome"])
    assert outcomes == ["interrupted"] * 6


async def test_an_interrupt_reaches_a_kernel_that_does_not_answer(runtime: str) -> None:
    """With its control thread stopped a kernel hears of nothing; it is interrupted from outside, a second later."""
    async with one_session(runtime) as (manager, session):
        code = "control = get_ipython().kernel.control_thread.io_loop; control.add_callback(control.stop)"
        await manager.execute_code(session, code)
        running = asyncio.create_task(manager.execute_code(session, "import time; time.sleep(20)"))
        await asyncio.sleep(0.3)
        assert manager.interrupt(session) is True
        result = await running
    assert (result["outcome"], result["kernel_state"]) == ("interrupted", "idle")
    assert result["duration_s"] < 10


@pytest.mark.one_runtime
async def test_a_slow_consumer_does_not_make_a_cell_slow(runtime: str) -> None:
    """Seconds and the warning of the time limit are the cell's own; who leaves once it is over changes no outcome."""
    limits = KernelResourceLimits(max_execution_time=2)
    async with one_session(runtime, limits=limits) as (manager, session):
        async for event in manager.stream_code(session, "print('x')"):
            if isinstance(event, CellFinished):
                result = event.result
            else:
                await asyncio.sleep(1.8)
        async with contextlib.aclosing(manager.stream_code(session, "print('x'); 7")) as events:
            async for _event in events:
                await asyncio.sleep(0.5)
                break
        left = session.execution_history[-1]["result"]
    assert result.duration_s < 1
    assert result.warnings == ()
    assert (left["outcome"], left["result"]) == ("ok", "7")


async def test_what_is_killed_between_two_cells_is_told_with_the_next(runtime: str) -> None:
    """A child that runs out of memory while no cell runs: a warning, once. Under gVisor it is the kernel's end."""
    limits = KernelResourceLimits(max_memory_mb=256)
    bomb = "import time; time.sleep(0.5); x = [bytearray(2**20) for _ in range(10**6)]"
    async with make_manager(runtime, limits=limits) as manager:
        async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
            code = f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {bomb!r}])"
            assert (await manager.execute_code(session, code))["outcome"] == "ok"
            await asyncio.sleep(3)
            if runtime == "runc":
                told, after = [await manager.execute_code(session, "1") for _ in range(2)]
                assert (told["outcome"], told["evidence"]["oom_kills"]) == ("ok", 0)
                assert "a process of an earlier cell ran out of memory" in told["warnings"][0]
                assert after["warnings"] == []
                return
        async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
            assert session.previous_end == "oom"


async def test_a_kernel_that_ended_between_two_cells_is_told_with_its_exit_code(runtime: str) -> None:
    """The next cell has not run; the error says how the kernel ended."""
    async with one_session(runtime) as (manager, session):
        code = "import os, threading; threading.Timer(0.5, os._exit, [3]).start()"
        assert (await manager.execute_code(session, code))["outcome"] == "ok"
        async with asyncio.timeout(30):
            while session.ended is None:
                await asyncio.sleep(0.05)
        with pytest.raises(KernelDiedError, match=r"exit code 3") as caught:
            await manager.execute_code(session, "1")
        assert (caught.value.reason, caught.value.exit_code) == ("kernel_died", 3)


async def test_a_cell_that_copes_with_its_interrupt_is_ok(runtime: str) -> None:
    """A cell that catches its interrupt and ends well is ok, and the evidence says that it was interrupted."""
    async with one_session(runtime) as (manager, session):
        code = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('saved')"
        running = asyncio.create_task(manager.execute_code(session, code))
        await asyncio.sleep(0.5)
        manager.interrupt(session)
        result = await asyncio.wait_for(running, 10)
        assert (result["outcome"], result["stdout"]) == ("ok", "saved\n")
        assert result["evidence"]["interrupts"] == 1


@pytest.mark.alone
async def test_a_cancelled_cell_that_does_not_heed_it_is_seen_to_its_end(runtime: str) -> None:
    """The caller is free within half a second; the next cell of the session waits for the end, and learns of it."""
    async with one_session(runtime) as (manager, session):
        running = asyncio.create_task(manager.execute_code(session, DEAF))
        await asyncio.sleep(0.5)
        begun = time.monotonic()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert time.monotonic() - begun < 1
        assert session.is_busy
        assert session.execution_history[-1]["result"]["status"] == "running"
        with pytest.raises(Exception, match="gone"):
            await asyncio.wait_for(manager.execute_code(session, "1"), 20)
        result = session.execution_history[0]["result"]
        assert (result["outcome"], result["kernel_state"]) == ("cancelled", "dead")


async def test_a_shutdown_ends_what_was_cancelled(runtime: str) -> None:
    """Nothing waits for a cell that is deaf to its cancellation: the history has its end when shutdown returns."""
    async with one_session(runtime) as (manager, session):
        running = asyncio.create_task(manager.execute_code(session, DEAF))
        await asyncio.sleep(0.5)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert session.execution_history[-1]["result"]["outcome"] == "cancelled"
    assert not session.is_busy


async def test_a_cell_is_warned_before_it_meets_a_limit(runtime: str) -> None:
    """Memory and time past 80 % of their limits are in the result, of this cell alone; below there is no word."""
    limits = KernelResourceLimits(max_memory_mb=256, max_execution_time=5)
    async with one_session(runtime, limits=limits) as (manager, session):
        assert (await manager.execute_code(session, "1"))["warnings"] == []
        free = 256 - (await manager.get_kernel_resource_usage(session.kernel_id))["memory_mb"]
        size = int((free - 0.12 * 256) * 2**20)
        held = await manager.execute_code(session, f"x = b'x' * {size}")
        gone = await manager.execute_code(session, "del x")
        after = await manager.execute_code(session, "1")
        slow = await manager.execute_code(session, "import time; time.sleep(4.2)")
    assert [said.split(":")[0] for said in held["warnings"]] == ["memory"], held
    assert "of 256 MiB" in held["warnings"][0]
    assert len(gone["warnings"]) <= 1
    assert after["warnings"] == []
    assert [said.split(":")[0] for said in slow["warnings"]] == ["time"]


@pytest.mark.alone
async def test_usage_follows_what_a_cell_does(runtime: str) -> None:
    """Memory, CPU, processes and files rise as the kernel takes them, and fall again."""
    async with one_session(runtime) as (manager, session):
        before = await usage(manager, session.kernel_id)
        await manager.execute_code(session, "x = b'x' * (200 * 2**20)")
        held = await usage(manager, session.kernel_id)
        await manager.execute_code(session, "del x; open('/work/file', 'wb').write(b'x' * (50 * 2**20)); None")
        filed = await usage(manager, session.kernel_id)
        busy = asyncio.create_task(manager.execute_code(session, "while True: pass"))
        await asyncio.sleep(2)
        working = await usage(manager, session.kernel_id)
        manager.interrupt(session)
        await busy
    assert 190 < held["memory_mb"] - before["memory_mb"] < 230
    assert held["peak_memory_mb"] >= held["memory_mb"]
    assert 40 < filed["memory_mb"] - before["memory_mb"] < 120
    assert filed["tmpfs_mb"] is None if runtime == "runsc" else 50 <= filed["tmpfs_mb"] < 52
    assert 40 < working["cpu_percent"] < 100
    assert working["cpu_seconds"] > before["cpu_seconds"] + 0.8
    assert before["pids"] >= 1
    assert held["memory_limit_mb"] == 1024


async def test_usage_comes_from_the_engine_where_cgroups_cannot_be_read(runtime: str) -> None:
    """As with an engine on another host: its figures are as real; a cell's evidence says that it has none."""
    async with one_session(runtime) as (manager, session):
        kernel = session.live_kernel()
        assert isinstance(kernel, ContainerKernel)
        assert kernel.usage() is not None
        kernel.container.forget_process()
        before = await usage(manager, session.kernel_id)
        result = await manager.execute_code(session, "x = b'x' * (200 * 2**20)")
        held = await usage(manager, session.kernel_id)
        await asyncio.sleep(2.5)
        (row,) = manager.overview()["kernels"]
    assert (result["evidence"]["cpu_s"], result["evidence"]["peak_memory_mb"]) == (None, None)
    assert result["outcome"] == "ok"
    assert 190 < held["memory_mb"] - before["memory_mb"] < 230
    assert held["cpu_seconds"] > before["cpu_seconds"] > 0
    assert row["usage"]["memory_mb"] > 200


@pytest.mark.one_runtime
async def test_metrics_tell_of_real_cells(runtime: str) -> None:
    """Over HTTP, as Prometheus asks: outcomes, durations, output, the phases of a start, and the pool by state."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    limits = KernelResourceLimits(max_output_size_mb=0.1)
    async with one_session(runtime, limits=limits, metrics_port=port) as (manager, session):
        for code in ("1", "1/0", "print('x' * 500_000)", "import os; os._exit(3)"):
            await manager.execute_code(session, code)
        text = await asyncio.to_thread(metrics_on, port)
    assert metric(text, "cellblock_cells_total", f'outcome="ok",runtime="{runtime}"') == 2
    assert metric(text, "cellblock_cells_total", f'outcome="error",runtime="{runtime}"') == 1
    assert metric(text, "cellblock_cells_total", f'outcome="kernel_died",runtime="{runtime}"') == 1
    assert metric(text, "cellblock_cell_duration_seconds_count", f'runtime="{runtime}"') == 4
    assert metric(text, "cellblock_kernel_start_seconds_count", f'phase="container",runtime="{runtime}"') == 1
    assert metric(text, "cellblock_output_bytes_total") > 500_000
    assert metric(text, "cellblock_output_dropped_bytes_total") > 300_000
    assert metric(text, "cellblock_kernels", 'state="leased"') <= 1
    assert metric(text, "cellblock_lease_wait_seconds_count") == 1
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(metrics_on, port)


def metrics_on(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def metric(text: str, name: str, labels: str = "") -> float:
    line = f"{name}{{{labels}}} " if labels else f"{name} "
    return next(float(each.removeprefix(line)) for each in text.splitlines() if each.startswith(line))


async def usage(manager: AgentKernelManager, kernel_id: str) -> dict[str, float]:
    return await manager.get_kernel_resource_usage(kernel_id)


async def test_the_evidence_of_a_cell_is_its_own(runtime: str) -> None:
    """CPU seconds and peak memory are of this cell, not of the kernel's life."""
    async with one_session(runtime) as (manager, session):
        heavy = await manager.execute_code(session, "x = b'x' * (300 * 2**20); del x\nfor n in range(10**7): pass")
        light = await manager.execute_code(session, "1")
    assert heavy["evidence"]["cpu_s"] > 0.1
    assert light["evidence"]["cpu_s"] < heavy["evidence"]["cpu_s"] / 2
    assert heavy["evidence"]["peak_memory_mb"] > 300
    assert light["evidence"]["peak_memory_mb"] < 300


async def test_the_error_of_a_timeout_has_the_whole_evidence(runtime: str) -> None:
    """KernelTimeoutError.result is a typed result, with what was printed, what it used and how it was stopped."""
    limits = KernelResourceLimits(max_execution_time=1)
    async with one_session(runtime, limits=limits) as (manager, session):
        with pytest.raises(KernelTimeoutError) as caught:
            await manager.execute_code(session, "print('begun', flush=True)\nwhile True: pass")
    result = caught.value.result
    assert (result.outcome, result.kernel_state, result.stdout) == ("timeout", "idle", "begun\n")
    assert result.evidence.interrupts >= 1
    assert result.evidence.cpu_s is not None
    assert result.evidence.cpu_s > 0.3


async def test_no_interrupt_strays_into_the_next_cell(runtime: str) -> None:
    """A cell that ends just when it is interrupted, or interrupted again, keeps that from whatever runs after it."""
    limits = KernelResourceLimits(max_execution_time=0.5)
    strays = []
    async with one_session(runtime, limits=limits) as (manager, session):
        await manager.execute_code(session, "import time")
        for step in range(8):
            by_itself = f"time.sleep({0.47 + step / 200})"
            after_its_interrupt = f"try: time.sleep(60)\nfinally: time.sleep({0.95 + step / 75})"
            for code in (by_itself, after_its_interrupt):
                with contextlib.suppress(KernelTimeoutError):
                    await manager.execute_code(session, code)
                result = await manager.execute_code(session, "time.sleep(0.2); 6 * 7")
                if result["result"] != "42":
                    strays.append((code, result["outcome"], result["error"]))
    assert strays == []
