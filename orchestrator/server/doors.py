"""The wires that the server speaks, in the order in which they are asked."""

from __future__ import annotations

from importlib.util import find_spec

from orchestrator.server.dashboard.dashboard import Dashboard
from orchestrator.server.dialect import Dialect
from orchestrator.server.e2b.e2bapi import E2bApi
from orchestrator.server.gateway.gatewayapi import GatewayApi
from orchestrator.server.native.nativeapi import NativeApi
from orchestrator.server.sandboxfusion import SandboxFusion
from orchestrator.server.service import Service


def dialects(service: Service) -> list[Dialect]:
    """Return all wires of a server. The last one claims whatever no other one has."""
    found: list[Dialect] = [E2bApi(service), Dashboard(service), SandboxFusion(service), GatewayApi(service)]
    if find_spec("mcp") is not None:  # the extra ``mcp``
        from orchestrator.server.mcpdoor import McpDoor

        found.append(McpDoor(service))
    return [*found, NativeApi(service)]
