"""Answers in JSON. A large one is made in a thread: 10 MB take up to 30 ms, and every other client would wait."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pydantic_core
from starlette.responses import Response

from orchestrator.errors import CellblockError
from orchestrator.server.problems import headers_of, problem, status_of

_LARGE = 100_000  # bytes of output from which on a thread is worth its 0.1 ms


class Json(Response):
    """JSON. That of ``dumps`` is ASCII: file names may have lone surrogates, which have no form in UTF-8."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return content if isinstance(content, bytes) else dumps(content)


class Problem(Json):
    """An error, as problem+json."""

    media_type = "application/problem+json"

    def __init__(self, error: CellblockError) -> None:
        super().__init__(problem(error), status_of(error), headers_of(error))


def dumps(content: Any) -> bytes:
    """Return a value as JSON in ASCII. NaN and infinities, which JSON has not, become null."""
    try:
        return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
    except ValueError:
        return json.dumps(_finite(content), separators=(",", ":")).encode()


async def dumps_large(content: Mapping[str, Any], size: int) -> bytes:
    """Return a value as JSON, made in a thread if the content has about ``size`` bytes or more and that is much."""
    return await asyncio.to_thread(_dumps_fast, content) if size > _LARGE else dumps(content)


def _dumps_fast(content: Mapping[str, Any]) -> bytes:
    """Return a value as JSON in UTF-8, in a third of the time, or in ASCII if it has what UTF-8 has no form for."""
    try:
        return pydantic_core.to_json(content, inf_nan_mode="null")
    except ValueError:
        return dumps(content)


def _finite(content: Any) -> Any:
    return json.loads(json.dumps(content), parse_constant=lambda _constant: None)
