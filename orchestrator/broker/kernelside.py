"""KernelSide: what a broker asks the kernel itself, beside cells. Whatever comes back is a claim of hostile code."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.broker.bundles import allowed
from orchestrator.broker.historyreply import history_reply
from orchestrator.broker.messages import JupyterMessage, MessageMaker, kernel_info
from orchestrator.errors import InvalidInputError
from orchestrator.kernel.boundedjson import load
from orchestrator.kernel.channel import Message
from orchestrator.kernel.kernel import Kernel
from orchestrator.kernel.lost import failing_when_lost
from orchestrator.kernel.translate import COMM_KINDS, OUTPUT_KINDS, clean, to_comm, to_event
from orchestrator.output.mimefilter import MimeFilter
from orchestrator.sessions.session import KernelSession

_PATIENCE = 10.0  # seconds for an answer; jedi is off, and IPython's own completer takes milliseconds
_AFTER_INTERRUPT = 1.0  # seconds for a question that was interrupted to end
_LARGEST = 1024 * 1024  # bytes of a message that a comm's handler sends
_MOST_MESSAGES = 1000  # of one comm's handler
_FIELDS: Mapping[str, Mapping[str, type]] = {
    "complete_request": {"code": str, "cursor_pos": int},
    "inspect_request": {"code": str, "cursor_pos": int, "detail_level": int},
    "is_complete_request": {"code": str},
}


class KernelSide:
    """Asks a session's kernel. Questions wait for running cells, since answering runs the session's code.

    Args:
        publish: called with what a comm's handler puts out.
    """

    def __init__(self, maker: MessageMaker, publish: Callable[[JupyterMessage], None]) -> None:
        self._maker = maker
        self._publish = publish
        self._info: tuple[str, dict[str, Any]] = ("", {})

    async def answer(self, session: KernelSession, message: JupyterMessage) -> dict[str, Any] | None:
        """Return the content of a request's reply; None where it has none.

        Raises:
            InvalidInputError: the request is malformed.
            KernelDiedError, SessionEndedError: there is no kernel.
        """
        kind, content = message.kind, message.content
        if kind == "kernel_info_request":
            return await self._kernel_info(session.live_kernel())
        if kind == "history_request":
            return history_reply(await session.history(), content)
        if kind == "comm_info_request":
            return await self._comm_info(session, content)
        if kind in COMM_KINDS:
            if session.policy.channels.comms:
                await self._comm(session, message)
            return None
        if kind not in _FIELDS:
            return {"status": "error", "ename": "NotSupported", "evalue": f"{kind} is not supported.", "traceback": []}
        return await self._ask(session, kind, _checked(content, _FIELDS[kind]))

    async def _kernel_info(self, kernel: Kernel) -> dict[str, Any]:
        known, info = self._info
        if known != kernel.kernel_id:
            try:
                reply = await kernel.request("control", "kernel_info_request", {}, timeout=_PATIENCE)
            except TimeoutError:  # C code in a cell keeps Python's lock
                return kernel_info({})
            info = kernel_info(reply.content)
            self._info = (kernel.kernel_id, info)
        return info

    async def _comm_info(self, session: KernelSession, content: Mapping[str, Any]) -> dict[str, Any]:
        target = content.get("target_name")
        named = {"target_name": target} if isinstance(target, str) else {}
        if not session.policy.channels.comms:
            return {"status": "ok", "comms": {}}
        reply = await session.live_kernel().request("control", "comm_info_request", named, timeout=_PATIENCE)
        comms = clean(reply.content.get("comms"))
        return {"status": "ok", "comms": comms if isinstance(comms, dict) else {}}

    async def _ask(self, session: KernelSession, kind: str, content: dict[str, Any]) -> dict[str, Any]:
        """Have the kernel answer between two cells. An answer that takes too long is interrupted."""
        async with session.between_cells():
            kernel = session.live_kernel()
            waiting = asyncio.ensure_future(kernel.request("shell", kind, content, timeout=None))
            if not await _ended(kernel, waiting):
                return {"status": "error", "ename": "TimeoutError", "evalue": "the kernel has not answered."}
            answer = allowed(clean(waiting.result().content), session.policy.output.passes)
            return answer if isinstance(answer, dict) else {}

    async def _comm(self, session: KernelSession, message: JupyterMessage) -> None:
        """Pass a comm's message to the kernel, and publish what its handler puts out until it is over."""
        async with session.between_cells():
            kernel = session.live_kernel()
            shown = MimeFilter(session.policy.output.passes)
            handler = _CommHandler(self._maker, self._publish, message, shown)
            content = dict(message.content)
            sent = kernel.send(
                "shell", message.kind, content, handler.take, message.buffers, handler.accepts, message.metadata
            )
            session.note(kernel, "comm.message", kind=message.kind)
            try:
                with failing_when_lost(kernel, handler.over):
                    await _ended(kernel, handler.over)
            finally:
                kernel.forget(sent)


class _CommHandler:
    """What the kernel sends while it handles a message of a comm."""

    def __init__(
        self,
        maker: MessageMaker,
        publish: Callable[[JupyterMessage], None],
        request: JupyterMessage,
        shown: MimeFilter,
    ) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._maker = maker
        self._publish = publish
        self._parent = request.header
        self._shown = shown
        self._count = 0

    def accepts(self, kind: str, size: int) -> bool:
        """Return whether to parse a message: of many, only those that may be the end."""
        self._count += 1
        return size <= _LARGEST and (self._count <= _MOST_MESSAGES or kind == "status")

    def take(self, message: Message) -> None:
        """Publish an output or a comm's message, and note the end."""
        kind, content = message.kind, message.content
        if message.channel != "iopub":
            return
        if kind == "status" and content.get("execution_state") == "idle" and not self.over.done():
            self.over.set_result(None)
        elif kind in COMM_KINDS or kind in OUTPUT_KINDS:
            event = (
                to_event(kind, content)
                if kind in OUTPUT_KINDS
                else to_comm(kind, content, load(message.metadata), message.buffers)
            )
            if event is not None:
                self._publish(self._maker.of_event(self._shown.filter(event), self._parent))


async def _ended(kernel: Kernel, waiting: asyncio.Future[Any]) -> bool:
    """Wait for ``waiting``, and interrupt the kernel where that takes too long. Return whether it ended.

    Raises:
        KernelDiedError: the kernel died.
    """
    try:
        await asyncio.wait({waiting}, timeout=_PATIENCE)
        if not waiting.done():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_AFTER_INTERRUPT):
                    await kernel.interrupt()
            await asyncio.wait({waiting}, timeout=_AFTER_INTERRUPT)
        if waiting.done():
            waiting.result()
            return True
        return False
    finally:
        waiting.cancel()


def _checked(content: Mapping[str, Any], fields: Mapping[str, type]) -> dict[str, Any]:
    """Return the fields of a request that the kernel gets."""
    checked: dict[str, Any] = {}
    for name, kind in fields.items():
        value = content.get(name, kind())
        if type(value) is not kind:
            raise InvalidInputError(f"{name!r} must be of type {kind.__name__}.")
        checked[name] = value
    if "cursor_pos" in fields and "cursor_pos" not in content:
        checked["cursor_pos"] = len(checked["code"])
    return checked
