"""Tooling: the tools that a model sees. Their docstrings are what it reads, and pays for: a test counts the tokens."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Annotated, Any, Literal

from mcp_types import CallToolResult
from pydantic import Field

from orchestrator.errors import CellblockError, InvalidInputError
from orchestrator.inputs import check_code, check_command
from orchestrator.mcp import replies
from orchestrator.mcp.calls import KERNEL_WAIT, Calls, Ctx
from orchestrator.mcp.handles import handle_of, name_in
from orchestrator.mcp.jobs import Job
from orchestrator.mcp.replies import Reply
from orchestrator.notebooks.operation import checked
from orchestrator.output.amounts import amount
from orchestrator.output.printable import printable

READ_ONLY = frozenset(("wait", "read_file", "list_files", "variables"))  # clients may call them without asking
_SETTLES = 2.0  # seconds that interrupt waits for what it stopped
_MOST_FILES = 10_000  # that one listing asks for
_MOST_FORKS = 16
_LAST = 3  # ended jobs that the list of sessions names: a client may have lost an answer
_NO_ARGS: dict[str, Any] = {}
_CHECKPOINT = re.compile(r"[0-9a-f]{32}")  # never a path: a path would be one of the host

Session = Annotated[str, Field(description="Session name; sessions share nothing")]
Timeout = Annotated[float, Field(description="Seconds; 0: the policy's limit")]
Args = Annotated[dict[str, Any], Field(description="Of op")]
Path = Annotated[str, Field(description="Relative to /work")]


class Tooling(Calls):
    """The tools."""

    @property
    def tools(self) -> list[Callable[..., Coroutine[Any, Any, CallToolResult]]]:
        """All tools, the most used first."""
        return [
            self.run_python,
            self.run_command,
            self.wait,
            self.interrupt,
            self.read_file,
            self.write_file,
            self.list_files,
            self.variables,
            self.notebook,
            self.install,
            self.restart,
            self.checkpoint,
            self.restore,
            self.fork,
            self.sessions,
        ]

    async def run_python(self, ctx: Ctx, code: str, session: Session = "", timeout: Timeout = 0) -> CallToolResult:
        """Run a cell in a Jupyter kernel without network. Variables and files in /work stay for later calls.

        Shows the last expression's value, prints and plots. Code that still runs is answered with an id for wait.
        """
        return await self._started(
            ctx, session, "cell", lambda job: self._cell(job, code, timeout), lambda: check_code(code)
        )

    async def run_command(
        self, ctx: Ctx, command: str, session: Session = "", cwd: str = "", timeout: Timeout = 0
    ) -> CallToolResult:
        """Run a bash command beside the cells; it shares their files. One that still runs is answered with an id."""
        return await self._started(
            ctx,
            session,
            "command",
            lambda job: self._command(job, command, cwd, timeout),
            lambda: check_command(command, cwd, None, None),
        )

    async def wait(self, ctx: Ctx, id: str) -> CallToolResult:
        """Wait for what a call has started, and return its result, or its output so far."""
        return await self._answered(ctx, lambda: self.jobs.find(self._owner_of(ctx), id))

    async def interrupt(self, ctx: Ctx, id: str = "", session: Session = "") -> CallToolResult:
        """Stop a running cell or command by its id; without id, the session's running cell. Variables stay."""

        def chosen() -> Job:
            owner = self._owner_of(ctx)
            if id:
                return self.jobs.find(owner, id)
            handle = handle_of(owner, session)
            running = [job for job in self.jobs.running(owner, handle.name) if job.kind == "cell"]
            if not running:
                raise InvalidInputError(f"no cell is running in session {handle.name!r}.")
            return running[0]

        def stop() -> Job:
            job = chosen()
            self.jobs.stop(job)
            return job

        return await self._answered(ctx, stop, _SETTLES)

    async def read_file(self, ctx: Ctx, path: Path, session: Session = "", offset: int = 0) -> CallToolResult:
        """Read a text file or a picture. Long text is cut; offset, in bytes, goes on."""
        return await self._on_kernel(ctx, session, "read", lambda kernel: self._file(kernel, path, offset))

    async def write_file(
        self,
        ctx: Ctx,
        path: Path,
        content: str,
        session: Session = "",
        encoding: Literal["text", "base64"] = "text",
    ) -> CallToolResult:
        """Write a file; missing folders are made."""

        async def write(kernel: Any) -> Reply:
            size = await self._manager.write_file(kernel, path, _decoded(content, encoding))
            return Reply(f"Wrote {amount(size)} to {printable(path, 300)}.")

        return await self._on_kernel(ctx, session, "write", write)

    async def list_files(
        self, ctx: Ctx, path: Path = ".", session: Session = "", pattern: str = "", recursive: bool = False
    ) -> CallToolResult:
        """List a folder with sizes. pattern: such as *.csv or data/**/*.csv"""

        async def listed(kernel: Any) -> Reply:
            return replies.files(
                await self._manager.list_files(kernel, path, recursive=recursive, pattern=pattern, limit=_MOST_FILES)
            )

        return await self._on_kernel(ctx, session, "list", listed)

    async def variables(self, ctx: Ctx, session: Session = "") -> CallToolResult:
        """List the session's variables: type, shape, size, preview. Also while a cell runs."""

        async def listed(kernel: Any) -> Reply:
            try:
                return replies.variables(await self._manager.list_variables(kernel))
            except TimeoutError:
                return Reply("The kernel does not answer: C code holds it. Call again later.", is_error=True)

        return await self._on_kernel(ctx, session, "variables", listed)

    async def notebook(self, ctx: Ctx, op: str, args: Args = _NO_ARGS, session: Session = "") -> CallToolResult:
        """Work on a Jupyter notebook whose code runs in the session. op and its args ("?": optional):

        add_cell(source, type?, position?, execute?); edit_cell(cell_id, source, execute?) runs it too;
        get_cells(start?, end?, outline?, stale?, budget?); execute_cells(start?, end?, stale?); execute_cell(cell_id);
        delete_cell(cell_id); move_cell(cell_id, position); get_output(cell_id, output?, offset?): a picture or long
        text; create_notebook(); open_notebook(path); save_notebook(path?); close_notebook(save?); list_notebooks().
        """
        request = {**args, "op": op}
        return await self._started(
            ctx, session, "cell", lambda job: self._notebook(job, request), lambda: checked(request)
        )

    async def install(self, ctx: Ctx, packages: list[str], session: Session = "") -> CallToolResult:
        """Install Python packages that the policy allows, such as ["emoji==2.14"]."""

        async def installed(kernel: Any) -> Reply:
            found = await self._manager.install(kernel, packages)
            return Reply(f"Installed: {', '.join(found)}." if found else "All of them are there already.")

        return await self._on_kernel(ctx, session, "install", installed)

    async def restart(self, ctx: Ctx, session: Session = "", keep_files: bool = True) -> CallToolResult:
        """Get a fresh kernel. Variables are lost, and what runs ends."""

        async def restarted(kernel: Any) -> Reply:
            await self._manager.restart_kernel(kernel, keep_files=keep_files, timeout=KERNEL_WAIT)
            return Reply(f"Fresh kernel; the files in /work {'were kept' if keep_files else 'are gone'}.")

        return await self._on_kernel(ctx, session, "restart", restarted)

    async def checkpoint(self, ctx: Ctx, session: Session = "") -> CallToolResult:
        """Save variables and files. Returns an id for restore."""

        async def saved(kernel: Any) -> Reply:
            made = await self._manager.checkpoint(kernel)
            lost = ", ".join(printable(f"{each.name} ({each.kind})", 100) for each in made.lost[:20])
            return Reply(
                f"Checkpoint {made.checkpoint_id}: {amount(made.bytes)}." + (f" Not in it: {lost}." if lost else "")
            )

        return await self._on_kernel(ctx, session, "checkpoint", saved)

    async def restore(self, ctx: Ctx, checkpoint: str, session: Session = "") -> CallToolResult:
        """Go back to a checkpoint of this session."""

        async def restored(kernel: Any) -> Reply:
            if _CHECKPOINT.fullmatch(checkpoint) is None:
                raise InvalidInputError("a checkpoint is named by the 32 characters that checkpoint returned.")
            back = await self._manager.restore(kernel, checkpoint, KERNEL_WAIT)
            return Reply(f"The session is as it was after cell {back.cell}.")

        return await self._on_kernel(ctx, session, "restore", restored)

    async def fork(self, ctx: Ctx, into: list[str], session: Session = "") -> CallToolResult:
        """Make new sessions of these names, each with a copy of this session's variables and files."""

        async def forked(kernel: Any) -> Reply:
            if not 1 <= len(into) <= _MOST_FORKS:
                raise InvalidInputError(f"name 1 to {_MOST_FORKS} new sessions.")
            owner = self._owner_of(ctx)
            names = [handle_of(owner, name) for name in into]
            await self._manager.fork(kernel, len(names), agent_ids=[each.agent_id for each in names])
            for each in names:
                self._names.put(owner, each.name, each.name, 1)
            return Reply(f"New sessions: {', '.join(each.name for each in names)}.")

        return await self._on_kernel(ctx, session, "fork", forked)

    async def sessions(self, ctx: Ctx, end: str = "") -> CallToolResult:
        """List sessions, what runs in them and ran last. end: the name of a session to end, with all that it has."""
        owner = self._owner_of(ctx)
        if end:

            async def ended(_job: Job) -> Reply:
                had = await self._manager.end_session(handle_of(owner, end).agent_id)
                self._names.drop(owner, end)
                self._notebooks.drop(owner, end)
                return Reply(f"Ended {end}." if had else f"There is no session {end!r}.", is_error=not had)

            return await self._started(ctx, end, "end", ended)
        try:
            async with asyncio.timeout(self._patience):
                return replies.to_mcp(Reply(self._listed(owner, await self._manager.list_sessions())))
        except TimeoutError:
            return replies.to_mcp(Reply("the list of sessions did not come in time.", is_error=True))
        except CellblockError as error:
            return replies.to_mcp(replies.failure(error))

    async def end_sessions(self, owner: str) -> None:
        """End all sessions of a principal.

        Raises:
            CellblockError: one cannot be ended.
        """
        for each in await self._manager.list_sessions():
            if name_in(owner, each["agent_id"]) is not None:
                await self._manager.end_session(each["agent_id"])

    def _listed(self, owner: str, known: Sequence[Mapping[str, Any]]) -> str:
        live = {name_in(owner, each["agent_id"]): each for each in known}
        lines = []
        for name in sorted({*filter(None, live), *self._names.of(owner)}):
            state = f"{live[name]['state']}, {live[name]['cell_count']} cells" if name in live else "ended"
            runs = ", ".join(f"{job.id} for {job.age_s:.0f} s" for job in self.jobs.running(owner, name))
            last = ", ".join(job.id for job in self.jobs.ended(owner, name)[-_LAST:])
            lines.append(f"{name}: {state}{f'; runs {runs}' if runs else ''}{f'; last were {last}' if last else ''}")
        return "\n".join(lines[:500]) or "no sessions"

    async def _file(self, session: Any, path: str, offset: int) -> Reply:
        size = (await self._manager.stat_file(session, path, follow_links=True)).size
        content = await self._manager.read_file(session, path, offset=offset, length=replies.LARGEST)
        return await asyncio.to_thread(replies.file, path, content, size, offset)


def _decoded(content: str, encoding: str) -> bytes:
    try:
        return base64.b64decode(content, validate=True) if encoding == "base64" else content.encode()
    except (binascii.Error, UnicodeEncodeError) as error:
        raise InvalidInputError(f"the content is no {encoding}: {error}.") from None
