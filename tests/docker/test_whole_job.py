"""What an agent's program needs beside cells: text for models, variables, limits of a call, cells that outlive one."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from orchestrator import (
    AgentKernelManager,
    ChangedFile,
    FileTransferError,
    InvalidCodeError,
    InvalidInputError,
    KernelError,
    KernelSession,
    VariableInfo,
)
from tests.conftest import awaited, make_manager, one_session

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def manager(runtime: str) -> AsyncIterator[AgentKernelManager]:
    async with make_manager(runtime) as manager:
        yield manager


@pytest_asyncio.fixture(loop_scope="module")
async def session(manager: AgentKernelManager) -> AsyncIterator[KernelSession]:
    async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
        await manager.run_command(session, "find /work -mindepth 1 -delete")
        yield session


TEXTS = {
    "print('hi')\n1 + 1": ["hi\n2"],
    "x = 1": ["[no output]"],
    "import sys; print('e', file=sys.stderr)": ["e"],
    "def f(): return 1 / 0\nf()": ["----> 1 def f(): return 1 / 0", "ZeroDivisionError: division by zero"],
    "import json; json.loads('{')": ["[3 frames of libraries]", "JSONDecodeError: Expecting property name"],
    "def q(:": ["def q(:", "SyntaxError"],
    "import matplotlib.pyplot as plt; plt.plot([1]); plt.show()": ["[picture: image/png, "],
    "import pandas as pd; pd.DataFrame({'a': [1]})": ["   a\n0  1"],
    "from IPython.display import display; display({'application/json': {'a': 1}}, raw=True)": ["[application/json]"],
    "print('\\x1b[31mred\\x1b[0m \\x07bell')": ["red \\u0007bell"],
    "open('made.txt', 'w').write('abc'); None": ["[files: made.txt (made, 3 bytes)]"],
    "import time; time.sleep(9)": ["[The time limit was exceeded after ", "the variables are kept.]"],
    "import os; os._exit(1)": ["[The kernel ended; all variables are lost"],
}


@pytest.mark.parametrize("code", TEXTS)
async def test_the_text_for_a_model(manager: AgentKernelManager, code: str) -> None:
    """It has what the cell did, in words, without colours and library frames."""
    async with manager.acquire_kernel("models", timeout=60) as (_, session):
        text = (await manager.execute(session, code, timeout=1.0 if "sleep" in code else 25.0)).as_text()
        for part in TEXTS[code]:
            assert part in text, text
        assert "\x1b" not in text
        assert "site-packages" not in text


async def test_the_text_has_a_limit(manager: AgentKernelManager, session: KernelSession) -> None:
    result = await manager.execute(session, "for i in range(20000): print(i)")
    for limit in (200, 1000, 20_000):
        text = result.as_text(limit)
        assert len(text) <= limit
        assert text.startswith("0\n1\n")
        assert "characters left out" in text
        assert "19999" in text[-100:]


async def test_the_text_of_a_command(manager: AgentKernelManager, session: KernelSession) -> None:
    result = await manager.run_command(session, "echo out; echo err >&2; touch new; exit 4")
    assert result.as_text() == "out\n[stderr]\nerr\n[exit code 4]\n[files: new (made, 0 bytes)]"
    assert (await manager.run_command(session, "true")).as_text() == "[exit code 0]"


async def test_changed_files(manager: AgentKernelManager, session: KernelSession) -> None:
    async def changed(code: str) -> set[tuple[str, str, int]]:
        found = (await manager.execute(session, code)).changed_files
        return {(each.change, each.path, each.size) for each in found}

    assert await changed("import os; os.makedirs('a/b'); _ = open('a/b/c', 'w').write('x')") == {("made", "a/b/c", 1)}
    assert await changed("_ = open('a/b/c', 'a').write('y')") == {("changed", "a/b/c", 2)}
    assert await changed("1") == set()
    assert await changed("os.rename('a/b/c', 'a/d')") == {("removed", "a/b/c", 0), ("made", "a/d", 2)}
    await manager.write_file(session, "of_the_host", b"12")
    assert await changed("1") == set()
    result = await manager.run_command(session, "rm -r a; echo hi > 'with space'; touch $'\\xff'")
    assert set(result.changed_files) == {
        ChangedFile("removed", "a/d", 0),
        ChangedFile("made", "with space", 3),
        ChangedFile("made", "\udcff", 0),
    }
    result2 = await manager.execute(session, "for n in range(150): open(f'f{n}', 'w').close()")
    assert len(result2.changed_files) == 100
    assert "50 more files of /work changed" in " ".join(result2.warnings)
    assert type(result2).from_dict(result2.as_dict()) == result2


async def test_other_work_folders_lead_to_work(manager: AgentKernelManager, session: KernelSession) -> None:
    code = "for n, d in enumerate(('/home/user', '/workspace', '/mnt/data')): open(f'{d}/f{n}', 'w').close()"
    result = await manager.execute(session, code)
    assert [each.path for each in result.changed_files] == ["f0", "f1", "f2"]


VARIABLES = """
import numpy as np, pandas as pd, os, threading
number, text, many, data = 7, "x" * 500, list(range(100)), b"ab"
table, series, array = pd.DataFrame({"a": [1, 2], "b": [3, 4]}), pd.Series([1.5]), np.arange(6).reshape(2, 3)
nested = {"k": [1, {"deep": (1, 2)}]}
def function(a, b=1): raise RuntimeError
class Hostile:
    def __repr__(self):
        while True: pass
    __str__ = __len__ = __sizeof__ = __repr__
    shape = nbytes = property(lambda self: self.__repr__())
