"""The fake kernel: cells run in it as in a real one, and it ends, refuses and ignores as its script says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from orchestrator.container.exits import Exit
from orchestrator.errors import CheckpointStateError, EngineError, FileTransferError, KernelDiedError
from orchestrator.kernel.fakecell import (
    Ask,
    Die,
    FakeCell,
    Obeys,
    Output,
    Use,
    Violate,
    Wait,
    displayed,
    printed,
    returned,
)
from orchestrator.kernel.fakekernel import FakeKernel
from orchestrator.kernel.statetransfer import Losses, Write, load_state, save_state
from orchestrator.kernel.transfer import get_file, put_file
from orchestrator.limits import KernelResourceLimits
from orchestrator.outcome import Outcome
from orchestrator.output.events import CellFinished, ExecutionResult, InputRequest
from orchestrator.policy.policy import Policy
from orchestrator.policy.sections import Channels
from orchestrator.sessions.session import KernelSession

LIMITS = KernelResourceLimits()
ASKING = Policy(channels=Channels(stdin=True))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def run(session: KernelSession, code: str = "x") -> ExecutionResult:
    """Run one cell and return its result."""
    async for event in session.run(code, LIMITS):
        if isinstance(event, CellFinished):
            return event.result
    raise AssertionError("the cell had no end")


def session_of(kernel: FakeKernel) -> KernelSession:
    return KernelSession.of("agent", kernel, Policy())


async def test_a_scripted_cell_puts_out_what_its_script_says() -> None:
    """In order, with its number; a cell without a script succeeds without output."""
    script = FakeCell([printed("hello\n"), displayed({"text/plain": "<plot>"}), returned({"text/plain": "2"})])
    kernel = FakeKernel(cells={"1 + 1": script})
    session = session_of(kernel)
    result = await run(session, "1 + 1")
    assert (result.outcome, result.stdout, result.execution_count) == (Outcome.OK, "hello\n", 1)
    assert [output.as_dict()["type"] for output in result.outputs] == ["stream", "display_data", "execute_result"]
    result = await run(session, "pass")
    assert (result.outcome, result.outputs, result.execution_count) == (Outcome.OK, (), 2)
    assert kernel.executed == ["1 + 1", "pass"]


async def test_a_script_can_raise() -> None:
    result = await run(session_of(FakeKernel(default=FakeCell(error=("ValueError", "boom")))))
    assert result.outcome == Outcome.ERROR
    assert result.error is not None
    assert (result.error.ename, result.error.evalue) == ("ValueError", "boom")


@pytest.mark.parametrize(
    ("steps", "outcome"),
    [
        ([Die()], Outcome.KERNEL_DIED),
        ([Die(Exit(Outcome.OOM, 137))], Outcome.OOM),
        ([Violate()], Outcome.KERNEL_DIED),
        ([Violate("a message exceeds 10 bytes", excess=True)], Outcome.OUTPUT_LIMIT),
        ([Use({"oom_kills": 1})], Outcome.OOM),
    ],
)
async def test_a_script_can_end_its_kernel_or_use_too_much(steps: list[Die | Violate | Use], outcome: Outcome) -> None:
    """The outputs that came before are in the result."""
    kernel = FakeKernel(default=FakeCell([printed("before"), *steps]))
    kernel.use(oom_kills=0)
    result = await run(session_of(kernel))
    assert (result.outcome, result.stdout) == (outcome, "before")
    assert kernel.is_alive == isinstance(steps[0], Use)


@pytest.mark.parametrize("obeys", ["control", "outside"])
@pytest.mark.parametrize("script", [FakeCell([Wait()]), FakeCell(replies=False), FakeCell(idles=False)])
async def test_a_cell_that_hangs_obeys_the_interrupt_that_its_script_names(script: FakeCell, obeys: Obeys) -> None:
    """One that only obeys the engine's SIGINT is ended a second later."""
    kernel = FakeKernel(default=FakeCell(script.steps, replies=script.replies, idles=script.idles, obeys=obeys))
    session = session_of(kernel)
    running = asyncio.create_task(run(session))
    await until(lambda: bool(kernel.executed))
    await asyncio.sleep(0.01)
    session.interrupt()
    result = await asyncio.wait_for(running, 5)
    assert result.outcome == (Outcome.INTERRUPTED if script.steps else Outcome.OK)
    assert kernel.is_alive


async def test_a_cell_can_ask() -> None:
    """Its question goes to the caller, and the answer is printed."""
    asked: list[str] = []

    async def answer(request: InputRequest) -> str:
        asked.append(request.prompt)
        return "Ada"

    kernel = FakeKernel(default=FakeCell([Ask("name? ")]))
    events = [event async for event in KernelSession.of("agent", kernel, ASKING).run("x", LIMITS, answer)]
    assert asked == ["name? "]
    assert isinstance(events[-1], CellFinished)
    assert events[-1].result.stdout == "Ada"


