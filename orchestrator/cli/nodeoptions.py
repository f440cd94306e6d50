"""The options of a node, which `cellblock cluster up` and `cellblock cluster join` share."""

from __future__ import annotations

import functools
import inspect
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from orchestrator.cli.render import AsJson

if TYPE_CHECKING:
    from orchestrator.cluster.nodeconfig import NodeConfig

TokenFile = Annotated[Path | None, typer.Option(help="Ray's token. Default: cluster/ray-token in the data folder.")]


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What somebody has typed. The fields are the options."""

    node: Annotated[str, typer.Option(help="The node's name. Default: this host's name.")] = ""
    server_port: Annotated[int, typer.Option(min=1, max=65535, help="The port of this host's server.")] = 8730
    store_url: Annotated[
        str,
        typer.Option(
            help="The database of all hosts, such as postgresql+psycopg://user@db/cellblock. "
            "Default: CELLBLOCK_STORE_URL."
        ),
    ] = ""
    token_file: TokenFile = None
    policy: Annotated[list[str] | None, typer.Option(help="As for `cellblock serve`; may be repeated.")] = None
    max_kernels: Annotated[
        int, typer.Option(min=1, help="How many kernels each policy may have at once on this host.")
    ] = 10
    tls_cert: Annotated[Path | None, typer.Option(help="A PEM file with the server's certificate, for HTTPS.")] = None
    tls_key: Annotated[Path | None, typer.Option(help="A PEM file with the certificate's key.")] = None
    as_json: AsJson = False

    def config(self, host: str, ray: str, *, is_head: bool) -> NodeConfig:
        """Return the node.

        Raises:
            InvalidInputError: its name cannot be used.
        """
        from orchestrator.cluster.nodeconfig import NodeConfig, check_name, server_environment

        return NodeConfig(
            name=check_name(self.node or socket.gethostname()),
            host=host,
            port=self.server_port,
            ray=ray,
            is_head=is_head,
            policies=tuple(self.policy or ()),
            max_kernels=self.max_kernels,
            tls_cert="" if self.tls_cert is None else str(self.tls_cert.absolute()),
            tls_key="" if self.tls_key is None else str(self.tls_key.absolute()),
            environment=server_environment(),
        )


def takes_node_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the fields of ``NodeOptions`` as options, in place of its parameter ``options``."""
    hints, defaults = get_type_hints(NodeOptions, include_extras=True), inspect.signature(NodeOptions).parameters
    own = inspect.signature(command, eval_str=True).parameters
    shared = {name: parameter.replace(annotation=hints[name]) for name, parameter in defaults.items()}

    @functools.wraps(command)
    def run(**given: Any) -> None:
        options = NodeOptions(**{name: given.pop(name) for name in shared})
        command(**given, options=options)

    parameters = [*(each for name, each in own.items() if name != "options"), *shared.values()]
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined] # Typer reads it
        [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    )
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run
