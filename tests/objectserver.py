"""An S3 server for the tests: moto's, in an environment of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.conformance.__main__ import environment

SECRET = "a-secret-of-the-tests"  # noqa: S105 # the server takes any
_START = 120.0  # seconds


class ObjectServer:
    """A running server.

    Attributes:
        process: the server.
        variables: what the environment must have to reach it.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self._address = f"http://127.0.0.1:{port}"
        self.variables = {
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self._address,
            "AWS_ALLOW_HTTP": "true",
        }

    def make_bucket(self, name: str) -> None:
        self._request("PUT", f"/{name}")

    def _request(self, method: str, path: str) -> None:
        request = urllib.request.Request(f"{self._address}{path}", method=method)  # noqa: S310
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            answer.read()

    def wait(self) -> None:
        """Wait until it answers."""
        end = time.monotonic() + _START
        while True:
            assert self.process.poll() is None
            with contextlib.suppress(OSError):
                return self._request("GET", "/moto-api/")
            assert time.monotonic() < end
            time.sleep(0.1)


@contextlib.contextmanager
def object_server() -> Iterator[ObjectServer]:
    """Start a server on a free port, and end it with the block."""
    program = environment("moto").parent / "moto_server"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="cellblock-s3-") as name:
        log = Path(name, "log")
        with log.open("wb") as file:
            command = [str(program), "-H", "127.0.0.1", "-p", str(port)]
            process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {"TMPDIR": name})
        try:
            server = ObjectServer(process, port)
            server.wait()
            yield server
        finally:
            process.kill()
            process.wait(30)
