"""What cells and their child processes write: all of it, in order, and however much it is the cell comes to its end."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from orchestrator import AgentKernelManager, KernelResourceLimits, KernelSession
from orchestrator.kernel.containerkernel import ContainerKernel
from orchestrator.output.events import ExecuteResult
from tests.conftest import make_manager

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMITS = KernelResourceLimits(max_memory_mb=512, max_execution_time=60)
FOR_A_SECOND = "import os, sys, time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: "


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def manager(runtime: str) -> AsyncIterator[AgentKernelManager]:
    async with make_manager(runtime, max_kernels=3, limits=LIMITS) as manager:
        yield manager


@pytest_asyncio.fixture(loop_scope="module")
async def session(manager: AgentKernelManager) -> AsyncIterator[KernelSession]:
    async with manager.acquire_kernel("writer", timeout=60) as (_kernel, session):
        yield session


@pytest.mark.parametrize(
    "flood",
    [
        "os.write(1, bytes(65536)); os.write(2, bytes(65536))",
        "print('x', end=''); print('y', end='', file=sys.stderr)",
        "os.write(1, bytes(65536)); os.write(2, bytes(65536)); print('x' * 1000); print('y' * 1000, file=sys.stderr)",
    ],
)
async def test_a_flood_on_both_streams_ends(manager: AgentKernelManager, session: KernelSession, flood: str) -> None:
    """A cell that writes all that it can for a second ends soon after it, and its kernel answers."""
    result = await manager.execute_code(session, FOR_A_SECOND + flood)
    assert result["outcome"] == "ok", result["error"]
    assert result["duration_s"] < 20
    assert (await manager.execute_code(session, "6 * 7"))["result"] == "42"


async def test_a_child_that_writes_on_does_not_keep_its_cell(
    manager: AgentKernelManager, session: KernelSession
) -> None:
    """The cell ends when its code does; its child's endless output is nobody's."""
    code = "import subprocess, time\nchild = subprocess.Popen(['yes'])\ntime.sleep(0.5)"
    assert (await manager.execute_code(session, code))["outcome"] == "ok"
    assert (await manager.execute_code(session, "child.kill(); child.wait()"))["result"] == "-9"


async def test_characters_survive_wherever_a_read_ends(manager: AgentKernelManager, session: KernelSession) -> None:
    """200,000 three-byte characters written to the descriptor arrive whole."""
    code = "import os, subprocess, sys\n_ = subprocess.run([sys.executable, '-c', 'print(chr(0x20ac) * 200_000)'])"
    result = await manager.execute_code(session, code)
    assert result["stdout"] == "\u20ac" * 200_000 + "\n"


@pytest.mark.parametrize(
    "written",
    [
        "''.join(chr(n) for n in range(0x30000) if n not in (8, 13) and not 0xD800 <= n < 0xE000) * 3",
        "'\\n' * 700_000",  # what grows most on its way
        "'\\x01' * 300_000",
        "'plain' * 200_000",
    ],
)
async def test_text_of_any_kind_arrives_whole(
    manager: AgentKernelManager, session: KernelSession, written: str
) -> None:
    """Each kind is cut in its own way. Backspace and carriage return are left out: they move the cursor."""
    result = await manager.execute_code(session, f"print({written}, end='')")
    assert result["truncated"] is None
    assert result["stdout"] == eval(written)  # noqa: S307 - the literals above


async def test_a_flush_returns_when_all_is_sent(manager: AgentKernelManager, session: KernelSession) -> None:
    """Also when the publishing thread has taken it before, and is still busy with it."""
    code = (
        "import sys\nwaiting, busy = sys.stdout._outbox, []\nfor n in range(5):\n"
        "    print('x' * 900_000)\n    while waiting._pieces: pass\n"
        "    sys.stdout.flush()\n    busy.append(waiting._taken)\nbusy"
    )
    assert (await manager.execute_code(session, code))["result"] == "[0, 0, 0, 0, 0]"


async def test_a_forked_child_writes_as_its_parent_does(manager: AgentKernelManager, session: KernelSession) -> None:
    """What waited when it was forked is the parent's to send, and is there once."""
    code = "import os\nprint('before')\npid = os.fork()\nif pid == 0: print('child', flush=True); os._exit(0)\n"
    result = await manager.execute_code(session, code + "os.waitpid(pid, 0); print('parent')")
    assert sorted(result["stdout"].split()) == ["before", "child", "parent"]


async def test_lines_of_both_streams_keep_their_order(manager: AgentKernelManager, session: KernelSession) -> None:
    """What was written first comes first, whichever of the two it was written to."""
    code = "import sys\nfor n in range(500): print(n, file=(sys.stdout, sys.stderr)[n % 2])"
    result = await manager.execute_code(session, code)
    assert "".join(output["text"] for output in result["outputs"]).split() == [str(n) for n in range(500)]


ALARMED = """
import random, signal
from IPython.display import display
class Alarm(Exception): pass
def ring(*_):
    global armed
    if armed:
        armed = False
        raise Alarm
old, rung = signal.signal(signal.SIGALRM, ring), 0
for _ in range(300):
    try:
        armed = True
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00001, 0.003))
        for _ in range(8): print('text'); display({'text/plain': 'shown'}, raw=True)
        armed = False
    except Alarm:
        rung += 1
armed = False
signal.setitimer(signal.ITIMER_REAL, 0)
signal.signal(signal.SIGALRM, old)
print('\\nrung', rung)
"""


