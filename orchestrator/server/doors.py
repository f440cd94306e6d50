"""The wires that the server speaks, in the order in which they are asked."""

from __future__ import annotations

from orchestrator.server.dashboard.dashboard import Dashboard
from orchestrator.server.dialect import Dialect
from orchestrator.server.native.nativeapi import NativeApi
from orchestrator.server.service import Service


def dialects(service: Service) -> list[Dialect]:
    """Return all wires of a server. The last one claims whatever no other one has."""
    return [Dashboard(service), NativeApi(service)]
