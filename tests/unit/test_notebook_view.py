"""What a model reads of a notebook: within its budget, with a way to read the rest. No engine."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from orchestrator import Cell, CellNotFoundError, CellSelector, CellType, InvalidInputError, InvalidPositionError
from orchestrator.notebooks import cellview
from orchestrator.notebooks.operation import ALIASES, FIELDS, OPERATIONS, SCHEMA, checked
from orchestrator.output.tokencount import tokens

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"x" * 3000).decode()


def cell(name: str, source: str, *outputs: dict[str, Any], kind: CellType = CellType.CODE, **metadata: Any) -> Cell:
    return Cell(name, kind, source, metadata, None, outputs)


def stream(text: str, name: str = "stdout") -> dict[str, Any]:
    return {"output_type": "stream", "name": name, "text": text}


def shown(**data: Any) -> dict[str, Any]:
    bundle = {key.replace("_", "/"): value for key, value in data.items()}
    return {"output_type": "display_data", "data": bundle, "metadata": {}}


LONG = [cell(f"c{number}", f"x{number} = {number}\n" * 20, stream(f"{number}\n" * 50)) for number in range(200)]


def in_json(value: Any) -> int:
    return tokens(json.dumps(value, ensure_ascii=False))


@pytest.mark.parametrize("budget", [300, 1000, 4000])
@pytest.mark.parametrize("view", [cellview.page, cellview.outline])
def test_200_cells_come_in_pages_within_the_budget(view: Any, budget: int) -> None:
    """Each page says where the next one begins, and all pages together have every cell once."""
    seen: list[str] = []
    start: int | None = 0
    while start is not None:
        page = view(list(enumerate(LONG))[start:], frozenset(), budget)
        assert in_json({"status": "ok", "cells": page.cells, "total": 200, "next_start": 1}) <= budget
        seen += [each.split()[1].rstrip(":") if isinstance(each, str) else each["cell_id"] for each in page.cells]
        start = page.following
    assert seen == [each.id for each in LONG]


def shown_in(page: cellview.Page) -> list[dict[str, Any]]:
    return [each for each in page.cells if not isinstance(each, str)]


def test_a_cell_that_is_larger_than_the_budget_is_shortened_and_says_so() -> None:
    """Its whole source is read in pieces."""
    source = "".join(f"line_{number} = {number}\n" for number in range(5000))
    large = cell("c0", source, *(stream(f"{'word ' * 3000}", name) for name in ("stdout", "stderr") * 50))
    page = cellview.page([(0, large)], frozenset(("c0",)), 500)
    assert in_json(page.cells) <= 500
    assert shown_in(page)[0]["source_characters"] == len(source)
    assert shown_in(page)[0]["stale"] is True
    read = ""
    offset: int | None = 0
    while offset is not None:
        part = cellview.piece(source, offset, 1000)
        assert in_json(part) <= 1000
        read += part["text"]
        offset = part.get("next_offset")
    assert read == source
    with pytest.raises(InvalidPositionError):
        cellview.piece(source, len(source) + 1, 1000)


def test_rich_output_is_named_and_fetched_by_its_number() -> None:
    """A picture by default, any other form by its mime type; text of errors and streams too."""
    error = {"output_type": "error", "ename": "E", "evalue": "v", "traceback": ["\x1b[31mred\x1b[0m"]}
    one = cell("c0", "", stream("out"), shown(image_png=PNG, text_plain="<Figure>", text_html="<b>"), error)
    views = cellview.outputs_view(one.outputs, 1000)
    assert [view["type"] for view in views] == ["stream", "display_data", "error"]
    assert views[1] == {
        "type": "display_data",
        "text": "[picture: image/png, 4.0 KiB]",
        "output": 1,
        "data": ["image/png", "text/html"],
    }
    assert PNG not in json.dumps(views)
    assert cellview.content(one, 1, "") == ("image/png", base64.b64decode(PNG))
    assert cellview.content(one, 1, "text/html") == ("text/html", "<b>")
    assert cellview.content(one, 0, "") == ("text/plain", "out")
    assert cellview.content(one, 2, "") == ("text/plain", "red")
    with pytest.raises(InvalidPositionError):
        cellview.content(one, 3, "")
    with pytest.raises(InvalidInputError):
        cellview.content(one, 1, "image/gif")


def test_hostile_output_reaches_a_model_without_control_characters() -> None:
    """Also what a file says that no kernel sent."""
    hostile = [
        stream("\x1b]0;title\x07\u202egpj"),
        {"output_type": "stream", "name": "other", "text": "x"},
        shown(text_plain=7),
        {"output_type": "display_data", "data": {"text/plain": "\x9b31m", "bad\x1bmime/x": "y"}, "metadata": {}},
        {"output_type": "error", "ename": "\x07", "evalue": "v", "traceback": "no list"},
    ]
    text = json.dumps(cellview.outputs_view(hostile, 1000), ensure_ascii=False)
    assert text.isprintable()


def test_of_many_outputs_the_first_and_the_last_are_shown() -> None:
    outputs = [stream(f"number {number}\n", ("stdout", "stderr")[number % 2]) for number in range(1000)]
    views = cellview.outputs_view(outputs, 400)
    assert (views[0]["text"], views[-1]["text"]) == ("number 0", "number 999")
    assert {"type": "left_out", "text": "[993 outputs left out]"} in views
    assert in_json(views) <= 500


def test_a_selector_takes_what_meets_all_of_its_conditions() -> None:
    """Ids, types, tags, metadata, and a range with both ends."""
    cells = [
        cell("c0", "a", tags=["t", "u"], k=1),
        cell("c1", "b", kind=CellType.MARKDOWN, tags=["t"]),
        cell("c2", "c", tags="no list"),
        cell("c3", "d", k=1),
    ]

    def names(**conditions: Any) -> str:
        return " ".join(each.id for _, each in CellSelector(**conditions).select(cells))

    assert names() == "c0 c1 c2 c3"
    assert names(index_range=(1, 2)) == "c1 c2"
    assert names(index_range=(2, 99)) == "c2 c3"
    assert names(cell_ids=["c3", "c0"]) == "c0 c3"
    assert names(cell_types=["markdown"]) == "c1"
    assert names(tag_filter=["u", "x"]) == "c0"
    assert names(metadata_filter={"k": 1}, index_range=(1, 3)) == "c3"
    assert CellSelector().select([]) == []
    for bad in ((4, 5), (2, 1), (-1, 2)):
        with pytest.raises(InvalidPositionError):
            names(index_range=bad)
    with pytest.raises(CellNotFoundError):
        names(cell_ids=["c9"])
    with pytest.raises(InvalidInputError):
        names(cell_types=["heading"])


def test_the_schema_describes_every_operation_and_field() -> None:
    """One flat object without alternatives; it costs a model about as much as this says."""
    assert set(SCHEMA["properties"]) == {"op", *FIELDS}
    used = {name for operation in OPERATIONS.values() for name in operation.names}
    assert used | {"notebook_id", "budget"} == set(FIELDS)
    assert set(ALIASES.values()) <= set(OPERATIONS)
    assert all(word not in json.dumps(SCHEMA) for word in ("oneOf", "anyOf", "allOf", "$ref"))
    assert in_json(SCHEMA) < 1400


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, "no operation"),
        ({"op": "explode"}, "add_cell"),
        ({"op": ["add_cell"]}, "no operation"),
        ({"op": "add_cell"}, "'source' is missing"),
        ({"op": "add_cell", "source": 1}, "'source' cannot be used"),
        ({"op": "add_cell", "source": "x", "position": -1}, "'position' cannot be used"),
        ({"op": "add_cell", "source": "x", "type": "heading"}, "'type' cannot be used"),
        ({"op": "add_cell", "source": "x", "colour": 1}, "no field 'colour'"),
        ({"op": "get_cells", "budget": 10**9}, "'budget' cannot be used"),
        ([1], "object"),
    ],
)
def test_a_request_that_cannot_be_used_says_what_it_takes(request_: Any, words: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        checked(request_)
    assert words in str(caught.value)


def test_null_is_a_missing_field() -> None:
    """Providers fill in what a model leaves out."""
    assert checked({"op": "update_cell", "source": "x", "cell_id": None}) == ("edit_cell", {"source": "x"})