async def test_outputs_can_be_held() -> None:
    """None is lost, and none comes while they are."""
    kernel = FakeKernel(default=FakeCell([printed("a"), printed("b")]))
    got: list[str] = []
    kernel.hold_output(True)
    kernel.send("shell", "execute_request", {"code": "x"}, lambda message: got.append(message.kind))
    await until(lambda: "execute_reply" in got)
    assert got == ["execute_reply"]
    kernel.hold_output(False)
    assert got == ["execute_reply", "status", "stream", "stream", "status"]


async def test_a_dead_kernel_fails_what_waits_and_refuses_what_comes() -> None:
    kernel = FakeKernel(default=FakeCell([Wait()]))
    lost: list[str] = []
    kernel.on_lost(lambda: lost.append(kernel.disconnect_reason))
    kernel.on_lost(lambda: lost.append("undone"))()
    waiting = asyncio.create_task(kernel.request("shell", "execute_request", {"code": "x"}, timeout=None))
    await asyncio.sleep(0.01)
    kernel.die(reason="it hung up")
    with pytest.raises(KernelDiedError):
        await waiting
    with pytest.raises(KernelDiedError):
        await kernel.request("control", "interrupt_request", {}, timeout=None)
    assert lost == ["it hung up"]
    kernel.engine_error = EngineError("the engine does not answer.")
    with pytest.raises(EngineError):
        await kernel.exit()


async def test_a_kernel_that_does_not_answer_keeps_nobody_waiting() -> None:
    """A request with a timeout fails at once; so does the warming."""
    kernel = FakeKernel()
    await kernel.request("shell", "kernel_info_request", {}, timeout=5)
    kernel.answers = False
    with pytest.raises(TimeoutError):
        await kernel.request("shell", "kernel_info_request", {}, timeout=5)
    with pytest.raises(TimeoutError):
        await kernel.warm_up()


async def _begin(pieces: list[bytes]) -> Write:
    pieces.clear()

    async def write(piece: bytes) -> None:
        pieces.append(piece)

    return write


async def save(kernel: FakeKernel, timeout: float = 5) -> tuple[bytes, Losses]:
    pieces: list[bytes] = []
    lost = await save_state(kernel, lambda: _begin(pieces), timeout)
    return b"".join(pieces), lost


async def load(kernel: FakeKernel, data: bytes) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 1000):
            yield data[start : start + 1000]

    await load_state(kernel, pieces, 5)


async def test_a_state_moves_from_one_kernel_to_another() -> None:
    """In pieces, and with a second attempt where the first asks for it; what was lost is reported."""
    first, second = FakeKernel(), FakeKernel()
    first.state.data = bytes(range(256)) * 10_000
    first.state.again = 1
    first.state.lost = [{"name": "f", "kind": "file", "reason": "it is open"}]
    data, lost = await save(first)
    assert (data, lost) == (first.state.data, first.state.lost)
    await load(second, data)
    assert second.state.data == data


async def test_a_state_that_is_refused_or_hangs_is_an_error() -> None:
    """A kernel that hangs is interrupted, and serves what comes next."""
    kernel = FakeKernel()
    kernel.state.refusal = "it is too large"
    with pytest.raises(CheckpointStateError, match="it is too large"):
        await save(kernel)
    kernel.state.refusal, kernel.state.hangs = "", True
    with pytest.raises(CheckpointStateError, match="in time"):
        await save(kernel, 0.05)
    kernel.state.hangs = False
    assert await save(kernel) == (b"", [])


async def test_files_travel(tmp_path: Path) -> None:
    """Into the kernel and out of it; a refusal is an error."""
    kernel = FakeKernel()
    content = bytes(range(256)) * 10_000
    await put_file(kernel, content, "data.bin")
    assert kernel.files.contents == {"data.bin": content}
    await get_file(kernel, "data.bin", tmp_path / "out.bin", 10**7)
    assert (tmp_path / "out.bin").read_bytes() == content
    kernel.files.refusal = "the disk is full"
    with pytest.raises(FileTransferError, match="the disk is full"):
        await put_file(kernel, b"x", "more")


async def test_the_same_script_gives_the_same_messages() -> None:
    """Twice, message by message."""

    async def record() -> list[tuple[str, str]]:
        kernel, got = FakeKernel(default=FakeCell([printed("a"), Output("error", {}), printed("b")])), []
        for _ in range(3):
            kernel.send("shell", "execute_request", {"code": "x"}, lambda m: got.append((m.parent_id, m.kind)))
        await until(lambda: len(got) == 18)
        return got

    assert await record() == await record()
