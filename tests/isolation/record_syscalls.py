"""Record the system calls of a real kernel while it does the image's work: what ``policies/seccomp`` is made from.

``make seccomp-record`` runs it, as root, with Debian's strace installed. The kernel's container gets Docker's own
profile and waits a moment before its launcher starts, so that not one call of it is missed. Prints the calls, and which
of them the profile lacks.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.container.hostconfig import ContainerSpec, create_request
from orchestrator.instance import Instance
from orchestrator.kernel.kernel import Kernel
from orchestrator.kernel.transfer import put_file
from orchestrator.limits import KernelResourceLimits
from orchestrator.outputs import CellFinished
from orchestrator.policy import Policy
from orchestrator.session import KernelSession
from orchestrator.settings import Settings, data_folder

WORKLOAD = Path(__file__).with_name("workload.py")
CELL = "import subprocess, sys; _ = subprocess.run([sys.executable, 'workload.py'])"
LIMITS = KernelResourceLimits(max_execution_time=300, max_memory_mb=2048)
_WAIT = 3  # seconds that the launcher waits, in which strace takes hold of it


def lock(spec: ContainerSpec, policy: Policy, limits: KernelResourceLimits) -> dict[str, Any]:
    """The real request, under the engine's profile, with a launcher that waits."""
    request = create_request(spec, policy, limits)
    request["HostConfig"]["SecurityOpt"] = ["no-new-privileges"]
    python, *arguments = "/opt/cellblock/bin/python", "-I", "/opt/cellblock/kernel.py"
    program = f"import os, time; time.sleep({_WAIT}); os.execv({python!r}, {[python, *arguments]!r})"
    return request | {"Entrypoint": [python, "-I", "-c", program]}


@asynccontextmanager
async def traced_kernel(summary: Path) -> AsyncIterator[Kernel]:
    """A kernel whose system calls strace counts from its launcher's first one on."""
    settings = Settings.load().model_copy(update={"runtime": "runc"})
    instance = await Instance.open(settings, Policy.load("default"), LIMITS)
    try:
        starting = asyncio.create_task(instance.start_kernel(replace(instance.config, lock=lock)))
        pid = await _first_process(instance)
        tracer = await asyncio.create_subprocess_exec("strace", "-f", "-qq", "-c", "-o", str(summary), "-p", str(pid))
        kernel = await starting
        yield kernel
        await kernel.stop()
        await asyncio.wait_for(tracer.wait(), 30)
    finally:
        await instance.close()


async def _first_process(instance: Instance) -> int:
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


async def record() -> set[str]:
    """Return the names of all system calls."""
    with tempfile.TemporaryDirectory() as folder:
        summary = Path(folder) / "summary"
        async with traced_kernel(summary) as kernel:
            await put_file(kernel, WORKLOAD, "workload.py")
            async for event in KernelSession.of("recorder", kernel).run(CELL, LIMITS):
                if isinstance(event, CellFinished):
                    print(event.result.stdout.strip() or event.result.error)
        lines = [line.split() for line in summary.read_text().splitlines()]
    return {words[-1] for words in lines if words and words[0].replace(".", "").isdigit() and words[-1] != "total"}


def allowed(profile: Path) -> set[str]:
    groups: list[dict[str, Any]] = json.loads(profile.read_text())["syscalls"]
    return {name for group in groups if group["action"] == "SCMP_ACT_ALLOW" for name in group["names"]}


def main() -> None:
    calls = asyncio.run(record())
    print(f"{len(calls)} calls: {' '.join(sorted(calls))}")
    profile = data_folder("policies") / "seccomp" / "cellblock.json"
    if profile.exists():
        lacking = calls - allowed(profile)
        print(f"the profile lacks: {' '.join(sorted(lacking)) or 'none'}")
        sys.exit(bool(lacking))


if __name__ == "__main__":
    main()
