"""SandboxFusion's wire, ``POST /run_code`` and ``/run_jupyter``: stateless, each request in a fresh sandbox."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Scope

from orchestrator.errors import CellblockError, FileTransferError, InvalidInputError
from orchestrator.limits import MIB, Deadline
from orchestrator.outcome import Outcome
from orchestrator.output.commandresult import CommandResult
from orchestrator.output.events import DisplayData, ExecuteResult, ExecutionResult
from orchestrator.principal import Principal
from orchestrator.server.answers import Json
from orchestrator.server.dialect import TokenWire
from orchestrator.server.directory import Served, Wish
from orchestrator.server.problems import headers_of, status_of
from orchestrator.server.service import Service
from orchestrator.server.waiting import unless_gone

_PATHS = frozenset({"/run_code", "/run_jupyter"})
_PROGRAMS: Final[dict[str, tuple[str, str]]] = {"python": ("python3", "main.py"), "bash": ("bash", "main.sh")}
_LARGEST_FETCHED = 8 * MIB  # bytes of all files that one answer returns
_LONGEST = 3600.0  # seconds
_Files = Annotated[dict[str, str | None], Field(max_length=1000)]
_Seconds = Annotated[float, Field(ge=0, le=_LONGEST)]


class _Wanted(BaseModel):
    """Clients send more than this, such as limits of compilers: it has no effect."""

    model_config = ConfigDict(allow_inf_nan=False)

    files: _Files = Field(default_factory=dict)
    fetch_files: Annotated[list[str], Field(max_length=1000)] = Field(default_factory=list)


class RunCode(_Wanted):
    """A program. ``files`` are base64; ``memory_limit_MB`` has no effect, since the policy's limit holds."""

    code: str
    language: str
    run_timeout: _Seconds = 10.0
    stdin: str | None = None


class RunJupyter(_Wanted):
    """Cells of one kernel, in their order. A time limit of 0 is the policy's."""

    cells: Annotated[list[str], Field(max_length=1000)]
    cell_timeout: _Seconds = 0.0
    total_timeout: _Seconds = 45.0


class SandboxFusion(TokenWire):
    """The wire. A client names its token in the URL, as in ``http://:TOKEN@host``, or in a header."""

    app: ASGIApp

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self._ending: set[asyncio.Future[bool]] = set()
        routes = [
            Route("/run_code", self._run_code, methods=["POST"]),
            Route("/run_jupyter", self._run_jupyter, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes, exception_handlers={CellblockError: _failed})

    def claims(self, scope: Scope) -> bool:
        """See ``Dialect``."""
        return scope["path"] in _PATHS

    def refusal(self, error: CellblockError) -> Response:
        """See ``Dialect``."""
        return _refusal(error)

    async def _run_code(self, request: Request) -> Response:
        body = await _parsed(RunCode, request)
        if body.language not in _PROGRAMS:
            return Json(_sandbox_error(f"language {body.language!r} is not supported; python and bash are."))
        return Json(await unless_gone(request, self._code(request.scope["state"]["principal"], body)))

    async def _run_jupyter(self, request: Request) -> Response:
        body = await _parsed(RunJupyter, request)
        return Json(await unless_gone(request, self._jupyter(request.scope["state"]["principal"], body)))

    async def _code(self, principal: Principal, body: RunCode) -> dict[str, Any]:
        program, name = _PROGRAMS[body.language]
        async with self._sandbox(principal, body.files) as served:
            manager, session = served.manager, served.session
            await manager.write_file(session, name, body.code.encode("utf-8", "surrogatepass"))
            result = await manager.run_command(
                session, [program, name], stdin=body.stdin or "", timeout=body.run_timeout or None
            )
            files = await _fetched(served, body.fetch_files)
        status = "Success" if result.exit_code == 0 and result.outcome is Outcome.OK else "Failed"
        return {**_answer(status), "compile_result": None, "run_result": _command(result), "files": files}

    async def _jupyter(self, principal: Principal, body: RunJupyter) -> dict[str, Any]:
        begun, deadline = time.monotonic(), Deadline(body.total_timeout or _LONGEST)
        cells: list[ExecutionResult] = []
        async with self._sandbox(principal, body.files) as served:
            for code in body.cells:
                left = min(deadline.remaining(), body.cell_timeout or _LONGEST)
                if left <= 0:
                    break
                cells.append(await served.manager.execute(served.session, code or "pass", timeout=left))
                if cells[-1].kernel_state == "dead" or cells[-1].outcome is Outcome.TIMEOUT:
                    break
            files = {} if cells and cells[-1].kernel_state == "dead" else await _fetched(served, body.fetch_files)
        timed_out = len(cells) < len(body.cells) or any(cell.outcome is Outcome.TIMEOUT for cell in cells)
        all_well = all(cell.outcome is Outcome.OK for cell in cells) and not timed_out
        driver = {
            "status": "TimeLimitExceeded" if timed_out else "Finished",
            "execution_time": time.monotonic() - begun,
            "return_code": None if timed_out else 0,
            "stdout": "",
            "stderr": "",
        }
        answer = _answer("Success" if all_well else "Failed")
        return {**answer, "driver": driver, "cells": [_cell(cell) for cell in cells], "files": files}

    @contextlib.asynccontextmanager
    async def _sandbox(self, principal: Principal, files: Mapping[str, str | None]) -> AsyncGenerator[Served, None]:
        """Yield a new session with these files, and end it."""
        contents = {path: _decoded(path, content) for path, content in files.items() if content is not None}
        directory = self._service.directory
        wish = Wish(f"run-{secrets.token_hex(8)}", timeout=None)
        opening = asyncio.ensure_future(directory.open(principal, wish))
        try:
            served, _ = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._end_abandoned)
            raise
        try:
            for path, content in contents.items():
                await served.manager.write_file(served.session, path, content)
            yield served
        finally:
            ending = asyncio.ensure_future(directory.end(served))
            await asyncio.shield(ending)

    def _end_abandoned(self, opening: asyncio.Future[tuple[Served, bool]]) -> None:
        """End a session whose client went while it was made."""
        if not opening.cancelled() and opening.exception() is None:
            ending = asyncio.ensure_future(self._service.directory.end(opening.result()[0]))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)


