"""Settings: what the operator of this host configures, from CELLBLOCK_* variables and a .env file.

The policy (``policy.py``) says what a sandbox may do.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
from difflib import get_close_matches
from functools import cache, cached_property
from pathlib import Path
from typing import Literal, Self
from urllib.parse import unquote

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, DotEnvSettingsSource, SettingsConfigDict

from orchestrator.errors import SettingsError

_log = logging.getLogger(__name__)
_PREFIX = "CELLBLOCK_"
_OBJECTS = re.compile(r"(s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._=-]*)*/?")
_PACKAGE = Path(__file__).resolve().parent


def data_folder(name: str) -> Path:
    """Return the folder ``policies`` or ``sandbox_image``: beside the package in a checkout, inside it in a wheel."""
    packed = _PACKAGE / "data" / name
    return packed if packed.is_dir() else _PACKAGE.parent / name


def private_folder(folder: Path) -> Path:
    """Return the folder, after creating it for this user alone if it does not exist.

    Its parent may be writable for everyone: once the folder is this user's, nobody else can replace it.

    Raises:
        SettingsError: it cannot be created, or it exists and is no folder, or not this user's with mode 0700.
    """
    remedy = "Set CELLBLOCK_STATE_DIR to a folder of your own with a short path."
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        info = folder.lstat()
    except OSError as error:
        raise SettingsError(f"the state folder {folder} cannot be created: {error.strerror}.", remedy=remedy) from error
    mode = stat.S_IMODE(info.st_mode)
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or mode != 0o700:
        raise SettingsError(
            f"the state folder {folder} is not used: it belongs to uid {info.st_uid} with mode {mode:04o}, and it must "
            f"be a folder of uid {os.geteuid()} with mode 0700.",
            remedy=remedy,
        )
    return folder


def refuse_foreign(path: Path, variable: str, *, shared: bool = False) -> None:
    """Check that no other user but root can write a folder, or put another one in its place.

    Every folder on the way belongs to this user or root, and so does each link; none is writable for everyone unless it
    is sticky, like /tmp. What does not exist yet is not checked.

    Args:
        path: the folder.
        variable: the setting that names it.
        shared: the path is a file, or a folder in which others may create files of their own.

    Raises:
        SettingsError: another user owns it or can write it. The message says how to repair it.
    """
    for each in dict.fromkeys([path, *path.parents, *(real := path.resolve()).parents, real]):
        try:
            owners, mode = {each.lstat().st_uid, each.stat().st_uid}, each.stat().st_mode
        except OSError:
            continue  # it does not exist or cannot be entered, which who uses it reports
        strict = not shared and each in (path, real)
        if foreign := owners - {0, os.geteuid()}:
            fault = f"{each} belongs to uid {min(foreign)}"
        elif stat.S_ISDIR(mode) and (mode & 0o022 if strict else mode & 0o002 and not mode & stat.S_ISVTX):
            fault = f"{each} is writable for other users (mode {stat.S_IMODE(mode):04o})"
        else:
            continue
        raise SettingsError(
            f"{path} is not used: {fault}, who can replace what Cellblock writes there.",
            remedy=f"Run `chown {os.geteuid()} {each}` and `chmod go-w {each}`, or set {variable} to a folder of this "
            "user's own.",
        )


class Settings(BaseSettings):
    """One field for each CELLBLOCK_* variable; a variable wins over ``.env``, ``.env`` over the default.

    Attributes:
        runtime: the container runtime. "auto": runsc if it works in the engine, else runc. Any other name must be a
            runtime of the engine. Empty: the policy's.
        policy: a name in ``policies/``, or the path of a TOML file.
        image: the sandbox image; empty: the image whose tag is the digest of ``sandbox_image/``.
        base_image: the image that ``cellblock image build`` builds on; empty: a base from this host's Debian packages
            if possible, else the slim Python image of a registry.
        warm_kernels: how many kernels to keep ready beyond those in use, within ``max_kernels``; None: the policy's
            number.
        state_dir: the folder of the kernels' sockets; empty: ``/run/cellblock`` for root, else
            ``$XDG_RUNTIME_DIR/cellblock``. A short path: unix socket paths end at 107 bytes.
        data_dir: the folder of sessions: history, large outputs, checkpoints and the key that signs them; empty:
            ``/var/lib/cellblock`` for root, else ``cellblock`` in ``$XDG_DATA_HOME`` (``~/.local/share``).
        store_url: the history's database as an SQLAlchemy URL, such as postgresql+psycopg://user@host/name; empty:
            SQLite in ``data_dir``.
        blobs: where checkpoints and large outputs are kept; empty: in ``data_dir``; "database": in the history's
            database, which is PostgreSQL; or the URL of a store that all its hosts reach: file:///folder,
            s3://bucket/prefix, gs://bucket/prefix, az://container/prefix.
        cluster_key_file: the file of the key that signs the checkpoints of a shared store; empty: the key is in the
            history's database.
        history_days: days without use after which a session is deleted.
        history_mb: MiB of history and checkpoints above which the oldest sessions that have ended are deleted, then the
            oldest outputs of the others.
        agent_quota_mb: MiB of history and checkpoints that one agent may keep.
        audit_log: the file of the audit log; empty: ``/var/log/cellblock/audit.jsonl`` for root, else
            ``cellblock/audit.jsonl`` in ``$XDG_STATE_HOME`` (``~/.local/state``); "off": no audit log.
        audit_rotate_mb: MiB at which the audit log starts a new file.
        audit_files: how many full files of the audit log are kept; older ones are deleted.
        log_level: the lowest level that the commands log on stderr: debug, info, warning or error.
        log_format: "text" or "json".
        metrics_port: the port of the Prometheus endpoint, on ``metrics_address``; 0: no endpoint.
        mcp_token: the token that `cellblock mcp --http` asks for; empty: none, and only the loopback address is served.
        uid_base, uid_count: the range of user ids for containers; each container gets its own.
        engine_timeout: the time limit of one call to the engine, in seconds.
        start_timeout: the time limit for a kernel to become ready, in seconds.
        node_url: where other hosts reach this process's server. Set, it is a node of the cluster whose database
            ``store_url`` names; empty: it is no node.
        node_lease_s: how long a node that cannot be reached keeps its sessions, in seconds; all nodes of a cluster have
            the same. It renews three times in that time.
        node_ca: the file of the certificate authority that the nodes' certificates are checked with; empty: the
            system's authorities.
        ask_nodes: how many nodes the cluster asks Ray's autoscaler for at most, while callers wait; 0: it never asks.
        operator_token_file: the file of the token with which commands with --cluster ask the nodes; empty:
            ``cluster/operator-token`` in the data folder, if it is there.
    """

    model_config = SettingsConfigDict(env_prefix=_PREFIX, env_file=".env", extra="ignore", frozen=True)

    runtime: str = ""
    policy: str = "default"
    image: str = ""
    base_image: str = ""
    warm_kernels: int | None = Field(default=None, ge=0, le=1000)
    state_dir: str = ""
    data_dir: str = ""
    store_url: str = Field(default="", repr=False)
    blobs: str = Field(default="", repr=False)
    cluster_key_file: str = ""
    history_days: float = Field(default=90, gt=0, le=36500)
    history_mb: int = Field(default=10_240, ge=1, le=2**30)
    agent_quota_mb: int = Field(default=4096, ge=1, le=2**30)
    audit_log: str = ""
    audit_rotate_mb: int = Field(default=100, ge=1, le=2**20)
    audit_files: int = Field(default=20, ge=1, le=100_000)
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    log_format: Literal["text", "json"] = "text"
    metrics_port: int = Field(default=0, ge=0, le=65535)
    metrics_address: str = "127.0.0.1"
    mcp_token: str = Field(default="", repr=False)
    uid_base: int = Field(default=200_000, ge=1000, le=2**31)
    uid_count: int = Field(default=50_000, ge=1, le=2**20)
    engine_timeout: float = Field(default=60.0, gt=0)
    start_timeout: float = Field(default=60.0, gt=0)
    node_url: str = Field(default="", max_length=300)
    node_lease_s: float = Field(default=6.0, ge=1, le=600)
    node_ca: str = ""
    ask_nodes: int = Field(default=0, ge=0, le=10_000)
    operator_token_file: str = ""

    @classmethod
    def load(cls) -> Self:
        """Read the environment and ``.env``. A CELLBLOCK_* variable that does not exist is logged as a warning, once.

        Raises:
            SettingsError: a variable cannot be used; the message names it.
        """
        for name in _unknown_variables():
            _warn_of(name)
        try:
            return cls()
        except ValidationError as error:
            faults = "; ".join(
                f"CELLBLOCK_{str(fault['loc'][0]).upper()}: {fault['msg']} (got {fault['input']!r})"
                for fault in error.errors()
            )
            raise SettingsError(f"a setting cannot be used: {faults}.") from None

    @cached_property
    def state_path(self) -> Path:
        """The folder of the kernels' sockets.

        Raises:
            SettingsError: the default below /tmp belongs to somebody else, or others may enter it.
        """
        if self.state_dir:
            return Path(self.state_dir).absolute()
        if os.geteuid() == 0:
            return Path("/run/cellblock")
        if runtime := os.environ.get("XDG_RUNTIME_DIR"):
            return Path(runtime) / "cellblock"
        return private_folder(Path(f"/tmp/cellblock-{os.geteuid()}")) / "cellblock"  # noqa: S108

    @cached_property
    def data_path(self) -> Path:
        if self.data_dir:
            return Path(self.data_dir).absolute()
        if os.geteuid() == 0:
            return Path("/var/lib/cellblock")
        return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "cellblock"

    @cached_property
    def history_url(self) -> str:
        """The history's database as an SQLAlchemy URL."""
        return self.store_url or f"sqlite:///{self.data_path}/history.db"

    @cached_property
    def blobs_folder(self) -> Path | None:
        """The folder that CELLBLOCK_BLOBS names; None if it is unset, or names a database or an object store.

        Raises:
            SettingsError: it names none of them. The message does not show it: it may have a password.
        """
        if self.blobs in ("", "database"):
            return None
        if self.blobs.startswith("file:///"):
            return Path(unquote(self.blobs.removeprefix("file://")))
        if not _OBJECTS.fullmatch(self.blobs):
            raise SettingsError(
                "CELLBLOCK_BLOBS cannot be used: it is neither `database` nor the URL of a place for blobs.",
                remedy="Write file:///folder, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix, without "
                "credentials: they have variables of their own.",
            )
        return None

    @cached_property
    def blobs_in(self) -> str:
        """Where checkpoints and large outputs are: ``blobs``, which a node of a cluster shares; "": the data folder."""
        return self.blobs or ("database" if self.node_url else "")

    @cached_property
    def audit_path(self) -> Path | None:
        """The file of the audit log; None if there is no audit log."""
        if self.audit_log == "off":
            return None
        if self.audit_log:
            return Path(self.audit_log).absolute()
        if os.geteuid() == 0:
            return Path("/var/log/cellblock/audit.jsonl")
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
        return Path(state) / "cellblock/audit.jsonl"

    def refuse_foreign_folders(self) -> None:
        """Check that no other user can write the folders of state, data, blobs and the audit log, as far as they exist.

        Raises:
            SettingsError: another user owns one of them or can write it.
        """
        refuse_foreign(self.state_path, "CELLBLOCK_STATE_DIR")
        refuse_foreign(self.data_path, "CELLBLOCK_DATA_DIR")
        if self.blobs_folder is not None:
            refuse_foreign(self.blobs_folder, "CELLBLOCK_BLOBS")
        if self.audit_path is not None:
            refuse_foreign(self.audit_path, "CELLBLOCK_AUDIT_LOG", shared=True)


def _unknown_variables() -> list[str]:
    """Return the CELLBLOCK_* variables of the environment and of ``.env`` that are not settings."""
    known = {f"{_PREFIX}{field}".upper() for field in Settings.model_fields}
    try:
        listed = DotEnvSettingsSource(Settings).env_vars
    except OSError as error:
        raise SettingsError(
            f"{error.filename or '.env'} cannot be read: {error.strerror}.",
            remedy="Make it readable, or run the program in another folder.",
        ) from error
    found = {*os.environ, *listed}
    return sorted(name for name in found if name.upper().startswith(_PREFIX) and name.upper() not in known)


@cache
def _warn_of(name: str) -> None:
    # Without the prefix, which all have in common.
    near = get_close_matches(name[len(_PREFIX) :].lower(), Settings.model_fields, 1)
    advice = f"did you mean {_PREFIX}{near[0].upper()}?" if near else "docs/settings.md lists the settings."
    _log.warning("%s is not a setting and has no effect: %s", name.upper(), advice)