async def test_a_handler_that_raises_while_something_is_published_spoils_no_message(
    manager: AgentKernelManager, session: KernelSession
) -> None:
    """A cell's own alarm rings at any moment: what comes after a message that was given up is whole."""
    async with manager.acquire_kernel("alarmed", timeout=60) as (_, alarmed):
        kernel = alarmed.live_kernel()
        result = await manager.execute_code(alarmed, ALARMED)
        assert result["outcome"] == "ok", result["error"]
        assert int(result["stdout"].split()[-1]) > 100
        assert isinstance(kernel, ContainerKernel)
        assert kernel.rejected == 0
        assert (await manager.execute_code(alarmed, "print('text'); 6 * 7"))["result"] == "42"
    await manager.end_session("alarmed")


COLLECTED = """
import gc, zmq
from cellblock_kernel import publisher
from IPython.display import display
class Ring:
    def __init__(self): self.me = self
    def __del__(self): print('gone', flush=True); display('shown')
socket_class, send, left = publisher.Socket, publisher.Socket.send, 20
def collecting(socket, data, *args, **kwargs):
    global left
    sent = send(socket, data, *args, **kwargs)
    if left and socket.type == zmq.XPUB and (data == b'<IDS|MSG>' or zmq.SNDMORE not in args):
        left -= 1; Ring(); gc.collect()
    return sent
publisher.Socket = type('Collecting', (), {'send': staticmethod(collecting)})
for n in range(20): display({'text/plain': str(n).zfill(SIZE)}, raw=True)
import time; time.sleep(0.5)  # until the publisher's thread has sent them
"""


@pytest.mark.parametrize("size", [5, 100_000])
async def test_a_finalizer_may_print_and_display(manager: AgentKernelManager, size: int) -> None:
    """The collector may call it between a message and the next, or between the frames of a large one."""
    async with manager.acquire_kernel("collected", timeout=60) as (_, session):
        kernel = session.live_kernel()
        result = await manager.execute_code(session, COLLECTED.replace("SIZE", str(size)))
        assert result["outcome"] == "ok", result["error"]
        assert result["duration_s"] < 8
        assert (await manager.execute_code(session, "publisher.Socket = socket_class; left < 20"))["result"] == "True"
        assert isinstance(kernel, ContainerKernel)
        assert kernel.rejected == 0
    shown = [output["data"]["text/plain"] for output in result["outputs"] if output["output_type"] == "display_data"]
    assert [text for text in shown if text != "'shown'"] == [str(n).zfill(size) for n in range(20)]
    await manager.end_session("collected")


COMMS = """
from comm import create_comm
from IPython.display import display
comm = create_comm(target_name='x')
released = memoryview(b'released'); released.release()
display('before')
for _ in range(20): comm.send({}, buffers=[memoryview(bytes(1_000_000)).cast('B', (10, 100_000))])
comm.send({}, buffers=[b''] * 100)
try: comm.send({}, buffers=[released])
except ValueError as error: print('refused')
display('after')
"""


async def test_buffers_of_widgets_cost_neither_the_kernel_nor_other_outputs(
    manager: AgentKernelManager, session: KernelSession
) -> None:
    """Whatever shape they have, how many they are, and if they are gone."""
    result = await manager.execute_code(session, COMMS)
    assert result["outcome"] == "ok", result["error"]
    shown = [output["data"]["text/plain"] for output in result["outputs"] if output["output_type"] == "display_data"]
    assert (shown, result["stdout"]) == (["'before'", "'after'"], "refused\n")
    assert (await manager.execute_code(session, "6 * 7"))["result"] == "42"


async def test_values_in_the_midst_of_a_cell_come_while_it_runs(
    manager: AgentKernelManager, session: KernelSession
) -> None:
    """Where every expression shows its value, none waits for the cell's end."""
    await manager.execute_code(session, "get_ipython().ast_node_interactivity = 'all'")
    begun = time.monotonic()
    events = manager.stream_code(session, "1\nimport time; time.sleep(3)\n2")
    arrived = [time.monotonic() - begun async for event in events if isinstance(event, ExecuteResult)]
    await manager.execute_code(session, "get_ipython().ast_node_interactivity = 'last_expr'")
    assert len(arrived) == 2
    assert arrived[0] < 2 < arrived[1]


async def test_what_is_printed_and_shown_keeps_its_order(manager: AgentKernelManager, session: KernelSession) -> None:
    code = "from IPython.display import display\nfor n in range(50): print(n); display(n)"
    result = await manager.execute_code(session, code)
    order = [output.get("text") or output["data"]["text/plain"] for output in result["outputs"]]
    assert [text.strip() for text in order] == [str(n) for n in range(50) for _ in range(2)]


async def test_a_cell_cancelled_at_any_moment_leaves_a_usable_kernel(manager: AgentKernelManager) -> None:
    """200 short cells are cancelled at random moments, as they begin, run or end: the kernel and its variables stay."""
    chance = random.Random(5)  # noqa: S311 - a repeatable test
    async with manager.acquire_kernel("cancelled", timeout=60) as (kernel, session):
        await manager.execute_code(session, "kept = 'mine'")
        for _ in range(200):
            task = asyncio.create_task(manager.execute_code(session, "sum(range(1000))"))
            await asyncio.sleep(chance.random() * 0.015)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        assert (await manager.execute_code(session, "kept"))["result"] == "'mine'"
        assert await kernel.is_alive()
    await manager.end_session("cancelled")
