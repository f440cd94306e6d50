"""CellblockProvider: runs the code of FastMCP's ``CodeMode`` in sandboxes.

    mcp = FastMCP("server", transforms=[CodeMode(sandbox_provider=CellblockProvider(manager))])

``fastmcp.experimental.transforms.code_mode.SandboxProvider`` is a protocol, so nothing of FastMCP is imported here.
"""

from __future__ import annotations

import io
import json
import secrets
import tokenize
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.errors import InvalidInputError
from orchestrator.manager import AgentKernelManager
from orchestrator.outcome import Outcome
from orchestrator.output.events import ExecutionResult
from orchestrator.tool import Tool

_ANY = {"type": "object"}
_RETURN = "cellblock_return"
_PROGRAM = """\
import json as _json
import tools as _tools
def _external(name):
    async def call(*args, **kwargs):
        return await _tools.call_tool_async(name, {{"args": list(args), "kwargs": kwargs}})
    call.__name__ = name
    return call
globals().update(_json.loads({inputs}))
globals().update({{name: _external(name) for name in {names}}})
async def _main():
{body}
_tools.call_tool("{returns}", {{"value": await _main()}})
"""


class CodeFailedError(Exception):
    """The code of a model failed in its sandbox.

    Attributes:
        result: the cell's result. Its text is the sandbox's, and may say anything.
    """

    def __init__(self, message: str, result: ExecutionResult) -> None:
        super().__init__(message)
        self.result = result


class CellblockProvider:
    """A sandbox provider for FastMCP's ``CodeMode``: each run has a fresh kernel of its own.

    Args:
        manager: a manager that the server's event loop has started.
        timeout: seconds that the code itself may take; None: the manager's limit. Time in tools does not count.
        group: see ``AgentKernelManager.acquire_kernel``.
    """

    def __init__(self, manager: AgentKernelManager, *, timeout: float | None = None, group: str | None = None) -> None:
        self._manager = manager
        self._timeout = timeout
        self._group = group

    async def run(
        self,
        code: str,
        *,
        inputs: dict[str, Any] | None = None,
        external_functions: dict[str, Callable[..., Any]] | None = None,
    ) -> Any:
        """Run asynchronous code that may use ``return``, and return what it returns, as JSON has it.

        Args:
            inputs: variables of the code; JSON.
            external_functions: functions of the host that it may await.

        Raises:
            CodeFailedError: the code raised, exceeded a limit, or lost its kernel.
            InvalidInputError: the code is no Python, or a name or an input cannot be used.
            CellblockError: see ``AgentKernelManager.acquire_kernel``.
        """
        returned: list[Any] = []

        def give_back(value: Any) -> None:
            returned.append(value)

        functions = external_functions or {}
        tools = [Tool(name, _ANY, _spread(function)) for name, function in functions.items()]
        tools.append(Tool(_RETURN, _ANY, give_back))
        program = _program(code, inputs or {}, list(functions))
        agent = f"codemode-{secrets.token_hex(8)}"
        try:
            async with self._manager.acquire_kernel(agent, group=self._group, tools=tools) as (_kernel, session):
                result = await self._manager.execute(session, program, timeout=self._timeout)
        finally:
            await self._manager.end_session(agent)
        if result.outcome is not Outcome.OK or not returned:
            raise CodeFailedError(_said(result), result)
        return returned[-1]


def _spread(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a tool's function that passes positional and named arguments on."""

    async def call(args: list[Any], kwargs: dict[str, Any]) -> Any:
        value = function(*args, **kwargs)
        return await value if hasattr(value, "__await__") else value

    return call


def _program(code: str, inputs: Mapping[str, Any], names: list[str]) -> str:
    for name in (*inputs, *names):
        if not name.isidentifier():
            raise InvalidInputError(f"{name!r} is no name of a variable or a function.")
    try:
        given = json.dumps(inputs, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"an input is no JSON: {error}.") from None
    return _PROGRAM.format(inputs=repr(given), names=repr(names), body=_indented(code), returns=_RETURN)


def _indented(code: str) -> str:
    """Return the code as the body of a function. Lines inside of a string stay as they are."""
    inside: set[int] = set()
    begins = 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            name = tokenize.tok_name[token.type]
            if name == "FSTRING_START":
                begins = begins or token.start[0]
            elif name == "FSTRING_END":
                inside.update(range(begins + 1, token.end[0] + 1))
                begins = 0
            elif name == "STRING":
                inside.update(range(token.start[0] + 1, token.end[0] + 1))
    except (tokenize.TokenError, SyntaxError) as error:
        raise InvalidInputError(f"the code is no Python: {error}.") from None
    lines = code.splitlines() or [""]
    body = [line if number in inside else f"    {line}" for number, line in enumerate(lines, start=1)]
    return "\n".join([*body, "    pass"])


def _said(result: ExecutionResult) -> str:
    return result.as_text() if result.outcome is not Outcome.OK else "the code ended without returning."
