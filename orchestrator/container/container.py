"""One container: create, start, measure, kill and remove it. Knows neither its sockets nor what runs inside."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from docker.errors import APIError, NotFound

from orchestrator.container.engine import Engine, clock, image_missing
from orchestrator.container.exits import Exit, classify
from orchestrator.container.hostconfig import USER_LABEL
from orchestrator.container.process import ContainerProcess
from orchestrator.container.usage import Usage, engine_usage
from orchestrator.errors import EngineError, EngineTimeoutError, EngineUnavailableError, UserIdTakenError
from orchestrator.outcome import Outcome

_EXIT_WAIT = 5.0  # seconds until the engine must report a container as exited after its process is gone
_POLL = 0.05  # seconds between two such checks


class Container:
    """A container, known by its name from before it exists until after it is removed."""

    def __init__(self, engine: Engine, name: str, runtime: str) -> None:
        self._engine = engine
        self.name = name
        self._runtime = runtime
        self._process: ContainerProcess | None = None

    async def start(self, request: dict[str, Any]) -> None:
        """Create and start the container. On failure or cancellation the caller must still call ``remove``.

        Raises:
            ImageMissingError: the engine no longer has the image.
            UserIdTakenError: another container of this engine uses the same user id.
            EngineError: the engine refused, for instance because the runtime cannot start the container.
        """
        api = self._engine.client.api
        try:
            await self._engine.call(api.create_container_from_config, request, self.name)
        except EngineError as error:
            if isinstance(error.__cause__, NotFound):
                raise image_missing(str(request["Image"])) from error
            # If only the answer was lost, the engine has created the container, and the start below finds out. After a
            # timeout the engine is not asked again.
            lost = isinstance(error, EngineUnavailableError) and not isinstance(error, EngineTimeoutError)
            if not lost and not _status(error, 409):
                raise
        await self._refuse_shared_user(request["Labels"][USER_LABEL])
        await self._engine.retry(api.start, self.name)

    async def _refuse_shared_user(self, uid: str) -> None:
        """Refuse a user id that another container of the engine has.

        A lease does not suffice: it is in one state folder only and ends with its process. Called between creation and
        start, so that of two containers that choose the same id at least one sees the other.
        """
        filters = {"label": f"{USER_LABEL}={uid}"}
        found = await self._engine.retry(self._engine.client.api.containers, all=True, filters=filters)
        for other in found:
            if f"/{self.name}" not in other["Names"] and other["State"] not in ("exited", "dead"):
                raise UserIdTakenError(uid, other["Names"][0].lstrip("/"))

    async def find_process(self) -> None:
        """Find the running container's process on this host. Without it, ``measure`` asks the engine each time.

        Raises:
            EngineError: the engine does not answer.
        """
        details: dict[str, Any] = await self._engine.retry(self._engine.client.api.inspect_container, self.name)
        if pid := int(details["State"]["Pid"]):
            self._process = ContainerProcess.find(pid, details["Id"])

    def usage(self) -> Usage | None:
        """Return what the container uses now, or None if this host cannot see it."""
        return None if self._process is None else self._process.usage()

    async def measure(self) -> Usage:
        """Return what the container uses now, as this host sees it or else as the engine reports it.

        Raises:
            EngineError: this host cannot see it, and the engine does not answer.
        """
        return self.usage() or await engine_usage(self._engine, self.name)

    def reset_peak(self) -> None:
        """Reset ``Usage.peak``, if the host can."""
        if self._process is not None:
            self._process.reset_peak()

    async def interrupt(self) -> None:
        """Send SIGINT to the container's first process.

        Raises:
            EngineError: the engine does not answer, or the container does not run.
        """
        await self._engine.call(self._engine.client.api.kill, self.name, "SIGINT")

    def kill(self) -> None:
        """Kill the container's first process without the engine, if this host can."""
        if self._process is not None:
            self._process.kill()

    def forget_process(self) -> None:
        """Close what ``find_process`` opened."""
        if self._process is not None:
            self._process.close()
            self._process = None

    async def state(self) -> dict[str, Any]:
        """Return the container's ``State`` as the engine reports it.

        Raises:
            EngineError: the engine does not answer, or the container was removed.
        """
        details: dict[str, Any] = await self._engine.retry(self._engine.client.api.inspect_container, self.name)
        state: dict[str, Any] = details["State"]
        return state

    async def exit(self) -> Exit | None:
        """Wait until the engine reports the container as exited. Return how it ended, or None if it runs after 5 s.

        Raises:
            EngineError: the engine does not answer.
        """
        end = time.monotonic() + _EXIT_WAIT
        while True:
            try:
                state = await self.state()
            except EngineError as error:
                if _status(error, 404):  # somebody removed the container, so its exit code is lost
                    return Exit(Outcome.KERNEL_DIED, None)
                raise
            if state["Status"] in ("exited", "dead"):
                return classify(state, await self._oom_events(), self._runtime)
            if time.monotonic() > end:
                return None
            await asyncio.sleep(_POLL)

    async def log(self) -> str:
        """Return the last 20 lines that the container's first process wrote to its stdout and stderr."""
        raw = await self._engine.retry(self._engine.client.api.logs, self.name, tail=20)
        return raw.decode(errors="replace") if isinstance(raw, bytes) else ""

    async def remove(self) -> None:
        """Kill and remove the container in any state. Idempotent.

        Raises:
            EngineError: the engine does not answer. The container may still exist.
        """
        try:
            await self._engine.retry(remove_by_name, self._engine.client.api, self.name)
        except EngineError as error:
            if not (_status(error, 404) or _status(error, 409)):
                raise

    async def _oom_events(self) -> int:
        api: Any = self._engine.client.api  # its type stubs accept whole seconds only

        def count() -> int:
            since, until = "0", f"{clock(api):.6f}"  # not since the start: the clock may have been set
            filters = {"container": [self.name], "event": ["oom"]}
            return sum(1 for _ in api.events(since=since, until=until, filters=filters, decode=True))

        return await self._engine.retry(count)


def remove_by_name(api: Any, name: str) -> None:
    """Kill and remove a container. Blocks. Unpauses a paused one first, because killing it would hang under runsc."""
    try:
        if api.inspect_container(name)["State"]["Paused"]:
            api.unpause(name)
        api.remove_container(name, force=True, v=True)
    except NotFound:
        return
    except APIError as error:
        if error.response is None or error.response.status_code != 409:  # 409: the engine is removing it already
            raise


def _status(error: EngineError, code: int) -> bool:
    cause = error.__cause__
    return isinstance(cause, APIError) and cause.response is not None and cause.response.status_code == code
