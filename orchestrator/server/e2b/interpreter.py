"""E2B's code interpreter, which its sandboxes have at port 49999: running code, and contexts."""

from __future__ import annotations

import codecs
import contextlib
import time
from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from orchestrator.errors import CellblockError, InvalidInputError, KernelTimeoutError
from orchestrator.outcome import Outcome
from orchestrator.output.commandresult import CommandFinished, CommandOutput
from orchestrator.output.events import CellFinished, ErrorOutput, Event, ExecutionResult
from orchestrator.server.answers import Json, dumps
from orchestrator.server.directory import Served
from orchestrator.server.e2b.codecontexts import DEFAULT, HOME, CodeContext, CodeContexts
from orchestrator.server.e2b.connectwire import parsed
from orchestrator.server.e2b.e2berrors import data_error, gone, not_supported
from orchestrator.server.e2b.keepalive import with_keepalive
from orchestrator.server.e2b.resultlines import END, KEEPALIVE, Line, ending, error_line, line_of
from orchestrator.server.e2b.sandboxes import member, texts

_PING = 5.0  # seconds, as E2B's own interpreter
_PYTHON = frozenset({"", "python"})


async def execute(request: Request) -> Response:
    """Run code; its output comes as lines of JSON."""
    served: Served = request.state.served
    body = parsed(await request.body())
    code, language = member(body, "code", str, ""), member(body, "language", str, "").lower()
    context_id = member(body, "context_id", str, "")
    environment = served.environment(texts(body, "env_vars"))
    if context_id and language:
        raise InvalidInputError("only one of context_id and language can be given.")
    if language == "bash":
        return _stream(_bash_lines(served, code, environment))
    if language not in _PYTHON:
        raise not_supported(f"there is no kernel for {language[:40]!r} in this sandbox. Use Python or bash.")
    contexts = CodeContexts.of(served)
    context = contexts.find(context_id or DEFAULT)
    if context is None:
        return _not_found(context_id)
    return _stream(_lines(served, contexts, context, code, environment))


async def list_contexts(request: Request) -> Response:
    """Return all contexts of a sandbox."""
    return Json([context.as_dict() for context in CodeContexts.of(request.state.served).listed()])


async def add_context(request: Request) -> Response:
    """Make a context."""
    body = parsed(await request.body())
    language = member(body, "language", str, "").lower()
    if language not in _PYTHON:
        raise not_supported(f"there is no kernel for {language[:40]!r} in this sandbox. Use Python.")
    return Json(CodeContexts.of(request.state.served).add(member(body, "cwd", str, "") or HOME).as_dict())


async def remove_context(request: Request) -> Response:
    """Remove a context."""
    served: Served = request.state.served
    contexts = CodeContexts.of(served)
    if (context := contexts.find(request.path_params["id"])) is None:
        return _not_found(request.path_params["id"])
    await contexts.remove(served, context)
    return Response(status_code=204)


async def restart_context(request: Request) -> Response:
    """Forget the variables of a context."""
    served: Served = request.state.served
    contexts = CodeContexts.of(served)
    if (context := contexts.find(request.path_params["id"])) is None:
        return _not_found(request.path_params["id"])
    await contexts.restart(served, context)
    return Response(status_code=204)


async def health(_request: Request) -> Response:
    """Say that the interpreter is there."""
    return Response("OK", media_type="text/plain")


routes = [
    Route("/execute", execute, methods=["POST"]),
    Route("/contexts", list_contexts, methods=["GET"]),
    Route("/contexts", add_context, methods=["POST"]),
    Route("/contexts/{id}", remove_context, methods=["DELETE"]),
    Route("/contexts/{id}/restart", restart_context, methods=["POST"]),
    Route("/health", health, methods=["GET"]),
]


def _not_found(context_id: str) -> Response:
    return Json({"code": 404, "message": f"Context {context_id[:64]} not found"}, 404)


def _stream(lines: AsyncGenerator[Line, None]) -> Response:
    encoded = with_keepalive(_encoded(lines), _PING, _line(KEEPALIVE))
    return StreamingResponse(encoded, media_type="application/x-ndjson", headers={"Cache-Control": "no-store"})


async def _encoded(lines: AsyncGenerator[Line, None]) -> AsyncGenerator[bytes, None]:
    """Yield the lines as they are sent. A refusal is reported as an error of the code, which did not run.

    Raises:
        CellblockError: the sandbox is gone: the connection breaks off, and E2B's clients ask whether it is there.
    """
    try:
        async with contextlib.aclosing(lines):
            async for line in lines:
                yield _line(line)
    except CellblockError as error:
        if data_error(error)[0] == 502:
            raise
        yield _line(error_line(type(error).__name__, str(error)))
        yield _line(END)


def _line(line: Line) -> bytes:
    return dumps(line) + b"\n"


async def _lines(
    served: Served, contexts: CodeContexts, context: CodeContext, code: str, environment: dict[str, str]
) -> AsyncGenerator[Line, None]:
    """Yield the lines of a cell. The cell is interrupted when the consumer stops.

    Raises:
        UnknownSessionError: the sandbox was killed meanwhile: the connection breaks off, which E2B's clients look for.
        See ``AgentKernelManager.stream_code``.
    """
    if not code.strip():
        yield END
        return
    cell = await contexts.code(served, context, code)
    shown: ErrorOutput | None = None  # told with the end: only then it is known whether it was a time limit
    events = served.manager.stream_code(served.session, cell, environment=environment)
    async with contextlib.aclosing(_to_the_end(events)) as all_events:
        async for event in all_events:
            if isinstance(event, CellFinished):
                _refuse_if_killed(served, event.result)
                for line in ending(event.result, shown):
                    yield line
                continue
            before, shown = (shown, event) if isinstance(event, ErrorOutput) else (event, shown)
            if before is not None and (found := line_of(before)) is not None:
                yield found


async def _to_the_end(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    """Yield events; a cell's time limit is an ending like any other."""
    try:
        async with contextlib.aclosing(events):
            async for event in events:
                yield event
    except KernelTimeoutError as error:
        yield CellFinished(error.result)


def _refuse_if_killed(served: Served, result: ExecutionResult) -> None:
    if result.outcome is Outcome.KERNEL_DIED and served.session.ended not in (None, Outcome.KERNEL_DIED, Outcome.OOM):
        raise gone(served.session_id)


async def _bash_lines(served: Served, code: str, environment: dict[str, str]) -> AsyncGenerator[Line, None]:
    """Yield the lines of a script: each is a shell of its own, as a command of the session."""
    decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")}
    command = ["/bin/bash", "-c", code]
    events = served.manager.stream_command(served.session, command, cwd=HOME, env=environment)
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, CommandOutput):
                if text := decoders[event.name].decode(event.data):
                    yield {"type": event.name, "text": text, "timestamp": time.time_ns()}
            elif isinstance(event, CommandFinished) and not event.result.ok:
                how = f"exit code {event.result.exit_code} ({event.result.outcome})"
                yield error_line("ExecutionError", f"the script ended with {how}")
    yield END
