"""Only a session's own modules assign its state, and only ``SessionRow`` writes its row."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from orchestrator.sessions.lifecycle import Lifecycle

OWNERS = {"lifecycle.py", "session.py"}
STATE = {field.name for field in fields(Lifecycle)}
OWN_ROW = {
    "add_session", "add_forks", "session_lives", "session_sleeps", "session_ends", "take_ownership", "begin_cell",
    "end_cell", "end_running_cells", "drop_checkpoints",
}  # fmt: skip
CHANGES = {"append", "clear", "extend", "insert", "pop", "remove", "update", "setdefault"}


def _targets(node: ast.AST) -> Iterator[ast.expr]:
    match node:
        case ast.Assign():
            yield from node.targets
        case ast.AugAssign() | ast.AnnAssign():
            yield node.target
        case ast.Delete():
            yield from node.targets
        case ast.Call(func=ast.Attribute(value=ast.Attribute() as changed, attr=method)) if method in CHANGES:
            yield changed
        case ast.Call(func=ast.Name(id="setattr" | "delattr"), args=[thing, ast.Constant(value=str(name)), *_]):
            yield ast.Attribute(thing, name)


def _is_state(target: ast.expr) -> bool:
    """Whether it is ``session.kernel``, and not ``self.kernel`` of another class."""
    if isinstance(target, ast.Tuple | ast.List):
        return any(map(_is_state, target.elts))
    if isinstance(target, ast.Subscript):
        return _is_state(target.value)
    if not isinstance(target, ast.Attribute) or target.attr not in STATE:
        return False
    owner = target.value
    return "session" in (getattr(owner, "id", "") or getattr(owner, "attr", "")) or (
        isinstance(owner, ast.Name) and owner.id in {"fork", "held", "woken", "parent"}
    )


def assignments(source: str) -> list[int]:
    """Return the lines of a module that assign or change a session's state."""
    nodes = ast.walk(ast.parse(source))
    return [
        target.lineno if hasattr(target, "lineno") else 0 for n in nodes for target in _targets(n) if _is_state(target)
    ]


def row_writes(source: str) -> list[str]:
    """Return the methods of the store that a module calls to write a session's row."""
    return [
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and node.attr in OWN_ROW and getattr(node.value, "id", "") == "History"
    ]


def test_no_other_module_assigns_a_sessions_state(repository: Path) -> None:
    """Kernel, state, history, notices and use of a session change in its transitions alone."""
    found = {
        f"{path}:{line}"
        for path in (repository / "orchestrator").rglob("*.py")
        if not (path.parent.name == "sessions" and path.name in OWNERS)
        for line in assignments(path.read_text())
    }
    assert found == set()


def test_no_other_module_writes_a_sessions_row(repository: Path) -> None:
    """The store's methods for sessions and cells are called from ``sessionrow.py`` alone."""
    found = {
        path.name: writes
        for path in (repository / "orchestrator").rglob("*.py")
        if path.name != "sessionrow.py" and (writes := row_writes(path.read_text()))
    }
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        "session.kernel = None",
        "self._session.users += 1",
        "session.notices.append('x')",
        "session.ended, session.asleep = 'idle', False",
        "del session.execution_history",
        "session.execution_history[-1]['result'] = {}",
        "setattr(session, 'caller', 'me')",
    ],
)
def test_the_check_sees_every_kind_of_assignment(line: str) -> None:
    """Each of these would be found."""
    assert assignments(line)


@pytest.mark.parametrize("line", ["self.kernel = None", "session.interrupt()", "x = session.kernel", "kernel.note(x)"])
def test_the_check_lets_the_rest_pass(line: str) -> None:
    """Another class's own field, a call and a read are no assignments."""
    assert not assignments(line)
