"""One container: made, started, watched, ended, removed. Never its wire, and never what runs inside."""

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

_EXIT_WAIT = 5.0  # seconds in which a container whose process is gone must show as exited
_POLL = 0.05  # seconds between two looks at a container that is about to be exited


class Container:
    """A container known by its name, from before it exists until after it is gone."""

    def __init__(self, engine: Engine, name: str, runtime: str) -> None:
        self._engine = engine
        self.name = name
        self._runtime = runtime
        self._process: ContainerProcess | None = None

    async def start(self, request: dict[str, Any]) -> None:
        """Create and start it. On failure or cancellation the caller must still call ``remove``.

        Raises:
            ImageMissingError: the image went away.
            UserIdTakenError: another live container of this engine has its user id.
            EngineError: the engine refused, for instance because the runtime cannot start it.
        """
        api = self._engine.client.api
        try:
            await self._engine.call(api.create_container_from_config, request, self.name)
        except EngineError as error:
            if isinstance(error.__cause__, NotFound):
                raise image_missing(str(request["Image"])) from error
            # The engine may have made it, and only its answer was lost; start tells. One that hangs is not asked again.
            lost = isinstance(error, EngineUnavailableError) and not isinstance(error, EngineTimeoutError)
            if not lost and not _status(error, 409):
                raise
        await self._refuse_shared_user(request["Labels"][USER_LABEL])
        await self._engine.retry(api.start, self.name)

    async def _refuse_shared_user(self, uid: str) -> None:
        """Compare with what the engine has: a lease is seen in one network namespace alone, and ends with its process.

        Between creation and start: of two that choose one id at the same time, one at least sees the other.
        """
        filters = {"label": f"{USER_LABEL}={uid}"}
        found = await self._engine.retry(self._engine.client.api.containers, all=True, filters=filters)
        for other in found:
            if f"/{self.name}" not in other["Names"] and other["State"] not in ("exited", "dead"):
                raise UserIdTakenError(uid, other["Names"][0].lstrip("/"))

    async def find_process(self) -> None:
        """Learn where this host has its process, once it runs. Where it has not, the engine is asked each time.

        Raises:
            EngineError: the engine does not answer.
        """
        details: dict[str, Any] = await self._engine.retry(self._engine.client.api.inspect_container, self.name)
        if pid := int(details["State"]["Pid"]):
            self._process = ContainerProcess.find(pid, details["Id"])

    def usage(self) -> Usage | None:
        """What it uses now; None where this host cannot see it."""
        return None if self._process is None else self._process.usage()

    async def measure(self) -> Usage:
        """What it uses now, as this host sees it, or else the engine.

        Raises:
            EngineError: neither tells.
        """
        return self.usage() or await engine_usage(self._engine, self.name)

    def reset_peak(self) -> None:
        """Let ``Usage.peak`` begin anew, where the host can."""
        if self._process is not None:
            self._process.reset_peak()

    async def interrupt(self) -> None:
        """Send its first process a SIGINT.

        Raises:
            EngineError: the engine does not answer, or it does not run.
        """
        await self._engine.call(self._engine.client.api.kill, self.name, "SIGINT")

    def kill(self) -> None:
        """Kill it without the engine, where this host can."""
        if self._process is not None:
            self._process.kill()

    def forget_process(self) -> None:
        """Let go of what ``find_process`` found."""
        if self._process is not None:
            self._process.close()
            self._process = None

    async def state(self) -> dict[str, Any]:
        """Return the engine's ``State`` of it.

        Raises:
            EngineError: the engine does not answer, or has no such container any more.
        """
        details: dict[str, Any] = await self._engine.retry(self._engine.client.api.inspect_container, self.name)
        state: dict[str, Any] = details["State"]
        return state

    async def exit(self) -> Exit | None:
        """Wait until the engine shows it as exited, and say how; None when it still runs after 5 s.

        Raises:
            EngineError: the engine does not answer.
        """
        end = time.monotonic() + _EXIT_WAIT
        while True:
            try:
                state = await self.state()
            except EngineError as error:
                if _status(error, 404):  # somebody removed it, and its exit code with it
                    return Exit(Outcome.KERNEL_DIED, None)
                raise
            if state["Status"] in ("exited", "dead"):
                return classify(state, await self._oom_events(), self._runtime)
            if time.monotonic() > end:
                return None
            await asyncio.sleep(_POLL)

    async def log(self) -> str:
        """Return what the container's first process wrote to its own stdout and stderr, at most 20 lines."""
        raw = await self._engine.retry(self._engine.client.api.logs, self.name, tail=20)
        return raw.decode(errors="replace") if isinstance(raw, bytes) else ""

    async def remove(self) -> None:
        """Kill and remove it, whatever state it is in; fine when it is gone already.

        Raises:
            EngineError: the engine does not answer; the container may be left.
        """
        try:
            await self._engine.retry(remove_by_name, self._engine.client.api, self.name)
        except EngineError as error:
            if not (_status(error, 404) or _status(error, 409)):
                raise

    async def _oom_events(self) -> int:
        api: Any = self._engine.client.api  # typed as if it took whole seconds only

        def count() -> int:
            since, until = "0", f"{clock(api):.6f}"  # no time of its start: the clock may have been set since
            filters = {"container": [self.name], "event": ["oom"]}
            return sum(1 for _ in api.events(since=since, until=until, filters=filters, decode=True))

        return await self._engine.retry(count)


def remove_by_name(api: Any, name: str) -> None:
    """Kill and remove a container. Blocks. A paused one is unpaused first: under runsc its kill would hang."""
    try:
        if api.inspect_container(name)["State"]["Paused"]:
            api.unpause(name)
        api.remove_container(name, force=True, v=True)
    except NotFound:
        return
    except APIError as error:
        if error.response is None or error.response.status_code != 409:  # 409: its removal is under way
            raise


def _status(error: EngineError, code: int) -> bool:
    cause = error.__cause__
    return isinstance(cause, APIError) and cause.response is not None and cause.response.status_code == code
