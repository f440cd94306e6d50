"""Hostile text on its way to a terminal and into files that other programs read."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.render import plain
from orchestrator.cli.verify import _as_dict, _as_junit
from orchestrator.isolation.claims import Verdict
from orchestrator.isolation.verification import CLAIMS, Finding, Report

ANYTHING = st.text(st.characters(codec=None), max_size=200)


def test_nothing_moves_the_cursor_or_fakes_a_prompt() -> None:
    assert plain("a\x1b[2Jb\x9b1mc\x07d\re\x7f\ud800\uffff\tf\n") == "a[2Jb1mcd\ne\tf\n"


@given(ANYTHING)
def test_evidence_of_any_text_is_read_back_from_junit(evidence: str) -> None:
    """The file parses, whatever a sandbox has put into the evidence."""
    report = Report(("runc",), [Finding(CLAIMS[0], "runc", Verdict(False, evidence), 0.1)])
    failure = ET.fromstring(_as_junit(report)).find(".//failure")  # noqa: S314 - our own text
    assert failure is not None
    assert (failure.text or "") == plain(evidence).replace("\r", "")
    assert _as_dict(report)["findings"][0]["evidence"] == evidence
