"""A process as a node: it renews its lease, is fenced, and joins again; whose sessions may be taken over."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from orchestrator.errors import StoreError
from orchestrator.pool.shares import held_elsewhere
from orchestrator.sessions.membership import ClusterOwners, Membership, capacity_of, owner_node
from orchestrator.store.history import History
from orchestrator.store.noderecord import Capacity, NodeRecord
from tests.postgresproxy import PostgresProxy
from tests.unit.test_node_leases import end_lease

ROOM = Capacity(kernels=4, free=3, memory_free_mb=1000, cores=2.0, load=0.5, warm={"default": 1}, image="i",
                held={"default": {"team": 1}})  # fmt: skip
SHORT = 1.5  # seconds of a lease
LONGER = 3.0
LAPSED = -1


class Sessions:
    """What a manager of the node "mine" would do: it notes the epochs, and what groups hold elsewhere."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.held: dict[str, int] = {}

    def join(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def lapse(self) -> None:
        self.epochs.append(LAPSED)

    def see(self, nodes: Collection[NodeRecord], age_s: float) -> None:
        self.held = dict(held_elsewhere(nodes, "mine", "default", age_s).held)


@pytest.fixture
async def history(url: str, tmp_path: Path) -> AsyncIterator[History]:
    history = History.open(url, tmp_path, of_cluster=True)
    yield history
    history.close()


def node(history: History, name: str, lease_s: float = 60.0) -> Membership:
    return Membership(history, name, url=f"http://{name}", version="1", lease_s=lease_s, capacity=lambda: ROOM)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.05)


async def test_a_node_that_renews_stays_and_one_that_does_not_is_over(history: History) -> None:
    lively, silent = node(history, "lively", SHORT), node(history, "silent", SHORT)
    await silent.join()
    await lively.join()
    renewing = asyncio.create_task(lively.run())
    await until(lambda: lively.nodes["silent"].state == "down")
    assert (lively.nodes["lively"].state, lively.epoch, silent.has_lease) == ("up", 1, False)
    assert lively.has_lease
    renewing.cancel()


async def test_a_node_that_was_fenced_lets_go_of_everything_and_joins_again(history: History) -> None:
    mine, sessions = node(history, "mine", SHORT), Sessions()
    await mine.join()
    mine.attach(sessions)
    with history._database.writing() as connection:
        connection.execute(text("UPDATE nodes SET epoch = epoch + 1, state = 'down'"))
    renewing = asyncio.create_task(mine.run())
    await until(lambda: mine.epoch == 3)
    assert sessions.epochs == [1, 3]
    assert mine.nodes["mine"].state == "up"
    renewing.cancel()


async def test_a_node_that_stays_cut_off_ends_its_kernels_and_joins_as_a_new_epoch(history: History) -> None:
    """It cannot learn that it was fenced; it gives its sessions up once, and none of its renewals revives them."""
    mine, sessions = node(history, "mine", SHORT), Sessions()
    await mine.join()
    mine.attach(sessions)
    with history._database.writing() as connection:
        connection.execute(text("ALTER TABLE nodes RENAME TO away"))
    renewing = asyncio.create_task(mine.run())
    await until(lambda: sessions.epochs == [1, LAPSED])
    assert not mine.has_lease
    with history._database.writing() as connection:
        connection.execute(text("ALTER TABLE away RENAME TO nodes"))
    await until(lambda: mine.epoch == 2)
    assert sessions.epochs == [1, LAPSED, 2]
    assert mine.has_lease
    renewing.cancel()


@pytest.fixture
def ways(empty_postgres_url: str, tmp_path: Path) -> Iterator[list[tuple[PostgresProxy, History]]]:
    """Three ways to one PostgreSQL server."""
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(3):
            way = PostgresProxy(empty_postgres_url)
            stack.callback(way.close)
            history = History.open(way.url, tmp_path, of_cluster=True)
            stack.callback(history.close)
            stack.callback(way.thaw)
            opened.append((way, history))
        yield opened


