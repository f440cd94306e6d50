"""Structured logs, with the standard library's ``logging``. Every event of the feed is logged at INFO, without code."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

from orchestrator.eventfeed import HostEvent

_OURS = "orchestrator"
_events = logging.getLogger(f"{_OURS}.events")


def log_event(event: HostEvent) -> None:
    """Log an event at INFO, with its fields and without its code. ``EventFeed`` calls it."""
    if _events.isEnabledFor(logging.INFO):
        _events.info(event.name, extra={"fields": event.fields})


class JsonFormatter(logging.Formatter):
    """Formats a record as a line of JSON: time, level, logger, event, and the fields in ``extra={"fields": …}``."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class TextFormatter(logging.Formatter):
    """Formats a record as a line of text."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {key}={value!r}" for key, value in getattr(record, "fields", {}).items())
        return f"{super().format(record)}{fields}"


def configure(level: str, form: Literal["text", "json"]) -> None:
    """Send this package's logs to stderr. Only Cellblock's own programs call it; others configure ``logging``."""
    handler = logging.StreamHandler(sys.stderr)
    text = TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    logger = logging.getLogger(_OURS)
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
