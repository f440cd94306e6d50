"""Reading, writing, listing and changing the files of a live session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from orchestrator import AgentKernelManager, FileInfo, FileTransferError, InvalidInputError, KernelSession
from tests.conftest import make_manager, one_session

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1024 * 1024
NAMES = [
    "plain",
    "with space",
    "ünï",
    "日本語.txt",
    "emoji \U0001f389",
    "line\nbreak",
    "tab\t",
    "-dash",
    "*",
    "\udcff\udcfe",
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def manager(runtime: str) -> AsyncIterator[AgentKernelManager]:
    async with make_manager(runtime) as manager:
        yield manager


@pytest_asyncio.fixture(loop_scope="module")
async def session(manager: AgentKernelManager) -> AsyncIterator[KernelSession]:
    """A session with an empty working directory."""
    async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
        await manager.run_command(session, "chmod -R u+rwX . ; find /work -mindepth 1 -delete")
        yield session


async def shell(manager: AgentKernelManager, session: KernelSession, line: str) -> str:
    result = await manager.run_command(session, line)
    assert result.ok, result
    return result.stdout_text


async def fault_of(call: object) -> str:
    with pytest.raises(FileTransferError) as caught:
        await call  # type: ignore[misc]
    return caught.value.fault


@pytest.mark.parametrize("name", NAMES)
async def test_a_name_of_any_text_or_bytes(manager: AgentKernelManager, session: KernelSession, name: str) -> None:
    assert await manager.write_file(session, f"d/{name}", b"content") == 7
    assert await manager.read_file(session, f"d/{name}") == b"content"
    assert await manager.exists(session, f"d/{name}")
    [found] = await manager.list_files(session, "d")
    assert (found.name, found.path, found.kind, found.size) == (name, f"/work/d/{name}", "file", 7)
    await manager.move(session, f"d/{name}", f"e/{name}")
    assert not await manager.exists(session, f"d/{name}")
    await manager.remove(session, f"e/{name}")
    assert await manager.list_files(session, "e") == []


async def test_every_kind_of_content(manager: AgentKernelManager, session: KernelSession) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(3):
            yield bytes([number]) * 700_000

    for data, expected in (
        ("text ü", "text ü".encode()),
        (b"bytes", b"bytes"),
        (bytearray(b"array"), b"array"),
        (memoryview(b"view")[1:], b"iew"),
        (memoryview(bytearray(8)).cast("I"), bytes(8)),
        (pieces(), b"\0" * 700_000 + b"\1" * 700_000 + b"\2" * 700_000),
        (b"", b""),
    ):
        assert await manager.write_file(session, "f", data) == len(expected)
        assert await manager.read_file(session, "f") == expected


async def test_a_source_that_fails_changes_nothing(manager: AgentKernelManager, session: KernelSession) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield bytes(2 * MIB)
        raise RuntimeError("the source failed")

    await manager.write_file(session, "f", b"before")
    with pytest.raises(RuntimeError, match="the source failed"):
        await manager.write_file(session, "f", broken())
    assert await manager.read_file(session, "f") == b"before"
    await asyncio.sleep(0.2)
    assert [found.name for found in await manager.list_files(session)] == ["f"]


async def test_ranges(manager: AgentKernelManager, session: KernelSession) -> None:
    data = bytes(range(256)) * 12_000
    await manager.write_file(session, "f", data)
    for offset, length in ((0, 0), (0, 5), (7, 3 * MIB), (MIB - 1, 2), (3_000_000, None), (5_000_000, None), (1, MIB)):
        expected = data[offset:] if length is None else data[offset : offset + length]
        assert await manager.read_file(session, "f", offset=offset, length=length) == expected
    assert await fault_of(manager.read_file(session, "f", limit=1000)) == "too_large"
    assert len(await manager.read_file(session, "f", length=1000, limit=1000)) == 1000
    for bad in ({"offset": -1}, {"length": -1}, {"limit": -1}, {"offset": 2**53 + 1}, {"offset": 2**63}):
        async with asyncio.timeout(10):  # the kernel does not answer to an offset that no file can have
            with pytest.raises(InvalidInputError):
                await manager.read_file(session, "f", **bad)
    assert await manager.read_file(session, "f", offset=2**53) == b""


async def test_a_replaced_file_keeps_its_mode_and_a_link_its_place(
    manager: AgentKernelManager, session: KernelSession
) -> None:
    await manager.write_file(session, "real/script", "echo old")
    await shell(manager, session, "chmod 755 real/script; ln -s real/script link")
    await manager.write_file(session, "link", "echo new")
    assert (await manager.stat_file(session, "link")).kind == "link"
    assert (await manager.stat_file(session, "real/script")).mode == 0o755
    assert await shell(manager, session, "cat real/script; test -L link") == "echo new"


async def test_links_are_what_they_are(manager: AgentKernelManager, session: KernelSession) -> None:
    """A link is listed as a link, never followed in a listing, and never on the host."""
    await manager.write_file(session, "folder/inside", b"x")
    await shell(manager, session, "ln -s folder to_folder; ln -s /etc/passwd to_file; ln -s nowhere broken; ln -s l l")
    found = {each.name: each for each in await manager.list_files(session, recursive=True)}
    assert {name: each.kind for name, each in found.items()} == {
        "broken": "link", "folder": "dir", "inside": "file", "l": "link", "to_file": "link", "to_folder": "link",
    }  # fmt: skip
    assert found["to_file"].target == "/etc/passwd"
    assert not found["to_folder"].is_dir
    assert (await manager.stat_file(session, "to_folder", follow_links=True)).kind == "dir"
    assert await manager.exists(session, "broken")
    assert await fault_of(manager.stat_file(session, "broken", follow_links=True)) == "missing"
    assert await fault_of(manager.read_file(session, "broken")) == "missing"
    assert await fault_of(manager.read_file(session, "l")) == "other"
    assert b"sandbox" in await manager.read_file(session, "to_file")
    await manager.remove(session, "to_folder", recursive=True)
    assert await manager.exists(session, "folder/inside")


async def test_listing(manager: AgentKernelManager, session: KernelSession) -> None:
    for path in ("a.py", "b.txt", "sub/c.py", "sub/deep/d.py", "sub/deep/e.txt", ".hidden"):
        await manager.write_file(session, path, b"x")

    async def paths(*arguments: str, **options: object) -> list[str]:
        found = await manager.list_files(session, *arguments, **options)  # type: ignore[arg-type]
        return [each.path.removeprefix("/work/") for each in found]

    assert await paths() == [".hidden", "a.py", "b.txt", "sub"]
    assert await paths("sub") == ["sub/c.py", "sub/deep"]
    everything = [".hidden", "a.py", "b.txt", "sub", "sub/c.py", "sub/deep", "sub/deep/d.py", "sub/deep/e.txt"]
    assert await paths(recursive=True) == everything
    assert await paths(pattern="*.py") == ["a.py"]
    assert await paths(recursive=True, pattern="*.py") == ["a.py", "sub/c.py", "sub/deep/d.py"]
    assert await paths(pattern="**/*.py") == ["a.py", "sub/c.py", "sub/deep/d.py"]
    assert await paths(pattern="sub/*.py") == ["sub/c.py"]
    assert await paths(pattern="sub/**/?.txt") == ["sub/deep/e.txt"]
    assert await paths(pattern="[ab].*") == ["a.py", "b.txt"]
    assert await fault_of(manager.list_files(session, limit=3)) == "too_large"
    assert len(await manager.list_files(session, limit=4)) == 4
    assert await fault_of(manager.list_files(session, "nowhere")) == "missing"
    assert await fault_of(manager.list_files(session, "a.py")) == "not_a_folder"
    assert [each.kind for each in await manager.list_files(session, "/dev", pattern="null")] == ["other"]


async def test_a_long_listing_arrives_in_pieces(manager: AgentKernelManager, session: KernelSession) -> None:
    await manager.execute(session, "import os\nfor n in range(12000): open('x' * 100 + str(n), 'w').close()")
    assert await fault_of(manager.list_files(session)) == "too_large"
    found = await manager.list_files(session, limit=100_000)
    assert len({each.name for each in found}) == 12_000
    await shell(manager, session, "find . -name 'x*' -delete")


async def test_folders(manager: AgentKernelManager, session: KernelSession) -> None:
    assert await manager.make_dir(session, "a/b/c")
    assert not await manager.make_dir(session, "a/b/c")
    assert await fault_of(manager.make_dir(session, "x/y", parents=False)) == "missing"
    await manager.write_file(session, "file", b"")
    assert await fault_of(manager.make_dir(session, "file")) == "exists"
    assert await fault_of(manager.remove(session, "a")) == "not_empty"
    await manager.remove(session, "a/b/c")
    await manager.remove(session, "a", recursive=True)
    assert not await manager.exists(session, "a")
    assert await fault_of(manager.remove(session, "a")) == "missing"
    for path in ("/", "/work", "/tmp"):
        assert await fault_of(manager.remove(session, path, recursive=True)) == "permission"


async def test_a_folder_without_permissions_is_removed(manager: AgentKernelManager, session: KernelSession) -> None:
    await shell(manager, session, "mkdir -p p/q/r; touch p/q/r/f p/q/g; chmod 000 p/q/r; chmod 500 p/q p")
    await manager.remove(session, "p", recursive=True)
    assert await manager.list_files(session) == []


async def test_moving(manager: AgentKernelManager, session: KernelSession) -> None:
    await manager.write_file(session, "one", b"1")
    await manager.write_file(session, "two", b"2")
    await manager.move(session, "one", "two")
    assert await manager.read_file(session, "two") == b"1"
    await manager.make_dir(session, "folder/sub")
    assert await fault_of(manager.move(session, "two", "folder")) == "is_folder"
    assert await fault_of(manager.move(session, "nothing", "x")) == "missing"
    await manager.move(session, "folder", "/tmp/moved")
    assert (await manager.stat_file(session, "/tmp/moved/sub")).is_dir
    await manager.remove(session, "/tmp/moved", recursive=True)


async def test_what_the_system_refuses(manager: AgentKernelManager, session: KernelSession) -> None:
    assert await fault_of(manager.write_file(session, "/etc/x", b"")) == "permission"
    await manager.make_dir(session, "d")
    assert await fault_of(manager.write_file(session, "d", b"x")) == "is_folder"
    assert await fault_of(manager.read_file(session, "d")) == "is_folder"
    await shell(manager, session, "mkfifo f; touch t")
    assert await fault_of(manager.read_file(session, "f")) == "other"
    assert await fault_of(manager.read_file(session, "t/x")) == "not_a_folder"
    assert await fault_of(manager.write_file(session, "t/x", b"")) == "not_a_folder"
    await shell(manager, session, "touch closed; chmod 400 closed")
    assert await fault_of(manager.write_file(session, "closed", b"x")) == "permission"
    assert not await manager.exists(session, "t/x")
    assert await fault_of(manager.read_file(session, "/dev/zero", limit=3 * MIB)) == "too_large"
    assert await manager.read_file(session, "/dev/zero", length=10) == bytes(10)
    for path in ("", "a\0b", "x" * 5000):
        with pytest.raises(FileTransferError):
            await manager.read_file(session, path)
    for path in (".", "..", "/"):
        with pytest.raises(FileTransferError):
            await manager.write_file(session, path, b"x")


async def test_a_full_folder(manager: AgentKernelManager, session: KernelSession) -> None:
    with pytest.raises(FileTransferError, match="shm_mb") as caught:
        await manager.write_file(session, "/dev/shm/big", bytes(80 * MIB))
    assert caught.value.fault == "full"
    assert not await manager.exists(session, "/dev/shm/big")
    assert [each.name for each in await manager.list_files(session, "/dev/shm", pattern="*part")] == []


async def test_files_change_while_a_cell_runs(manager: AgentKernelManager, session: KernelSession) -> None:
    cell = asyncio.create_task(
        manager.execute(session, "import os, time\nwhile not os.path.exists('go'): time.sleep(0.02)\nopen('go').read()")
    )
    await asyncio.sleep(0.3)
    assert not cell.done()
    await manager.write_file(session, "go", "now")
    assert (await cell).result == "'now'"


async def test_times_and_modes(manager: AgentKernelManager, session: KernelSession) -> None:
    await shell(manager, session, "touch -d @1700000000 old; chmod 640 old")
    found = await manager.stat_file(session, "old")
    assert found == FileInfo("old", "/work/old", "file", 0, 1700000000.0, 0o640)
    assert found.as_dict()["is_dir"] is False
    assert (await manager.stat_file(session, "/")).name == "/"


HOSTILE = {
    "no fields": "b''",
    "half an entry": r"b'a\0file\0'",
    "letters for numbers": r"b'a\0file\0x\0001\0001\0\0'",
    "huge numbers": r"b'a\0file\0' + b'9' * 5000 + b'\0001\0001\0\0'",
    "an unknown kind": r"b'a\0evil\0001\0001\0001\0\0'",
    "a path outside": r"b'../../etc/passwd\0file\0001\0001\0001\0\0'",
    "an absolute path": r"b'/etc/passwd\0file\0001\0001\0001\0\0'",
    "too many": r"b'a\0file\0001\0001\0001\0\0' * 20000",
    "nothing but ends": r"b'\0' * (12 << 20)",
}


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE)
async def test_a_hostile_kernel_lies_about_its_files(runtime: str, answer: str) -> None:
    """What is no list, or names what is not in the folder, is refused."""
    lie = (
        "from ipykernel.kernelapp import IPKernelApp\n"
        "kernel = IPKernelApp.instance().kernel\n"
        f"ANSWER = {answer}\n"
        "def lie(stream, ident, parent):\n"
        "    kind = parent['header']['msg_type'].replace('_request', '_reply')\n"
        "    piece = ANSWER[parent['content'].get('offset', 0):][:1 << 20]\n"
        "    content = {'status': 'ok', 'last': len(piece) < 1 << 20}\n"
        "    kernel.session.send(stream, kind, content, parent, ident=ident, buffers=[piece])\n"
        "kernel.control_handlers['file_list_request'] = lie\n"
        "kernel.control_handlers['file_stat_request'] = lie\n"
    )
    async with one_session(runtime) as (manager, session):
        await manager.execute(session, lie)
        if answer != "b''":
            with pytest.raises(FileTransferError, match="no list"):
                await manager.list_files(session)
        with pytest.raises(FileTransferError):
            await manager.stat_file(session, "a")


async def test_an_endless_list_is_stopped(runtime: str) -> None:
    lie = (
        "from ipykernel.kernelapp import IPKernelApp\n"
        "kernel = IPKernelApp.instance().kernel\n"
        "def lie(stream, ident, parent):\n"
        "    kernel.session.send(stream, 'file_list_reply', {'status': 'ok', 'last': False}, parent, ident=ident,"
        " buffers=[bytes(1 << 20)])\n"
        "kernel.control_handlers['file_list_request'] = lie\n"
    )
    async with one_session(runtime) as (manager, session):
        await manager.execute(session, lie)
        with pytest.raises(FileTransferError, match="too long a list"):
            await manager.list_files(session)
