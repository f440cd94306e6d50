"""The faults of the soak: what cells, users and the machine do to a session, each with its true outcomes."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.subjects import READY
from orchestrator import AgentKernelManager, KernelSession, KernelTimeoutError
from orchestrator.container.engine import connect
from orchestrator.errors import CellblockError, KernelDiedError

DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
SOON = 0.4  # seconds in which what a cell has armed goes off between two cells

Fault = Callable[[AgentKernelManager, KernelSession], Awaitable[str]]


@dataclass(frozen=True)
class Kind:
    """A fault.

    Attributes:
        strike: causes the fault and returns an outcome.
        outcomes: the outcomes that are true.
        keeps: whether the session must still have its variables afterwards; None: they may be lost.
        unleased: whether it needs a session without a lease.
    """

    strike: Fault
    outcomes: frozenset[str] = field(default=frozenset({"ok"}))
    keeps: bool | None = True
    unleased: bool = False


async def outcome_of(manager: AgentKernelManager, session: KernelSession, code: str) -> str:
    """Run a cell and return its outcome, also of one that lost its kernel or exceeded its time limit."""
    try:
        return str((await manager.execute_code(session, code))["outcome"])
    except KernelTimeoutError as error:
        return error.result.outcome
    except KernelDiedError:
        return "kernel_died"


def _kill(name: str) -> None:
    client = connect(30)
    try:
        client.containers.get(name).kill()
    finally:
        client.close()


async def killed(manager: AgentKernelManager, session: KernelSession) -> str:
    running = asyncio.create_task(outcome_of(manager, session, "import time; time.sleep(2.5)"))
    await asyncio.sleep(0.1)
    await asyncio.to_thread(_kill, f"cellblock-{session.kernel_id}")
    return await running


async def cancelled(manager: AgentKernelManager, session: KernelSession) -> str:
    running = asyncio.create_task(outcome_of(manager, session, "import time; time.sleep(2.5)"))
    await asyncio.sleep(0.1)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    return "cancelled"


async def interrupted(manager: AgentKernelManager, session: KernelSession) -> str:
    running = asyncio.create_task(outcome_of(manager, session, "import time; time.sleep(2.5)"))
    await asyncio.sleep(0.1)
    while not manager.interrupt(session) and not running.done():
        await asyncio.sleep(0.05)
    return await running


def sleeping(before: str, after: str) -> Fault:
    """Return a fault that runs ``before``, hibernates the session twice, and runs ``after`` each time that it wakes."""

    async def fault(manager: AgentKernelManager, session: KernelSession) -> str:
        async with manager.acquire_kernel(session.agent_id, timeout=READY) as (_kernel, leased):
            if (outcome := await outcome_of(manager, leased, before)) != "ok":
                return outcome
        for _ in range(2):
            if not await manager.hibernate(session.agent_id):
                return "did not sleep"
            async with manager.acquire_kernel(session.agent_id, timeout=READY) as (_kernel, woken):
                if (outcome := await outcome_of(manager, woken, after)) != "ok":
                    return outcome
        return "ok"

    return fault


def cell(code: str) -> Fault:
    async def fault(manager: AgentKernelManager, session: KernelSession) -> str:
        return await outcome_of(manager, session, code)

    return fault


def filling(folder: str) -> Fault:
    """Return a fault that fills a folder of the sandbox and empties it again."""
    return cell(
        f"import os\ntry:\n    with open('{folder}/full', 'wb') as file:\n"
        f"        while True: file.write(bytes(2**20))\nexcept OSError: pass\nfinally: os.remove('{folder}/full')"
    )


def armed(code: str) -> Fault:
    """Return a fault that goes off between two cells; the next cell has to run, and its result to say it."""

    async def fault(manager: AgentKernelManager, session: KernelSession) -> str:
        if (outcome := await outcome_of(manager, session, code)) != "ok":
            return outcome
        await asyncio.sleep(SOON)
        result = await manager.execute_code(session, "1")
        said = any("between two cells" in warning for warning in result["warnings"])
        return str(result["outcome"]) if said else "not said"

    return fault


async def moved_while_put(manager: AgentKernelManager, session: KernelSession) -> str:
    """Put a file while a cell changes directory, and get it back."""
    content = bytes(range(256)) * 8192
    walk = "import os, time\nfor n in range(20): os.makedirs('d', exist_ok=True); os.chdir('d'); time.sleep(0.01)"
    running = asyncio.create_task(outcome_of(manager, session, walk + "\nos.chdir('/work')"))
    await manager.put_file(session, content, "put.bin")
    outcome = await running
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        await manager.get_file(session, "put.bin", target := Path(folder, "got"))
        same = await asyncio.to_thread(target.read_bytes) == content
    return outcome if same else "another file"


async def got_strange_names(manager: AgentKernelManager, session: KernelSession) -> str:
    """Get files of hostile names: each is returned, or refused with a typed error."""
    for name in NAMES:
        await outcome_of(manager, session, f"open({name!r}, 'w').write('content')")
        with tempfile.TemporaryDirectory(prefix="soak-") as folder, contextlib.suppress(CellblockError, OSError):
            await manager.get_file(session, name, Path(folder, "got"))
    return "ok"


NAMES = ("a\u202fb", "\u3000", "\U0001f600.txt", "a\nb", "\x1b[2J", "x" * 250, "..", "../../etc/passwd", "/proc/1/mem")
STDOUT = "import sys; sys.stdout = type('Q', (), {'write': lambda s, t: None})()"
QUIT = "import asyncio, sys\nasync def quit(): sys.exit(3)\n_ = asyncio.get_event_loop().create_task(quit())"
ALARM = (
    "import signal\ndef ring(*_): raise RuntimeError('late')\n"
    "_ = signal.signal(signal.SIGALRM, ring); _ = signal.setitimer(signal.ITIMER_REAL, 0.1)"
)
BUS = (
    "import mmap, os\nf = os.open('/dev/shm/big', os.O_RDWR | os.O_CREAT); os.ftruncate(f, 2**32)\n"
    "m = mmap.mmap(f, 2**32)\nfor at in range(0, 2**32, 4096): m[at] = 1"
)
ZOMBIES = "import subprocess\nfor i in range(60): subprocess.run('true &', shell=True)"
CHILDREN = "import subprocess\nfor i in range(5): subprocess.Popen(['sh', '-c', 'sleep 1000 & sleep 1000'])"
LIBRARY = (
    "import string, threading; string.Template.guard = threading.RLock(); kept = list(range(1000)); g = (i for i in [])"
)
CLEARING = "from IPython.display import clear_output\nfor i in range(100): print('x' * 49999); clear_output()"
EATING = "x = []\nwhile True: x.append(bytearray(2**24))"
KEPT = "assert sum(kept) == 499500"
SPIN = "def spin():\n    while True: pass\nimport asyncio; _ = asyncio.get_event_loop().call_soon(spin)"
DIED, ERROR, TIMEOUT = frozenset({"kernel_died"}), frozenset({"error"}), frozenset({"timeout"})

KINDS: dict[str, Kind] = {
    "killed from outside": Kind(killed, DIED, keeps=False),
    "exited": Kind(cell("import os; os._exit(3)"), DIED, keeps=False),
    "kills its kernel": Kind(cell("import os; os.kill(1, 9); os.abort()"), DIED, keeps=False),
    "closes its descriptors": Kind(cell("import os; os.closerange(0, 65536)"), DIED, keeps=False),
    "out of memory": Kind(cell(EATING), frozenset({"oom", "error"}), keeps=None),
    "ignores its timeout": Kind(cell(DEAF), TIMEOUT, keeps=False),
    "timeout": Kind(cell("while True: pass"), TIMEOUT),
    "cancelled": Kind(cancelled, frozenset({"cancelled"})),
    "interrupted": Kind(interrupted, frozenset({"interrupted"})),
    "flood": Kind(cell("print(('x' * 99 + chr(10)) * 50_000)")),
    "error": Kind(cell("1 / 0"), ERROR),
    "hibernated": Kind(sleeping("kept = list(range(1000))", KEPT), unleased=True),
    "hibernated with a library's lock": Kind(sleeping(LIBRARY, KEPT), unleased=True),
    "hostile stdout": Kind(cell(STDOUT)),
    "broken builtins": Kind(cell("import builtins; builtins.isinstance = lambda *a: 1 / 0"), ERROR),
    "cleared modules": Kind(cell("import sys; sys.modules.clear()")),
    "deep expression": Kind(cell("x=" + "+".join(["1"] * 5000)), ERROR),
    "zombies": Kind(cell(ZOMBIES)),
    "children left running": Kind(cell(CHILDREN)),
    "bus error": Kind(cell(BUS), DIED | {"oom"}, keeps=False),
    # The soak's kernels have as much memory as the default policy's /tmp, and less than its /work.
    "full /tmp": Kind(filling("/tmp"), frozenset({"ok", "oom", "kernel_died"}), keeps=None),  # noqa: S108
    "full /work": Kind(filling("/work"), frozenset({"ok", "oom", "kernel_died"}), keeps=None),
    "unique display ids": Kind(cell("for i in range(300): display(i, display_id=f'{i:0255}')")),
    "many mime types": Kind(cell("display({f'a/{i:05d}': '' for i in range(29900)}, raw=True)")),
    "clears output": Kind(cell(CLEARING)),
    "updates a display": Kind(cell("h = display(1, display_id=True)\nfor i in range(100): h.update(i)")),
    "task exits later": Kind(armed(QUIT)),
    "alarm rings later": Kind(armed(ALARM)),
    "callback spins later": Kind(cell(SPIN)),
    "changes directory": Kind(moved_while_put),
    "strange file names": Kind(got_strange_names),
}  # fmt: skip
"""By name."""
