"""Dialect: one of the wires that the server speaks: which requests are its own, who calls, and how it says no."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Protocol

from starlette.responses import Response
from starlette.types import ASGIApp, Scope

from orchestrator.errors import CellblockError
from orchestrator.principal import Principal
from orchestrator.server.answers import Problem
from orchestrator.server.authentication import token_of
from orchestrator.server.service import Service


class Dialect(Protocol):
    """A wire. ``Boundary`` asks it before a request reaches its application.

    Attributes:
        app: answers the requests. It finds the caller in ``scope["state"]["principal"]``, where there is one.
    """

    app: ASGIApp

    def running(self) -> AbstractAsyncContextManager[None]:
        """Return a context that is open while the server takes requests: for what the wire does in the background."""

    def claims(self, scope: Scope) -> bool:
        """Return whether a request is of this wire."""

    def is_public(self, scope: Scope) -> bool:
        """Return whether a request needs no caller."""

    def is_upload(self, scope: Scope) -> bool:
        """Return whether a request's body may have the size of a file, and is not read at once."""

    def is_stream(self, scope: Scope) -> bool:
        """Return whether a request's answer goes on for as long as there is something to tell."""

    async def principal(self, scope: Scope) -> Principal:
        """Return who calls.

        Raises:
            UnauthorizedError: nobody who may.
        """

    def refusal(self, error: CellblockError) -> Response:
        """Return an error as this wire has it."""


class TokenWire:
    """A wire whose callers have tokens of Cellblock's, and whose answers are short: what most wires have in common."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def running(self) -> AbstractAsyncContextManager[None]:
        """See ``Dialect``."""
        return nullcontext()

    def is_public(self, scope: Scope) -> bool:
        """See ``Dialect``."""
        return False

    def is_upload(self, scope: Scope) -> bool:
        """See ``Dialect``."""
        return False

    def is_stream(self, scope: Scope) -> bool:
        """See ``Dialect``."""
        return False

    async def principal(self, scope: Scope) -> Principal:
        """See ``Dialect``."""
        return await self._service.authentication.principal(token_of(dict(scope["headers"])))

    def refusal(self, error: CellblockError) -> Response:
        """See ``Dialect``."""
        return Problem(error)
