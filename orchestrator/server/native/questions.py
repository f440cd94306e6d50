"""Questions: what a cell asks its client while it runs: to call a tool of the client's, or for a line of input."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from orchestrator.errors import InvalidInputError
from orchestrator.output.events import InputRequest
from orchestrator.server.native.bodies import Definition
from orchestrator.tool import Tool

_WITHDRAWN = 1000  # questions without need of an answer any longer, of which clients are still told
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class _UncheckedTool(Tool):
    """A tool whose arguments the client checks itself."""

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return dict(arguments)


class Questions:
    """The open questions of one cell. A client that comes back gets those that are still open."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[dict[str, Any], asyncio.Future[Any]]] = {}
        self._withdrawn: deque[str] = deque(maxlen=_WITHDRAWN)
        self._changed = asyncio.Event()

    def tool(self, definition: Definition) -> Tool:
        """Return a tool that asks the client.

        Raises:
            InvalidInputError: see ``Tool``.
        """

        async def call(**arguments: Any) -> Any:
            return await self._ask({"type": "tool_call", "name": definition.name, "arguments": arguments})

        kind = Tool if definition.checked else _UncheckedTool
        return kind(definition.name, definition.parameters, call, definition.description)

    async def line(self, request: InputRequest) -> str:
        """Ask the client for a line. This is an ``InputHandler``."""
        return str(await self._ask(request.as_dict()))

    def answer(self, question_id: str, result: Any) -> None:
        """Answer a question.

        Raises:
            InvalidInputError: it is not open.
        """
        self._future(question_id).set_result(result)

    def fail(self, question_id: str, kind: str, message: str) -> None:
        """Say that there is no answer: the cell gets an exception of this name.

        Raises:
            InvalidInputError: the question is not open.
        """
        if kind == "EOFError":
            self._future(question_id).set_exception(EOFError(message))
            return
        name = kind if _NAME.fullmatch(kind) else "RuntimeError"
        self._future(question_id).set_exception(type(name, (Exception,), {})(message))

    async def follow(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the open questions, new ones, and ``question_closed`` for one that needs no answer any longer."""
        told: set[str] = set()
        while True:
            changed = self._changed
            for question_id in [each for each in told if each not in self._open]:
                told.remove(question_id)
                if question_id in self._withdrawn:
                    yield {"type": "question_closed", "id": question_id}
            for question_id, (question, _) in list(self._open.items()):
                if question_id not in told:
                    told.add(question_id)
                    yield question
            await changed.wait()

    async def _ask(self, question: dict[str, Any]) -> Any:
        question_id = secrets.token_hex(8)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._open[question_id] = {**question, "id": question_id}, future
        self._wake()
        try:
            return await future
        except asyncio.CancelledError:
            self._withdrawn.append(question_id)
            raise
        finally:
            del self._open[question_id]
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _future(self, question_id: str) -> asyncio.Future[Any]:
        found = self._open.get(question_id)
        if found is None or found[1].done():
            raise InvalidInputError("there is no such open question: it was answered, or its cell is over.")
        return found[1]
