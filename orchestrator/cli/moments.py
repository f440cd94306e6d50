"""Times that people type in options, such as `--since 2026-01-31`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import typer

ACCEPTED = "2026-01-31, 2026-01-31T12:00 or 2026-01-31T12:00:30; in UTC, unless it ends with an offset such as +02:00."
_FORM = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)"
    r"([T ](?P<minute>\d\d:\d\d)(?P<second>:\d\d(?P<fraction>\.\d{1,6})?)?(?P<zone>Z|[+-]\d\d:\d\d)?)?",
    re.ASCII,
)


def moments(option: str, text: str) -> tuple[datetime, datetime]:
    """Return the first moment that a time names, and the first moment after it: "2026-01-31" names a day.

    Raises:
        typer.BadParameter: the text is not a time in an accepted form. The command exits with 2.
    """
    form = _FORM.fullmatch(text.strip())
    try:
        if form is None:
            raise ValueError
        first = datetime.fromisoformat(form[0])
        first = first.replace(tzinfo=UTC) if first.tzinfo is None else first
        length = (
            timedelta(days=1)
            if form["minute"] is None
            else timedelta(minutes=1)
            if form["second"] is None
            else timedelta(seconds=1)
            if form["fraction"] is None
            else timedelta(microseconds=1)
        )
        return first, first + length
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{text!r} is not a time. Accepted: {ACCEPTED}", param_hint=option) from None


def time_of(entry: dict[str, Any]) -> datetime | None:
    """Return when an entry of the audit log was written, or None if it does not say."""
    try:
        when = datetime.fromisoformat(str(entry.get("time", "")))
    except ValueError:
        return None
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when
