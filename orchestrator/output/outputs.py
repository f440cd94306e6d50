"""The outputs of a cell that a notebook shows: text, displays, the value of the last expression, an exception.

All of it came from a sandbox and is a claim of hostile code: show it, never run it or render it unescaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from orchestrator.output.fields import Fields

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b\n]*(?:\x07|\x1b\\)")
_LONGEST = 256 * 1024  # characters in which codes are removed whole; after that, only the escape characters are

StreamName = Literal["stdout", "stderr"]


@dataclass(frozen=True, slots=True)
class StreamOutput:
    """Text that the cell wrote to stdout or stderr."""

    name: StreamName
    text: str

    def as_dict(self) -> dict[str, Any]:
        return {"type": "stream", "output_type": "stream", "name": self.name, "text": self.text}

    @classmethod
    def from_dict(cls, form: Mapping[str, Any]) -> Self:
        """Return the output that ``as_dict`` described.

        Raises:
            ValueError: a field is missing or invalid; the message names its key.
        """
        fields = Fields(form, "stream")
        return cls(fields.choice("name", "stdout", "stderr"), fields.value("text", str))


@dataclass(frozen=True, slots=True)
class DisplayData:
    """A rich output: mime type to content. Binary types such as image/png are base64 text.

    Attributes:
        display_id: the id by which the cell may update it; None where the cell gave it none.
    """

    data: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    display_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return nbformat's form; ``display_id``, which nbformat has no field for, is there only where it is set."""
        form = {
            "type": "display_data",
            "output_type": "display_data",
            "data": dict(self.data),
            "metadata": dict(self.metadata),
        }
        return form if self.display_id is None else {**form, "display_id": self.display_id}

    @classmethod
    def from_dict(cls, form: Mapping[str, Any]) -> Self:
        """Return the output that ``as_dict`` described.

        Raises:
            ValueError: a field is missing or invalid; the message names its key.
        """
        fields = Fields(form, "display_data")
        return cls(fields.value("data", dict), fields.value("metadata", dict), fields.optional("display_id", str))


@dataclass(frozen=True, slots=True)
class ExecuteResult:
    """The value of the cell's last expression, as a mime bundle.

    Attributes:
        display_id: as that of ``DisplayData``. IPython's own results have none.
    """

    data: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    execution_count: int | None = None
    display_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return nbformat's form, with ``display_id`` only where it is set."""
        form = {
            "type": "execute_result",
            "output_type": "execute_result",
            "data": dict(self.data),
            "metadata": dict(self.metadata),
            "execution_count": self.execution_count,
        }
        return form if self.display_id is None else {**form, "display_id": self.display_id}

    @classmethod
    def from_dict(cls, form: Mapping[str, Any]) -> Self:
        """Return the output that ``as_dict`` described.

        Raises:
            ValueError: a field is missing or invalid; the message names its key.
        """
        fields = Fields(form, "execute_result")
        return cls(
            fields.value("data", dict),
            fields.value("metadata", dict),
            fields.optional("execution_count", int),
            fields.optional("display_id", str),
        )


@dataclass(frozen=True, slots=True)
class ErrorOutput:
    """The exception that ended the cell. ``traceback`` has the kernel's ANSI colours."""

    ename: str
    evalue: str
    traceback: tuple[str, ...] = ()

    @property
    def traceback_text(self) -> str:
        """The traceback without ANSI codes, and without any escape character."""
        text = "\n".join(self.traceback)
        return (_ANSI.sub("", text[:_LONGEST]) + text[_LONGEST:]).replace("\x1b", "")

    def as_dict(self) -> dict[str, Any]:
        return {
            "type": "error",
            "output_type": "error",
            "ename": self.ename,
            "evalue": self.evalue,
            "traceback": list(self.traceback),
        }

    @classmethod
    def from_dict(cls, form: Mapping[str, Any]) -> Self:
        """Return the error that ``as_dict`` described, or a result's ``error``, which has no ``type``.

        Raises:
            ValueError: a field is missing or invalid; the message names its key.
        """
        fields = Fields(form)
        if "type" in form:
            fields.choice("type", "error")
        return cls(fields.value("ename", str), fields.value("evalue", str), fields.texts("traceback"))


@dataclass(frozen=True, slots=True)
class UpdateDisplayData:
    """New content for every earlier display of this id."""

    display_id: str
    data: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {
            "type": "update_display_data",
            "display_id": self.display_id,
            "data": dict(self.data),
            "metadata": dict(self.metadata),
        }

    @classmethod
    def from_dict(cls, form: Mapping[str, Any]) -> Self:
        """Return the event that ``as_dict`` described.

        Raises:
            ValueError: a field is missing or invalid; the message names its key.
        """
        fields = Fields(form, "update_display_data")
        return cls(fields.value("display_id", str), fields.value("data", dict), fields.value("metadata", dict))


Output = StreamOutput | DisplayData | ExecuteResult | ErrorOutput

OUTPUTS: dict[str, Callable[[Mapping[str, Any]], Output]] = {
    "stream": StreamOutput.from_dict,
    "display_data": DisplayData.from_dict,
    "execute_result": ExecuteResult.from_dict,
    "error": ErrorOutput.from_dict,
}
"""By its ``type``, what reads an output's dict form."""


def output_from_dict(form: Mapping[str, Any]) -> Output:
    """Return the output that any output's ``as_dict`` described.

    Raises:
        ValueError: a field is missing or invalid; the message names its key.
    """
    return OUTPUTS[Fields(form).choice("type", *OUTPUTS)](form)
