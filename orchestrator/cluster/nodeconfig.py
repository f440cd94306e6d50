"""NodeConfig: what this host's node is, in a file that only this user can read."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from orchestrator.errors import ClusterError, InvalidInputError
from orchestrator.store.wholefile import write_whole

_FILE = "node.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def check_name(name: str) -> str:
    """Return a node's name.

    Raises:
        InvalidInputError: it is not 1 to 63 letters, digits, dots, ``_`` and ``-``.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInputError(
            f"{name[:80]!r} is not the name of a node: 1 to 63 letters, digits, dots, _ and - are allowed.",
            remedy="Name it with --node.",
        )
    return name


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One node.

    The environment never leaves the host: it may have the database's password.

    Attributes:
        name: of the node, in the whole cluster.
        host: the address at which the other hosts reach this one.
        port: of the server.
        ray: the address of Ray's head, such as "10.0.0.1:6379"; "auto": the Ray that runs on this host already.
        is_head: whether Ray's head is on this host.
        policies, max_kernels, tls_cert, tls_key: as for `cellblock serve`.
        environment: of the server.
    """

    name: str
    host: str
    port: int
    ray: str
    is_head: bool
    policies: tuple[str, ...] = ()
    max_kernels: int = 10
    tls_cert: str = ""
    tls_key: str = ""
    environment: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def url(self) -> str:
        """Where the server answers."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls_cert else 'http'}://{host}:{self.port}"

    @property
    def variables(self) -> dict[str, str]:
        """The environment of the server. Over PostgreSQL it is a node with a lease; over SQLite it is alone."""
        if self.environment.get("CELLBLOCK_STORE_URL", "").startswith("postgresql"):
            return {**self.environment, "CELLBLOCK_NODE_URL": self.url}
        return self.environment

    @property
    def asks_nodes(self) -> int:
        """How many nodes Ray's autoscaler is asked for at most; 0: none, as without a cluster's database."""
        wish = self.variables.get("CELLBLOCK_ASK_NODES", "")
        return int(wish) if wish.isdecimal() and "CELLBLOCK_NODE_URL" in self.variables else 0

    @property
    def command(self) -> list[str]:
        """The command that starts the server."""
        options = {"--host": self.host, "--port": str(self.port), "--max-kernels": str(self.max_kernels)}
        if self.tls_cert:
            options |= {"--tls-cert": self.tls_cert, "--tls-key": self.tls_key}
        policies = [word for policy in self.policies for word in ("--policy", policy)]
        given = [word for option in options.items() for word in option]
        return [sys.executable, "-P", "-m", "orchestrator.cli.entry", "serve", *given, *policies]

    def save(self, folder: Path) -> None:
        """Write it, whole or not at all.

        Raises:
            ClusterError: it cannot be written.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(folder / _FILE, json.dumps(dataclasses.asdict(self)), mode=0o600)
        except OSError as error:
            raise ClusterError(
                f"the node's settings cannot be written to {folder}: {error.strerror or error}. Nothing was started.",
                remedy="Set CELLBLOCK_STATE_DIR to a folder of this user's own.",
            ) from error

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Return the node of this host, or None if it is part of no cluster."""
        try:
            fields: dict[str, Any] = json.loads((folder / _FILE).read_text())
            return cls(**{**fields, "policies": tuple(fields["policies"])})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ClusterError(
                f"{folder / _FILE} cannot be used: {error}.", remedy="Run `cellblock cluster down`, then join again."
            ) from error

    @staticmethod
    def forget(folder: Path) -> None:
        """Remove it. A supervisor that still runs then starts no server any more."""
        (folder / _FILE).unlink(missing_ok=True)


def server_environment() -> dict[str, str]:
    """Return the environment of this process without Ray's variables, as the server gets it."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
