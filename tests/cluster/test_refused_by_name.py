"""A wrong token and a wrong certificate are refused by name, before anything runs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import ClusterError, UnauthorizedError, UntrustedServerError
from orchestrator.cluster.clustermanager import ClusterKernelManager
from tests.cluster.fakedirectory import FakeDirectory, record
from tests.server.conftest import Server, serving


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost that nobody has signed, and its key beside it."""
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    subprocess.run(
        [*command.split(), "-keyout", folder / "key.pem", "-out", folder / "cert.pem"], check=True, capture_output=True
    )
    return folder / "cert.pem"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[Server]:
    """A node with tokens, over HTTPS."""
    options = ("--tls-cert", str(certificate), "--tls-key", str(certificate.with_name("key.pem")))
    with serving(tmp_path_factory.mktemp("node"), *options, tokens=1) as server:
        server.url = server.url.replace("127.0.0.1", "localhost")
        yield server


async def acquired(server: Server, token: str, verify: str | bool) -> str:
    """Return what a cell says, run over a cluster of one node."""
    directory = FakeDirectory()
    directory.add(record("n1", server.url))
    async with (
        ClusterKernelManager(directory=directory, token=token, verify=verify) as manager,
        manager.acquire_kernel("agent", timeout=60) as (_kernel, session),
    ):
        return str((await manager.execute(session, "6 * 7")).result)


async def test_the_right_token_and_authority(node: Server, certificate: Path) -> None:
    assert await acquired(node, node.token("right"), str(certificate)) == "42"


async def test_a_wrong_token(node: Server, certificate: Path) -> None:
    with pytest.raises(UnauthorizedError):
        await acquired(node, "cb_wrong", str(certificate))


async def test_a_certificate_of_an_unknown_authority(node: Server) -> None:
    with pytest.raises(UntrustedServerError, match="certificate of https://localhost"):
        await acquired(node, "cb_wrong", verify=True)


async def test_a_certificate_for_another_name(node: Server, certificate: Path) -> None:
    node.url = node.url.replace("localhost", "127.0.0.1")
    try:
        with pytest.raises(UntrustedServerError, match="certificate of https://127"):
            await acquired(node, "cb_wrong", str(certificate))
    finally:
        node.url = node.url.replace("127.0.0.1", "localhost")


def test_an_address_of_ray() -> None:
    """Ray is not asked for the database; the error says what to give."""
    with pytest.raises(ClusterError, match=r"do not go through Ray.*store_url"):
        ClusterKernelManager("ray://10.0.0.1:10001")
