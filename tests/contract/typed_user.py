"""What a user writes, with every public call, and the types that it relies on. Checked by mypy, never run."""

from pathlib import Path
from typing import Any

from cellblock import (
    AgentKernelManager,
    CellExecutionResult,
    CellFinished,
    Checkpoint,
    DisplayData,
    ExecutionResult,
    InputRequest,
    KernelResourceLimits,
    KernelSession,
    KernelTimeoutError,
    Outcome,
    Policy,
    Recovery,
    Restored,
    Settings,
    StreamOutput,
)  # fmt: skip
from cellblock.sync import Dispatcher, Manager, Notebooks, answered_by


async def answer(request: InputRequest) -> str:
    return "secret" if request.password else request.prompt


async def use(folder: Path) -> None:
    limits = KernelResourceLimits(max_memory_mb=512, max_execution_time=10.0)
    manager = AgentKernelManager(4, resource_limits=limits, settings=Settings.load(), keep_sessions=True)
    await manager.start()
    recovery: Recovery = manager.recovery
    policy: Policy = manager.policy
    async with manager, manager.acquire_kernel("agent", 5.0, group="g", priority=1) as (kernel, session):
        result: ExecutionResult = await manager.execute(session, "1 + 1", answer=answer)
        outcome: Outcome = result.outcome
        reference: dict[str, Any] = await manager.execute_code(session, "1 + 1")
        async for event in manager.stream_code(session, "print(1)"):
            if isinstance(event, StreamOutput):
                print(event.text, outcome, reference["status"])
            elif isinstance(event, DisplayData | CellFinished):
                print(event)
        running: bool = manager.interrupt(session)
        size: int = await manager.put_file(session, b"data", "a.bin") + await manager.get_file(session, "a.bin", folder)
        checkpoint: Checkpoint = await manager.checkpoint(session)
        restored: Restored = await manager.restore(session, checkpoint, timeout=5.0)
        forks: list[KernelSession] = await manager.fork(session, 2, agent_ids=["a", "b"])
        print(await manager.execute_code_for_notebook(session, "1"), await manager.hibernate("a"), running, size)
        await manager.import_history(session, await manager.export_history(session, folder / "history.json"))
        await manager.export_notebook(session, folder / "a.ipynb", "title")
        manager.restore_checkpoint(session, manager.save_checkpoint(session))
        manager.save_session_as_notebook(session, folder / "a.ipynb")
        usage: dict[str, Any] = await manager.get_kernel_resource_usage(kernel.kernel_id)
        print(usage, restored.lost, forks[0].agent_id, manager.overview(), recovery.sessions, policy.digest)
    await manager.end_session("agent")
    print(await manager.sweep_everywhere() + await manager.apply_retention(), manager.runtime, manager.instance_id)
    await manager.shutdown(keep_sessions=True)


def use_without_a_loop(folder: Path) -> None:
    with Manager(2, keep_sessions=True) as manager, manager.acquire_kernel("agent", timeout=5.0) as (kernel, session):
        result: ExecutionResult = manager.execute(session, "1", answer=answered_by(lambda request: request.prompt))
        try:
            reference: dict[str, Any] = manager.execute_code(session, "while True: pass")
        except KernelTimeoutError as error:
            result = error.result
        texts: list[str] = [e.text for e in manager.stream_code(session, "1") if isinstance(e, StreamOutput)]
        forks: list[KernelSession] = manager.fork(session, 1)
        restored: Restored = manager.restore(session, manager.checkpoint(session))
        print(result.outcome, reference, texts, forks, restored.cell, kernel.kernel_id, manager.sessions["agent"])
        print(manager.put_file(session, folder / "a", "a") + manager.get_file(session, "a", folder / "b"))
        notebooks = Notebooks(manager, session)
        cell: CellExecutionResult = notebooks.execute_cell(notebooks.create_notebook(), "1", timeout=5.0)
        reply: dict[str, Any] = Dispatcher(notebooks).dispatch({"op": "list_notebooks"})
        print(cell.success, reply, notebooks.list_notebooks())
        print(manager.interrupt(session), manager.hibernate("agent~1"), manager.end_session("agent"), manager.runtime)
    manager.shutdown()