@pytest.mark.parametrize("answers", [1, 2, 3])
async def test_a_node_that_is_cut_off_in_the_midst_of_a_renewal_delays_no_other(
    ways: list[tuple[PostgresProxy, History]], answers: int
) -> None:
    """What it has under way holds no lock that the others' renewals need."""
    way, mine = ways[0][0], node(ways[0][1], "mine")
    other = node(ways[1][1], "other")
    await mine.join()
    await other.join()
    end_lease(ways[2][1], "mine")
    way.freeze_after = answers
    renewing = asyncio.create_task(mine.renew())
    await until(lambda: way.is_frozen or renewing.done())
    await other.renew()
    assert other.has_lease
    way.thaw()
    with contextlib.suppress(StoreError):
        await renewing


async def test_an_outage_longer_than_a_lease_fences_only_the_node_that_was_lost_in_it(
    ways: list[tuple[PostgresProxy, History]],
) -> None:
    """Each has its own way to the database, so that one is the first to reach it again."""
    members = [
        node(history, name, LONGER) for name, (_, history) in zip(("first", "second", "lost"), ways, strict=True)
    ]
    kept = [Sessions() for _ in members]
    for member, sessions in zip(members, kept, strict=True):
        await member.join()
        member.attach(sessions)
    first, second, lost = members
    renewing = [asyncio.create_task(member.run()) for member in members]
    await until(lambda: len(first.nodes) == 3)
    for way, _ in ways:
        way.freeze()
    renewing[2].cancel()
    await until(lambda: not any(member.has_lease for member in members))
    ways[0][0].thaw()
    await until(lambda: first.has_lease)
    await until(lambda: [record.condition for record in first.nodes.values()] == ["up", "lost", "lost"])
    ways[1][0].thaw()
    await until(lambda: second.has_lease)
    await until(lambda: first.nodes["lost"].state == "down")
    assert [(member.epoch, sessions.epochs) for member, sessions in zip(members, kept, strict=True)] == [(1, [1])] * 3
    assert (first.nodes["second"].state, first.nodes["second"].epoch) == ("up", 1)
    ways[2][0].thaw()
    assert not await lost._renew()
    for task in renewing:
        task.cancel()
    await asyncio.gather(*renewing, return_exceptions=True)


async def test_what_groups_hold_elsewhere_is_known_while_it_is_fresh(history: History) -> None:
    """A node's numbers count as long as its lease, also at a node that can no longer read the database."""
    mine, other, sessions = node(history, "mine", SHORT), node(history, "other", SHORT), Sessions()
    await other.join()
    await mine.join()
    mine.attach(sessions)
    assert sessions.held == {"team": 1}
    with history._database.writing() as connection:
        connection.execute(text("ALTER TABLE nodes RENAME TO away"))
    renewing = asyncio.create_task(mine.run())
    await until(lambda: not sessions.held)
    renewing.cancel()


async def test_who_is_dead_is_said_by_the_epoch_alone(history: History) -> None:
    """A node that has come back goes on with its own sessions: nobody else takes them from it."""
    mine, other = node(history, "mine"), node(history, "other")
    await other.join()
    await mine.join()
    owners, theirs = ClusterOwners(mine, "i1"), ClusterOwners(other, "i2").name
    assert owner_node(theirs) == ("other", 1)
    assert not owners.is_dead(theirs)
    assert not owners.is_dead("boot/1/instance"), "of no cluster: not ours to judge"
    await other.leave()
    await mine.renew()
    assert owners.is_dead(theirs)
    await other.join()
    await mine.renew()
    assert not owners.is_dead(theirs)
    before = owners.name
    assert not owners.is_dead(before)
    await mine.join()
    assert owners.is_dead(before)


async def test_a_node_that_leaves_has_no_lease(history: History) -> None:
    mine = node(history, "mine")
    await mine.join()
    mine.state = "draining"
    await mine.renew()
    assert mine.nodes["mine"].state == "draining"
    await mine.leave()
    assert not mine.has_lease
    assert [record.state for record in await history.run(History.nodes)] == ["down"]


def test_a_host_has_what_its_managers_have() -> None:
    strict = Capacity(2, 1, 500, 2.0, 0.5, {"strict": 2}, "i", held={"strict": {"team": 2}})
    found = capacity_of([ROOM, ROOM, strict])
    assert found.held == {"default": {"team": 2}, "strict": {"team": 2}}
    found = capacity_of([ROOM, strict])
    assert (found.kernels, found.free, found.memory_free_mb, found.warm) == (6, 4, 500, {"default": 1, "strict": 2})
