"""The libraries that come with the dashboard and its tests: what VENDOR.toml says of each, checked and renewed.

``make vendor`` writes the newest version of each from the npm registry, and VENDOR.toml anew.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import tomlkit

REPOSITORY = Path(__file__).resolve().parent.parent.parent
LIST = REPOSITORY / "orchestrator" / "server" / "dashboard" / "vendor" / "VENDOR.toml"


def libraries() -> dict[str, dict[str, Any]]:
    """Return what VENDOR.toml says, by the name of each library."""
    return tomllib.loads(LIST.read_text())


def digests(library: dict[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of each file of a library, as it is here, by its name in the package."""
    folder = REPOSITORY / library["folder"]
    return {name: hashlib.sha256((folder / Path(name).name).read_bytes()).hexdigest() for name in library["files"]}


def renew() -> None:
    """Replace every library by its newest version."""
    written = tomlkit.parse(LIST.read_text())
    for name, library in libraries().items():
        version, files = _packed(name, list(library["files"]))
        for path, content in files.items():
            (REPOSITORY / library["folder"] / Path(path).name).write_bytes(content)
        entry: Any = written[name]
        entry["version"] = version
        for path, content in files.items():
            entry["files"][path] = hashlib.sha256(content).hexdigest()
        print(f"vendor: {name} {version}")
    LIST.write_text(tomlkit.dumps(written))


def _packed(name: str, paths: list[str]) -> tuple[str, dict[str, bytes]]:
    """Return the newest version of a package, and some of its files."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", name, "--json", "--pack-destination", folder]
        made = subprocess.run(command, check=True, capture_output=True, cwd=folder, timeout=120)
        (packed,) = json.loads(made.stdout)
        content = (Path(folder) / packed["filename"]).read_bytes()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        files = {path: archive.extractfile(f"package/{path}") for path in paths}
        return packed["version"], {path: file.read() for path, file in files.items() if file is not None}


if __name__ == "__main__":
    renew()
