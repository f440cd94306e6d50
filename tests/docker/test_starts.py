"""Kernels that do not start: said at once, with the reason, and nothing of them is left."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import docker
import pytest

from orchestrator.container.hostconfig import INSTANCE_LABEL
from orchestrator.errors import KernelStartError
from orchestrator.instance import Instance
from orchestrator.kernel.endpoint import CHANNELS, Endpoint
from orchestrator.kernel.guard import Guard, Receive
from orchestrator.limits import KernelResourceLimits
from orchestrator.policy.policy import Policy
from orchestrator.settings import Settings


class CutWire(Guard):
    """A guard whose wire is cut before any kernel can have connected."""

    def listen(self, endpoint: Endpoint, receive: Receive) -> None:
        super().listen(endpoint, receive)
        asyncio.get_running_loop().call_later(0.05, self.disconnect, "the test cut it")


class Deaf(Guard):
    """A guard that no kernel can dial, as one sees it whose kernel hangs before it dials."""

    def listen(self, endpoint: Endpoint, receive: Receive) -> None:
        super().listen(endpoint, receive)
        for channel in CHANNELS:
            endpoint.wire_path(channel).unlink()


@contextlib.asynccontextmanager
async def opened(runtime: str, **settings: object) -> AsyncIterator[Instance]:
    chosen = Settings.load().model_copy(update={"runtime": runtime, **settings})
    instance = await Instance.open(chosen, Policy.load("default"), KernelResourceLimits())
    try:
        yield instance
    finally:
        await instance.close()


def containers(instance: Instance) -> list[str]:
    with contextlib.closing(docker.from_env()) as client:
        found = client.containers.list(all=True, filters={"label": f"{INSTANCE_LABEL}={instance.id}"})
        return [str(container.name) for container in found]


@pytest.mark.alone
async def test_a_kernel_that_does_not_dial_in_is_started_anew(runtime: str) -> None:
    """Within the same time; nothing of the first one is left. One that never does is a typed error."""
    guards = iter([Deaf])
    async with opened(runtime, start_timeout=20) as instance:
        config = replace(instance.config, guard=lambda *args: next(guards, Guard)(*args))
        kernel = await instance.start_kernel(config)
        assert await asyncio.to_thread(containers, instance) == [kernel.container_name]
        await kernel.stop()
    async with opened(runtime, start_timeout=6) as instance:
        with pytest.raises(KernelStartError, match=r"within 6 s.*phase: dial_in; 0 of 5 channels") as caught:
            await instance.start_kernel(replace(instance.config, guard=Deaf))
        assert caught.value.cause == "timeout"
        assert await asyncio.to_thread(containers, instance) == []


async def test_a_wire_that_is_cut_while_the_kernel_starts_ends_the_wait(runtime: str) -> None:
    """Not after ``start_timeout``: whoever waits for the kernel could have had another."""
    async with opened(runtime) as instance:
        begun = time.monotonic()
        with pytest.raises(KernelStartError, match=r"lost while it started.*phase: dial_in.*the test cut it") as caught:
            await instance.start_kernel(replace(instance.config, guard=CutWire))
        assert caught.value.cause == "container"
        assert time.monotonic() - begun < instance.config.start_timeout / 2
        assert await asyncio.to_thread(containers, instance) == []
