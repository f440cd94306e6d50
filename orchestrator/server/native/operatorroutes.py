"""What an operator and a load balancer look at: health, readiness, metrics, and the kernels of all groups."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from orchestrator.errors import ServerUnavailableError
from orchestrator.server.answers import Json, Problem
from orchestrator.server.metrics import exposition
from orchestrator.server.native.access import Operator, TheService

router = APIRouter(tags=["operation"])


@router.get("/health", summary="Whether the process answers")
async def health() -> Response:
    """Return at once, also while the server shuts down."""
    return Json({"status": "ok"})


@router.get("/ready", summary="Whether the server takes new work")
async def ready(service: TheService) -> Response:
    """Return 503 while the server shuts down."""
    if await service.is_ready():
        return Json({"status": "ready"})
    return Problem(ServerUnavailableError("the server shuts down, and takes no new work."))


@router.get("/metrics", summary="Metrics for Prometheus")
async def metrics(_operator: Operator, service: TheService) -> Response:
    """Return the metrics of all managers, with the label `policy`, and of the server."""
    return Response(exposition(service), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/overview", summary="The kernels of all groups")
async def overview(_operator: Operator, service: TheService) -> Response:
    """Return what `cellblock ps` shows: pools, queues, and each kernel with its agent, cell and usage."""
    return Json({"managers": service.overview()})
