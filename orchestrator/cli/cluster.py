"""`cellblock cluster`: makes hosts one Cellblock, shows them, and takes them apart."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from orchestrator.cli.clusterview import cluster_settings, nodes_of, operator_token_of
from orchestrator.cli.nodeoptions import NodeOptions, TokenFile, takes_node_options
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
NodeName = Annotated[
    str,
    typer.Argument(
        metavar="NODE",
        help="The node's name, as `cellblock cluster status` shows it, or its address.",
    ),
]
OperatorToken = Annotated[
    Path | None, typer.Option(help="A file with a token that has the right `operator`. Default: that of `up`.")
]


@app.command()
@takes_node_options
def up(
    options: NodeOptions,
    host: Host = _LOOPBACK,
    port: Annotated[int, typer.Option(min=1024, max=65535, help="The port of Ray's head.")] = 6379,
) -> None:
    """Start Ray's head and a node on this host. Idempotent: what runs already is found again.

    Without --host, only this host reaches it, and SQLite is enough. With --host, all hosts share a PostgreSQL database.

    Example: cellblock cluster up --host 10.0.0.1 --store-url postgresql+psycopg://cellblock@db/cellblock
    """
    from orchestrator.cluster.raycluster import is_loopback

    _check_extras()
    settings = _settings(options.store_url, needed=not is_loopback(host))
    config = options.config(host, f"{host}:{port}", is_head=True)
    made = None if is_loopback(host) else _operator_token(settings)
    _start(settings, config, options)
    if options.as_json:
        return
    if made is not None:
        console.print(f"a token with the right `operator` is in {escape(str(made))}")
    if not is_loopback(host):
        console.print(f"on each other host: copy {escape(str(_data(settings) / 'ray-token'))} there, then run")
        console.print(f"  cellblock cluster join {host}:{port} --host ADDRESS --store-url URL", soft_wrap=True)


@app.command()
@takes_node_options
def join(
    options: NodeOptions,
    address: Annotated[
        str, typer.Argument(help="Ray's head, as HOST:PORT. Without: the Ray that runs on this host already.")
    ] = "auto",
    host: Host = "",
) -> None:
    """Make this host a node of a cluster. Idempotent: what runs already is found again.

    Example: cellblock cluster join 10.0.0.1:6379 --host 10.0.0.2 --store-url postgresql+psycopg://cellblock@db/cellblock
    """
    _check_extras()
    settings = _settings(options.store_url, needed=True)
    _start(settings, options.config(host or _own_address(address), address, is_head=False), options)


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
    node: NodeName,
    seconds: Annotated[float, typer.Option(min=1, help="How long it may take to move its sessions.")] = 120.0,
    operator_token: OperatorToken = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Have a node take no new session, and move its sessions to the others by checkpoints. `undrain` puts it back.

    Example: cellblock cluster drain host-2
    """
    from orchestrator.cluster.draining import drain as drain_server

    async def work() -> dict[str, Any]:
        settings = Settings.load()
        url = await _url_of(node, settings, token_file)
        return await drain_server(url, _token(settings, operator_token), seconds, settings.node_ca or True)

    answer = run_async(work())
    if as_json:
        show_json(answer)
        return
    kept = answer.get("kept") or {}
    console.print(f"node {escape(plain(node))} takes no session any longer; {len(kept)} stayed")
    for session_id, why in kept.items():
        console.print(f"  {escape(plain(f'{session_id}: {why}'))}")


@app.command()
def undrain(
    node: NodeName,
    operator_token: OperatorToken = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Have a drained node take sessions again. A drain that still runs ends.

    Example: cellblock cluster undrain host-2
    """
    from orchestrator.cluster.draining import undrain as undrain_server

    async def work() -> dict[str, Any]:
        settings = Settings.load()
        url = await _url_of(node, settings, token_file)
        return await undrain_server(url, _token(settings, operator_token), settings.node_ca or True)

    answer = run_async(work())
    if as_json:
        show_json(answer)
    else:
        console.print(f"node {escape(plain(node))} takes sessions again")


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


async def _url_of(name: str, settings: Settings, token_file: Path | None) -> str:
    """Return where a node's server answers: as the cluster's database says, or as Ray does, which knows its name.

    Raises:
        ClusterError: there is no such node, or nobody knows where it is.
    """
    with contextlib.suppress(ClusterError):  # no database, or none of a cluster
        found = [node.url for node in await nodes_of(cluster_settings()) if node.is_named(name)]
        if len(found) == 1:
            return found[0]
    _check_extras()
    return await _host(settings, token_file).url_of(name)


def _token(settings: Settings, named: Path | None) -> str | None:
    return named.read_text().strip() if named is not None else operator_token_of(settings)


def _start(settings: Settings, config: NodeConfig, options: NodeOptions) -> None:
    this = _host(settings, options.token_file)
    with errors.status(f"starting the node {config.name}"):
        run_async(this.start(config))
    if options.as_json:
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
