"""The benchmark beside the peers: what needs no engine."""

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
    """A subject that took so many seconds each time."""
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
    """Each row of the catalogue can be installed and driven."""
    assert (DRIVERS / f"{peer.driver}.py").is_file()
    assert peer.version


async def test_a_lease_gives_its_sandbox_back() -> None:
    """Its seconds end with the first result, and the sandbox is left before the next order."""
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


def test_a_wrong_answer_is_no_result() -> None:
    """A peer that answers fast and wrong does not count."""
    check("2\n")
    with pytest.raises(RuntimeError, match="answered"):
        check("")


async def test_a_driver_answers_in_spite_of_what_its_peer_prints(tmp_path: Path) -> None:
    """Only answers are on the line."""
    peer = await driver("2", tmp_path / "log")
    await peer.open()
    assert await peer.execute() > 0
    assert await peer.lease() > 0
    await peer.end()


async def test_a_peer_that_fails_says_why(tmp_path: Path) -> None:
    """Its own words reach the table."""
    peer = await driver("3", tmp_path / "log")
    with pytest.raises(PeerError, match="the sandbox answered '3'"):
        await peer.lease()
    await peer.end()


def test_who_is_close_is_told_with_the_reason() -> None:
    """A peer less than five times behind is named; one that is further behind is not."""
    ours = subject(report.BASELINE, 0.005, 0.010)
    far = subject("far", 0.050, 1.0, "1.0")
    near = subject("near", 0.010, 1.0, "1.0", "for a reason")
    assert report.verdicts(report.figures_of([ours, far], "20.10")) == [
        "Every peer is at least 5 times behind on both."
    ]
    (line,) = report.verdicts(report.figures_of([ours, far, near], "20.10"))
    assert line.startswith("near is 2.0 times behind")
    assert line.endswith(": for a reason")


def test_a_peer_without_figures_stands_in_the_table_and_not_in_the_picture() -> None:
    """Nothing is drawn of what was not measured."""
    ours, broken = subject(report.BASELINE, 0.005, 0.010), subject("broken", 0.0, 0.0, "1.0")
    broken.executes, broken.leases, broken.failures = [], [], ["it could not start"]
    figures = report.figures_of([ours, broken], "20.10")
    assert report.verdicts(figures) == ["broken failed in 1 of its turns, the last time: it could not start"]
    picture = chart.draw(json.loads(json.dumps(figures)))
    ET.fromstring(picture)  # noqa: S314 - of our own making
    assert report.BASELINE in picture
    assert "broken" not in picture
