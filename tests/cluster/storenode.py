"""A node of a PostgreSQL: a real server on a free port, with folders of its own."""

from __future__ import annotations

import socket
from contextlib import AbstractContextManager
from pathlib import Path

from tests.server.conftest import Server, serving


def store_node(
    folder: Path, url: str, lease_s: float, *options: str, tokens: int = 0, **settings: str
) -> AbstractContextManager[Server]:
    """Make a folder, and return what runs a node with its data in it.

    Args:
        url: of the database.
    """
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    return serving(
        folder,
        f"--port={port}",
        *options,
        tokens=tokens,
        CELLBLOCK_STATE_DIR=str(folder / "s"),
        CELLBLOCK_STORE_URL=url,
        CELLBLOCK_NODE_URL=f"http://127.0.0.1:{port}",
        CELLBLOCK_NODE_LEASE_S=str(lease_s),
        **settings,
    )
