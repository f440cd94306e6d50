"""The formula agent's findings: counts, errors, numbers typed over formulas, the longest chain and cycles."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from spreadsheet.inside.parsing import Formula
from spreadsheet.inside.reading import LISTED, Book, Place

LONGEST_GAP = 3  # more numbers in a row look like data, not like a mistake
SHORTEST_RUN = 3  # number of formulas on both sides of a gap together


def typed_over(formulas: dict[Place, Formula], numbers: set[Place]) -> dict[Place, Place]:
    """Return the typed numbers that interrupt a row or column of equal formulas, each with a formula of that run."""
    found: dict[Place, Place] = {}
    for down in (True, False):
        lines: dict[tuple[str, int], list[Place]] = defaultdict(list)
        for place in sorted(formulas):
            lines[place.sheet, place.column if down else place.row].append(place)
        for line in lines.values():
            for index, (before, after) in enumerate(pairwise(line)):
                gap = set(between(before, after, down))
                if gap and gap <= numbers and is_run(line, index, formulas):
                    found.update((place, before) for place in gap - found.keys())
    return dict(sorted(found.items()))


def between(before: Place, after: Place, down: bool) -> Iterator[Place]:
    """Yield the places between two places of one line, or nothing if there are more than ``LONGEST_GAP``."""
    distance = after.row - before.row if down else after.column - before.column
    for step in range(1, distance if distance <= LONGEST_GAP + 1 else 0):
        yield before._replace(row=before.row + step) if down else before._replace(column=before.column + step)


def is_run(line: Sequence[Place], index: int, formulas: dict[Place, Formula]) -> bool:
    """Return whether enough formulas around the gap after ``index`` are copies of each other."""
    form = formulas[line[index]].form
    around = line[max(0, index - SHORTEST_RUN + 1) : index + SHORTEST_RUN + 1]
    alike = sum(formulas[place].form == form for place in around)
    return form != "" and formulas[line[index + 1]].form == form and alike >= SHORTEST_RUN


def count(book: Book, formulas: dict[Place, Formula]) -> dict[str, Any]:
    """Return the number of formulas, by sheet and by function."""
    by_sheet = Counter(place.sheet for place in formulas)
    by_function = Counter(name for formula in formulas.values() for name in formula.functions)
    return {
        "formulas": len(formulas),
        "sheets": [{"sheet": sheet, "formulas": by_sheet[sheet]} for sheet in book.sheets[:200]],
        "functions": [{"function": name[:80], "calls": calls} for name, calls in by_function.most_common(200)],
        "unreadable": sum(not formula.readable for formula in formulas.values()),
    }


def faults(book: Book, formulas: dict[Place, Formula], overwritten: dict[Place, Place]) -> dict[str, Any]:
    """Return certain faults (errors, lost references) and likely faults (numbers typed over formulas)."""
    errors = [(place, cell) for place, cell in book.cells.items() if cell.kind == "error"]
    broken = [place for place, formula in formulas.items() if formula.broken]
    return {
        "error_count": len(errors),
        "errors": [
            {"cell": str(place), "value": str(cell.value), "computed": bool(cell.formula)}
            for place, cell in errors[:LISTED]
        ],
        "broken_count": len(broken),
        "broken": [{"cell": str(place), "formula": book.cells[place].formula[:200]} for place in broken[:LISTED]],
        "typed_over_count": len(overwritten),
        "typed_over": [
            {"cell": str(place), "neighbour": str(beside), "formula": book.cells[beside].formula[:200]}
            for place, beside in list(overwritten.items())[:LISTED]
        ],
    }


def dependencies(chain: Sequence[Place], cycles: Sequence[Sequence[Place]], not_followed: int) -> dict[str, Any]:
    """Return both ends of the longest chain, and the cycles."""
    return {
        "chain_length": len(chain),
        "chain_start": [str(place) for place in chain[:5]],
        "chain_end": [str(place) for place in chain[5:][-5:]],
        "cycles": [[str(place) for place in cycle[:LISTED]] for cycle in cycles],
        "not_followed": not_followed,
    }