async def _fetched(served: Served, paths: list[str]) -> dict[str, str]:
    """Return the files that there are, in base64."""
    found: dict[str, str] = {}
    left = _LARGEST_FETCHED
    for path in paths:
        with contextlib.suppress(FileTransferError):  # as SandboxFusion does: a missing file is left out
            content = await served.manager.read_file(served.session, path, limit=left)
            left -= len(content)
            found[path] = base64.b64encode(content).decode()
    return found


def _command(result: CommandResult) -> dict[str, Any]:
    return {
        "status": "TimeLimitExceeded" if result.timed_out else "Finished" if result.exit_code is not None else "Error",
        "execution_time": result.duration_s,
        "return_code": None if result.timed_out else result.exit_code,
        "stdout": result.stdout_text,
        "stderr": result.stderr_text,
    }


def _cell(result: ExecutionResult) -> dict[str, Any]:
    error = result.error
    shown = [dict(each.data) for each in result.outputs if isinstance(each, DisplayData | ExecuteResult)]
    failed = [] if error is None else [{"ename": error.ename, "evalue": error.evalue, "traceback": error.traceback}]
    return {"stdout": result.stdout, "stderr": result.stderr, "display": shown, "error": failed}


def _answer(status: str, message: str = "") -> dict[str, Any]:
    return {"status": status, "message": message, "executor_pod_name": None, "files": {}}


def _sandbox_error(message: str) -> dict[str, Any]:
    return {**_answer("SandboxError", message), "compile_result": None, "run_result": None}


def _refusal(error: CellblockError) -> Response:
    return Json(_sandbox_error(str(error)), status_of(error), headers_of(error))


async def _failed(_request: Request, error: Exception) -> Response:
    assert isinstance(error, CellblockError)
    return _refusal(error)


async def _parsed(kind: type[Any], request: Request) -> Any:
    """Return a request's body.

    Raises:
        InvalidInputError: it is no such body.
    """
    try:
        return kind.model_validate_json(await request.body())
    except ValidationError as error:
        fault = error.errors()[0]
        raise InvalidInputError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}.") from None


def _decoded(path: str, content: str) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except ValueError:
        raise InvalidInputError(f"the content of {path[:100]!r} is no base64.") from None
