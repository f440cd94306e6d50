"""Where one kernel's wire begins: the folder that its sandbox sees."""

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

    ``wire/`` is mounted read-only into the sandbox; the kernel dials its sockets. They follow Jupyter's naming for ipc:
    ``PREFIX-PORT``, ports 1 to 5.
    """

    def __init__(self, folder: Path, key: bytes) -> None:
        self.folder = folder
        self.key = key
        self.wire = wire_folder(folder)

    @classmethod
    def create(cls, folder: Path, message_bound: int) -> Self:
        """Make the folders and the kernel's connection file.

        Args:
            message_bound: bytes that one message of the kernel may have.

        Raises:
            OSError: the folder exists, or cannot be made, or its path leaves no room for a socket's; nothing of it is
                left.
        """
        endpoint = cls(folder, secrets.token_hex(32).encode())
        longest = max(len(str(endpoint.wire_path(channel)).encode()) for channel in CHANNELS)
        if longest > _LONGEST_PATH:
            raise OSError(f"{folder} is too long a path for unix sockets: set CELLBLOCK_STATE_DIR to a shorter one")
        folder.mkdir(parents=True, mode=0o700)
        try:
            endpoint._furnish(message_bound)
        except OSError:
            endpoint.remove()
            raise
        return endpoint

    @classmethod
    def reopen(cls, folder: Path) -> Self:
        """Take over the folders of a kernel whose process has died, and clear the way for new sockets.

        Raises:
            OSError: they are not there.
            ValueError: the connection file is none.
        """
        connection = json.loads((wire_folder(folder) / _CONNECTION).read_text())
        endpoint = cls(folder, str(connection["key"]).encode())
        for channel in CHANNELS:
            endpoint.wire_path(channel).unlink(missing_ok=True)
        return endpoint

    def wire_path(self, channel: str) -> Path:
        return self.wire / f"k-{CHANNELS.index(channel) + 1}"

    def remove(self) -> None:
        """Remove the folders and all in them; nothing but this process ever wrote there."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _furnish(self, message_bound: int) -> None:
        # The sandbox's user is nobody on this host, so what it must reach is open to all, inside a closed folder.
        self.wire.mkdir(mode=0o755)
        connection = self.wire / _CONNECTION
        connection.write_text(json.dumps(self._connection_info() | {"message_bound": message_bound}))
        connection.chmod(0o444)

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
