"""`cellblock cluster`: makes hosts one Cellblock, shows them, and takes them apart."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from orchestrator.cli.render import AsJson, console, errors, plain, run_async, show_json, show_table
from orchestrator.errors import ClusterError, InvalidInputError, RayMissingError, SettingsError
from orchestrator.settings import Settings
from orchestrator.store.history import History

if TYPE_CHECKING:
    from orchestrator.cluster.hostnode import HostNode
    from orchestrator.cluster.nodeconfig import NodeConfig

app = typer.Typer(
    name="cluster",
    help="Make several hosts one Cellblock, over Ray and PostgreSQL.\n\nExample: cellblock cluster up",
    no_args_is_help=True,
)
_NEEDED = ("aiohttp", "fastapi", "httptools", "python_multipart", "uvicorn", "websockets")
_LOOPBACK = "127.0.0.1"
_MARKS = {"serving": "green", "starting": "yellow", "waiting": "yellow", "silent": "red", "stopped": "red"}

Host = Annotated[str, typer.Option(help="The address at which the other hosts reach this one.")]
Name = Annotated[str, typer.Option("--node", help="The node's name. Default: this host's name.")]
ServerPort = Annotated[int, typer.Option(min=1, max=65535, help="The port of this host's server.")]
StoreUrl = Annotated[
    str, typer.Option(help="The database of all hosts, such as postgresql+psycopg://user@db/cellblock. "
                           "Default: CELLBLOCK_STORE_URL.")
]  # fmt: skip
TokenFile = Annotated[Path | None, typer.Option(help="Ray's token. Default: cluster/ray-token in the data folder.")]
Policies = Annotated[list[str] | None, typer.Option("--policy", help="As for `cellblock serve`; may be repeated.")]
MaxKernels = Annotated[int, typer.Option(min=1, help="How many kernels each policy may have at once on this host.")]
TlsCert = Annotated[Path | None, typer.Option(help="A PEM file with the server's certificate, for HTTPS.")]
TlsKey = Annotated[Path | None, typer.Option(help="A PEM file with the certificate's key.")]


@app.command()
def up(
    host: Host = _LOOPBACK,
    port: Annotated[int, typer.Option(min=1024, max=65535, help="The port of Ray's head.")] = 6379,
    node: Name = "",
    server_port: ServerPort = 8730,
    store_url: StoreUrl = "",
    token_file: TokenFile = None,
    policy: Policies = None,
    max_kernels: MaxKernels = 10,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    as_json: AsJson = False,
) -> None:
    """Start Ray's head and a node on this host. Idempotent: what runs already is found again.

    Without --host, only this host reaches it, and SQLite is enough. With --host, all hosts share a PostgreSQL database.

    Example: cellblock cluster up --host 10.0.0.1 --store-url postgresql+psycopg://cellblock@db/cellblock
    """
    from orchestrator.cluster.raycluster import is_loopback

    _check_extras()
    settings = _settings(store_url, needed=not is_loopback(host))
    config = _config(host, node, server_port, f"{host}:{port}", policy, max_kernels, tls_cert, tls_key, is_head=True)
    made = None if is_loopback(host) else _operator_token(settings)
    _start(settings, config, token_file, as_json)
    if as_json:
        return
    if made is not None:
        console.print(f"a token with the right `operator` is in {escape(str(made))}")
    if not is_loopback(host):
        console.print(f"on each other host: copy {escape(str(_data(settings) / 'ray-token'))} there, then run")
        console.print(f"  cellblock cluster join {host}:{port} --host ADDRESS --store-url URL", soft_wrap=True)


@app.command()
def join(
    address: Annotated[
        str, typer.Argument(help="Ray's head, as HOST:PORT. Without: the Ray that runs on this host already.")
    ] = "auto",
    host: Host = "",
    node: Name = "",
    server_port: ServerPort = 8730,
    store_url: StoreUrl = "",
    token_file: TokenFile = None,
    policy: Policies = None,
    max_kernels: MaxKernels = 10,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    as_json: AsJson = False,
) -> None:
    """Make this host a node of a cluster. Idempotent: what runs already is found again.

    Example: cellblock cluster join 10.0.0.1:6379 --host 10.0.0.2 --store-url postgresql+psycopg://cellblock@db/cellblock
    """
    _check_extras()
    settings = _settings(store_url, needed=True)
    own = host or _own_address(address)
    config = _config(own, node, server_port, address, policy, max_kernels, tls_cert, tls_key, is_head=False)
    _start(settings, config, token_file, as_json)


@app.command()
def status(token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Show the nodes. Exit status: 0 if Ray answers and each node serves, 1 if not.

    Example: cellblock cluster status
    """
    _check_extras()
    found, fault = run_async(_host(Settings.load(), token_file).states())
    if as_json:
        show_json({"nodes": found, "fault": fault})
    else:
        _show(found)
        if fault:
            errors.print(f"[yellow]only this host's node is shown:[/] {escape(plain(fault))}")
    raise typer.Exit(0 if not fault and all(state.get("condition") == "serving" for state in found) else 1)


