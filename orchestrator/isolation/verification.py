"""Verifies a host: probes every claim on a real kernel under each runtime, and the probes on negative controls."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import CellblockError
from orchestrator.instance import Instance
from orchestrator.isolation import bombs, command_claims, confinement, output_claims, record, wire_claims
from orchestrator.isolation.claims import Claim, Verdict
from orchestrator.isolation.controls import CONTROLS, Control, Scenery, network_name, scenery
from orchestrator.isolation.subject import Bait, ProbeError, Subject
from orchestrator.kernel.kernelconfig import KernelConfig
from orchestrator.policy.policy import Policy
from orchestrator.settings import Settings

CLAIMS: tuple[Claim, ...] = (
    *record.CLAIMS,
    *confinement.CLAIMS,
    *bombs.CLAIMS,
    *wire_claims.CLAIMS,
    *output_claims.CLAIMS,
    *command_claims.CLAIMS,
)
_ATTEMPTS = 3  # at an attack claim: noise of the machine can slow a neighbour once, but not every time
_AT_ONCE = 3  # controls checked at the same time


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict on one claim under one runtime.

    Attributes:
        seconds: how long the probe took.
    """

    claim: Claim
    runtime: str
    verdict: Verdict
    seconds: float


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one negative control under one runtime.

    Attributes:
        reds: the claims that turned red, with the evidence.
        missed: the claims that should have turned red and did not.
        fault: why the control could not be checked; empty if it was checked.
    """

    control: Control
    runtime: str
    reds: dict[str, str]
    missed: tuple[str, ...]
    fault: str = ""

    @property
    def passed(self) -> bool:
        return not self.missed and not self.fault


@dataclass(slots=True)
class Report:
    """The result of a verification.

    Attributes:
        uncovered: each (runtime, claim) whose probe no control turned red. Filled by a self-test only.
    """

    runtimes: tuple[str, ...]
    findings: list[Finding] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    uncovered: list[tuple[str, str]] = field(default_factory=list)

    @property
    def green(self) -> bool:
        held = all(finding.verdict.holds for finding in self.findings)
        return held and all(check.passed for check in self.checks) and not self.uncovered


Progress = Callable[[str], None]


class Laboratory:
    """Starts kernels under one runtime of this host and probes them. Create one with ``laboratory``."""

    def __init__(self, instance: Instance, bait: Bait) -> None:
        self.instance = instance
        self.bait = bait
        self.neighbour: Subject | None = None

    @property
    def runtime(self) -> str:
        return self.instance.runtime

    @contextlib.asynccontextmanager
    async def subject(
        self, config: KernelConfig | None = None, *, whole: bool = True, deserted: bool = False
    ) -> AsyncIterator[Subject]:
        """Start a kernel to probe, and stop it when the context ends.

        Args:
            config: replaces the instance's own configuration.
            whole, deserted: see ``Subject``.

        Raises:
            KernelStartError, EngineError: see ``startup.start``.
        """
        kernel = await self.instance.start_kernel(config)
        try:
            yield Subject(
                self.instance,
                config or self.instance.config,
                kernel,
                self.bait,
                neighbour=self.neighbour,
                whole=whole,
                deserted=deserted,
            )
        finally:
            await kernel.stop()

    async def examine(self, claims: Sequence[Claim], progress: Progress = lambda _: None) -> list[Finding]:
        """Probe each claim, the harmless ones first. Start another kernel whenever an attack killed the last one."""
        findings: list[Finding] = []
        waiting = deque(_harmless_first(claims))
        while waiting:
            async with self.subject() as subject:
                while waiting and subject.is_alive:
                    claim = waiting.popleft()
                    finding = await self._finding(claim, subject)
                    if claim.attacks and not finding.verdict.holds:
                        finding = await self._again(claim)
                    findings.append(finding)
                    progress(claim.name)
        return findings

    async def check(self, control: Control, scenery: Scenery) -> Check:
        """Probe a negative control: every harmless claim, and those attack claims that must turn red."""
        reds: dict[str, str] = {}
        wanted = control.reds[self.runtime]
        waiting = deque(claim for claim in _harmless_first(CLAIMS) if not claim.attacks or claim.name in wanted)
        config = control.config(self.instance.config, scenery)
        try:
            while waiting:
                async with self.subject(config, whole=False, deserted=control.deserted) as subject:
                    if control.unlimited_sockets:
                        await record.remove_socket_limit(subject)
                    if control.prelude:
                        await subject.run(control.prelude)
                    while waiting and subject.is_alive:
                        claim = waiting.popleft()
                        found = await _probe(claim, subject)
                        if not found.holds:
                            reds[claim.name] = found.evidence
        except CellblockError as error:
            return Check(control, self.runtime, reds, (), f"the control could not be checked: {error.message}")
        return Check(control, self.runtime, reds, tuple(name for name in wanted if name not in reds))

    async def _again(self, claim: Claim) -> Finding:
        """Repeat an attack, each time on a new kernel, and measure the neighbour's quiet latency again."""
        for attempt in range(2, _ATTEMPTS + 1):
            assert self.neighbour is not None
            self.neighbour.quiet_p99 = 0.0
            async with self.subject() as subject:
                finding = await self._finding(claim, subject)
            if finding.verdict.holds or attempt == _ATTEMPTS:
                return finding
        raise AssertionError("unreachable")

    async def _finding(self, claim: Claim, subject: Subject) -> Finding:
        begun = time.monotonic()
        return Finding(claim, self.runtime, await _probe(claim, subject), time.monotonic() - begun)


