"""The JSON of answers."""

from __future__ import annotations

import json

import pytest

from orchestrator.remote.answer import loads
from orchestrator.server.answers import dumps_large

DEEP: list[object] = []
for _ in range(400):
    DEEP = [DEEP]


@pytest.mark.parametrize("size", [0, 10**6])
@pytest.mark.parametrize("value", ["\ud800", "\u2028\n\0é", 2**80, -0.0, 1e300, [None, True], DEEP], ids=lambda _: "")
async def test_a_value_is_the_same_on_the_other_side(value: object, size: int) -> None:
    """Large or small: text without a form in UTF-8, whole numbers beyond 64 bits, deep lists."""
    content = await dumps_large({"value": value}, size)
    assert loads(content) == json.loads(content) == {"value": value}


@pytest.mark.parametrize("size", [0, 10**6])
async def test_what_json_has_not_is_null(size: int) -> None:
    content = await dumps_large({"value": [float("nan"), float("inf")]}, size)
    assert json.loads(content) == {"value": [None, None]}