class ndarray(Hostile): pass
ndarray.__module__ = "numpy"
hostile, fake, hostiles, huge = Hostile(), ndarray(), [Hostile()], 1 << 4_000_000
class Key:
    def __eq__(self, other): raise RuntimeError
    def __hash__(self): return 1
keyed = {Key(): 1}
_private = 1
"""


async def test_variables(manager: AgentKernelManager, session: KernelSession) -> None:
    """Names, types, shapes and previews; nothing of the session's own code is called."""
    assert (await manager.execute(session, VARIABLES)).outcome == "ok"
    found = {each.name: each for each in await manager.list_variables(session)}
    assert "_private" not in found
    assert "In" not in found
    assert found["number"] == VariableInfo("number", "int", found["number"].size, None, "7")
    assert (found["text"].shape, found["text"].preview[:3]) == ((500,), "'xx")
    assert (found["many"].shape, found["many"].preview) == ((100,), "[0, 1, 2, 3, 4, …]")
    assert (found["table"].type, found["table"].shape) == ("pandas.DataFrame", (2, 2))
    assert found["table"].preview == "columns: a, b"
    assert (found["array"].type, found["array"].shape, found["array"].size) == ("numpy.ndarray", (2, 3), 48)
    assert found["nested"].preview == "{'k': [1, {…}]}"
    assert found["function"].preview == "def function(a, b)"
    assert found["np"].preview == "<module numpy>"
    assert found["Hostile"].preview == "<class Hostile>"
    assert found["hostile"].preview == "<Hostile>"
    assert found["fake"].preview == "<numpy.ndarray>"
    assert found["hostiles"].preview == "[<Hostile>]"
    assert found["huge"].preview == "<a long integer>"
    assert found["keyed"].preview == "{<Key>: 1}"
    assert all(each.as_dict()["name"] == name for name, each in found.items())


async def test_variables_while_a_cell_runs(manager: AgentKernelManager, session: KernelSession) -> None:
    cell = asyncio.create_task(manager.execute(session, "import time\nseen = 5\ntime.sleep(1.5)"))
    await asyncio.sleep(0.7)
    assert "seen" in {each.name for each in await manager.list_variables(session)}
    assert not cell.done()
    await cell


async def test_limits_of_one_call(manager: AgentKernelManager, session: KernelSession) -> None:
    """Lower ones hold for the call; higher ones than the manager's have no effect."""
    result = await manager.execute(session, "import time; time.sleep(20)", timeout=0.5)
    assert (result.outcome, result.duration_s < 5) == ("timeout", True)
    result = await manager.execute(session, "print('x' * 100_000)", output_limit=10_000)
    assert result.truncated is not None
    assert result.truncated.limit_bytes == 10_000
    limits = manager.resource_limits.within(1e9, 10**12)
    assert limits == manager.resource_limits
    for bad in ({"timeout": 0}, {"timeout": float("nan")}, {"output_limit": -1}):
        with pytest.raises(InvalidInputError):
            await manager.execute(session, "1", **bad)
    assert (await manager.execute(session, "print('x' * 100_000)")).truncated is None


async def test_variables_of_one_call(manager: AgentKernelManager, session: KernelSession) -> None:
    code = "import os, subprocess; os.environ['A'], subprocess.check_output('echo $A', shell=True)"
    result = await manager.execute(session, code, environment={"A": "one", "HOME": "/tmp"})
    assert result.result == "('one', b'one\\n')"
    result = await manager.execute(session, "os.environ.get('A'), os.environ['HOME']")
    assert result.result == "(None, '/work')"
    with pytest.raises(InvalidInputError):
        await manager.execute(session, "1", environment={"A=": "b"})


async def test_a_cell_that_outlives_its_call(manager: AgentKernelManager, session: KernelSession) -> None:
    cell = await manager.start_code(session, "import time\nfor _ in range(10): time.sleep(0.1)\n'done'")
    assert await awaited(manager.find_cell(cell.id)) is cell
    with pytest.raises(TimeoutError):
        await cell.wait(0.2)
    waiting = await manager.start_code(session, "never = 1")
    assert await awaited(waiting.interrupt())
    assert (await cell.wait(20)).result == "'done'"
    assert not cell.is_running
    assert not await awaited(cell.interrupt())
    endless = await manager.start_code(session, "kept = 3\nwhile True: time.sleep(0.05)")
    await asyncio.sleep(0.5)
    assert await awaited(endless.interrupt())
    assert (await endless.wait(20)).outcome == "interrupted"
    assert (await manager.execute(session, "kept, 'never' in globals()")).result == "(3, False)"
    with pytest.raises(InvalidInputError):
        await awaited(manager.find_cell("nosuch"))
    with pytest.raises(InvalidCodeError):
        await manager.start_code(session, "")
    with pytest.raises(InvalidInputError):
        await manager.start_code(session, "1", timeout=-1)


