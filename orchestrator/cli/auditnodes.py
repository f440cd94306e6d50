"""The audit logs of a cluster's nodes: one chain for each node, which the node itself reads and verifies."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape
from rich.table import Table

from orchestrator.cli.auditentries import number_of, show_entries
from orchestrator.cli.clusterview import cluster_settings, nodes_of, operator_calls
from orchestrator.cli.render import errors, plain, run_async, show_json, show_table
from orchestrator.errors import CellblockError
from orchestrator.store.auditchain import Mark
from orchestrator.store.noderecord import NodeRecord

if TYPE_CHECKING:
    from orchestrator.cluster.operatorcalls import OperatorCalls

_VERIFYING = 120.0  # seconds for a node to read the whole of its log
_MOST = 500  # entries that a node returns
_POLL = 1.0  # seconds between two looks for new entries
_MARKS = {"whole": "green", "broken": "bold red", "unread": "yellow"}


@dataclass(frozen=True, slots=True)
class _Chain:
    """What became of the check of one node's chain."""

    node: NodeRecord
    state: str
    said: str
    verdict: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        named = {"node": self.node.address, "node_id": self.node.node_id}
        return {**named, "state": self.state, "said": self.said, "verdict": self.verdict}


def verify_nodes(heads: Sequence[str], as_json: bool) -> int:
    """Show whose chain is whole, whose is broken, and whose could not be read. Return the exit status."""
    chains = run_async(_verified(heads))
    if as_json:
        show_json([chain.as_dict() for chain in chains])
    else:
        table = Table("node", "chain", "entries", "what")
        for chain in chains:
            verdict = chain.verdict or {}
            mark = f"[{_MARKS[chain.state]}]{chain.state}[/]"
            row = (chain.node.address, str(verdict.get("entries", "-")), chain.said)
            address, entries, said = (escape(plain(text)) for text in row)
            table.add_row(address, mark, entries, said)
        show_table(table)
    return 0 if all(chain.state == "whole" for chain in chains) else 1


async def _verified(heads: Sequence[str]) -> list[_Chain]:
    settings = cluster_settings()
    calls, nodes = operator_calls(settings), await nodes_of(settings)
    marks = _marks(heads, nodes)

    async def verified(node: NodeRecord) -> _Chain:
        query = {"head": str(marks[node.node_id])} if node.node_id in marks else None
        try:
            await calls.ask(node, "GET", "/v1/caller")  # one that is silent is not waited for as one that reads
            found = await calls.ask(node, "GET", "/v1/operator/audit/verify", query=query, seconds=_VERIFYING)
        except CellblockError as error:
            return _Chain(node, "unread", error.message)
        return _judged(node, found)

    return list(await asyncio.gather(*map(verified, nodes)))


def _judged(node: NodeRecord, found: dict[str, Any]) -> _Chain:
    verdict = found.get("verdict")
    if not isinstance(verdict, dict):
        return _Chain(node, "unread", str(found.get("fault") or "it keeps no audit log"))
    if verdict.get("intact") is True:
        return _Chain(node, "whole", f"head: {verdict.get('head')}", verdict)
    fault = verdict.get("fault")
    known = fault if isinstance(fault, dict) else {}
    said = f"{known.get('kind')}: {known.get('path')}, line {known.get('line')}: {known.get('said')}"
    return _Chain(node, "broken", said, verdict)


def _marks(heads: Sequence[str], nodes: Sequence[NodeRecord]) -> dict[str, Mark]:
    """Return the expected heads by the nodes' ids."""
    marks = {}
    for head in heads:
        name, _, mark = head.rpartition("=")
        named = [node for node in nodes if node.is_named(name)]
        try:
            (node,) = named
            marks[node.node_id] = Mark.of(mark)
        except ValueError:
            raise typer.BadParameter(
                f"{plain(head)!r} is not NODE=NUMBER:HASH of one of the nodes.", param_hint="--head"
            ) from None
    return marks


def tail_nodes(lines: int, follow: bool, as_json: bool) -> None:
    """Print the newest entries of all nodes, by time, and with ``follow`` those that come."""
    run_async(_tail(lines, follow, as_json))


async def _tail(lines: int, follow: bool, as_json: bool) -> None:
    settings = cluster_settings()
    calls = operator_calls(settings)
    last: dict[str, int] = {}
    silent: set[str] = set()
    entries = await _new_entries(calls, await nodes_of(settings), last, silent)
    show_entries(entries[-lines:] if lines else [], as_json, of_nodes=True)
    while follow:
        await asyncio.sleep(_POLL)
        entries = await _new_entries(calls, await nodes_of(settings), last, silent)
        show_entries(entries, as_json, of_nodes=True)


async def _new_entries(
    calls: OperatorCalls, nodes: Sequence[NodeRecord], last: dict[str, int], silent: set[str]
) -> list[dict[str, Any]]:
    """Return the entries after those that were shown, by time.

    Args:
        last: the number of the newest entry of each node that was shown; it is updated.
        silent: the nodes of which it was said that they do not answer; it is updated.
    """
    fresh = []
    for answer in await calls.ask_all(nodes, "/v1/operator/audit", query={"limit": _MOST}):
        node = answer.node
        if answer.found is None:
            if node.node_id not in silent:
                errors.print(f"[yellow]{escape(plain(f'{node.address}: {answer.fault}'))}[/]")
            silent.add(node.node_id)
            continue
        silent.discard(node.node_id)
        found = answer.found.get("entries")
        rows = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
        since = last.get(node.node_id)
        new = [{"log_of": node.address, **row} for row in rows if since is None or number_of(row) > since]
        if since is not None and new and number_of(new[0]) > since + 1:
            errors.print(
                f"{escape(plain(node.address))}: {number_of(new[0]) - since - 1} entries are left out", style="yellow"
            )
        last[node.node_id] = max([since or 0, *map(number_of, new)])
        fresh += new
    return sorted(fresh, key=lambda entry: str(entry.get("time", "")))
