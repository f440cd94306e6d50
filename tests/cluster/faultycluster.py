"""A cluster of real nodes whose parts a test kills, freezes, cuts off and fills, with a record of each change."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import create_engine, text

from orchestrator.container.engine import connect
from orchestrator.container.hostconfig import INSTANCE_LABEL
from tests.cluster.faultydatabase import FaultyDatabase, faulty_database
from tests.cluster.faultyserver import CLOCK
from tests.cluster.historychecker import Change, Row
from tests.conftest import REPOSITORY
from tests.postgresproxy import PostgresProxy

LEASE = 3.0  # seconds
_START = 120.0  # seconds, beside other tests
_DISK = 32  # MiB
_RECORD = """
CREATE SCHEMA faults;
CREATE TABLE faults.changes (id bigserial, at float DEFAULT extract(epoch FROM clock_timestamp()), session text,
    agent text, fence bigint, owner text, cell int, outcome text);
CREATE FUNCTION faults.of_session() RETURNS trigger AS $$ BEGIN
    INSERT INTO faults.changes (session, agent, fence, owner, cell, outcome)
    VALUES (NEW.session_id, NEW.agent_id, NEW.fence, coalesce(NEW.owner, ''), 0, NEW.state);
    RETURN NULL; END $$ LANGUAGE plpgsql;
CREATE FUNCTION faults.of_cell() RETURNS trigger AS $$ BEGIN
    INSERT INTO faults.changes (session, agent, fence, owner, cell, outcome)
    SELECT session_id, agent_id, fence, coalesce(owner, ''), NEW.number, NEW.outcome
    FROM public.sessions WHERE session_id = NEW.session_id;
    RETURN NULL; END $$ LANGUAGE plpgsql;
CREATE TRIGGER note AFTER INSERT OR UPDATE OF fence, owner, state ON public.sessions
    FOR EACH ROW EXECUTE FUNCTION faults.of_session();
CREATE TRIGGER note AFTER INSERT OR UPDATE OF outcome ON public.cells FOR EACH ROW EXECUTE FUNCTION faults.of_cell();
"""


class NodeProxy(PostgresProxy):
    """A relay in front of a node's server."""

    def _connect(self) -> socket.socket:
        address = urlsplit(self._target)
        return socket.create_connection((address.hostname, address.port or 0), timeout=None)

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        for piece in self._pieces(client, server):
            self._pass_on(piece, server, self._asks)


class FaultyNode:
    """One `cellblock serve`, its folders on a small disk, and its ways to the database and from the clients."""

    def __init__(self, folder: Path, database_url: str, port: int) -> None:
        self.folder = folder
        self.database = PostgresProxy(database_url)
        self.clients = NodeProxy(f"http://127.0.0.1:{port}")
        self.port = port
        self.process: subprocess.Popen[str] | None = None
        (folder / CLOCK).write_text("0")

    @property
    def node_id(self) -> str:
        """Its name in the cluster."""
        return (self.folder / "d" / "data" / "id").read_text()

    def start(self) -> None:
        """Start the server, and wait until it serves."""
        environment = os.environ | {
            "CELLBLOCK_DATA_DIR": str(self.folder / "d" / "data"),
            "CELLBLOCK_STATE_DIR": str(self.folder / "s"),
            "CELLBLOCK_AUDIT_LOG": str(self.folder / "audit.jsonl"),
            "CELLBLOCK_RUNTIME": "runc",
            "CELLBLOCK_WARM_KERNELS": "0",
            "CELLBLOCK_STORE_URL": self.database.url,
            "CELLBLOCK_NODE_URL": f"http://127.0.0.1:{self.clients.port}",
            "CELLBLOCK_NODE_LEASE_S": f"{LEASE:g}",
        }
        command = [sys.executable, "-m", "tests.cluster.faultyserver", str(self.folder), "serve", "--port"]
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [*command, str(self.port)], cwd=REPOSITORY, env=environment, stdout=log, stderr=log, text=True,
                start_new_session=True,  # an interrupt of a run is not for it
            )  # fmt: skip
        end = time.monotonic() + _START
        while not self.answers():
            assert self.process.poll() is None, self.log()[-3000:]
            assert time.monotonic() < end, self.log()[-3000:]
            time.sleep(0.1)

    def answers(self) -> bool:
        """Return whether the server listens."""
        with socket.socket() as tried:
            tried.settimeout(1)
            return tried.connect_ex(("127.0.0.1", self.port)) == 0

    def log(self) -> str:
        """Return what the server wrote."""
        return (self.folder / "log").read_text()

    def signal(self, number: signal.Signals) -> None:
        """Send the server a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kill the server, and wait for its end."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(60)

    def is_stopped(self) -> bool:
        """Return whether the server was stopped by a signal."""
        assert self.process is not None
        stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    def fill(self) -> None:
        """Fill the disk of its data folder."""
        with contextlib.suppress(OSError), (self.folder / "d" / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass

    def make_room(self) -> None:
        """Free what ``fill`` has used."""
        (self.folder / "d" / "filler").unlink(missing_ok=True)

    def heal(self) -> None:
        """End every fault but a server's death."""
        self.database.thaw()
        self.clients.thaw()
        self.make_room()
        (self.folder / CLOCK).write_text("0")
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGCONT)

    def close(self) -> None:
        """End the server and its relay."""
        self.heal()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()
        self.database.close()
        self.clients.close()


