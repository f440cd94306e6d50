"""E2b: what the routes of E2B's wire share, and what they answer of a session."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request

from orchestrator.errors import PolicyError
from orchestrator.policy.policy import Policy
from orchestrator.principal import Principal
from orchestrator.server.directory import Directory, Served
from orchestrator.server.e2b.accesskeys import AccessKeys
from orchestrator.server.e2b.sandboxes import Mark
from orchestrator.server.e2b.sandboxforms import started
from orchestrator.server.service import Service


class E2b:
    """The wire's own part of a server."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.keys = AccessKeys(service.settings.data_path)
        self._policies: dict[str, Policy] = {}

    @property
    def directory(self) -> Directory:
        return self.service.directory

    async def policy(self, name: str) -> Policy:
        """Return a policy, read once; the default one for one that can no longer be read."""
        if name not in self._policies:
            try:
                self._policies[name] = await asyncio.to_thread(Policy.load, name)
            except PolicyError:
                return Policy()
        return self._policies[name]


def of(request: Request) -> E2b:
    """Return the wire that a request came by."""
    e2b: E2b = request.app.e2b
    return e2b


def caller_of(request: Request) -> Principal:
    """Return who calls."""
    principal: Principal = request.scope["state"]["principal"]
    return principal


def answer_of(e2b: E2b, caller: Principal, served: Served) -> dict[str, Any]:
    """Return a sandbox as the answer of its creation, with an access token for the caller."""
    template = Mark.of(served.handle).template or served.handle.policy
    return started(served.session_id, template, e2b.keys.issue(served.session_id, caller.token_id))
