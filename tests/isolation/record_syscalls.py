"""Records the system calls of a real kernel that runs the workload; ``policies/seccomp`` is based on them.

``make seccomp-record`` runs this program, as root, with strace installed. The kernel's container has Docker's default
profile, and waits before its launcher starts so that strace misses no call. The program prints the calls, their
arguments where the profile checks them, and the calls that the profile lacks.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
from asyncio.subprocess import Process
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.container.hostconfig import ContainerSpec, create_request
from orchestrator.instance import Instance
from orchestrator.kernel.kernel import Kernel
from orchestrator.kernel.transfer import put_file
from orchestrator.limits import KernelResourceLimits
from orchestrator.output.events import CellFinished
from orchestrator.policy.policy import Policy
from orchestrator.sessions.session import KernelSession
from orchestrator.settings import Settings, data_folder

WORKLOAD = Path(__file__).with_name("workload.py")
CELL = "import subprocess, sys; _ = subprocess.run([sys.executable, 'workload.py'])"
LIMITS = KernelResourceLimits(max_execution_time=300, max_memory_mb=2048)
_WAIT = 3  # seconds that the launcher waits for strace to attach
_STRACE = ("-f", "-qq", "-s", "0", "-e", "signal=none")
# Matches the name and the printed arguments of "17 read(3, …) = 5" and "17 <... read resumed>".
_CALL = re.compile(r"^\d+ +(?P<name>\w+)\((?P<arguments>[^)<\n]*)")
# The arguments that the profile checks, by position.
_EXAMINED = {"socket": (0, 1, 2), "socketpair": (0,), "setsockopt": (1, 2), "prctl": (0,), "ioctl": (1,), "clone": (1,)}


def slow_request(spec: ContainerSpec, policy: Policy, limits: KernelResourceLimits) -> dict[str, Any]:
    """Return the real container request, with the engine's profile and a launcher that waits."""
    request = create_request(spec, policy, limits)
    request["HostConfig"]["SecurityOpt"] = ["no-new-privileges"]
    python, *arguments = "/opt/cellblock/bin/python", "-I", "/opt/cellblock/kernel.py"
    program = f"import os, time; time.sleep({_WAIT}); os.execv({python!r}, {[python, *arguments]!r})"
    return request | {"Entrypoint": [python, "-I", "-c", program]}


@asynccontextmanager
async def traced_kernel(trace: Path) -> AsyncIterator[Kernel]:
    """Start a kernel and write all its system calls to ``trace``, from its launcher's first call on."""
    settings = Settings.load().model_copy(update={"runtime": "runc"})
    instance = await Instance.open(settings, Policy.load("default"), LIMITS)
    try:
        async with asyncio.timeout(settings.start_timeout), asyncio.TaskGroup() as group:
            starting = group.create_task(
                instance.start_kernel(replace(instance.config, container_request=slow_request))
            )
            tracing = group.create_task(_trace(instance, trace))
        kernel, tracer = starting.result(), tracing.result()
        yield kernel
        await kernel.stop()
        await asyncio.wait_for(tracer.wait(), 30)
    finally:
        await instance.close()


async def _trace(instance: Instance, trace: Path) -> Process:
    pid = await _first_process(instance)
    return await asyncio.create_subprocess_exec("strace", *_STRACE, "-o", str(trace), "-p", str(pid))


async def _first_process(instance: Instance) -> int:
    """Wait for the instance's container to have a pid and return it. The caller sets the deadline."""
    api = instance.engine.client.api
    while True:
        found = await instance.engine.retry(
            lambda: api.containers(filters={"label": f"org.cellblock.instance={instance.id}"})
        )
        if found:
            details = await instance.engine.retry(api.inspect_container, found[0]["Id"])
            if details["State"]["Pid"]:
                return int(details["State"]["Pid"])
        await asyncio.sleep(0.05)


async def record() -> dict[str, set[str]]:
    """Return the names of all system calls, each with the arguments that the profile checks."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace"
        async with traced_kernel(trace) as kernel:
            await put_file(kernel, WORKLOAD, "workload.py")
            async for event in KernelSession.of("recorder", kernel, Policy.load("default")).run(CELL, LIMITS):
                if isinstance(event, CellFinished):
                    print(event.result.stdout.strip() or event.result.error)
        with trace.open(errors="replace") as lines:
            return calls_of(lines)


def calls_of(lines: Iterable[str]) -> dict[str, set[str]]:
    """Parse the output of strace."""
    calls: dict[str, set[str]] = defaultdict(set)
    for line in lines:
        if match := _CALL.match(line):
            arguments = match["arguments"].strip().split(", ")
            examined = _EXAMINED.get(match["name"], ())
            calls[match["name"]].add(" ".join(arguments[at] for at in examined if at < len(arguments)))
    return calls


def answered(profile: Path) -> set[str]:
    """Return the calls that a profile allows, and those that it answers with an errno of its own, such as ENOSYS."""
    rules: list[dict[str, Any]] = json.loads(profile.read_text())["syscalls"]
    return {
        name for rule in rules if rule["action"] == "SCMP_ACT_ALLOW" or "errnoRet" in rule for name in rule["names"]
    }


def main() -> None:
    calls = asyncio.run(record())
    print(f"{len(calls)} calls: {' '.join(sorted(calls))}")
    for name in sorted(_EXAMINED.keys() & calls):
        print(f"{name}: {'; '.join(sorted(calls[name]))}")
    lacking = calls.keys() - answered(data_folder("policies") / "seccomp" / "cellblock.json")
    print(f"the profile lacks: {' '.join(sorted(lacking)) or 'none'}")
    sys.exit(bool(lacking))


if __name__ == "__main__":
    main()
