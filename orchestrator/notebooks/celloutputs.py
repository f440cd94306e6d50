"""What a result leaves in a notebook: outputs in nbformat's exact form, the ids of displays, and times. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from orchestrator.output.events import DisplayData, ErrorOutput, ExecuteResult, ExecutionResult

_BESIDE = ("type", "display_id")  # keys of a result's outputs that nbformat does not have
Content = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CellOutputs:
    """The outputs of one run.

    Attributes:
        outputs: in nbformat's form.
        display_ids: of each output, by which later cells may update it; None where it has none.
        updates: the last content that the run gave to each display id: ``data`` and ``metadata``.
    """

    outputs: tuple[Content, ...] = ()
    display_ids: tuple[str | None, ...] = ()
    updates: Mapping[str, Content] | None = None

    @classmethod
    def of(cls, result: ExecutionResult) -> CellOutputs:
        """Return the outputs of a result. The end of a kernel, which is no output of it, is one here."""
        shown = list(result.outputs)
        if result.error is not None and not any(isinstance(output, ErrorOutput) for output in shown):
            shown.append(result.error)
        forms = (output.as_dict() for output in shown)
        updates = {update.display_id: _content(update) for update in result.updates}
        updates |= {
            output.display_id: _content(output)
            for output in shown
            if isinstance(output, DisplayData | ExecuteResult) and output.display_id is not None
        }
        return cls(
            tuple({key: value for key, value in form.items() if key not in _BESIDE} for form in forms),
            tuple(output.display_id if isinstance(output, DisplayData | ExecuteResult) else None for output in shown),
            updates,
        )

    def updated(self, updates: Mapping[str, Content]) -> CellOutputs:
        """Return the outputs with the content that a later run gave to their ids; the same object if it gave none."""
        if not any(name in updates for name in self.display_ids if name is not None):
            return self
        pairs: Iterable[tuple[Content, str | None]] = zip(self.outputs, self.display_ids, strict=True)
        return CellOutputs(
            tuple(
                {**output, **updates[name]} if name is not None and name in updates else output
                for output, name in pairs
            ),
            self.display_ids,
        )


def times(result: ExecutionResult, ended: datetime) -> dict[str, str]:
    """Return when a cell ran, as JupyterLab keeps it in ``metadata.execution``. The host's clock tells, no kernel's."""
    end = ended.astimezone(UTC)
    begin = _iso(end - timedelta(seconds=result.duration_s))
    return {
        "iopub.execute_input": begin,
        "iopub.status.busy": begin,
        "iopub.status.idle": _iso(end),
        "shell.execute_reply": _iso(end),
    }


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _content(display: Any) -> Content:
    return {"data": dict(display.data), "metadata": dict(display.metadata)}
