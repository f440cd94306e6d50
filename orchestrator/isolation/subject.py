"""A kernel under test: runs cells and probes, and reads the engine's record of the container."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

from orchestrator.errors import KernelTimeoutError
from orchestrator.instance import Instance
from orchestrator.kernel.containerkernel import ContainerKernel
from orchestrator.kernel.kernelconfig import KernelConfig
from orchestrator.kernel.transfer import put_file
from orchestrator.limits import KernelResourceLimits
from orchestrator.output.events import CellFinished, Event, ExecutionResult
from orchestrator.policy.policy import Policy
from orchestrator.sessions.session import KernelSession

_IMAGE = ("/usr", "/opt")  # the image's own files, the same in every container
_FOLDERS = ("/work", "/tmp", "/dev/shm")
_PROBE_SECONDS = 120.0  # time limit for all facts of one kernel; they take 0.4 s under runc, 4 s under runsc


@dataclass(frozen=True, slots=True)
class Bait:
    """What the host sets up for probes to find if the sandbox lets them.

    Attributes:
        port: a listening TCP port on the host's loopback.
        abstract: the name of a listening abstract unix socket on the host.
        shm: the name of a file in the host's /dev/shm.
    """

    port: int
    abstract: str
    shm: str


class Subject:
    """One live kernel under test.

    Attributes:
        runtime: the runtime that the kernel should run under. A negative control may run under another.
        neighbour: another tenant's kernel on this host, or None.
        whole: whether probes are exhaustive: they also check the image's own files, and go on after a first fault.
        deserted: whether ``stop`` does nothing. A negative control sets it.
        quiet_p99: the p99 of its own cells without an attack, in seconds; 0 until it is measured.
    """

    def __init__(
        self,
        instance: Instance,
        config: KernelConfig,
        kernel: ContainerKernel,
        bait: Bait,
        *,
        neighbour: Subject | None = None,
        whole: bool = True,
        deserted: bool = False,
    ) -> None:
        self.instance = instance
        self.config = config
        self.kernel = kernel
        self.bait = bait
        self.neighbour = neighbour
        self.whole = whole
        self.deserted = deserted
        self.quiet_p99 = 0.0
        self.runtime = config.runtime
        self._session = KernelSession.of(f"probe-{secrets.token_hex(4)}", kernel, config.policy)
        self._facts: dict[str, Any] | None = None
        self._record: dict[str, Any] | None = None

    @property
    def policy(self) -> Policy:
        return self.config.policy

    @property
    def limits(self) -> KernelResourceLimits:
        return self.config.limits

    @property
    def is_gvisor(self) -> bool:
        return self.runtime == "runsc"

    async def run(
        self,
        code: str,
        *,
        seconds: float | None = None,
        limits: KernelResourceLimits | None = None,
        watch: Callable[[Event], None] = lambda _: None,
    ) -> ExecutionResult:
        """Run one cell and return its result, also when the cell exceeds its time limit.

        Args:
            seconds: the time limit; None uses that of ``limits``.
            limits: the cell's limits; None uses the kernel's.
            watch: called with each event.

        Raises:
            KernelDiedError: the kernel was dead before the cell started.
        """
        limits = limits or self.limits
        limits = limits if seconds is None else _with_time(limits, seconds)
        result: ExecutionResult | None = None
        events = self._session.run(code, limits)
        try:
            async for event in events:
                watch(event)
                if isinstance(event, CellFinished):
                    result = event.result
        except KernelTimeoutError as error:
            return error.result
        finally:
            await events.aclose()
            self._session.clear_history()
        assert result is not None
        return result

    async def fact(self, name: str) -> Any:
        """Return one of the facts of ``inside.py``. The first call collects all of them.

        Raises:
            ProbeError: the facts could not be collected.
        """
        if self._facts is None:
            self._facts = await self._find_facts()
        found = self._facts[name]
        if isinstance(found, dict) and "failed" in found:
            raise ProbeError(f"the probe {name!r} failed inside the sandbox: {found['failed']}")
        return found

    async def record(self) -> dict[str, Any]:
        """Return the engine's record of the container (``docker inspect``).

        Raises:
            EngineError: the engine does not answer.
        """
        if self._record is None:
            engine = self.instance.engine
            found: dict[str, Any] = await engine.retry(engine.client.api.inspect_container, self.kernel.container_name)
            self._record = found
        return self._record

    @contextlib.asynccontextmanager
    async def twins(self, count: int) -> AsyncIterator[list[Subject]]:
        """Start ``count`` kernels with the same configuration, all at once, for attacks that may kill them.

        Raises:
            KernelStartError, EngineError: see ``startup.start``.
        """
        starts = (self.instance.start_kernel(self.config) for _ in range(count))
        started = await asyncio.gather(*starts, return_exceptions=True)
        kernels = [kernel for kernel in started if isinstance(kernel, ContainerKernel)]
        try:
            for failure in started:
                if isinstance(failure, BaseException):
                    raise failure
            yield [
                Subject(self.instance, self.config, kernel, self.bait, neighbour=self.neighbour) for kernel in kernels
            ]
        finally:
            await asyncio.gather(*(kernel.stop() for kernel in kernels))

    @property
    def is_alive(self) -> bool:
        return self.kernel.is_alive

    async def stop(self) -> None:
        """Stop the kernel as its host does; do nothing if ``deserted`` is set.

        Raises:
            EngineError: the engine does not answer.
        """
        if not self.deserted:
            await self.kernel.stop()

    async def _find_facts(self) -> dict[str, Any]:
        path = "/tmp/inside.py"
        await put_file(self.kernel, inside_program().encode(), path)
        wanted = json.dumps(self._wanted())
        code = (
            "import subprocess, sys\n"
            f"print(subprocess.run([sys.executable, '-I', {path!r}, {wanted!r}], "
            "capture_output=True, text=True, check=True).stdout)"
        )
        result = await self.run(code, seconds=_PROBE_SECONDS)
        try:
            found = json.loads(result.stdout)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            said = "" if result.error is None else f"{result.error.ename}: {result.error.evalue}"
            raise ProbeError(f"the probes could not run inside the sandbox: {result.outcome} {said}"[:500])
        return found

    def _wanted(self) -> Mapping[str, Mapping[str, Any]]:
        ports = [["127.0.0.1", self.bait.port], ["1.1.1.1", 80], ["169.254.169.254", 80], ["172.17.0.1", 22]]
        return {
            "interfaces": {},
            "connections": {"addresses": ports},
            "abstract_socket": {"name": self.bait.abstract},
            "lookup": {"name": "example.com"},
            "identity": {},
            "status": {},
            "kernel_log": {},
            "rlimits": {},
            "names": {},
            "mounts": {},
            "sizes": {"paths": _FOLDERS},
            "tree": {"skip": () if self.whole else _IMAGE},
            "changes": {"folder": "/run/kernel"},
            "calls": {},
            "families": {},
            "user_namespace": {},
            "protected": {},
            "watched": {},
            "processes": {},
            "exists": {"path": f"/dev/shm/{self.bait.shm}"},
            "oom_score": {},
        }


class ProbeError(Exception):
    """A probe could not run. Its claim then counts as refuted, never as kept."""


@cache
def inside_program() -> str:
    """Return the text of ``inside.py``."""
    return resources.files("orchestrator.isolation").joinpath("inside.py").read_text(encoding="utf-8")


def _with_time(limits: KernelResourceLimits, seconds: float) -> KernelResourceLimits:
    return replace(limits, max_execution_time=seconds)
