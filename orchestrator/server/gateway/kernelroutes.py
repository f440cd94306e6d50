"""``/api/kernels`` and ``/api/kernelspecs``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from orchestrator.errors import InvalidInputError, UnknownKernelNameError
from orchestrator.principal import Principal
from orchestrator.server.answers import Json
from orchestrator.server.gateway.channelsocket import converse
from orchestrator.server.gateway.gatewaykernels import GatewayKernels
from orchestrator.server.gateway.kernelspecs import DEFAULT, kernelspec, kernelspecs


class NewKernel(BaseModel):
    """Which kernel to start. Clients send more, such as a path of their own: it has no effect.

    Attributes:
        name: of its kernelspec.
        env: variables of every cell.
    """

    name: Annotated[str, Field(max_length=200)] | None = None
    env: Annotated[dict[str, str], Field(max_length=200)] = Field(default_factory=dict)


async def _specs(request: Request) -> Response:
    return Json(kernelspecs(caller(request)))


async def _spec(request: Request) -> Response:
    try:
        return Json(kernelspec(caller(request), request.path_params["name"]))
    except UnknownKernelNameError as error:
        raise HTTPException(404, error.message) from None


async def _list(request: Request) -> Response:
    return Json(await kernels_of(request).models(caller(request)))


async def _start(request: Request) -> Response:
    wish = await parsed(NewKernel, request)
    model = await kernels_of(request).start(caller(request), wish.name or DEFAULT, wish.env)
    return Json(model, 201, {"Location": f"/api/kernels/{model['id']}"})


async def _show(request: Request) -> Response:
    return Json(await kernels_of(request).model(caller(request), request.path_params["kernel_id"]))


async def _stop(request: Request) -> Response:
    await kernels_of(request).stop(caller(request), request.path_params["kernel_id"])
    return Response(status_code=204)


async def _interrupt(request: Request) -> Response:
    await kernels_of(request).interrupt(caller(request), request.path_params["kernel_id"])
    return Response(status_code=204)


async def _restart(request: Request) -> Response:
    kernels, kernel_id = kernels_of(request), request.path_params["kernel_id"]
    await kernels.restart(caller(request), kernel_id)
    return Json(await kernels.model(caller(request), kernel_id))


async def _channels(websocket: WebSocket) -> None:
    session_id = websocket.query_params.get("session_id", "")
    kernel_id = websocket.path_params["kernel_id"]
    async with kernels_of(websocket).connected(caller(websocket), kernel_id, session_id) as (live, client, over):
        await converse(websocket, live, client, over)


routes = [
    Route("/api/kernelspecs", _specs, methods=["GET"]),
    Route("/api/kernelspecs/{name:path}", _spec, methods=["GET"]),
    Route("/api/kernels", _list, methods=["GET"]),
    Route("/api/kernels", _start, methods=["POST"]),
    Route("/api/kernels/{kernel_id}", _show, methods=["GET"]),
    Route("/api/kernels/{kernel_id}", _stop, methods=["DELETE"]),
    Route("/api/kernels/{kernel_id}/interrupt", _interrupt, methods=["POST"]),
    Route("/api/kernels/{kernel_id}/restart", _restart, methods=["POST"]),
    WebSocketRoute("/api/kernels/{kernel_id}/channels", _channels),
]


def caller(connection: HTTPConnection) -> Principal:
    """Return who calls."""
    principal: Principal = connection.scope["state"]["principal"]
    return principal


def kernels_of(connection: HTTPConnection) -> GatewayKernels:
    """Return the kernels of the server."""
    kernels: GatewayKernels = connection.app.state.kernels
    return kernels


async def parsed(kind: type[Any], request: Request) -> Any:
    """Return a request's body; the default, if there is none.

    Raises:
        InvalidInputError: it is no such body.
    """
    try:
        return kind.model_validate_json(await request.body() or b"{}")
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise InvalidInputError(f"{where or 'the body'}: {fault['msg']}.") from None
