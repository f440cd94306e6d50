"""CodeContexts: the contexts of one sandbox: namespaces of its kernel, each with a working folder of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orchestrator.celloptions import CellOptions
from orchestrator.errors import InvalidInputError
from orchestrator.server.directory import Served

HOME: Final = "/home/user"
DEFAULT: Final = "python"
_MOST = 100
_PLACE = "e2b.contexts"
_INSIDE = tuple(Path(__file__).with_name(f"inside{name}.py") for name in ("template", "contexts", "results"))


@dataclass(frozen=True, slots=True)
class CodeContext:
    """One context. The default one is the session's own namespace."""

    id: str
    cwd: str = HOME

    def as_dict(self) -> dict[str, str]:
        return {"id": self.id, "language": "python", "cwd": self.cwd}


class CodeContexts:
    """The contexts of one sandbox, while this server holds it."""

    def __init__(self) -> None:
        self._contexts = {DEFAULT: CodeContext(DEFAULT)}
        self._kernel_id = ""
        self._preparing = asyncio.Lock()

    @classmethod
    def of(cls, served: Served) -> CodeContexts:
        """Return the contexts of a session."""
        contexts: CodeContexts = served.attachments.setdefault(_PLACE, cls())
        return contexts

    def listed(self) -> list[CodeContext]:
        """Return the contexts in the order in which they were made."""
        return list(self._contexts.values())

    def add(self, cwd: str) -> CodeContext:
        """Make a context.

        Raises:
            InvalidInputError: there are a hundred already.
        """
        if len(self._contexts) >= _MOST:
            raise InvalidInputError(f"a sandbox may have {_MOST} contexts.", remedy="Remove one.")
        made = CodeContext(secrets.token_hex(16), cwd)
        self._contexts[made.id] = made
        return made

    def find(self, context_id: str) -> CodeContext | None:
        """Return a context; None if there is none of this id."""
        return self._contexts.get(context_id)

    async def remove(self, served: Served, context: CodeContext) -> None:
        """Remove a context and its variables. The default one stays.

        Raises:
            See ``AgentKernelManager.execute``.
        """
        if context.id == DEFAULT:
            raise InvalidInputError("the default context cannot be removed.", remedy="Restart it, or kill the sandbox.")
        del self._contexts[context.id]
        await self._forget(served, context)

    async def restart(self, served: Served, context: CodeContext) -> None:
        """Forget the variables of a context; for the default one, also those of all others. The files stay.

        Raises:
            See ``AgentKernelManager.restart_kernel`` and ``execute``.
        """
        if context.id == DEFAULT:
            await served.manager.restart_kernel(served.session)
        else:
            await self._forget(served, context)

    async def code(self, served: Served, context: CodeContext, code: str) -> str:
        """Return the cell that runs code in a context. The kernel is prepared for it.

        Raises:
            See ``AgentKernelManager.execute``.
        """
        async with self._preparing:
            if served.session.asleep or served.session.kernel_id != self._kernel_id:
                await _run(served, await asyncio.to_thread(_preparation))
                self._kernel_id = served.session.kernel_id
        if context.id == DEFAULT:
            return code
        return f"%%e2b_context {context.id} {json.dumps(context.cwd)}\n{code}"

    async def _forget(self, served: Served, context: CodeContext) -> None:
        if not served.session.asleep and served.session.kernel_id == self._kernel_id:
            await _run(served, f"%e2b_forget {context.id}")


async def _run(served: Served, code: str) -> None:
    """Run a cell that the kernel neither counts nor keeps: a checkpoint looks for what the code of cells names."""
    options = CellOptions(store_history=False)
    async with contextlib.aclosing(served.manager.stream_code(served.session, code, options=options)) as events:
        async for _ in events:
            pass


def _preparation() -> str:
    run = "exec({!r}, __import__('types').ModuleType('cellblock_e2b').__dict__)"
    return "\n".join(run.format(path.read_text()) for path in _INSIDE)
