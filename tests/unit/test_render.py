"""Hostile text is made safe for terminals and for the files of `cellblock verify`."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.render import plain
from orchestrator.cli.verify import _as_dict, _as_junit, _save
from orchestrator.errors import InvalidInputError
from orchestrator.isolation.claims import Verdict
from orchestrator.isolation.verification import CLAIMS, Finding, Report

ANYTHING = st.text(st.characters(codec=None), max_size=200)


def test_plain_removes_control_characters() -> None:
    """Control characters and lone surrogates are removed, and carriage returns become line feeds."""
    assert plain("a\x1b[2Jb\x9b1mc\x07d\re\x7f\ud800\uffff\tf\u202e\u2066g\n") == "a[2Jb1mcd\ne\tfg\n"


@given(ANYTHING)
def test_junit_and_json_carry_any_evidence(evidence: str) -> None:
    """The JUnit file parses and the JSON is complete for any evidence text."""
    report = Report(("runc",), [Finding(CLAIMS[0], "runc", Verdict(False, evidence), 0.1)])
    failure = ET.fromstring(_as_junit(report)).find(".//failure")  # noqa: S314 - written by the code under test
    assert failure is not None
    assert (failure.text or "") == plain(evidence).replace("\r", "")
    assert _as_dict(report)["findings"][0]["evidence"] == evidence


def test_findings_that_cannot_be_written_are_reported(tmp_path: Path) -> None:
    """A file in a folder that does not exist gives an error that names the file."""
    with pytest.raises(InvalidInputError, match=r"verify\.json cannot be written"):
        _save(tmp_path / "missing" / "verify.json", "{}")
