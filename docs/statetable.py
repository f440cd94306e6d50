"""Writes docs/state.md from the table that tests/docker/test_state_matrix.py tests: ``python -m docs.statetable``."""

from __future__ import annotations

from pathlib import Path

from tests.docker.state_kinds import GROUPS, KINDS, StateKind

PAGE = Path(__file__).with_name("state.md")

HEAD = """\
# What a checkpoint does with each kind of state

<!-- made by `make state-table` from tests/docker/state_kinds.py -->

`tests/docker/test_state_matrix.py` makes all of it in a session, takes a checkpoint, restores it into a fresh kernel,
and that into another, under each runtime. *Equal*: a check that tells it from a lookalike holds in both. *Reported*:
it is in the checkpoint's `lost` by name, kind and reason, and its use raises `NotRestoredError`; nothing else is there.

Of {kinds} kinds, {equal} are restored equal and {reported} are reported.
"""


def row_of(kind: StateKind) -> str:
    """Return the table row of one kind of state."""
    name = kind.name.replace("|", "\\|")
    return f"| {name} | {'reported' if kind.reported else 'equal'} | {kind.note} |"


def page() -> str:
    """Return the content of docs/state.md."""
    reported = sum(kind.reported for kind in KINDS)
    parts = [HEAD.format(kinds=len(KINDS), equal=len(KINDS) - reported, reported=reported)]
    for title, kinds in GROUPS.items():
        rows = "\n".join(row_of(kind) for kind in kinds)
        parts.append(f"## {title}\n\n| kind | what happens | note |\n|---|---|---|\n{rows}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"state-table: {PAGE.name}, {len(KINDS)} kinds")