@app.command()
def drain(
    node: Annotated[
        str, typer.Argument(metavar="NODE", help="The node's name, as `cellblock cluster status` shows it.")
    ],
    seconds: Annotated[float, typer.Option(min=1, help="How long it may take to move its sessions.")] = 120.0,
    operator_token: Annotated[
        Path | None, typer.Option(help="A file with a token that has the right `operator`. Default: that of `up`.")
    ] = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Have a node take no new session, and move its sessions to the others by checkpoints.

    Example: cellblock cluster drain host-2
    """
    _check_extras()
    from orchestrator.cluster.draining import drain as drain_server

    settings = Settings.load()
    file = operator_token or _data(settings) / "operator-token"
    token = file.read_text().strip() if operator_token is not None or file.is_file() else None
    this = _host(settings, token_file)

    async def work() -> dict[str, Any]:
        return await drain_server(await this.url_of(node), token, seconds)

    answer = run_async(work())
    if as_json:
        show_json(answer)
    else:
        console.print(f"node {escape(plain(node))} is drained: {escape(plain(str(answer)))}")


@app.command()
def down(token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """End the node of this host, and Ray if `up` or `join` started it. Every session is kept.

    Example: cellblock cluster down
    """
    _check_extras()
    this = _host(Settings.load(), token_file)
    with errors.status("ending the node; its sessions are kept"):
        ran = run_async(this.stop())
    if as_json:
        show_json({"stopped": ran})
    else:
        console.print("the node has ended; its sessions are kept" if ran else "this host is part of no cluster")


def _check_extras() -> None:
    """Refuse to go on without the extras, before anything imports them."""
    if find_spec("ray") is None:
        raise RayMissingError("Ray is not installed; nothing was done.", remedy='Run `pip install "cellblock[ray]"`.')
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ClusterError(
            f"a node needs {', '.join(missing)}; nothing was done.",
            remedy='Run `pip install "cellblock[ray,server,postgres]"`.',
        )


def _settings(store_url: str, *, needed: bool) -> Settings:
    """Return the settings of this host and of its server, which inherits the environment."""
    if store_url:
        os.environ["CELLBLOCK_STORE_URL"] = store_url
    settings = Settings.load()
    if needed and not settings.store_url:
        raise SettingsError(
            "several hosts need one PostgreSQL database, and none is named; nothing was started.",
            remedy="Name it with --store-url or CELLBLOCK_STORE_URL, such as postgresql+psycopg://user@db/cellblock.",
        )
    return settings


def _config(
    host: str,
    node: str,
    server_port: int,
    ray: str,
    policies: list[str] | None,
    max_kernels: int,
    tls_cert: Path | None,
    tls_key: Path | None,
    *,
    is_head: bool,
) -> NodeConfig:
    from orchestrator.cluster.nodeconfig import NodeConfig, check_name, server_environment

    return NodeConfig(
        name=check_name(node or socket.gethostname()),
        host=host,
        port=server_port,
        ray=ray,
        is_head=is_head,
        policies=tuple(policies or ()),
        max_kernels=max_kernels,
        tls_cert="" if tls_cert is None else str(tls_cert.absolute()),
        tls_key="" if tls_key is None else str(tls_key.absolute()),
        environment=server_environment(),
    )


def _start(settings: Settings, config: NodeConfig, token_file: Path | None, as_json: bool) -> None:
    this = _host(settings, token_file)
    with errors.status(f"starting the node {config.name}"):
        run_async(this.start(config))
    if as_json:
        show_json({"node": config.name, "url": config.url, "ray": config.ray})
    else:
        console.print(f"node {escape(config.name)} serves on {escape(config.url)}; Ray's head: {escape(config.ray)}")


def _host(settings: Settings, token_file: Path | None) -> HostNode:
    from orchestrator.cluster.hostnode import HostNode

    return HostNode(settings, None if token_file is None else token_file.absolute())


def _data(settings: Settings) -> Path:
    return settings.data_path / "cluster"


def _own_address(head: str) -> str:
    """Return the address from which this host reaches the head."""
    target = head.rpartition(":")[0] or "192.0.2.1"  # an address of documentation: nothing is sent there
    with socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((target.strip("[]"), 1))
        except OSError as error:
            raise InvalidInputError(
                f"{head} cannot be reached: {error.strerror or error}.", remedy="Name --host."
            ) from None
        return str(probe.getsockname()[0])


def _operator_token(settings: Settings) -> Path | None:
    """Make a token if there is none: a server that others reach needs one. Return the file with it, or None."""
    from orchestrator.server.authentication import new_token
    from orchestrator.store.wholefile import write_whole

    settings.refuse_foreign_folders()
    history = History.open(settings.history_url, settings.data_path)
    try:
        if history.has_tokens():
            return None
        token, record = new_token("cluster", "default", [settings.policy], ["operator"], None)
        file = _data(settings) / "operator-token"
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(file, token, mode=0o600)
        history.add_token(record)
        return file
    finally:
        history.close()


def _show(found: list[dict[str, Any]]) -> None:
    table = Table("node", "state", "server", "process", "starts", "memory free", "load", "version")
    text: Callable[[Any], str] = lambda value: escape(plain(str(value)))  # noqa: E731
    for state in found:
        condition = str(state.get("condition", "unknown"))
        free = f"{state['free_memory_mb']} of {state['memory_mb']} MiB" if "memory_mb" in state else "-"
        load = f"{state['load']} of {state['cores']}" if "cores" in state else "-"
        table.add_row(
            text(state["name"]), f"[{_MARKS.get(condition, 'red')}]{text(condition)}[/]", text(state.get("url", "-")),
            text(state.get("pid", "-")), text(state.get("starts", "-")), text(free), text(load),
            text(state.get("version", "-")),
        )  # fmt: skip
    show_table(table)
    for state in found:
        if detail := state.get("error") or state.get("detail"):
            errors.print(f"{text(state['name'])}: {text(detail)}")
