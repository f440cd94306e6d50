"""McpService: one MCP server over one manager, for any number of connections and principals.

It never starts or ends the manager: who made the manager does.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import pydantic
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ResourceNotFoundError
from mcp.server.mcpserver.tools import Tool
from mcp.server.stdio import stdio_server
from mcp_types import ToolAnnotations
from starlette.requests import Request

from orchestrator.mcp.calls import PATIENCE, SCHEME, NotebooksOf
from orchestrator.mcp.facade import Facade
from orchestrator.mcp.handles import check_owner
from orchestrator.mcp.httpendpoint import HttpEndpoint, PrincipalOf, owner_of_request
from orchestrator.mcp.replies import LARGEST, Attachment
from orchestrator.mcp.shelf import Shelf
from orchestrator.mcp.stdiowire import standard_streams
from orchestrator.mcp.tooling import READ_ONLY, Tooling

_MOST_RESOURCES = 100  # of one principal
_OWN_BYTES = 32 * LARGEST  # of the resources of one principal
_ALL_BYTES = 256 * 1024 * 1024  # of all resources

INSTRUCTIONS = (
    "Runs Python and shell commands in a locked sandbox without network. Each session has a kernel and files of its "
    'own; without `session`, calls use the session "main". A call is answered within a minute: what still runs has an '
    "id for wait and interrupt."
)


class McpService:
    """Serves MCP over stdio, over HTTP, or both.

    Args:
        manager: what runs the code; see ``Facade``.
        owner: the principal of calls over stdio. Agent ids are "PRINCIPAL:SESSION".
        patience: seconds after which a call is answered, whatever runs.
        notebooks_of: returns the open notebooks of a session; None: the service keeps them.
        note: called with the request of each call over HTTP, in the context in which the call and its job run.

    Attributes:
        server: the SDK's server.
        tooling: its tools.
    """

    def __init__(
        self,
        manager: Facade,
        *,
        owner: str = "mcp",
        patience: float = PATIENCE,
        note: Callable[[Request], None] = lambda _request: None,
        notebooks_of: NotebooksOf | None = None,
    ) -> None:
        self._note = note
        self._owner = check_owner(owner)
        self._resources: Shelf[Attachment] = Shelf(items=_MOST_RESOURCES, each=_OWN_BYTES, total=_ALL_BYTES)
        self.tooling = Tooling(manager, self._owner_of, self._resources, patience, notebooks_of)
        self.server = _Server(self)

    async def serve_stdio(self) -> None:
        """Serve one client over standard input and output, until the input ends or the task is cancelled.

        Meanwhile descriptor 0 is empty and descriptor 1 is stderr, so that nothing else reaches the client.
        """
        server = self.server._lowlevel_server  # the SDK has no public way to serve given streams
        async with standard_streams() as (stdin, stdout), stdio_server(stdin, stdout) as (read, write):
            await server.run(read, write, server.create_initialization_options())

    def http(self, principal_of: PrincipalOf, *, any_host: bool = False) -> HttpEndpoint:
        """Return the ASGI application of streamable HTTP. Call it once.

        Args:
            principal_of: returns who sends a request, or None, which is answered with 401.
            any_host: whether requests with any Host and Origin header are taken. Only where every request needs a
                token: without one, a web page could send requests to the loopback address.
        """
        return HttpEndpoint(self.server, principal_of, any_host=any_host)

    async def aclose(self) -> None:
        """Stop what runs. Call it before the manager's ``shutdown``."""
        await self.tooling.jobs.aclose()

    async def end_sessions(self) -> None:
        """End the sessions of the principal of stdio.

        Raises:
            CellblockError: one cannot be ended.
        """
        await self.tooling.end_sessions(self._owner)

    @contextlib.asynccontextmanager
    async def closing(self) -> AsyncIterator[None]:
        """Call ``aclose`` at the end."""
        try:
            yield
        finally:
            await self.aclose()

    def _owner_of(self, ctx: Context[Any, Any]) -> str:
        request = ctx.request_context.request
        if not isinstance(request, Request):
            return self._owner
        self._note(request)
        return owner_of_request(request)

    def resource(self, uri: str, ctx: Context[Any, Any]) -> Attachment:
        """Return what a link leads to.

        Raises:
            ResourceNotFoundError: this principal has no such resource, or it was replaced by newer ones.
        """
        found = self._resources.get(self._owner_of(ctx), uri.removeprefix(SCHEME))
        if not uri.startswith(SCHEME) or found is None:
            raise ResourceNotFoundError("There is no such resource, or newer ones have replaced it.")
        return found


class _Server(MCPServer[Any]):
    """The SDK's server with this service's tools and resources."""

    def __init__(self, service: McpService) -> None:
        self._service = service
        super().__init__(
            "cellblock",
            instructions=INSTRUCTIONS,
            version=_version(),
            tools=[_lean(tool) for tool in service.tooling.tools],
            log_level="WARNING",
            subscriptions=False,
        )

    async def read_resource(
        self, uri: pydantic.AnyUrl | str, context: Context[Any, Any] | None = None
    ) -> Iterable[ReadResourceContents]:
        """Return a resource with its own mime type, which no template of the SDK can."""
        assert context is not None, "every request has a context"
        found = self._service.resource(str(uri), context)
        text = found.mime.startswith("text/") or found.mime == "application/json"
        content: str | bytes = found.content.decode("utf-8", "replace") if text else found.content
        return [ReadResourceContents(content=content, mime_type=found.mime)]


def _lean(function: Any) -> Tool:
    """Return a tool without the titles that pydantic writes: a model pays for them and learns nothing."""
    tool = Tool.from_function(
        function,
        description=" ".join(function.__doc__.split()),
        annotations=ToolAnnotations(read_only_hint=True) if function.__name__ in READ_ONLY else None,
        structured_output=False,
    )
    tool.parameters.pop("title", None)
    for each in tool.parameters.get("properties", {}).values():
        each.pop("title", None)
        if each.get("default") in ("", 0, False, "."):
            del each["default"]
    return tool


def _version() -> str:
    from orchestrator import __version__

    return __version__
