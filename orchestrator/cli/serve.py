"""`cellblock serve`: one process that owns the kernels of this host, reached over HTTP."""

from __future__ import annotations

import asyncio
import logging
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from orchestrator.cli.render import console
from orchestrator.settings import Settings

_NEEDED = ("fastapi", "httptools", "python_multipart", "uvicorn", "websockets")


def serve(
    host: Annotated[str, typer.Option(help="The address to listen on. Others than this machine's need tokens.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0: any free one.")] = 8730,
    uds: Annotated[Path | None, typer.Option(help="A unix socket to listen on, in place of a port.")] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="A policy for callers while there are no tokens; may be repeated. The first starts at once."),
    ] = None,
    max_kernels: Annotated[int, typer.Option(min=1, help="How many kernels each policy may have at once.")] = 10,
    concurrent: Annotated[
        int, typer.Option(min=1, help="How many requests, and how many streams, each token may have open at once.")
    ] = 256,
    drain: Annotated[float, typer.Option(min=0, help="Seconds that requests have to end at SIGTERM.")] = 10.0,
    tls_cert: Annotated[Path | None, typer.Option(help="A PEM file with the certificate, for HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="A PEM file with the certificate's key.")] = None,
) -> None:
    """Serve kernels over HTTP: the native API, and a dashboard at `/`. At SIGTERM every session is kept.

    Example: cellblock serve --port 8730
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        typer.echo(f"cellblock: the server needs {', '.join(missing)}: pip install 'cellblock[server]'", err=True)
        raise typer.Exit(2)
    from orchestrator.server.service import Service
    from orchestrator.server.serving import Address
    from orchestrator.server.serving import serve as serve_until_signal

    _log_access()
    settings = Settings.load()
    service = Service(settings, policy or [settings.policy], max_kernels=max_kernels, concurrent=concurrent)
    address = Address(host, port, None if uds is None else uds.absolute(), tls_cert, tls_key)

    def ready(bound: Address) -> None:
        console.print(f"serving on {escape(str(bound))}", soft_wrap=True)
        if service.authentication.is_open:
            console.print(
                "without tokens: every program on this machine may use it. `cellblock token create NAME` makes one."
            )

    asyncio.run(serve_until_signal(service, address, drain_s=drain, ready=ready))


def _log_access() -> None:
    """Write a line of JSON to standard error for each request, and what libraries warn of."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter('{"at":"%(asctime)s","request":%(message)s}'))
    logger = logging.getLogger("orchestrator.server.access")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
