"""RayCluster: Ray's processes on this host, and calls to Ray, each with a deadline and in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import secrets
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from orchestrator.cluster.detached import Detached
from orchestrator.errors import ClusterError, RayMissingError, RayUnavailableError
from orchestrator.limits import Deadline
from orchestrator.store.wholefile import write_once

_START = 90.0  # seconds; Ray's own start takes 2 to 10
_CALL = 90.0  # seconds
_STOP = 15.0  # seconds
_PORT_ANSWERS = 3.0  # seconds
_LARGEST_ANSWER = 1024 * 1024  # bytes
_OBJECT_STORE = 80_000_000  # bytes: Ray's smallest; no object of ours is in it
_NICENESS = -10  # a raylet ends if its agents take 15 s to start, which they do on a host whose kernels are busy
_DRIVER = "orchestrator.cluster.raydriver"


class RayCluster:
    """Ray on this host.

    Args:
        folder: for the locks and logs of its processes.
        data: for its token, and for Ray's own files.
        address: of the head, such as "10.0.0.1:6379"; "auto": the Ray that somebody else started on this host.
        host: this host's address. A loopback address: nothing but this host reaches Ray.
        token_file: the file with Ray's token; None: ``ray-token`` in ``data``.

    Raises:
        RayMissingError: Ray is not installed.
    """

    def __init__(self, folder: Path, data: Path, address: str, host: str, token_file: Path | None = None) -> None:
        if find_spec("ray") is None:
            raise RayMissingError(
                "Ray is not installed; nothing was started.", remedy='Run `pip install "cellblock[ray]"`.'
            )
        self._process = Detached(folder, "ray")
        self._files = data / "ray"
        self._address = address
        self._host = host
        self.token_file = token_file or data / "ray-token"

    @property
    def runs(self) -> bool:
        """Whether Ray, as ``start`` started it, runs on this host."""
        return self._process.runs

    def make_token(self) -> None:
        """Make the cluster's token, unless there is one. A process that has it can run code on every host.

        Raises:
            ClusterError: it cannot be written.
        """
        try:
            self.token_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_once(self.token_file, secrets.token_hex(32).encode())
        except OSError as error:
            raise ClusterError(f"{self.token_file} cannot be written: {error.strerror or error}.") from error

    async def start(self, *, head: bool) -> bool:
        """Start Ray on this host unless it runs, and wait until its port answers. Return whether it was started now.

        Raises:
            RayUnavailableError: the head does not answer; Ray ended, as its log says, or is not up in time.
            ClusterError: there is no token, or the process could not be started.
        """
        if not self.token_file.is_file():
            raise ClusterError(
                f"there is no Ray token in {self.token_file}; nothing was started.",
                remedy="Copy the file that `cellblock cluster up` names on the head, or name it with --token-file.",
            )
        if not head and not await self._port_answers():
            raise self._unreachable()
        started = await asyncio.to_thread(self._process.start, self._command(head), self._environment(), _NICENESS)
        deadline = Deadline(_START)
        while not (self._raylet_runs() and await self._port_answers()):
            if not self._process.runs:
                raise RayUnavailableError(
                    f"Ray ended at its start:\n{self._process.last_lines()}\n", remedy=f"Read {self._process.log}."
                )
            if not deadline.remaining():
                await self.stop()
                raise RayUnavailableError(
                    f"Ray was not up after {_START:.0f} s, and was ended:\n{self._process.last_lines()}\n",
                    remedy=f"Read {self._process.log}.",
                )
            await asyncio.sleep(0.2)
        return started

    async def stop(self) -> bool:
        """End Ray on this host, if ``start`` started it. Return whether it ran."""
        return await self._process.stop(_STOP)

    async def place(self, name: str, folder: Path) -> None:
        """Have one actor supervise the node of this host.

        Raises:
            RayUnavailableError: see ``states``.
        """
        await self._call("place", name, str(folder))

    async def states(self) -> list[dict[str, Any]]:
        """Return the state of each node, as ``NodeState.as_dict``, or its name and "error".

        Raises:
            RayUnavailableError: Ray does not answer, or refuses the token.
        """
        found = await self._call("states")
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise RayUnavailableError("Ray's answer was not understood.")
        return found

    async def remove(self, name: str) -> None:
        """End the supervision of a node.

        Raises:
            RayUnavailableError: see ``states``.
        """
        await self._call("remove", name)

    def _command(self, head: bool) -> list[str]:
        role = (
            ["--head", f"--port={self._address.rpartition(':')[2]}", "--include-dashboard=false", "--no-monitor"]
            if head
            else [f"--address={self._address}"]
        )
        return [
            sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--block", *role, "--disable-usage-stats",
            f"--node-ip-address={self._host}", "--num-cpus=0", f"--object-store-memory={_OBJECT_STORE}",
            '--resources={"cellblock_node": 1}', f"--temp-dir={self._files}",
        ]  # fmt: skip

    def _environment(self) -> dict[str, str]:
        """Return the environment of Ray's processes, with the actor's: unchanged where somebody else started Ray."""
        if self._address == "auto":
            return dict(os.environ)
        own = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_worker_niceness": "0",  # at nice 15 the actor's answers take 34 to 112 ms, not 7, beside busy kernels
        }
        if is_loopback(self._host):
            # Without it, Ray replaces a loopback address by another one of the host, and listens on all of them.
            own["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
        return {**inherited, **own}

    def _raylet_runs(self) -> bool:
        """Return whether Ray's part of this host has its socket."""
        return any(self._files.glob("session_latest/sockets/raylet*"))

    async def _port_answers(self) -> bool:
        host, _, port = self._address.rpartition(":")
        try:
            async with asyncio.timeout(_PORT_ANSWERS):
                _, writer = await asyncio.open_connection(host, int(port))
        except (OSError, ValueError, TimeoutError):
            return False
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return True

    async def _call(self, verb: str, *arguments: str) -> Any:
        if self._address != "auto" and not await self._port_answers():
            raise self._unreachable()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", _DRIVER, self._address, verb, *arguments,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env=self._environment(), start_new_session=True,
        )  # fmt: skip
        try:
            async with asyncio.timeout(_CALL):
                out, err = await process.communicate()
        except TimeoutError:
            raise RayUnavailableError(f"Ray at {self._address} did not answer within {_CALL:.0f} s.") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if process.returncode == 0 and len(out) < _LARGEST_ANSWER and (lines := out.splitlines()):
            with contextlib.suppress(ValueError):
                return json.loads(lines[-1])
        said = err.decode(errors="replace").strip().splitlines()[-1:] or [f"its client ended with {process.returncode}"]
        raise RayUnavailableError(
            f"Ray at {self._address} refused the call {verb}: {said[0][:500]}.",
            remedy=f"Check that {self.token_file} has the head's token, and that both have the same version of Ray.",
        )

    def _unreachable(self) -> RayUnavailableError:
        return RayUnavailableError(
            f"no Ray head answers at {self._address}. Servers that run go on.",
            remedy="Run `cellblock cluster up` on the head, or check the address.",
        )


def is_loopback(host: str) -> bool:
    """Return whether nothing but this host reaches the address."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
