"""Once: what a request does is done once for each idempotency key. Every route that changes something takes one."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar, cast

from fastapi import Depends, Header, Request

from orchestrator.principal import Principal
from orchestrator.server.answers import dumps
from orchestrator.server.native.access import Caller, TheService
from orchestrator.server.service import Service

T = TypeVar("T")
Key = Annotated[
    str | None,
    Header(alias="Idempotency-Key", description="A request that comes again with its key is answered, not done again."),
]


@dataclass(frozen=True, slots=True)
class Once:
    """One request.

    Attributes:
        asks: what it asks for, to tell it from another one with the same key.
    """

    service: Service
    caller: Principal
    key: str | None
    asks: bytes

    async def __call__(self, make: Callable[[], Awaitable[T]]) -> T:
        """Return what ``make`` returns, or what it returned for the first request with the key. See ``Idempotency``.

        Args:
            make: what it returns is kept as JSON.
        """
        if self.key is None:
            return await make()

        async def made() -> bytes:
            return dumps(await make())

        return cast(T, json.loads(await self.service.idempotency.once(self.caller, self.key, self.asks, made)))


async def _once(request: Request, caller: Caller, service: TheService, key: Key = None) -> Once:
    parts = request.method.encode(), request.url.path.encode(), request.scope["query_string"], await request.body()
    return Once(service, caller, key, b"\0".join(parts))


JustOnce = Annotated[Once, Depends(_once)]
