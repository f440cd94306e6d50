"""Packages that the host hands in while the session runs, and ``pip install`` in cells, which asks the host."""

import importlib
import os
import re
import shlex
import sys
import zipfile
from collections.abc import Sequence
from typing import Any

from cellblock_site.machine import PACKAGES

from cellblock_kernel.tools import ToolError

INSTALL = "cellblock:install"  # the host's tool
_PIP = re.compile(r"(?:(?:\S*/)?python[\d.]* -m )?(?:\S*/)?pip[\d.]* install")
_SHELLS = set(";|&()<>")  # characters with which a shell does more than run one program
_IGNORED = {"-q", "-qq", "--quiet", "-U", "--upgrade", "--user", "--no-cache-dir", "--progress-bar=off", "--no-input",
            "--disable-pip-version-check", "--break-system-packages", "--prefer-binary", "--only-binary=:all:",
            "--force-reinstall", "-y", "--root-user-action=ignore"}  # fmt: skip
_LONGEST_FILE = 256 * 1024  # characters of a requirements file


def add_wheel(path: str) -> list[str]:
    """Unpack a wheel that the host has handed in, make its modules importable, and remove the file.

    Returns:
        The names of its modules and packages.

    Raises:
        OSError: it cannot be unpacked, as when the folder is full.
    """
    os.makedirs(PACKAGES, exist_ok=True)
    names: set[str] = set()
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                folder, _, rest = member.filename.partition("/")
                if folder.endswith(".data"):
                    scheme, _, member.filename = rest.partition("/")
                    if scheme not in ("purelib", "platlib"):
                        continue
                if member.filename and not member.is_dir():
                    extracted = archive.extract(member, PACKAGES)
                    if member.external_attr >> 16 & 0o111:  # zipfile drops the mode
                        os.chmod(extracted, 0o700)
                    names.add(member.filename.partition("/")[0].partition(".")[0])
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise OSError(f"the wheel cannot be unpacked: {error}") from None
    finally:
        os.unlink(path)
    if PACKAGES not in sys.path:
        sys.path.append(PACKAGES)
    importlib.invalidate_caches()
    return sorted(names)


def arguments_of(command: str) -> list[str] | None:
    """Return the arguments of a shell command that is ``pip install`` alone; None for any other command."""
    words = shlex.shlex(command, posix=True, punctuation_chars="".join(_SHELLS))
    words.whitespace_split = True
    words.commenters = ""
    try:
        found = list(words)
    except ValueError:  # a quotation that does not end
        return None
    for length in (2, 4):
        if _PIP.fullmatch(" ".join(found[:length])):
            return None if any(set(word) <= _SHELLS for word in found if word) else found[length:]
    return None


def pip_install(tools: Any, arguments: Sequence[str]) -> int:
    """Do what ``pip install`` does, through the host. Print what came of it, and return the exit status."""
    try:
        wanted = _requirements(arguments)
        done = tools.call(INSTALL, {"requirements": wanted})
    except (ToolError, OSError, ValueError) as error:
        print(f"ERROR: {getattr(error, 'message', error)}", file=sys.stderr)
        return 1
    for name in done["satisfied"]:
        print(f"Requirement already satisfied: {name}")
    if done["installed"]:
        print(f"Successfully installed {' '.join(done['installed'])}")
    return 0


def _requirements(arguments: Sequence[str]) -> list[str]:
    wanted: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in _IGNORED:
            continue
        if argument in ("-r", "--requirement"):
            wanted += _of_file(next(rest, ""))
        elif argument.startswith("--hash=") and wanted:
            wanted[-1] += f" {argument}"
        elif argument.startswith("-"):
            raise ValueError(f"the option {argument} is not supported in a sandbox; packages come from the host")
        else:
            wanted.append(argument)
    if not wanted:
        raise ValueError("You must give at least one requirement to install")
    return wanted


def _of_file(path: str) -> list[str]:
    with open(path) as file:
        text = file.read(_LONGEST_FILE).replace("\\\n", " ")
    lines = (line.partition(" #")[0].strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith(("#", "--index", "--extra-index"))]
