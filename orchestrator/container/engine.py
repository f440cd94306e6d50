"""Connect to the Docker engine with docker-py, call it off the event loop, and translate its errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, ParamSpec, Self, TypeVar

import docker
import requests
from docker.errors import APIError, DockerException, NotFound
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from orchestrator.container.enginekind import unsupported
from orchestrator.errors import (
    EngineError,
    EnginePermissionError,
    EngineTimeoutError,
    EngineUnavailableError,
    ImageMissingError,
    UnknownRuntimeError,
)

_START_ENGINE = (
    "Start Docker, set DOCKER_HOST or, as root on Debian, run `cellblock engine start` (in a checkout: `make engine`)."
)
_HANGS = "Look into the engine's log, and restart the engine."
_THREADS = 8  # concurrent calls; the engine creates containers one after the other anyway
_MADE_HERE = ("cellblock-sandbox:", "sha256:")  # how the names of images begin that CELLBLOCK_IMAGE did not choose
_HOST_UDS = ("open", "all")  # values of runsc's --host-uds with which a sandbox can connect to the host's Unix sockets

P = ParamSpec("P")
T = TypeVar("T")
FAILURES = (DockerException, requests.RequestException)


def connect(timeout: float) -> docker.DockerClient:
    """Return a client of the engine that DOCKER_HOST names, or else of the local socket. Blocks.

    Args:
        timeout: seconds for each call on the client.

    Raises:
        EnginePermissionError: this user may not use the engine's socket.
        EngineUnavailableError: no engine answers.
    """
    try:
        return docker.from_env(timeout=int(timeout) or 1, version="auto")
    except FAILURES as error:
        raise translate(error) from error


def translate(error: Exception) -> EngineError:
    """Return the EngineError that stands for an error of docker-py. The caller raises it."""
    text = str(error)
    if not isinstance(error, APIError):
        if "PermissionError" in text or "Permission denied" in text:
            return EnginePermissionError(
                "this user may not use the Docker engine.",
                remedy="Add the user to the `docker` group and log in again.",
            )
        if isinstance(error, requests.Timeout) or "timed out" in text:
            return EngineTimeoutError("the Docker engine did not answer in time.", remedy=_HANGS)
        if isinstance(error, requests.ConnectionError) or "Connection" in text or "FileNotFound" in text:
            return EngineUnavailableError("no Docker engine answers.", remedy=_START_ENGINE)
    return EngineError(f"the Docker engine failed: {text}")


class Engine:
    """A connection to the engine for use on the event loop. Every call runs in a thread and has a deadline."""

    def __init__(self, client: docker.DockerClient, timeout: float) -> None:
        self.client = client
        self._timeout = timeout
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="cellblock-engine")

    @classmethod
    async def connect(cls, timeout: float) -> Self:
        """Connect. Raises the same errors as the function ``connect``."""
        return cls(await asyncio.to_thread(connect, timeout), timeout)

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run one docker-py call in a thread.

        A cancelled caller waits until the call has ended, so that the cleanup finds a container that the engine was
        creating.

        Raises:
            EngineError: the call failed or took longer than the timeout.
        """
        future = asyncio.get_running_loop().run_in_executor(self._threads, lambda: function(*args, **kwargs))
        try:
            async with asyncio.timeout(self._timeout):
                return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future], timeout=self._timeout)
            future.add_done_callback(_forget)
            raise
        except TimeoutError as error:
            future.add_done_callback(_forget)
            raise EngineTimeoutError(
                f"the Docker engine did not answer within {self._timeout:g} s.", remedy=_HANGS
            ) from error
        except FAILURES as error:
            raise translate(error) from error

    async def retry(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call that is safe to repeat, up to three times.

        Repeats it only if the engine did not answer. A refusal and a timeout are not repeated.

        Raises:
            EngineError: the last attempt failed.
        """
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(_may_pass),
            stop=stop_after_attempt(3),
            wait=wait_random_exponential(multiplier=0.1, max=1),
            reraise=True,
        ):
            with attempt:
                return await self.call(function, *args, **kwargs)
        raise AssertionError("unreachable: the last attempt raises")

    async def refuse_unsupported(self) -> None:
        """Check that the engine is of a kind that can keep what Cellblock promises.

        Raises:
            EngineUnsupportedError: it is rootless, maps user ids, or is Podman.
        """
        info, version = await self.retry(self.client.info), await self.retry(self.client.version)
        if (refusal := unsupported(info, version)) is not None:
            raise refusal

    async def resolve_image(self, image: str) -> str:
        """Return the identifier of an image.

        Raises:
            ImageMissingError: the engine has no image with this name.
        """
        try:
            details = await self.retry(self.client.api.inspect_image, image)
        except EngineError as error:
            if isinstance(error.__cause__, NotFound):
                raise image_missing(image) from None
            raise
        return str(details["Id"])

    async def resolve_runtime(self, wanted: str) -> str:
        """Return the container runtime to use: gVisor's runsc for "auto" if it works here, else runc.

        Args:
            wanted: "auto" or the name of a runtime.

        Raises:
            UnknownRuntimeError: the engine has no runtime with this name.
        """
        runtimes: dict[str, Any] = (await self.retry(self.client.info))["Runtimes"]
        if wanted == "auto":
            return "runsc" if gvisor_fault(runtimes) == "" else "runc"
        if wanted not in runtimes:
            raise UnknownRuntimeError(
                wanted,
                tuple(sorted(runtimes)),
                remedy="Set CELLBLOCK_RUNTIME to one of these or to auto. `cellblock doctor` shows how to add gVisor.",
            )
        return wanted

    def close(self) -> None:
        """Close the connection. Calls that are running end by themselves."""
        self._threads.shutdown(wait=False)
        self.client.close()


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, EngineUnavailableError) and not isinstance(error, EngineTimeoutError)


def _forget(future: asyncio.Future[Any]) -> None:
    """Retrieve the exception of an abandoned call, so that asyncio does not log it as never retrieved."""
    if not future.cancelled():
        future.exception()


def clock(api: Any) -> float:
    """Return the engine's time in seconds since the epoch, for queries about its past events. Blocks.

    The engine's clock may differ from this process's, and both may be set at any time.

    Raises:
        DockerException: the engine does not answer.
    """
    return datetime.fromisoformat(api.info()["SystemTime"]).timestamp()


def image_missing(image: str) -> ImageMissingError:
    """Return the error for a sandbox image that the engine does not have."""
    remedy = "Run `cellblock image build`, with --policy if kernels have another policy than CELLBLOCK_POLICY names."
    if not image.startswith(_MADE_HERE):
        remedy = (
            f"CELLBLOCK_IMAGE names it: correct the name, or fetch the image (`docker pull {image}`). Without "
            "CELLBLOCK_IMAGE, kernels use the image of these sources (`cellblock image build`)."
        )
    return ImageMissingError(f"the engine has no sandbox image {image!r}.", image=image, remedy=remedy)


def gvisor_fault(runtimes: dict[str, Any]) -> str:
    """Return why this engine's runsc cannot run kernels, or "" if it can."""
    if "runsc" not in runtimes:
        return "the engine has no runtime `runsc`"
    arguments = [str(argument) for argument in runtimes["runsc"].get("runtimeArgs") or ()]
    if not any(argument.lstrip("-") == f"host-uds={value}" for argument in arguments for value in _HOST_UDS):
        return "runsc is registered without --host-uds=open, so a sandbox cannot connect to its kernel's sockets"
    return ""
