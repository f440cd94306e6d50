"""Requests of the host on the control channel, which are served while a cell runs: files, state, commands.

They publish no status: nobody waits for it, and it would take two messages each.
"""

import asyncio
import contextlib
import json
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from cellblock_session.stream import Pipe

from cellblock_kernel import files
from cellblock_kernel.commands import Commands
from cellblock_kernel.originals import BUILTINS

__builtins__ = BUILTINS

MOST_UNSERVED = 16  # messages; the host has one transfer at a time under way
PIECE = 1024 * 1024  # bytes of a long reply

Handler = Callable[[Any, Any], None]


class HostRequests:
    """Serves the control channel. Everything but ``__init__`` runs in the control thread.

    Attributes:
        handlers: by the kind of the request, for the kernel's ``control_handlers``.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._unserved: deque[Any] = deque(maxlen=MOST_UNSERVED)  # messages that a cell's changes kept out
        self._served = False
        self._pipes: dict[str, Any] = {}
        self._lists: dict[str, bytes] = {}  # the list that the host is reading
        self._commands = Commands(self._send, kernel.orphans, kernel.changed_files)
        twice = {
            "file_write_request": self._write,
            "file_read_request": self._read,
            "file_discard_request": self._discard,
            "file_stat_request": self._stat,
        }
        self._twice = frozenset(twice)  # those that may be served twice
        handlers: dict[str, Handler] = {
            **twice,
            "file_list_request": partial(self._beside, self._list),
            "file_folder_request": partial(self._beside, self._make_folder),
            "file_move_request": partial(self._beside, self._move),
            "file_remove_request": partial(self._beside, self._remove),
            "tool_answer_request": self._answer_tool,
            "packages_add_request": partial(self._beside, self._add_package),
            "variables_request": partial(self._beside, self._variables),
            "state_take_request": self._take_state,
            "state_give_request": self._give_state,
            **self._commands.handlers,
        }
        self._own = frozenset(handlers)
        self.handlers = {kind: partial(_without_stream, handler) for kind, handler in handlers.items()}

    async def process(self, message: Any, otherwise: Callable[[Any], Awaitable[None]]) -> None:
        """Serve one message. If a change of a cell prevents that, it waits for the cell's end.

        Args:
            otherwise: serves Jupyter's own requests.
        """
        self._served = False
        with contextlib.suppress(BaseException):
            session = self._kernel.session
            idents, frames = session.feed_identities(list(message), copy=False)
            request = session.deserialize(frames, content=True, copy=False)
            kind = request["header"]["msg_type"]
            if kind in self._own:
                self._served = kind not in self._twice
                self._kernel.control_handlers[kind](self._kernel.control_stream, idents, request)
                self._served = True
            else:
                await otherwise(message)
        if not self._served:
            self._unserved.append(message)

    def noting(self, handler: Callable[..., Any]) -> Callable[..., Awaitable[None]]:
        """Return a handler of Jupyter's own requests that notes when it begins: it is not served twice."""

        async def serve(stream: Any, ident: Any, parent: Any) -> None:
            self._served = True
            result = handler(stream, ident, parent)
            if result is not None:
                await result

        return serve

    def serve_again(self) -> None:
        """Let the control thread serve what waits. Called in the main thread, when a cell has ended."""
        kernel = self._kernel
        while self._unserved:
            kernel.control_stream.io_loop.add_callback(kernel.dispatch_control, self._unserved.popleft())

    def pipe(self, parent: Any, *, only: bool = False) -> Any:
        """Return the pipe of a transfer of state. The first channel that mentions the transfer creates it.

        The pipe stays until the next transfer: a small state may have arrived completely before this thread looks.

        Args:
            only: whether to forget all other pipes.
        """
        transfer = parent["content"]["transfer"]
        found = self._pipes.setdefault(transfer, Pipe())
        if only:
            self._pipes = {transfer: found}
        return found

    def _send(self, kind: str, content: dict[str, Any], parent: Any, ident: Any, buffers: Sequence[bytes]) -> None:
        kernel = self._kernel
        kernel.session.send(kernel.control_stream, kind, content, parent, ident=ident, buffers=list(buffers))

    def _reply(self, ident: Any, parent: Any, content: dict[str, Any], buffers: Sequence[bytes] = ()) -> None:
        kind = parent["header"]["msg_type"].replace("_request", "_reply")
        self._send(kind, content, parent, ident, buffers)

    def _answer(self, ident: Any, parent: Any, work: Callable[[], tuple[dict[str, Any], Sequence[bytes]]]) -> None:
        """Reply with what ``work`` returns: content and buffers; or with the system's refusal."""
        try:
            content, buffers = work()
        except OSError as error:
            content, buffers = refusal(error), ()
        self._reply(ident, parent, {"status": "ok", **content}, buffers)

    def _beside(self, work: Callable[[Any], tuple[dict[str, Any], Sequence[bytes]]], ident: Any, parent: Any) -> None:
        """Do what may take long in another thread, and reply then: an interrupt does not wait for it."""

        loop = asyncio.get_running_loop()

        def answer() -> None:
            try:
                content, buffers = work(parent["content"])
            except OSError as error:
                content, buffers = refusal(error), ()
            except Exception as error:  # noqa: BLE001 - a cell broke what it needs, and it is not served twice
                content, buffers = {"status": "error", "reason": f"{type(error).__name__}: {error}"[:500]}, ()
            loop.call_soon_threadsafe(self._reply, ident, parent, {"status": "ok", **content}, buffers)

        try:
            threading.Thread(target=answer, daemon=True).start()  # of its own: a pool's would count as the session's
        except RuntimeError:  # the session has as many threads as it may have
            answer()

    # Files

    def _write(self, ident: Any, parent: Any) -> None:
        def work() -> tuple[dict[str, Any], Sequence[bytes]]:
            files.write_file(parent["content"], parent["buffers"])
            if parent["content"]["last"]:
                self._kernel.changed_files.forget()
            return {}, ()

        self._answer(ident, parent, work)

    def _read(self, ident: Any, parent: Any) -> None:
        self._answer(ident, parent, lambda: ({}, (files.read_file(parent["content"]),)))

    def _discard(self, ident: Any, parent: Any) -> None:
        def work() -> tuple[dict[str, Any], Sequence[bytes]]:
            files.discard_file(parent["content"])
            return {}, ()

        self._answer(ident, parent, work)

    def _stat(self, ident: Any, parent: Any) -> None:
        self._answer(ident, parent, lambda: ({}, (files.stat_file(parent["content"]),)))

    def _list(self, request: dict[str, Any]) -> tuple[dict[str, Any], Sequence[bytes]]:
        """Return a piece of a list. The first request makes the list, and the next ones get the rest of it."""
        more = False
        if request["offset"] == 0:
            entries, more = files.list_files(request)
            self._lists = {request["list"]: entries}
        entries = self._lists.get(request["list"], b"")
        start, end = request["offset"], request["offset"] + PIECE
        return {"more": more, "last": end >= len(entries)}, (entries[start:end],)

    def _make_folder(self, request: dict[str, Any]) -> tuple[dict[str, Any], Sequence[bytes]]:
        return {"made": files.make_folder(request)}, ()

    def _move(self, request: dict[str, Any]) -> tuple[dict[str, Any], Sequence[bytes]]:
        files.move_file(request)
        self._kernel.changed_files.forget()
        return {}, ()

    def _remove(self, request: dict[str, Any]) -> tuple[dict[str, Any], Sequence[bytes]]:
        files.remove_file(request)
        self._kernel.changed_files.forget()
        return {}, ()

    def _add_package(self, request: dict[str, Any]) -> tuple[dict[str, Any], Sequence[bytes]]:
        from cellblock_kernel.packages import add_wheel

        return {"modules": add_wheel(request["path"])}, ()

    def _answer_tool(self, _ident: Any, parent: Any) -> None:
        self._kernel.tools.answer(parent["content"], bytes(parent["buffers"][0]) if parent["buffers"] else b"")

    def _variables(self, _request: dict[str, Any]) -> tuple[dict[str, Any], Sequence[bytes]]:
        from cellblock_kernel.variables import describe

        shell = self._kernel.shell
        return {}, (json.dumps(describe(shell.user_ns, shell.user_ns_hidden)).encode(),)

    # State

    def _take_state(self, ident: Any, parent: Any) -> None:
        """Send the host the next piece of a state that is being saved."""
        piece, last = self.pipe(parent).poll()
        self._reply(ident, parent, {"last": last}, () if piece is None else (piece,))

    def _give_state(self, ident: Any, parent: Any) -> None:
        """Accept a piece of a state that is being loaded."""
        pipe = self.pipe(parent)
        taken = pipe.offer(bytes(parent["buffers"][0])) if parent["buffers"] else True
        if parent["content"]["last"] and taken:
            pipe.end()
        self._reply(ident, parent, {"taken": taken})


def _without_stream(handler: Handler, _stream: Any, ident: Any, parent: Any) -> None:
    """Call a handler as Jupyter calls those of its own requests."""
    handler(ident, parent)


def refusal(error: OSError) -> dict[str, Any]:
    """Return the content of a reply that tells of an error of the system."""
    return {"status": "error", "errno": error.errno, "reason": error.strerror or str(error)}
