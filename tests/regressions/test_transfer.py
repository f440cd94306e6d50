"""Files keep their place, whatever a cell does meanwhile; a kernel's own words are never obeyed by a terminal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import CheckpointStateError, FileTransferError
from orchestrator.kernel.channel import Message
from orchestrator.kernel.fakekernel import FakeKernel
from orchestrator.kernel.pace import Pace
from orchestrator.kernel.statetransfer import Write, save_state
from orchestrator.kernel.transfer import PIECE, get_file, put_file
from orchestrator.output.printable import printable, printable_lines
from tests.conftest import one_session

HOSTILE = "no\n2026 INFO all is well\x1b]0;title\x07\x1b[2J\u202egnp.\u2066\x9b1m"
MIB = 1024 * 1024


class SlowKernel(FakeKernel):
    """A kernel that takes ``seconds`` for each piece."""

    seconds = 0.0

    async def request(
        self, channel: Any, kind: str, content: Any, *, timeout: float | None, buffers: Sequence[bytes] = ()
    ) -> Message:
        if timeout is not None and self.seconds > timeout:
            raise TimeoutError
        await asyncio.sleep(self.seconds)
        return await super().request(channel, kind, content, timeout=timeout, buffers=buffers)


class Paths(FakeKernel):
    """A kernel that notes the paths that it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.paths: set[str] = set()

    async def request(
        self, channel: Any, kind: str, content: Any, *, timeout: float | None, buffers: Sequence[bytes] = ()
    ) -> Message:
        self.paths |= {str(Path(content[key]).parent) for key in ("path", "rename") if key in content}
        return await super().request(channel, kind, content, timeout=timeout, buffers=buffers)


@pytest.mark.parametrize(
    ("name", "folder"),
    [("big", "/work"), ("in/big", "/work/in"), ("../tmp/big", "/work/../tmp"), ("/tmp/big", "/tmp")],
)
async def test_every_piece_names_one_absolute_place(name: str, folder: str, tmp_path: Path) -> None:
    """A kernel never has to resolve a path: its working directory may change between two pieces."""
    kernel = Paths()
    await put_file(kernel, bytes(3 * PIECE), name)
    await get_file(kernel, name, tmp_path / "back", 4 * PIECE)
    assert kernel.paths == {folder}


@pytest.mark.parametrize(
    "name", ["a\u202fb", "a\u3000b", "\U0001f600.csv", "a\nb", "tab\tb", "\u202egnp.exe", "a\u200db"]
)
async def test_any_name_that_a_file_can_have_is_taken(name: str, tmp_path: Path) -> None:
    """Only a name that no file can have is refused; an error shows the others escaped."""
    kernel = FakeKernel()
    await put_file(kernel, b"x", name)
    assert await get_file(kernel, name, tmp_path / "back", 10)
    kernel.files.refusal = HOSTILE
    with pytest.raises(FileTransferError) as caught:
        await get_file(kernel, name, tmp_path / "back", 10)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("name", ["", ".", "/", "a\0b", "x" * 5000, "\ud800"])
async def test_a_name_that_no_file_has_is_refused(name: str) -> None:
    """The kernel is not asked."""
    kernel = FakeKernel()
    with pytest.raises(FileTransferError) as caught:
        await put_file(kernel, b"x", name)
    assert caught.value.message.isprintable()
    assert kernel.asked == 0


async def test_a_kernel_that_serves_slowly_meets_a_deadline(tmp_path: Path) -> None:
    """Each piece comes in time, and the transfer still ends: a file has a time in all, from the bytes that moved."""
    kernel = SlowKernel()
    kernel.files.contents["big"] = bytes(50 * MIB)
    kernel.seconds = 0.1
    started = time.monotonic()
    with pytest.raises(FileTransferError, match="too slowly"):
        await get_file(kernel, "big", tmp_path / "back", 100 * MIB, Pace(0.3, 40 * MIB))
    with pytest.raises(FileTransferError, match="too slowly"):
        await put_file(kernel, bytes(50 * MIB), "in", Pace(0.3, 40 * MIB))
    assert time.monotonic() - started < 5  # without a deadline: 10 s
    kernel.seconds = 0.001
    await get_file(kernel, "big", tmp_path / "back", 100 * MIB, Pace(0.3, 40 * MIB))


async def test_why_a_kernel_cannot_save_is_one_printable_line() -> None:
    """Its reason reaches a log line and an error: no line feed, no terminal code, no change of direction."""
    kernel = FakeKernel()
    kernel.state.refusal = HOSTILE

    async def begin() -> Write:
        async def write(_piece: bytes) -> None:
            """Drop it."""

        return write

    with pytest.raises(CheckpointStateError) as caught:
        await save_state(kernel, begin, 5)
    assert caught.value.message.isprintable()
    kernel.state.refusal = ""
    kernel.state.lost = [{"name": HOSTILE, "kind": HOSTILE, "reason": HOSTILE}]
    (lost,) = await save_state(kernel, begin, 5)
    assert all(part.isprintable() for part in lost.values())


def test_printable() -> None:
    """What is harmless stays; the rest is escaped as in Python, or with four digits where lines stay."""
    assert printable("naïve 日本 \U0001f600") == "naïve 日本 \U0001f600"
    assert printable("a\nb\x1b\u202e") == r"a\nb\x1b\u202e"
    assert printable_lines("a\n\tb\x1b\u202e\r\n") == "a\n\tb\\u001b\\u202e\n"
    for character in "\x00\x08\x0b\r\x7f\x9b\u061c\u200e\u2028\u202a\u2066\u2069\ud800\ufffe":
        assert printable_lines(character) == f"\\u{ord(character):04x}"


async def test_a_file_arrives_whole_while_a_cell_changes_directory(runtime: str, tmp_path: Path) -> None:
    """A relative name starts at /work, during and after ``os.chdir``; no unfinished file is left anywhere."""
    async with one_session(runtime) as (manager, session):
        restless = "import os, time\nos.makedirs('/work/a', exist_ok=True)\nend = time.time() + 4\n"
        cell = asyncio.create_task(
            manager.execute_code(
                session, restless + "while time.time() < end: os.chdir('/work/a'); os.chdir('/tmp'); time.sleep(0.001)"
            )
        )
        await asyncio.sleep(0.3)
        await manager.put_file(session, bytes(range(256)) * (30 * 4096), "big \u202f\U0001f600")
        await cell
        await manager.get_file(session, "big \u202f\U0001f600", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == bytes(range(256)) * (30 * 4096)
        code = "sorted(n for d in ('/work', '/work/a', '/tmp') for n in os.listdir(d) if 'part' in n or 'big' in n)"
        assert (await manager.execute_code(session, code))["result"] == "['big \\u202f\U0001f600']"
