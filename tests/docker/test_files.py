"""Files into and out of a live session."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from orchestrator import AgentKernelManager, KernelSession
from orchestrator.errors import FileTransferError
from tests.conftest import make_manager

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1024 * 1024
FILL = "with open('/work/filler', 'wb') as f:\n    for _ in range(500): f.write(bytes(1 << 20))\n0"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def manager(runtime: str) -> AsyncIterator[AgentKernelManager]:
    async with make_manager(runtime) as manager:
        yield manager


@pytest_asyncio.fixture(loop_scope="module")
async def session(manager: AgentKernelManager) -> AsyncIterator[KernelSession]:
    async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
        yield session


async def inside(manager: AgentKernelManager, session: KernelSession, expression: str) -> str:
    result = await manager.execute_code(session, expression)
    assert result["status"] == "ok", result["error"]
    return str(result["result"])


async def test_a_100_mb_file_travels_both_ways_byte_for_byte(
    manager: AgentKernelManager, session: KernelSession, tmp_path: Path
) -> None:
    """100 MB go in and come out the same, and the orchestrator's memory grows by far less than the file."""
    source, back = tmp_path / "source.bin", tmp_path / "back.bin"
    digest = hashlib.sha256()
    with source.open("wb") as handle:
        for number in range(100):
            block = hashlib.shake_128(number.to_bytes(2, "big")).digest(MIB)
            digest.update(block)
            handle.write(block)
    peak = 0
    before = psutil.Process().memory_info().rss

    async def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, psutil.Process().memory_info().rss - before)
            await asyncio.sleep(0.01)

    watcher = asyncio.create_task(watch())
    assert await manager.put_file(session, source, "in/data.bin") == 100 * MIB
    seen = await inside(manager, session, "import hashlib; hashlib.sha256(open('in/data.bin','rb').read()).hexdigest()")
    assert await manager.get_file(session, "in/data.bin", back) == 100 * MIB
    watcher.cancel()
    assert seen == repr(digest.hexdigest())
    assert hashlib.sha256(back.read_bytes()).hexdigest() == digest.hexdigest()
    assert peak < 40 * MIB
    await inside(manager, session, "import os; os.remove('in/data.bin')")


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1])
async def test_sizes_around_a_piece(
    manager: AgentKernelManager, session: KernelSession, tmp_path: Path, size: int
) -> None:
    """Empty files, and files of just about one piece, arrive whole, from bytes and from a path."""
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    (tmp_path / "source").write_bytes(content)
    for source in (content, tmp_path / "source"):
        await manager.put_file(session, source, "piece")
        await manager.get_file(session, "piece", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == content


async def test_files_travel_while_a_cell_runs(
    manager: AgentKernelManager, session: KernelSession, tmp_path: Path
) -> None:
    """A busy kernel still takes and gives files."""
    cell = asyncio.create_task(manager.execute_code(session, "import time; time.sleep(2)"))
    await asyncio.sleep(0.2)
    await manager.put_file(session, b"now", "now")
    await manager.get_file(session, "now", tmp_path / "now")
    assert not cell.done()
    assert (tmp_path / "now").read_bytes() == b"now"
    await cell


async def test_what_does_not_fit_is_an_error_and_leaves_nothing(
    manager: AgentKernelManager, session: KernelSession
) -> None:
    """A file larger than /work gives a typed error; no part of it stays, and an earlier file of its name does."""
    await manager.put_file(session, b"before", "big")
    await inside(
        manager, session, "with open('/work/filler', 'wb') as f:\n    for _ in range(500): f.write(bytes(1 << 20))\n0"
    )
    with pytest.raises(FileTransferError, match="No space left"):
        await manager.put_file(session, bytes(20 * MIB), "big")
    assert await inside(manager, session, "import os; sorted(n for n in os.listdir() if 'big' in n)") == "['big']"
    assert await inside(manager, session, "open('big').read()") == "'before'"
    await inside(manager, session, "os.remove('/work/filler')")


async def test_bad_sources_and_destinations(
    manager: AgentKernelManager, session: KernelSession, tmp_path: Path
) -> None:
    """A missing file, a directory, an unwritable place and a bad path each give a typed error that names them."""
    (tmp_path / "folder").mkdir()
    for source in (tmp_path / "missing", tmp_path / "folder"):
        with pytest.raises(FileTransferError, match=source.name):
            await manager.put_file(session, source, "x")
    for path in ("", "a\0b"):
        with pytest.raises(FileTransferError):
            await manager.put_file(session, b"x", path)
    with pytest.raises(FileTransferError, match=r"Read-only|Permission denied"):
        await manager.put_file(session, b"x", "/etc/x")
    with pytest.raises(FileTransferError, match="missing"):
        await manager.get_file(session, "missing", tmp_path / "out")
    with pytest.raises(FileTransferError, match="directory"):
        await manager.get_file(session, "/work", tmp_path / "out")
    await manager.put_file(session, b"12345", "five")
    with pytest.raises(FileTransferError, match="larger"):
        await manager.get_file(session, "five", tmp_path / "out", limit=4)
    with pytest.raises(FileTransferError, match="nowhere"):
        await manager.get_file(session, "five", tmp_path / "nowhere" / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


async def test_an_endless_file_is_stopped(manager: AgentKernelManager, session: KernelSession, tmp_path: Path) -> None:
    """/dev/zero never ends: the limit does it, and a fifo that nobody writes to does not hang the host."""
    with pytest.raises(FileTransferError, match="larger"):
        await manager.get_file(session, "/dev/zero", tmp_path / "out", limit=3 * MIB)
    await inside(manager, session, "import os; os.mkfifo('pipe')")
    with pytest.raises(FileTransferError):
        await manager.get_file(session, "pipe", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


async def test_a_hostile_kernel_that_lies_about_pieces(
    manager: AgentKernelManager, session: KernelSession, tmp_path: Path
) -> None:
    """A kernel whose handler sends more than was asked for is refused, and leaves no file on the host."""
    code = (
        "from ipykernel.kernelapp import IPKernelApp\n"
        "kernel = IPKernelApp.instance().kernel\n"
        "def lie(stream, ident, parent):\n"
        "    kernel.session.send(stream, 'file_read_reply', {'status': 'ok'}, parent, ident=ident,"
        " buffers=[bytes(3 << 20)])\n"
        "kernel.control_handlers['file_read_request'] = lie"
    )
    async with manager.acquire_kernel("liar", timeout=60) as (_kernel, liar):
        await inside(manager, liar, code + "\n0")
        with pytest.raises(FileTransferError, match="more of"):
            await manager.get_file(liar, "anything", tmp_path / "out")
    await manager.end_session("liar")
    assert list(tmp_path.iterdir()) == []
