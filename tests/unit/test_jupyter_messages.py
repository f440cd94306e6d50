"""What a broker's clients are told, whatever a kernel claims."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.broker.historyreply import history_reply
from orchestrator.broker.messages import kernel_info
from orchestrator.kernel import zmtp

HOSTILE: list[dict[str, Any]] = [
    {},
    {"language_info": {"version": "3.11.2\x1b[2J", "nbconvert_exporter": "os.system", "name": "evil"}},
    {"language_info": "python", "implementation_version": 9, "banner": "\x1b]0;title\x07", "protocol_version": "9"},
    {"language_info": {"version": ["3"]}, "implementation_version": "9" * 100, "help_links": [{"url": "file:///"}]},
]


@pytest.mark.parametrize("claimed", HOSTILE)
def test_of_a_kernels_info_only_version_numbers_are_taken(claimed: dict[str, Any]) -> None:
    """Programs print the banner, open the links and import the exporter."""
    expected = kernel_info({})
    assert kernel_info(claimed) == expected
    assert "\\u001b" not in json.dumps(expected)


def test_a_kernels_versions_are_told() -> None:
    info = kernel_info({"language_info": {"version": "3.13.0rc1"}, "implementation_version": "9.18.1"})
    assert (info["language_info"]["version"], info["implementation_version"]) == ("3.13.0rc1", "9.18.1")
    assert info["banner"] == "Python 3.13.0rc1, in a sandbox of Cellblock"


HISTORY = [{"code": f"x = {number}", "result": {"result": str(number)}} for number in range(1, 6)]


@pytest.mark.parametrize(
    ("wish", "numbers"),
    [
        ({"hist_access_type": "tail", "n": 2}, [4, 5]),
        ({"hist_access_type": "tail", "n": 99}, [1, 2, 3, 4, 5]),
        ({"hist_access_type": "tail", "n": -1}, [1, 2, 3, 4, 5]),
        ({"hist_access_type": "range", "session": 0, "start": 2, "stop": 4}, [2, 3]),
        ({"hist_access_type": "range", "session": 1, "start": 4}, [4, 5]),
        ({"hist_access_type": "range", "session": 7}, []),
        ({"hist_access_type": "search", "pattern": "*= [13]"}, [1, 3]),
        ({"hist_access_type": "search", "pattern": "*", "n": 1}, [5]),
        ({"hist_access_type": "other"}, []),
        ({}, []),
    ],
)
def test_a_history_request_gets_what_it_asks_for(wish: dict[str, Any], numbers: list[int]) -> None:
    assert [line[1] for line in history_reply(HISTORY, wish)["history"]] == numbers


@pytest.mark.parametrize("cut", range(0, 60, 3))
def test_properties_of_a_cut_handshake_are_those_that_are_whole(cut: int) -> None:
    """READY comes from a stranger: whatever of it is missing or lies about its length is left out."""
    body = zmtp.ready("DEALER", b"an identity")[2:]
    found = zmtp.properties(body[:cut])
    assert found.items() <= {b"socket-type": b"DEALER", b"identity": b"an identity"}.items()
    assert zmtp.properties(body) == {b"socket-type": b"DEALER", b"identity": b"an identity"}
