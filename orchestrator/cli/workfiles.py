"""The files that a script made or changed in its sandbox's /work, for `cellblock run --out`.

The listing is made inside the sandbox, so it may say anything: names are checked and everything is bounded.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from orchestrator.errors import CellblockError, FileTransferError, InvalidInputError
from orchestrator.limits import MIB
from orchestrator.manager import AgentKernelManager
from orchestrator.sessions.session import KernelSession

MOST_FILES = 1000
MOST_BYTES = 1024 * MIB  # of all files together
_LONGEST_LISTING = 4 * MIB  # bytes
_DEEPEST = 16  # folders
_LONGEST_NAME = 255  # bytes of one part of a path

# Links are left out, and so are names that are not UTF-8.
_LIST = """
def _list(target):
    import json, os, stat
    found = {{}}
    for folder, _folders, names in os.walk('/work'):
        for name in names:
            path = os.path.join(folder, name)
            try:
                about = os.lstat(path)
                path.encode()
            except (OSError, UnicodeError):
                continue
            if stat.S_ISREG(about.st_mode) and len(found) < {most}:
                found[path[6:]] = [about.st_size, about.st_mtime_ns, about.st_ino]
    with open(target, 'w') as file:
        json.dump(found, file)
_list({target!r})
del _list
"""

Listing = dict[str, tuple[int, int, int]]


async def list_work(manager: AgentKernelManager, session: KernelSession) -> Listing:
    """Return the regular files of /work by relative path: their size, time of change and number.

    Raises:
        FileTransferError: the sandbox cannot list them.
        KernelDiedError, SessionEndedError: there is no kernel.
    """
    inside = f"/tmp/.files-{secrets.token_hex(4)}.json"  # noqa: S108 - in the sandbox
    result = await manager.execute(session, _LIST.format(target=inside, most=2 * MOST_FILES))
    if result.outcome != "ok":
        raise FileTransferError("the sandbox could not list the files of /work.", path="/work")
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder, "files.json")
        await manager.get_file(session, inside, listing, limit=_LONGEST_LISTING)
        text = await asyncio.to_thread(listing.read_bytes)
    try:
        return dict(_entries(json.loads(text)))
    except (ValueError, RecursionError, TypeError) as error:
        raise FileTransferError("the sandbox sent no list of the files of /work.", path="/work") from error


def _entries(listed: object) -> Iterator[tuple[str, tuple[int, int, int]]]:
    if not isinstance(listed, dict):
        raise TypeError
    for name, about in listed.items():
        size, changed, number = map(int, about)
        yield name, (size, changed, number)


async def fetch_changed(
    manager: AgentKernelManager, session: KernelSession, before: Listing, out: Path, keep: Collection[Path]
) -> tuple[list[Path], list[str]]:
    """Copy the files of /work that are new or changed since ``before`` into the folder ``out``.

    Args:
        keep: files of the host that are not overwritten.

    Returns:
        The files that were written; and what was left out, each with its reason.

    Raises:
        FileTransferError, KernelDiedError, SessionEndedError: see ``list_work``.
        InvalidInputError: the folder cannot be created.
    """
    after = await list_work(manager, session)
    changed = sorted(name for name, about in after.items() if before.get(name) != about)
    written: list[Path] = []
    left: list[str] = []
    budget = MOST_BYTES
    for name in changed:
        fault = _name_fault(name)
        if not fault and len(written) == MOST_FILES:
            left.append(f"more than {MOST_FILES} files")
            break
        try:
            target = None if fault else _target(out, name, keep)
            if target is not None:
                budget -= await manager.get_file(session, f"/work/{name}", target, limit=budget)
                written.append(target)
        except FileTransferError as error:
            fault = error.message
        if fault:
            left.append(f"{name[:_LONGEST_NAME]!r}: {fault}")
    return written, left


def _name_fault(name: str) -> str:
    """Return why a path that the sandbox chose is not written to the host, or "" if it may be."""
    parts = PurePosixPath(name).parts
    if not parts or name != "/".join(parts) or name.startswith("/") or ".." in parts or len(parts) > _DEEPEST:
        return "this is not the path of a file below /work"
    if any(part.startswith(".") or part == "__pycache__" for part in parts):
        return "hidden files and caches are not copied"
    if not name.isprintable() or any(len(part.encode("utf-8", "replace")) > _LONGEST_NAME for part in parts):
        return "its name cannot be printed, or is too long"
    return ""


def _target(out: Path, name: str, keep: Collection[Path]) -> Path:
    """Return where a file goes, after making its folder. Never outside of ``out``, whatever links are there."""
    target = out / name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        inside = target.parent.resolve().is_relative_to(out.resolve())
        taken = target.is_dir() or any(target.exists() and target.samefile(path) for path in keep if path.exists())
    except OSError as error:
        raise InvalidInputError(f"{target} cannot be written: {error.strerror}.") from error
    if not inside or taken:
        raise FileTransferError(f"{target} exists, and is not replaced.", path=str(target))
    return target


def failure(error: CellblockError) -> str:
    """Return the sentence that says that no file was copied, and why."""
    return f"the files that the script made were not copied: {error.message}"
