"""Finds Ray's ports on this host that others reach without a token."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator

import psutil

# Each runs code for every caller: the head's, a node's, the dashboard's jobs, Ray Client's.
_PROGRAMS = ("gcs_server", "raylet", "ray/dashboard/dashboard.py", "ray.util.client.server")


def open_ray() -> tuple[str, ...]:
    """Return the addresses, as HOST:PORT, on which this host's Ray listens for other hosts and asks for no token.

    A process of another user whose environment cannot be read counts as asking for none.
    """
    found: set[str] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(_is(program, process) for program in _PROGRAMS) and not _asks_for_token(process):
                found.update(_addresses(process))
    return tuple(sorted(found))


def _is(program: str, process: psutil.Process) -> bool:
    return process.name() == program or any(program in word for word in process.cmdline()[:4])


def _asks_for_token(process: psutil.Process) -> bool:
    try:
        mode = process.environ().get("RAY_AUTH_MODE", "")
    except psutil.Error:
        return False
    return mode.lower() in ("token", "k8s")


def _addresses(process: psutil.Process) -> Iterator[str]:
    for connection in process.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and not _is_loopback(connection.laddr.ip):
            host = f"[{connection.laddr.ip}]" if ":" in connection.laddr.ip else connection.laddr.ip
            yield f"{host}:{connection.laddr.port}"


def _is_loopback(address: str) -> bool:
    found = ipaddress.ip_address(address)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return found.is_loopback or (mapped is not None and mapped.is_loopback)
