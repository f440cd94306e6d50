"""The page on kinds of state says what the table says that the tests try."""

from __future__ import annotations

from docs.statetable import PAGE, page
from tests.docker.state_kinds import KINDS


def test_the_page_is_in_step_with_the_table() -> None:
    """``make state-table`` renews it."""
    assert PAGE.read_text() == page()


def test_the_table_is_sound() -> None:
    """At least 60 kinds, names are unique, and what is lost with a variable has a use that must fail."""
    assert len(KINDS) >= 60
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    for kind in KINDS:
        assert bool(kind.lost) == bool(kind.uses), kind.name
        assert kind.reported or kind.check != "True", kind.name
