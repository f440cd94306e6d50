"""The parts of `benchmarks.peers` that need no engine."""

from __future__ import annotations

import asyncio
import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from benchmarks.peers import chart, report, subjects
from benchmarks.peers.catalogue import DRIVERS, PEERS, Peer
from benchmarks.peers.drivers.serving import Execute, Server, check
from benchmarks.peers.subjects import Driver, PeerError, Subject

DRIVER = """
import asyncio
from contextlib import asynccontextmanager
from benchmarks.peers.drivers.serving import check, serve

@asynccontextmanager
async def sandbox():
    async def execute():
        print("noise of the peer's own")
        check({answer!r})
    yield execute

asyncio.run(serve(sandbox))
"""


def subject(name: str, execute: float, lease: float, version: str = "", close: str = "") -> Subject:
    """Return a subject whose executions and leases all took the given seconds."""
    server = Server(subjects.local_sandbox)
    return Subject(name, server, "as it comes", version, close, executes=[execute] * 3, leases=[lease] * 3)


async def driver(answer: str, log: Path) -> Driver:
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            DRIVER.format(answer=answer),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=file,
        )
    return Driver(process, log)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_has_a_driver_and_a_pinned_version(peer: Peer) -> None:
    """Each peer of the catalogue has a driver file and a version."""
    assert (DRIVERS / f"{peer.driver}.py").is_file()
    assert peer.version


async def test_a_lease_releases_its_sandbox() -> None:
    """A lease enters a sandbox, executes once and leaves the sandbox before it returns."""
    seen = []

    @asynccontextmanager
    async def sandbox() -> AsyncIterator[Execute]:
        async def execute() -> None:
            seen.append("executed")

        seen.append("entered")
        yield execute
        seen.append("left")

    assert await Server(sandbox).lease() >= 0
    assert seen == ["entered", "executed", "left"]


def test_a_wrong_answer_is_an_error() -> None:
    """A peer that returns a wrong answer fails."""
    check("2\n")
    with pytest.raises(RuntimeError, match="answered"):
        check("")


async def test_output_of_a_peer_does_not_disturb_its_driver(tmp_path: Path) -> None:
    """A driver reads the answers although the peer prints other text."""
    peer = await driver("2", tmp_path / "log")
    await peer.open()
    assert await peer.execute() > 0
    assert await peer.lease() > 0
    await peer.end()


async def test_a_peer_that_fails_says_why(tmp_path: Path) -> None:
    """The error of a peer that fails contains the peer's own message."""
    peer = await driver("3", tmp_path / "log")
    with pytest.raises(PeerError, match="the sandbox answered '3'"):
        await peer.lease()
    await peer.end()


def test_a_peer_within_five_times_is_named_with_the_reason() -> None:
    """A peer that is less than five times slower is named with the reason, and a slower peer is not named."""
    ours = subject(report.BASELINE, 0.005, 0.010)
    far = subject("far", 0.050, 1.0, "1.0")
    near = subject("near", 0.010, 1.0, "1.0", "for a reason")
    assert report.verdicts(report.figures_of([ours, far], "20.10")) == [
        "Every peer takes at least 5 times as long in both measures."
    ]
    (line,) = report.verdicts(report.figures_of([ours, far, near], "20.10"))
    assert line.startswith("near takes 2.0 times as long")
    assert line.endswith(": for a reason")


def test_a_peer_without_figures_is_in_the_table_but_not_in_the_chart() -> None:
    """A peer that was never measured is reported as failed and is not drawn."""
    ours, broken = subject(report.BASELINE, 0.005, 0.010), subject("broken", 0.0, 0.0, "1.0")
    broken.executes, broken.leases, broken.failures = [], [], ["it could not start"]
    figures = report.figures_of([ours, broken], "20.10")
    assert report.verdicts(figures) == ["broken failed in 1 of its turns; the last failure: it could not start"]
    picture = chart.draw(json.loads(json.dumps(figures)))
    ET.fromstring(picture)  # noqa: S314 - drawn by the code under test
    assert report.BASELINE in picture
    assert "broken" not in picture
