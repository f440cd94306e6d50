"""Follows references between formulas: finds the longest chain and the cycles."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

from spreadsheet.inside.parsing import Area, Formula, area_of
from spreadsheet.inside.reading import Book, Place

MAX_CYCLES = 20


class Span(NamedTuple):
    """The formulas of one column that a range refers to, as a slice of the sorted list of their rows."""

    sheet: str
    column: int
    first: int
    last: int


Node = Place | Span
Graph = dict[Node, list[Node]]  # each formula with the formulas that it reads
Rows = dict[str, dict[int, list[int]]]  # by sheet and column: the rows with a formula


def dependency_graph(book: Book, formulas: dict[Place, Formula]) -> tuple[Graph, int]:
    """Return the formulas that each formula reads, and the number of references that cannot be followed.

    A range becomes a ``Span``, and a long span is halved repeatedly. Overlapping ranges share their halves, so the
    graph stays near the size of the workbook even if every row sums all rows above it.
    """
    rows: Rows = {sheet: defaultdict(list) for sheet in book.sheets}
    for place in sorted(formulas):
        rows[place.sheet][place.column].append(place.row)
    filled = {place: area_of(ref, place.sheet) for place, ref in book.spills.items() if place in formulas}
    graph: Graph = {}
    not_followed = 0
    for place, formula in formulas.items():
        read = [area_of(book.names.get(text.casefold(), text), place.sheet) for text in formula.references]
        areas = {area for area in read if area is not None and area.sheet in rows}
        not_followed += sum(area not in areas for area in read)
        graph[place] = [span for area in areas for span in spans(area, rows[area.sheet])]
        graph[place] += [anchor for anchor, fill in filled.items() if fill and any(map(fill.meets, areas))]
    add_halves(graph, rows)
    return graph, not_followed


def spans(area: Area, columns: dict[int, list[int]]) -> Iterator[Span]:
    """Yield the formulas inside ``area``, column by column."""
    for column, rows in columns.items():
        if area.left <= column <= area.right:
            first, last = bisect_left(rows, area.top), bisect_right(rows, area.bottom) - 1
            if first <= last:
                yield Span(area.sheet, column, first, last)


def add_halves(graph: Graph, rows: Rows) -> None:
    """Add the parts of each span: one formula, or two shorter spans at a boundary that other spans share."""
    waiting = [node for nodes in graph.values() for node in nodes if isinstance(node, Span)]
    while waiting:
        span = waiting.pop()
        if span in graph:
            continue
        sheet, column, first, last = span
        if first == last:
            graph[span] = [Place(sheet, rows[sheet][column][first], column)]
            continue
        highest_difference = (first ^ last).bit_length() - 1
        cut = last >> highest_difference << highest_difference
        halves = [Span(sheet, column, first, cut - 1), Span(sheet, column, cut, last)]
        graph[span] = list(halves)
        waiting += halves


def take_out_cycles(graph: Graph) -> list[list[Place]]:
    """Return the cells of at most ``MAX_CYCLES`` cycles, and remove what these cells read from the graph."""
    cycles: list[list[Place]] = []
    while len(cycles) < MAX_CYCLES:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            # In graphlib's order each node is read by the next one. Reversed, each cell reads the next one.
            cycle = [node for node in reversed(error.args[1][1:]) if isinstance(node, Place)]
            cycles.append(cycle)
            graph.update((place, []) for place in cycle)
        else:
            break
    return cycles


def longest_chain(graph: Graph) -> list[Place]:
    """Return the longest list of formulas in which each reads the one before. Formulas behind a cycle are excluded."""
    sorter = TopologicalSorter(graph)
    try:
        sorter.prepare()
    except CycleError:
        print(f"there are more than {MAX_CYCLES} cycles")
    depth: dict[Node, int] = {}
    while ready := sorter.get_ready():
        for node in ready:
            depth[node] = max((depth[read] for read in graph[node]), default=0) + isinstance(node, Place)
        sorter.done(*ready)
    chain: list[Node] = []
    deepest = max(depth, key=depth.__getitem__, default=None)
    while deepest is not None:
        chain.append(deepest)
        deepest = max(graph[deepest], key=depth.__getitem__, default=None)
    return [node for node in reversed(chain) if isinstance(node, Place)]
