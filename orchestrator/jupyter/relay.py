"""The program that a kernelspec starts, by ``relaystart``: ``python -P relaystart.py -f CONNECTION_FILE``.

It serves the clients of one connection file from a kernel in a sandbox. Two processes do it. Jupyter knows the first
one, and may kill it at any time. The second one owns the sandbox, and ends it when the first one has ended.

The folder of the notebook may come from anyone. Nothing in it configures the relay: Python does not search it for
modules, since it is given a file, and the relay leaves it before it reads settings, which a ``.env`` there would have.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import CellblockError
from orchestrator.jupyter.kernelspec import DEFAULT_POLICY
from orchestrator.jupyter.sandboxedkernel import SandboxedKernel
from orchestrator.logs import configure
from orchestrator.settings import Settings

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve one kernel until a client, a signal or the end of Jupyter ends it. Returns the exit status."""
    chosen = _parse(arguments)
    connection_file, notebook_folder = chosen.connection_file.absolute(), Path.cwd()
    os.chdir("/")
    alive, kept_open = os.pipe()  # the second process reads the end of the first one
    blocked = {*_FORWARDED, signal.SIGCHLD}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    second = os.fork()
    if second:
        os.close(alive)
        return _wait_for(second, blocked)
    os.close(kept_open)
    os.setsid()  # Jupyter signals the first process's group
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until there is a cell to interrupt
    signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
    return _serve(connection_file, chosen.policy, chosen.runtime, notebook_folder, alive)


def _serve(connection_file: Path, policy: str, runtime: str, notebook_folder: Path, alive: int) -> int:
    configure("warning", "text")  # for what is reported while the settings are read
    try:
        settings = _settings(policy, runtime)
        configure(settings.log_level, settings.log_format)
        kernel = SandboxedKernel(connection_file, settings, notebook_folder)
        return asyncio.run(kernel.serve(alive))
    except CellblockError as error:
        print(f"cellblock: {error}", file=sys.stderr)
        return 1


def _settings(policy: str, runtime: str) -> Settings:
    """Return the host's settings, with the policy and the runtime that the command names."""
    settings = Settings.load()
    if not policy and "policy" not in settings.model_fields_set:
        policy = DEFAULT_POLICY
    chosen = {"policy": policy, "runtime": runtime}
    return settings.model_copy(update={"warm_kernels": 0, **{key: value for key, value in chosen.items() if value}})


def _wait_for(second: int, expected: set[signal.Signals]) -> int:
    """Pass signals on to the second process until it ends. Returns its exit status."""
    while True:
        received = signal.sigwait(expected)
        if received != signal.SIGCHLD:
            os.kill(second, received)
            continue
        ended, status = os.waitpid(second, os.WNOHANG)
        if ended:
            return abs(os.waitstatus_to_exitcode(status))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options. Others are for the stock kernel, such as the file of ``jupyter run``, and are ignored."""
    parser = argparse.ArgumentParser(prog="relay", description="Serve one kernel to Jupyter.", allow_abbrev=False)
    parser.add_argument("-f", dest="connection_file", type=Path, required=True, help="Jupyter's connection file")
    parser.add_argument(
        "--policy",
        default="",
        help="a policy's name, or the whole path of its file; default: CELLBLOCK_POLICY, or notebook",
    )
    parser.add_argument("--runtime", default="", help="the container runtime; default: CELLBLOCK_RUNTIME")
    return parser.parse_known_args(arguments)[0]


if __name__ == "__main__":  # kernelspecs that were installed before there was relaystart
    sys.exit(main())
