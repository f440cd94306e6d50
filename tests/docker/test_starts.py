"""Kernels that do not start: said at once, with the reason, and nothing of them is left."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import docker
import pytest

from orchestrator.container.hostconfig import INSTANCE_LABEL
from orchestrator.errors import KernelStartError
from orchestrator.instance import Instance
from orchestrator.kernel.endpoint import Endpoint
from orchestrator.kernel.guard import Guard
from orchestrator.limits import KernelResourceLimits
from orchestrator.policy import Policy
from orchestrator.settings import Settings


class CutWire(Guard):
    """A guard whose wire is cut before any kernel can have dialled."""

    async def listen(self, endpoint: Endpoint) -> None:
        await super().listen(endpoint)
        asyncio.get_running_loop().call_later(0.05, self.cut, "the test cut it")


async def test_a_wire_that_is_cut_while_the_kernel_starts_ends_the_wait(runtime: str) -> None:
    """Not after ``start_timeout``: whoever waits for the kernel could have had another."""
    settings = Settings.load().model_copy(update={"runtime": runtime})
    policy = Policy.load("default")
    instance = await Instance.open(settings, policy, KernelResourceLimits())
    try:
        begun = time.monotonic()
        with pytest.raises(KernelStartError, match=r"lost while it started.*phase: dial_in.*the test cut it") as caught:
            await instance.start_kernel(replace(instance.config, guard=CutWire))
        assert caught.value.cause == "container"
        assert time.monotonic() - begun < settings.start_timeout / 2
        client = docker.from_env()
        left = client.containers.list(all=True, filters={"label": f"{INSTANCE_LABEL}={instance.id}"})
        client.close()
        assert left == []
    finally:
        await instance.close()
