"""A package index on loopback, with wheels that are made for a test."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path


class PackageIndex:
    """The folder of an index, served while the context of ``serving`` is open.

    Attributes:
        url: of the index.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""

    def add_wheel(
        self,
        name: str,
        version: str,
        *,
        size: int = 0,
        requires: tuple[str, ...] = (),
        hidden: str = "",
        program: str = "",
    ) -> str:
        """Add a wheel with one module, which has ``version`` and a class ``Odd``. Returns its SHA-256.

        Args:
            size: bytes of data beside the module.
            requires: its dependencies.
            hidden: a path in the wheel that leads elsewhere.
            program: the name of a program, as an entry point and as a script in the module's folder. Each prints it.
        """
        file = self._page(name) / f"{name}-{version}-py3-none-any.whl"
        info = f"{name}-{version}.dist-info"
        needs = "".join(f"Requires-Dist: {each}\n" for each in requires)
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(f"{name}/__init__.py", f"version = {version!r}\nclass Odd(Warning): pass\n")
            archive.writestr(f"{name}/data.bin", bytes(size))
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
            archive.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr(f"{info}/RECORD", "")
            if program:
                archive.writestr(f"{name}/programs.py", f"def main():\n    print({program!r})\n")
                archive.writestr(f"{info}/entry_points.txt", f"[console_scripts]\n{program} = {name}.programs:main\n")
                script = zipfile.ZipInfo(f"{name}/{program}.sh")
                script.external_attr = 0o755 << 16
                archive.writestr(script, f"#!/bin/sh\necho {program}\n")
            if hidden:
                archive.writestr(hidden, "evil")
        return hashlib.sha256(file.read_bytes()).hexdigest()

    def add_source(self, name: str, version: str) -> None:
        """Add a source distribution, whose build would make a file on the host."""
        (self._page(name) / f"{name}-{version}.tar.gz").write_bytes(b"no archive")

    def _page(self, name: str) -> Path:
        page = self.folder / name
        page.mkdir(parents=True, exist_ok=True)
        return page

    @contextlib.contextmanager
    def serving(self) -> Iterator[PackageIndex]:
        """Serve the index on loopback."""
        handler = functools.partial(_Pages, self)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}/simple/"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Pages(http.server.BaseHTTPRequestHandler):
    def __init__(self, index: PackageIndex, *args: object) -> None:
        self.index = index
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        parts = self.path.strip("/").split("/")
        path = self.index.folder.joinpath(*parts[1:])
        if len(parts) == 2 and path.is_dir():
            links = (
                f'<a href="{file.name}#sha256={hashlib.sha256(file.read_bytes()).hexdigest()}">{file.name}</a>'
                for file in sorted(path.iterdir())
            )
            self._send("text/html", f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode())
        elif len(parts) == 3 and path.is_file():
            self._send("application/octet-stream", path.read_bytes())
        else:
            self.send_error(404)

    def _send(self, kind: str, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Print nothing."""