async def test_as_many_ended_cells_are_known_as_may(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while an older one runs, which stays known."""
    monkeypatch.setattr("orchestrator.sessions.startedcells._CELLS", 3)
    async with one_session(runtime) as (manager, session):
        runs = await manager.start_code(session, "while True: __import__('time').sleep(0.05)")
        await asyncio.sleep(0.5)  # interrupted before it runs, it would never run
        ended = []
        for _ in range(6):
            cell = await manager.start_code(session, "1")
            await awaited(cell.interrupt())
            with pytest.raises(KernelError, match="before its turn"):
                await cell.wait(20)
            ended.append(cell)
        last = await manager.start_code(session, "1")
        for cell in (runs, *ended[-3:], last):
            assert await awaited(manager.find_cell(cell.id)) is cell
        for cell in ended[:-3]:
            with pytest.raises(InvalidInputError):
                await awaited(manager.find_cell(cell.id))
        assert await awaited(runs.interrupt())
        await runs.wait(20)
        await last.wait(20)


@pytest.mark.parametrize("keep_files", [True, False])
async def test_restarting_a_kernel(runtime: str, keep_files: bool) -> None:
    """Variables and commands end, files stay if asked for, the history goes on; one place in the pool is enough."""
    async with one_session(runtime, max_kernels=1) as (manager, session):
        await manager.execute(session, "x = 1; import os; os.makedirs('d'); _ = open('d/f', 'w').write('kept')")
        await manager.run_command(session, "chmod 750 d/f")
        cell = asyncio.create_task(manager.execute(session, "while True: pass"))
        await asyncio.sleep(0.5)
        kernel_id = session.kernel_id
        await manager.restart_kernel(session, keep_files=keep_files)
        assert session.kernel_id != kernel_id
        assert (await cell).outcome == "kernel_died"
        result = await manager.execute(
            session, "'x' in globals(), os.path.exists('d/f') if 'os' in globals() else None"
        )
        assert result.result == "(False, None)"
        assert await manager.exists(session, "d/f") == keep_files
        if keep_files:
            assert (await manager.stat_file(session, "d/f")).mode == 0o750
        assert len(await session.history()) == 3


async def test_files_that_claim_any_size_do_not_fill_the_hosts_disk(runtime: str) -> None:
    """A restart that would keep a sparse file is refused; the session keeps its kernel and variables."""
    async with one_session(runtime, max_kernels=1) as (manager, session):
        await manager.execute(session, "x = 1; open('sparse', 'wb').truncate(1 << 40)")
        with pytest.raises(FileTransferError) as refused:
            await manager.restart_kernel(session)
        assert refused.value.fault == "too_large"
        assert (await manager.execute(session, "x")).result == "1"


async def test_a_folder_in_and_out(manager: AgentKernelManager, session: KernelSession) -> None:
    line = (
        "mkdir -p src/deep; echo a > src/a; echo b > src/deep/b; ln -s a src/link; chmod 700 src/a; touch $'src/\\xff'"
    )
    await manager.run_command(session, line)
    tar = b"".join([piece async for piece in manager.read_folder(session, "src")])
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        names = {member.name for member in archive.getmembers()}
    assert {"./a", "./deep/b", "./link", "./\udcff"} <= names
    await manager.write_folder(session, "copy/there", tar)
    result = await manager.run_command(
        session, "diff -r src copy/there && stat -c %a copy/there/a && readlink copy/there/link"
    )
    assert result.stdout == b"700\na\n"
    for path, fault in (("nowhere", "missing"), ("src/a", "not_a_folder")):
        with pytest.raises(FileTransferError) as caught:
            _ = [piece async for piece in manager.read_folder(session, path)]
        assert caught.value.fault == fault
    with pytest.raises(FileTransferError):
        await manager.write_folder(session, "bad", b"no tar at all" * 100)
    with pytest.raises(FileTransferError) as caught:
        await manager.write_folder(session, "/etc/x", tar)
    assert caught.value.fault == "permission"


async def test_a_large_folder_is_a_stream(manager: AgentKernelManager, session: KernelSession) -> None:
    await manager.run_command(session, "mkdir big; for i in 1 2 3; do head -c 20000000 /dev/urandom > big/$i; done")
    await manager.write_folder(session, "again", manager.read_folder(session, "big"))
    assert (await manager.run_command(session, "diff -r big again && rm -r big again")).ok
