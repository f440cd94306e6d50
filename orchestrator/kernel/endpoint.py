"""Endpoint: a kernel's folder on the host, with the sockets and the connection file that its sandbox sees."""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path
from typing import Self

from orchestrator.container.folders import wire_folder

CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
_CONNECTION = "connection.json"
_LONGEST_PATH = 107  # bytes of a unix socket's path, on Linux


class Endpoint:
    """The folders, socket paths and key of one kernel.

    ``wire/`` is mounted read-only into the sandbox, and the kernel connects to its sockets. Their names follow
    Jupyter's rule for ipc: ``PREFIX-PORT``, ports 1 to 5.
    """

    def __init__(self, folder: Path, key: bytes) -> None:
        self.folder = folder
        self.key = key
        self.wire = wire_folder(folder)

    @classmethod
    def create(cls, folder: Path, message_bound: int, uid: int = 65532) -> Self:
        """Create the folders and the kernel's connection file.

        Args:
            message_bound: bytes that one message of the kernel may have.
            uid: the sandbox's user and group, which get the name "sandbox" there.

        Raises:
            OSError: the folder exists, cannot be created, or has too long a path for unix sockets. Nothing is left.
        """
        endpoint = cls(folder, secrets.token_hex(32).encode())
        longest = max(len(str(endpoint.wire_path(channel)).encode()) for channel in CHANNELS)
        if longest > _LONGEST_PATH:
            raise OSError(f"{folder} is too long a path for unix sockets: set CELLBLOCK_STATE_DIR to a shorter one")
        folder.mkdir(parents=True, mode=0o700)
        try:
            endpoint._fill(message_bound)
            endpoint._name_user(uid)
        except OSError:
            endpoint.remove()
            raise
        return endpoint

    @classmethod
    def reopen(cls, folder: Path) -> Self:
        """Take over the folders of a kernel whose process has died, and remove its sockets.

        Raises:
            OSError: the folders do not exist.
            ValueError: the connection file is not JSON.
        """
        connection = json.loads((wire_folder(folder) / _CONNECTION).read_text())
        endpoint = cls(folder, str(connection["key"]).encode())
        for channel in CHANNELS:
            endpoint.wire_path(channel).unlink(missing_ok=True)
        return endpoint

    def wire_path(self, channel: str) -> Path:
        """Return the path of a channel's socket."""
        return self.wire / f"k-{CHANNELS.index(channel) + 1}"

    def remove(self) -> None:
        """Remove the folders with everything in them. Only this process ever wrote there."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _fill(self, message_bound: int) -> None:
        # The sandbox's user has no account on this host, so its files are open to all, inside a closed folder.
        self.wire.mkdir(mode=0o755)
        connection = self.wire / _CONNECTION
        connection.write_text(json.dumps(self._connection_info() | {"message_bound": message_bound}))
        connection.chmod(0o444)

    def _name_user(self, uid: int) -> None:
        """Write the accounts that the sandbox sees as /etc/passwd and /etc/group: its own, root and nobody."""
        accounts = (("root", 0, "/"), ("sandbox", uid, "/work"), ("nobody", 65534, "/"))
        lines = {
            "passwd": [f"{name}:x:{number}:{number}:{name}:{home}:/bin/bash" for name, number, home in accounts],
            "group": [f"{name}:x:{number}:" for name, number, _home in accounts],
        }
        for file, content in lines.items():
            path = self.wire / file
            path.write_text("\n".join(content) + "\n")
            path.chmod(0o444)

    def _connection_info(self) -> dict[str, object]:
        ports = {f"{channel}_port": number for number, channel in enumerate(CHANNELS, start=1)}
        return {
            "transport": "ipc",
            "ip": "/run/kernel/k",
            **ports,
            "key": self.key.decode(),
            "signature_scheme": "hmac-sha256",
            "kernel_name": "python3",
        }
