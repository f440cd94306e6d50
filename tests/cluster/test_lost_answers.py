"""Every call that changes a session, with its answer lost: it is asked again, and done once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator import ServerUnavailableError
from orchestrator.cluster.clustermanager import ClusterKernelManager
from orchestrator.remote.remotesession import RemoteSession
from tests.cluster.lossyproxy import LossyProxy

pytestmark = pytest.mark.asyncio(loop_scope="module")
Call = Callable[[ClusterKernelManager, RemoteSession, Path], Awaitable[Any]]

CALLS: dict[str, tuple[bytes, Call, str, str]] = {
    # the request that is lost; the call; an expression of a cell, or of the shell after "!"; and what it is in the end
    "execute": (b"/execute", lambda m, s, _: m.execute(s, "n = globals().get('n', 0) + 1"), "n", "1"),
    "run_command": (b"/commands ", lambda m, s, _: m.run_command(s, "echo x >> ran"), "open('ran').read()", "'x\\n'"),
    "write_file": (b"PUT ", lambda m, s, _: m.write_file(s, "a", b"bytes"), "open('a').read()", "'bytes'"),
    "put_file": (b"PUT ", lambda m, s, f: m.put_file(s, f, "b"), "len(open('b').read())", "300000"),
    "make_dir": (b"/folder", lambda m, s, _: m.make_dir(s, "made"), "__import__('os').listdir('made')", "[]"),
    "move": (b"/move", lambda m, s, _: m.move(s, "a", "c"), "open('c').read()", "'bytes'"),
    "remove": (b"DELETE ", lambda m, s, _: m.remove(s, "c"), "__import__('os').path.exists('c')", "False"),
    "checkpoint": (b"/checkpoints", lambda m, s, _: m.checkpoint(s), "n", "1"),
    "restart": (b"/restart", lambda m, s, _: m.restart_kernel(s), "'n' in globals()", "False"),
    "hibernate": (b"/hibernate", lambda m, s, _: m.hibernate(s.agent_id), "1", "1"),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lost") / "file"
    path.write_bytes(b"x" * 300_000)
    return path


async def test_a_call_whose_answer_is_lost_is_done_once(
    lossy: ClusterKernelManager, proxy: LossyProxy, file: Path
) -> None:
    """In one session, one call after the other; each returns as if nothing had been lost."""
    async with lossy.acquire_kernel("swept", timeout=60) as (_kernel, session):
        pass
    for name, (request, call, expression, expected) in CALLS.items():
        proxy.losing = [request]
        await call(lossy, session, file)
        assert proxy.losing == [], name
        assert (await lossy.execute(session, expression)).result == expected, name
    checkpoints = await lossy._link("swept").ask("GET", f"{session.path}/checkpoints")
    assert len([each for each in checkpoints["checkpoints"] if each["asked_for"]]) == 1
    proxy.losing = [b"DELETE "]
    assert await lossy.end_session("swept")
    assert proxy.losing == []


async def test_a_stream_whose_answer_is_lost_cannot_be_sent_again(
    lossy: ClusterKernelManager, proxy: LossyProxy
) -> None:
    """The error says that the node may have written it, and what helps."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"piece"
        await asyncio.sleep(0)

    async with lossy.acquire_kernel("streams-in", timeout=60) as (_kernel, session):
        proxy.losing = [b"PUT "]
        with pytest.raises(ServerUnavailableError, match="send bytes or a file") as failed:
            await lossy.write_file(session, "a", pieces())
        assert not failed.value.undone
        assert (await lossy.execute(session, "open('a').read()")).result == "'piece'"
