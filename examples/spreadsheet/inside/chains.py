"""Following references: how long the longest chain of formulas is, and where formulas go round in circles."""

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
    """Formulas of one column, as a slice of the sorted list of their rows: what a range refers to."""

    sheet: str
    column: int
    first: int
    last: int


Node = Place | Span
Graph = dict[Node, list[Node]]  # a formula, and the formulas that it reads
Rows = dict[str, dict[int, list[int]]]  # sheet, column: the rows that hold a formula


def dependency_graph(book: Book, formulas: dict[Place, Formula]) -> tuple[Graph, int]:
    """Map each formula to the formulas that it reads; also count the references that could not be followed.

    A range becomes a ``Span``, and a long span is halved again and again: overlapping ranges share their halves, so
    that the graph stays near the size of the workbook even where every row sums up all the rows above it.
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
    """The formulas inside ``area``, column by column."""
    for column, rows in columns.items():
        if area.left <= column <= area.right:
            first, last = bisect_left(rows, area.top), bisect_right(rows, area.bottom) - 1
            if first <= last:
                yield Span(area.sheet, column, first, last)


def add_halves(graph: Graph, rows: Rows) -> None:
    """Add what each span consists of: one formula, or two shorter spans, cut where other spans are cut too."""
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
    """Return the cells of every cycle, at most ``MAX_CYCLES``, and make them cells that read nothing."""
    cycles: list[list[Place]] = []
    while len(cycles) < MAX_CYCLES:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            # From graphlib each node is read by the next: turned round, each cell reads the next one.
            cycle = [node for node in reversed(error.args[1][1:]) if isinstance(node, Place)]
            cycles.append(cycle)
            graph.update((place, []) for place in cycle)
        else:
            break
    return cycles


def longest_chain(graph: Graph) -> list[Place]:
    """The longest list of formulas each of which reads the one before it; what hangs on a cycle is left out."""
    sorter = TopologicalSorter(graph)
    try:
        sorter.prepare()
    except CycleError:
        print("there are more cycles than were taken out")
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
