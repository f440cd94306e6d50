"""A server without tokens: who may use it."""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx
import pytest

from tests.server.conftest import Server


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:PORT", 200),
        ("[::1]:PORT", 200),
        ("testserver", 403),  # Starlette's test client has this name, and so may a page of a local network
        ("evil.example:PORT", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost@evil.example", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_it_answers_to_the_names_of_this_machine_alone(server: Server, host: str, status: int) -> None:
    """Else a web page whose name leads to this machine could use it."""
    name = host.replace("PORT", str(urlsplit(server.url).port))
    assert httpx.get(f"{server.url}/v1/caller", headers={"Host": name}).status_code == status
