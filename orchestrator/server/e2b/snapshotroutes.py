"""Forks and snapshots of E2B's control plane. A snapshot is a fork that sleeps; sandboxes are forked from it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.errors import CellblockError, InvalidInputError
from orchestrator.principal import Principal
from orchestrator.server.answers import Json
from orchestrator.server.directory import Directory, Served, check_ttl
from orchestrator.server.e2b.addresses import query_of
from orchestrator.server.e2b.connectwire import parsed
from orchestrator.server.e2b.e2berrors import control_error, not_supported, not_there
from orchestrator.server.e2b.sandboxes import Mark, mark_again, member, served_of
from orchestrator.server.e2b.sandboxforms import page
from orchestrator.server.e2b.wirecontext import answer_of, caller_of, of
from orchestrator.store.history import HandleRecord, History, SessionRecord

_MOST_FORKS = 100
_ANY: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
_MOST_LISTED = 10_000
_TTL: Final = 300.0  # seconds of a fork


async def fork(request: Request) -> Response:
    """Make sandboxes with the state of one. Each is reported on its own: it may fail alone."""
    e2b, caller = of(request), caller_of(request)
    body = parsed(await request.body())
    count = member(body, "count", int, 1)
    if not 1 <= count <= _MOST_FORKS:
        raise InvalidInputError(f"the count is not from 1 to {_MOST_FORKS}.")
    ttl = member(body, "timeout", (int, float), _TTL)
    check_ttl(ttl)
    served = await served_of(e2b.directory, caller, request.path_params["id"])
    answers: list[dict[str, Any]] = []
    for made in await _forks(e2b.directory, caller, served, count):
        try:
            await e2b.directory.set_expiry(made, ttl, made.handle.on_expiry)
            answers.append({"sandbox": answer_of(e2b, caller, made)})
        except CellblockError as error:
            answers.append({"error": control_error(error)[1]})
    return Json(answers, 201)


async def create_snapshot(request: Request) -> Response:
    """Keep the state of a sandbox, which runs on."""
    directory, caller = of(request).directory, caller_of(request)
    body = parsed(await request.body())
    served = await served_of(directory, caller, request.path_params["id"])
    name = member(body, "name", str, "")[:200]
    made = (await _forks(directory, caller, served, 1))[0]
    await mark_again(directory, made, replace(Mark.of(made.handle), source=served.session_id, name=name))
    return Json(_snapshot(made.handle), 201)


async def list_snapshots(request: Request) -> Response:
    """Return a page of snapshots."""
    query = query_of(request.scope)
    rows = [
        (handle, record)
        for handle, record in await _rows(of(request).directory, caller_of(request))
        if query.get("sandboxID", "") in ("", Mark.of(handle).source)
        and query.get("name", "") in ("", Mark.of(handle).name)
    ]
    chosen, token = page(rows, query.get("limit", ""), query.get("nextToken", ""), newest_first=True)
    return Json([_snapshot(handle) for handle, _ in chosen], headers={"x-next-token": token} if token else None)


async def delete_snapshot(request: Request) -> Response:
    """Delete a snapshot. The sandboxes that were made from it stay."""
    directory, caller = of(request).directory, caller_of(request)
    snapshot = await snapshot_of(directory, caller, request.path_params["id"])
    if snapshot is None:
        raise not_there(f"there is no snapshot {request.path_params['id'][:64]!r}.")
    await directory.end(snapshot)
    return Response(status_code=204)


async def no_templates(_request: Request) -> Response:
    """Refuse to build templates."""
    raise not_supported(
        "templates are not built here: a sandbox has the image and the packages of its policy. Name a policy of your "
        "token as the template. The server's operator builds images."
    )


async def not_here(request: Request) -> Response:
    """Refuse what a sandbox here has not."""
    raise not_supported(f"{request.url.path.split('/')[1]} are not supported here.")


routes = [
    Route("/sandboxes/{id}/fork", fork, methods=["POST"]),
    Route("/sandboxes/{id}/snapshots", create_snapshot, methods=["POST"]),
    Route("/snapshots", list_snapshots, methods=["GET"]),
    Route("/templates/{id}", delete_snapshot, methods=["DELETE"]),
    *(Route(f"{version}/templates{{rest:path}}", no_templates, methods=_ANY) for version in ("", "/v2", "/v3")),
    Route("/volumes{rest:path}", not_here, methods=_ANY),
    Route("/secrets{rest:path}", not_here, methods=_ANY),
]


async def snapshot_of(directory: Directory, caller: Principal, name: str) -> Served | None:
    """Return a snapshot of the caller's group by its id or its name; None if there is none."""
    for handle, record in await _rows(directory, caller):
        if name == record.session_id or name == Mark.of(handle).name:
            return await served_of(directory, caller, record.session_id, snapshot=True)
    return None


async def from_snapshot(
    directory: Directory,
    caller: Principal,
    snapshot: Served,
    mark: Mark,
    metadata: Mapping[str, str],
    environment: Mapping[str, str],
) -> Served:
    """Return a new sandbox with the state of a snapshot, which sleeps again.

    Raises:
        See ``AgentKernelManager.fork``.
    """
    made = (await _forks(directory, caller, snapshot, 1))[0]
    made.handle = replace(made.handle, labels=mark.on(metadata), environment={**made.handle.environment, **environment})
    await directory.history.run(History.add_handle, made.handle)
    await snapshot.manager.hibernate(snapshot.session.agent_id)
    return made


async def _forks(directory: Directory, caller: Principal, parent: Served, count: int) -> list[Served]:
    names = [f"session-{secrets.token_hex(8)}" for _ in range(count)]
    return await directory.fork(caller, parent, names)


async def _rows(directory: Directory, caller: Principal) -> list[tuple[HandleRecord, SessionRecord]]:
    rows = await directory.history.run(History.handles, caller.group, limit=_MOST_LISTED)
    return [row for row in rows if Mark.of(row[0]).is_snapshot]


def _snapshot(handle: HandleRecord) -> dict[str, Any]:
    mark = Mark.of(handle)
    return {"snapshotID": handle.session_id, "names": [mark.name] if mark.name else []}
