"""ToolCalls: the calls of host tools by one cell, bounded and recorded.

All that a kernel sends is hostile. A call is refused if its tool is not offered, its arguments are no JSON object or do
not match the schema, or the cell has made too many. When the cell is over, what still runs is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any

import pydantic_core

from orchestrator.errors import KernelDiedError
from orchestrator.kernel.boundedjson import MalformedError, load
from orchestrator.kernel.channel import Message
from orchestrator.kernel.kernel import Kernel
from orchestrator.output.printable import printable
from orchestrator.policy.sections import Tools as ToolLimits
from orchestrator.tool import Tool

_LONGEST_ID = 64  # characters
_LONGEST_NAME = 200  # characters
_LONGEST_MESSAGE = 2000  # characters of an exception
_LARGE = 16 * 1024  # bytes of arguments that are checked in a thread: it may take tens of milliseconds
_MOST_REFUSED = 1000  # calls beyond the limit that are answered; later ones are dropped

calling: ContextVar[object] = ContextVar("calling", default=None)
"""The session whose cell calls the tool that runs here; None outside of a tool."""


class ToolCalls:
    """The tools that one cell may call, and its calls.

    Args:
        tools: by name; None in a session that never had any: the sandbox is told nothing then.
        internal: returns the tool of Cellblock's own that has a name. The sandbox is not told of those.
        limits: of the policy.
        note: publishes an event of the session.
        caller: the session.

    Attributes:
        on_busy: called with True when the first of several calls begins, and with False when the last one has ended.
        count: how many calls the cell has made.
        seconds: how long at least one of them ran.
    """

    def __init__(
        self,
        kernel: Kernel,
        tools: Mapping[str, Tool] | None,
        internal: Callable[[str], Tool | None],
        limits: ToolLimits,
        note: Callable[..., None],
        caller: object,
    ) -> None:
        self._kernel = kernel
        self._offered = tools
        self._internal = internal
        self._limits = limits
        self._note = note
        self._caller = caller
        self.on_busy: Callable[[bool], None] = lambda _busy: None
        self.count = 0
        self._seconds = 0.0
        self._since: float | None = None
        self._seen: set[str] = set()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(limits.concurrent)
        self._closed = False
        self._threads: ThreadPoolExecutor | None = None

    def definitions(self) -> list[dict[str, Any]] | None:
        """Return what the sandbox is told; None for nothing."""
        return None if self._offered is None else [tool.definition() for tool in self._offered.values()]

    @property
    def seconds(self) -> float:
        running = 0.0 if self._since is None else time.monotonic() - self._since
        return self._seconds + running

    def take(self, message: Message) -> None:
        """Take a call, or the cancellation of one."""
        token = message.content.get("id")
        if self._closed or not isinstance(token, str) or len(token) > _LONGEST_ID:
            return
        if message.kind == "tool_cancel":
            if (running := self._running.get(token)) is not None:
                running.cancel()
            return
        if token in self._seen:  # a forged second call: the first one's answer goes to that id
            return
        self.count += 1
        if self.count > self._limits.calls:
            if self.count <= self._limits.calls + _MOST_REFUSED:
                self._refuse(token, "", f"the cell has made {self._limits.calls} calls of tools, as many as it may")
            return
        self._seen.add(token)
        if not self._running:
            self._since = time.monotonic()
            self.on_busy(True)
        name = message.content.get("name")
        data = bytes(message.buffers[0]) if message.buffers else b""
        task = asyncio.get_running_loop().create_task(self._serve(token, name, data))
        self._running[token] = task
        task.add_done_callback(lambda _: self._done(token))

    def close(self) -> None:
        """Cancel what runs: the cell is over. A plain function that runs in a thread cannot be stopped."""
        self._closed = True
        for task in list(self._running.values()):
            task.cancel()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _done(self, token: str) -> None:
        self._running.pop(token, None)
        if not self._running and self._since is not None:
            self._seconds += time.monotonic() - self._since
            self._since = None
            self.on_busy(False)

    async def _serve(self, token: str, name: object, data: bytes) -> None:
        begun = time.monotonic()
        tool = self._find(name) if isinstance(name, str) else None
        outcome, result = "cancelled", b""
        shown = printable(name, _LONGEST_NAME) if isinstance(name, str) else "?"
        try:
            if tool is None:
                self._refuse(
                    token, shown, f"there is no tool {shown!r}; there are: {', '.join(self._offered or ()) or 'none'}"
                )
                outcome = "refused"
                return
            try:
                arguments = await self._arguments(tool, data)
            except ValueError as error:
                self._refuse(token, tool.name, f"the arguments of {tool.name!r} are not valid: {error}")
                outcome = "refused"
                return
            async with self._places:
                outcome, result = await self._call(token, tool, arguments)
        finally:
            self._note(
                "tool.called",
                tool=shown,
                outcome=outcome,
                duration_s=round(time.monotonic() - begun, 6),
                arguments_sha256=hashlib.sha256(data).hexdigest(),
                arguments_bytes=len(data),
                result_sha256=hashlib.sha256(result).hexdigest() if result else None,
            )

    def _find(self, name: str) -> Tool | None:
        return self._internal(name) or (self._offered or {}).get(name)

    async def _arguments(self, tool: Tool, data: bytes) -> dict[str, Any]:
        """Return the arguments, checked.

        Raises:
            ValueError: they cannot be used.
        """
        if len(data) > self._limits.argument_kb * 1024:
            raise ValueError(f"they have {len(data)} bytes, and {self._limits.argument_kb} KiB are allowed")
        try:
            arguments = load(data)
        except MalformedError:
            raise ValueError("they are no JSON object, or have too many items") from None
        try:
            return await asyncio.to_thread(tool.check, arguments) if len(data) > _LARGE else tool.check(arguments)
        except RecursionError:
            raise ValueError("they are nested too deeply") from None

    async def _call(self, token: str, tool: Tool, arguments: dict[str, Any]) -> tuple[str, bytes]:
        """Call the tool and answer. Returns the outcome, and the result as JSON."""
        calling.set(self._caller)
        try:
            if tool.is_async:
                value = await tool.function(**arguments)
            else:
                value = await self._in_thread(partial(tool.function, **arguments))
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - the tool's own; it is raised again in the sandbox
            self._answer(token, {"status": "error", "tool": tool.name, **_said(error)})
            return "error", b""
        try:
            result = await asyncio.to_thread(pydantic_core.to_json, value)
        except Exception as error:  # noqa: BLE001 - of any type in the value
            self._refuse(
                token, tool.name, f"the result of {tool.name!r} is no JSON: {error}", kind=type(error).__name__
            )
            return "error", b""
        if len(result) > self._limits.result_kb * 1024:
            said = f"the result of {tool.name!r} has {len(result)} bytes; {self._limits.result_kb} KiB are allowed"
            self._refuse(token, tool.name, said, kind="ValueError")
            return "error", result
        self._answer(token, {"status": "ok"}, result)
        return "ok", result

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        """Call a plain function in a thread of this cell's own: asyncio's few threads are everybody's."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._limits.concurrent, thread_name_prefix="cellblock-tools")
        call = partial(copy_context().run, function)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _refuse(self, token: str, tool: str, message: str, kind: str = "") -> None:
        self._answer(token, {"status": "error", "tool": tool, "kind": kind, "message": message[:_LONGEST_MESSAGE]})

    def _answer(self, token: str, content: dict[str, Any], data: bytes = b"") -> None:
        if self._closed or not self._kernel.is_alive:
            return
        buffers = (data,) if data else ()
        with contextlib.suppress(KernelDiedError):
            sent = self._kernel.send(
                "control", "tool_answer_request", {"id": token, **content}, lambda _message: None, buffers
            )
            self._kernel.forget(sent)


def _said(error: Exception) -> dict[str, str]:
    text = str(error)[:_LONGEST_MESSAGE].encode("utf-8", "replace").decode()
    return {"kind": type(error).__name__, "message": text}