def _harmless_first(claims: Sequence[Claim]) -> list[Claim]:
    return sorted(claims, key=lambda claim: claim.attacks)


async def _probe(claim: Claim, subject: Subject) -> Verdict:
    """Return the claim's verdict. A claim whose probe cannot run does not hold."""
    try:
        return await claim.probe(subject)
    except (CellblockError, ProbeError) as error:
        return Verdict(False, f"the probe could not run: {error}"[:500])


@contextlib.asynccontextmanager
async def laboratory(settings: Settings, runtime: str) -> AsyncIterator[Laboratory]:
    """Open an instance on one runtime, set up the bait, and start a neighbour.

    Raises:
        EngineError, KernelStartError: this host cannot start kernels.
    """
    # The audit log records agents' kernels. Hundreds of deliberate attacks would hide those entries.
    chosen = settings.model_copy(update={"runtime": runtime, "warm_kernels": 0, "audit_log": "off"})
    policy = Policy.load(chosen.policy)
    with _bait() as bait:
        instance = await Instance.open(chosen, policy, policy.resource_limits())
        try:
            bench = Laboratory(instance, bait)
            async with bench.subject(whole=False) as neighbour:
                bench.neighbour = neighbour
                yield bench
        finally:
            await instance.close()


@contextlib.contextmanager
def _bait() -> Iterator[Bait]:
    name = f"cellblock.bait.{secrets.token_hex(6)}"
    shm = Path("/dev/shm") / name
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0{name}")
        abstract.listen()
        shm.touch(mode=0o644, exist_ok=False)
        try:
            yield Bait(tcp.getsockname()[1], name, name)
        finally:
            shm.unlink()


@contextlib.asynccontextmanager
async def _scenery(bench: Laboratory) -> AsyncIterator[Scenery]:
    assert bench.neighbour is not None
    engine, name = bench.instance.engine, network_name()
    made = True
    try:
        await engine.retry(lambda: engine.client.api.create_network(name, driver="bridge", internal=True))
    except CellblockError:
        made = False  # the control that needs the network reports the failure
    uid = (await bench.neighbour.fact("identity"))["uids"][0]
    with scenery(name, uid) as prepared:
        try:
            yield prepared
        finally:
            if made:
                await engine.retry(engine.client.api.remove_network, name)


async def check_controls(
    bench: Laboratory, controls: Sequence[Control], progress: Progress = lambda _: None
) -> list[Check]:
    """Check the controls that exist under this runtime, a few at a time."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(control: Control) -> Check:
        async with gate:
            check = await bench.check(control, prepared)
            progress(control.name)
            return check

    async with _scenery(bench) as prepared, asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(control)) for control in controls if bench.runtime in control.reds]
    return [task.result() for task in tasks]


async def verify(
    settings: Settings, runtimes: Sequence[str], *, self_test: bool = False, progress: Progress = lambda _: None
) -> Report:
    """Probe every claim under each runtime. With ``self_test``, also test the probes on the negative controls.

    Raises:
        EngineError, KernelStartError: this host cannot start kernels.
    """
    report = Report(tuple(runtimes))
    for runtime in runtimes:
        async with laboratory(settings, runtime) as bench:
            report.findings += await bench.examine(CLAIMS, progress)
            if self_test:
                checks = await check_controls(bench, CONTROLS, progress)
                report.checks += checks
                refuted = {name for check in checks for name in check.reds}
                report.uncovered += [(runtime, claim.name) for claim in CLAIMS if claim.name not in refuted]
    return report