class FaultyCluster:
    """The nodes and the database. Made by ``faulty_cluster``."""

    def __init__(self, folder: Path, database: FaultyDatabase, nodes: list[FaultyNode]) -> None:
        self.folder = folder
        self.database = database
        self.nodes = nodes
        self._engine = create_engine(database.url, pool_pre_ping=True)

    def record(self) -> None:
        """Note each change of a session and of a cell from now on, in the database itself."""
        with self._engine.begin() as connection:
            connection.execute(text(_RECORD))

    def changes(self) -> list[Change]:
        """Return the changes, in order."""
        query = "SELECT session, agent, fence, owner, cell, outcome FROM faults.changes ORDER BY id"
        with self._engine.begin() as connection:
            return [Change(*row) for row in connection.execute(text(query))]

    def epochs(self) -> dict[str, tuple[int, bool]]:
        """Return each node's epoch, and whether its lease lasts, by the node's name."""
        query = "SELECT node_id, epoch, lease_until > extract(epoch FROM clock_timestamp()) FROM nodes"
        with self._engine.begin() as connection:
            return {node: (epoch, lasts) for node, epoch, lasts in connection.execute(text(query))}

    def fence(self, node: FaultyNode) -> None:
        """End a node's epoch, as another node would."""
        query = text("UPDATE nodes SET epoch = epoch + 1, state = 'down' WHERE node_id = :node")
        with self._engine.begin() as connection:
            connection.execute(query, {"node": node.node_id})

    def owners(self) -> list[tuple[float, str, str]]:
        """Return who owned which session since when: the time, the session, and the node's name."""
        query = "SELECT at, session, owner FROM faults.changes WHERE cell = 0 AND owner <> '' ORDER BY id"
        with self._engine.begin() as connection:
            found = connection.execute(text(query)).all()
        return [(at, session, owner.removeprefix("node:").split("/")[0]) for at, session, owner in found]

    def rows(self) -> list[Row]:
        """Return the cells whose code names a token."""
        query = "SELECT session_id, number, code, outcome FROM cells WHERE code LIKE '%token = %' ORDER BY cell_id"
        with self._engine.begin() as connection:
            found = connection.execute(text(query)).all()
        return [Row(session, number, code.split("'")[1], outcome) for session, number, code, outcome in found]

    def checkpoints(self, session_id: str) -> int:
        """Return how many checkpoints a session has."""
        query = text("SELECT count(*) FROM checkpoints WHERE session_id = :session")
        with self._engine.begin() as connection:
            return int(connection.execute(query, {"session": session_id}).scalar_one())

    def orphans(self) -> list[str]:
        """Return what dead or finished work has left: containers, folders, and live rows of ended epochs."""
        query = """SELECT s.session_id, s.owner FROM sessions s WHERE s.state = 'live' AND NOT EXISTS (SELECT 1 FROM
            nodes n WHERE s.owner LIKE 'node:' || n.node_id || '/' || n.epoch || '/%' AND n.state <> 'down')"""
        with self._engine.begin() as connection:
            rows = [f"session {session} of {owner}" for session, owner in connection.execute(text(query))]
        with contextlib.closing(connect(60)) as client:
            found = client.api.containers(all=True, filters={"label": INSTANCE_LABEL})
        below = f"{self.folder}/"
        containers = [
            f"container {one['Id'][:12]}"
            for one in found
            if any(mount["Source"].startswith(below) for mount in one["Mounts"])
        ]
        return [*rows, *containers, *(f"folder {path}" for path in self.folder.glob("*/s/i-*/*") if path.is_dir())]

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in found]


@contextlib.contextmanager
def faulty_cluster(count: int) -> Iterator[FaultyCluster]:
    """Run a cluster until the block ends."""
    with (
        tempfile.TemporaryDirectory(prefix="cb-") as name,
        faulty_database() as database,
        contextlib.ExitStack() as stack,
    ):
        nodes: list[FaultyNode] = []
        for number, port in enumerate(free_ports(count)):
            folder = Path(name, str(number))
            (folder / "d").mkdir(parents=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK}m", "tmpfs", folder / "d"], check=True)
            stack.callback(_unmount, folder / "d")
            node = FaultyNode(folder, database.url, port)
            stack.callback(node.close)
            nodes.append(node)
        nodes[0].start()  # alone: it makes the tables
        with ThreadPoolExecutor(count) as threads:
            list(threads.map(FaultyNode.start, nodes[1:]))
        cluster = FaultyCluster(Path(name), database, nodes)
        stack.callback(cluster.close)
        cluster.record()
        yield cluster


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", folder], check=True)  # lazily: a failed test may have left files open
