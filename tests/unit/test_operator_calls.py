"""What an operator asks the nodes of a cluster, of which one was taken over."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.cluster.operatorcalls import NodeAnswer, OperatorCalls
from orchestrator.errors import UntrustedServerError
from orchestrator.limits import MIB
from orchestrator.server.peers import disown, overviews_of
from tests.cluster.fakedirectory import record
from tests.unit.rawserver import RawServer, said

POOL = dict.fromkeys(("max", "ready", "leased", "starting", "ending", "waiting"), 0)
HONEST = {"managers": [{"pool": POOL, "kernels": []}]}


def form(found: object) -> bytes:
    return said(json.dumps(found).encode())


@pytest.mark.parametrize(
    "answer",
    [form([]), form({"managers": [1]}), form({"managers": [{"pool": POOL, "kernels": [{"cell": 1}]}]}), said(b"["),
     said(b'{"code": "store", "fields": [1]}', "500 Oh"), said(b"", "307 Moved", "Location: http://127.0.0.1:9/"),
     b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * (5 * MIB), b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", b""],
    ids=range(9),
)  # fmt: skip
async def test_a_hostile_node_costs_its_own_answer_alone(answer: bytes) -> None:
    """Whatever it answers, or does not, the others are seen, and its row says what is wrong."""
    async with RawServer(form(HONEST)).at() as honest, RawServer(answer, ends=False).at() as hostile:
        nodes = [record("hostile", hostile), record("nowhere", "http://[h"), record("honest", honest)]
        answers = await OperatorCalls("secret").ask_all(nodes, "/v1/overview", seconds=1.0)
    (lost, why), (_, nowhere), (seen, _) = map(overviews_of, answers)
    assert seen == HONEST["managers"]
    assert lost is None
    assert why
    assert nowhere


@pytest.mark.parametrize("options", [{"verify": "ca.pem"}, {"only_tls": True}], ids=str)
async def test_a_token_is_not_sent_in_clear_text_among_nodes_with_certificates(options: dict[str, Any]) -> None:
    """A node writes its own address; without a token there is nothing to keep, and it is asked."""
    server = RawServer(form(HONEST))
    async with server.at() as url:
        for address in (url, url.replace("http", "HTTP")):
            with pytest.raises(UntrustedServerError, match="has no TLS"):
                await OperatorCalls("secret", **options).ask(record("n1", address), "GET", "/v1/overview")
        assert not server.heard
        assert await OperatorCalls(None, **options).ask(record("n1", url), "GET", "/v1/overview") == HONEST


def test_a_node_cannot_pass_off_anothers_session_as_its_own() -> None:
    """An operator who ends what such a row shows would end the other node's session."""
    kernels = [{"session": name, "agent": "mine"} for name in ("mine", "theirs", "unknown", "earlier", None)]
    managers: list[dict[str, Any]] = [{"kernels": kernels}]
    owners = {"mine": "node:n1/1/aa", "theirs": "node:n2/1/bb", "earlier": "node:n1/0/cc"}
    disown(managers, record("n1", "http://h"), owners)
    assert [kernel["session"] for kernel in kernels] == ["mine", None, None, None, None]
    assert [kernel["agent"] for kernel in kernels] == ["mine", None, None, None, "mine"]


def test_too_many_managers_are_no_overview() -> None:
    node = record("n1", "http://h")
    assert overviews_of(NodeAnswer(node, {"managers": HONEST["managers"] * 257}))[0] is None
