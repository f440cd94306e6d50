"""``/sandboxes`` of E2B's control plane: making, finding, pausing and ending sandboxes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.errors import InvalidInputError, ServerUnavailableError
from orchestrator.principal import Principal
from orchestrator.server.answers import Json, dumps
from orchestrator.server.directory import Served, Wish, check_ttl
from orchestrator.server.e2b.addresses import query_of
from orchestrator.server.e2b.connectwire import parsed
from orchestrator.server.e2b.e2berrors import not_supported
from orchestrator.server.e2b.liveprocesses import LiveProcesses
from orchestrator.server.e2b.sandboxes import (
    Mark,
    is_paused,
    member,
    metadata_of,
    record_of,
    served_of,
    texts,
)
from orchestrator.server.e2b.sandboxforms import detail, listed, metric, moment, page
from orchestrator.server.e2b.snapshotroutes import from_snapshot, snapshot_of
from orchestrator.server.e2b.wirecontext import E2b, answer_of, caller_of, of
from orchestrator.store.history import HandleRecord, History, SessionRecord
from orchestrator.store.records import Expiry

DEFAULT_TTL: Final = 300.0  # seconds, as E2B's
_PATIENCE = 55.0  # seconds to wait for a kernel: the clients wait 60
_MOST_LISTED = 10_000
_UNSUPPORTED: Final = {
    "volumeMounts": "volumes",
    "mcp": "the MCP gateway",
    "iam": "workload identities",
    "network": "network rules",
}


async def create(request: Request) -> Response:
    """Make a sandbox: a new session, or one from a snapshot."""
    e2b, caller = of(request), caller_of(request)
    asked = await request.body()
    body = parsed(asked)
    for name, what in _UNSUPPORTED.items():
        if body.get(name):
            raise not_supported(f"a sandbox here has no {what.removeprefix('the ')}: leave out {name!r}.")
    answer = await e2b.service.idempotency.once(
        caller, request.headers.get("idempotency-key"), b"e2b\0" + asked, lambda: _create(e2b, caller, body)
    )
    return Json(answer, 201)


async def _create(e2b: E2b, caller: Principal, body: Mapping[str, Any]) -> bytes:
    template = member(body, "templateID", str, "base")
    mark = Mark(template, resumes=bool(member(member(body, "autoResume", dict, {}), "enabled", bool, False)))
    ttl = _seconds(body) or DEFAULT_TTL
    check_ttl(ttl)
    on_expiry: Expiry = "hibernate" if member(body, "autoPause", bool, False) else "end"
    metadata, environment = texts(body, "metadata"), texts(body, "envVars")
    snapshot = await snapshot_of(e2b.directory, caller, template)
    if snapshot is not None:
        served = await from_snapshot(e2b.directory, caller, snapshot, mark, metadata, environment)
        await e2b.directory.set_expiry(served, ttl, on_expiry)
    else:
        wish = Wish(
            policy=template if template in caller.policies else "",
            environment=environment,
            labels=mark.on(metadata),
            ttl_s=ttl,
            on_expiry=on_expiry,
            timeout=_PATIENCE,
        )
        served, _ = await e2b.directory.open(caller, wish)
    return dumps(answer_of(e2b, caller, served))


async def list_running(request: Request) -> Response:
    """Return the sandboxes that run, as older clients ask for them."""
    rows = [row for row in await _rows(request) if not is_paused(*row)]
    return Json([listed(*row, await of(request).policy(row[0].policy)) for row in rows])


async def list_sandboxes(request: Request) -> Response:
    """Return a page of sandboxes."""
    query = query_of(request.scope)
    states = set(filter(None, query.get("state", "running,paused").split(",")))
    rows = [row for row in await _rows(request) if ("paused" if is_paused(*row) else "running") in states]
    chosen, token = page(
        rows, query.get("limit", ""), query.get("nextToken", ""), newest_first=query.get("order") != "asc"
    )
    answer = [listed(handle, record, await of(request).policy(handle.policy)) for handle, record in _typed(chosen)]
    return Json(answer, headers={"x-next-token": token} if token else None)


async def info(request: Request) -> Response:
    """Return what is known of a sandbox. It is not woken."""
    e2b, caller = of(request), caller_of(request)
    handle, record = await record_of(e2b.directory, caller, request.path_params["id"])
    access = e2b.keys.issue(record.session_id, caller.token_id)
    return Json(detail(handle, record, await e2b.policy(handle.policy), access))


async def kill(request: Request) -> Response:
    """End a sandbox."""
    directory, caller = of(request).directory, caller_of(request)
    served = await served_of(directory, caller, request.path_params["id"])
    await directory.end(served)
    return Response(status_code=204)


async def set_timeout(request: Request) -> Response:
    """Count the time to live of a sandbox from now."""
    directory, caller = of(request).directory, caller_of(request)
    ttl = _seconds(parsed(await request.body()))
    if ttl is None:
        raise InvalidInputError("the request has no timeout.")
    served = await served_of(directory, caller, request.path_params["id"])
    await directory.set_expiry(served, max(ttl, 0.001), served.handle.on_expiry)
    return Response(status_code=204)


async def connect(request: Request) -> Response:
    """Resume a sandbox that is paused; let one that runs live at least as long as asked."""
    e2b, caller = of(request), caller_of(request)
    ttl = _seconds(parsed(await request.body())) or DEFAULT_TTL
    check_ttl(ttl)
    handle, record = await record_of(e2b.directory, caller, request.path_params["id"])
    paused = is_paused(handle, record)
    served = await served_of(e2b.directory, caller, record.session_id)
    if paused:
        served, _ = await e2b.directory.open(caller, Wish(handle.name, timeout=_PATIENCE))
    expires_at = served.handle.expires_at
    if paused or (expires_at is not None and expires_at < time.time() + ttl):
        await e2b.directory.set_expiry(served, ttl, served.handle.on_expiry)
    return Json(answer_of(e2b, caller, served), 201 if paused else 200)


async def pause(request: Request) -> Response:
    """Checkpoint a sandbox and give its kernel up. What runs in it beside variables and files ends."""
    directory, caller = of(request).directory, caller_of(request)
    handle, record = await record_of(directory, caller, request.path_params["id"])
    if is_paused(handle, record):
        return Json({"code": 409, "message": f"sandbox {record.session_id} is already paused"}, 409)
    served = await served_of(directory, caller, record.session_id)
    await _hibernate(served)
    await directory.set_expiry(served, None, served.handle.on_expiry)
    return Response(status_code=204)


async def metrics(request: Request) -> Response:
    """Return what a sandbox uses now; nothing for one that sleeps."""
    e2b, caller = of(request), caller_of(request)
    handle, record = await record_of(e2b.directory, caller, request.path_params["id"])
    if record.state != "live":
        return Json([])
    served = await served_of(e2b.directory, caller, record.session_id)
    usage = await served.manager.get_kernel_resource_usage(served.session.kernel_id)
    return Json([metric(usage, await e2b.policy(handle.policy), time.time())])


async def logs(request: Request) -> Response:
    """Return no log lines: the history and the audit log of the server have what ran."""
    await record_of(of(request).directory, caller_of(request), request.path_params["id"])
    return Json({"logs": [], "logEntries": []})


async def network(_request: Request) -> Response:
    """Refuse network rules."""
    raise not_supported("a sandbox here has no network, and no rules for one.")


routes = [
    Route("/sandboxes", create, methods=["POST"]),
    Route("/v2/sandboxes", create, methods=["POST"]),
    Route("/sandboxes", list_running, methods=["GET"]),
    Route("/v2/sandboxes", list_sandboxes, methods=["GET"]),
    Route("/sandboxes/{id}", info, methods=["GET"]),
    Route("/sandboxes/{id}", kill, methods=["DELETE"]),
    Route("/sandboxes/{id}/timeout", set_timeout, methods=["POST"]),
    Route("/sandboxes/{id}/refreshes", connect, methods=["POST"]),
    Route("/sandboxes/{id}/connect", connect, methods=["POST"]),
    Route("/sandboxes/{id}/resume", connect, methods=["POST"]),
    Route("/v2/sandboxes/{id}/connect", connect, methods=["POST"]),
    Route("/sandboxes/{id}/pause", pause, methods=["POST"]),
    Route("/sandboxes/{id}/metrics", metrics, methods=["GET"]),
    Route("/sandboxes/{id}/logs", logs, methods=["GET"]),
    Route("/v2/sandboxes/{id}/logs", logs, methods=["GET"]),
    Route("/sandboxes/{id}/network", network, methods=["PUT"]),
]


async def _hibernate(served: Served) -> None:
    """Put a sandbox to sleep.

    Raises:
        ServerUnavailableError: it is in use, or its state cannot be kept. It runs on.
        CheckpointError, StoreError, KernelDiedError: its state cannot be saved. It runs on.
    """
    await LiveProcesses.of(served).release()
    served.manager.interrupt(served.session)
    if not await served.manager.hibernate(served.session.agent_id):
        await served.manager.checkpoint(served.session)  # raises what is wrong with its state
        raise ServerUnavailableError(
            "the sandbox is in use, or has state that no checkpoint keeps; it runs on.",
            remedy="End what uses it, and pause it again.",
        )


async def _rows(request: Request) -> list[tuple[HandleRecord, SessionRecord]]:
    """Return the group's sandboxes that a client's query is about, without snapshots."""
    query = query_of(request.scope)
    wanted = {unquote(name): unquote(value) for name, value in parse_qsl(query.get("metadata", ""))}
    after = moment(query["startedAfter"]) if query.get("startedAfter") else 0.0
    template = query.get("template", "")
    history = of(request).directory.history
    rows = await history.run(History.handles, caller_of(request).group, limit=_MOST_LISTED)
    return [
        (handle, record)
        for handle, record in rows
        if not (mark := Mark.of(handle)).is_snapshot
        and wanted.items() <= metadata_of(handle).items()
        and record.created_at >= after
        and template in ("", mark.template)
    ]


def _typed(rows: list[Any]) -> list[tuple[HandleRecord, SessionRecord]]:
    return rows


def _seconds(body: Mapping[str, Any]) -> float | None:
    value: float | None = member(body, "timeout", (int, float), None)
    return value
