"""FakeCell: what a ``FakeKernel`` does with one cell. Pure data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.container.exits import Exit
from orchestrator.outcome import Outcome

Obeys = Literal["control", "outside", "nothing"]


@dataclass(frozen=True, slots=True)
class Output:
    """One message on a channel, as Jupyter's protocol has it. ``printed`` and its neighbours make the usual ones."""

    kind: str
    content: dict[str, Any]
    channel: str = "iopub"


@dataclass(frozen=True, slots=True)
class Wait:
    """Run on for so many seconds of the event loop's time; None: until interrupted or killed."""

    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """Call ``input(prompt)``, and print the answer."""

    prompt: str = ""


@dataclass(frozen=True, slots=True)
class Die:
    """End the kernel."""

    exit: Exit = Exit(Outcome.KERNEL_DIED, 1)  # noqa: RUF009 - immutable


@dataclass(frozen=True, slots=True)
class Violate:
    """Break the protocol, or with ``excess`` exceed a bound, so that the host disconnects the kernel."""

    reason: str = "a frame has unknown flags"
    excess: bool = False


@dataclass(frozen=True, slots=True)
class Use:
    """Change what the kernel uses: the fields of ``Usage`` that are named."""

    fields: dict[str, Any]


Step = Output | Wait | Ask | Die | Violate | Use


@dataclass(frozen=True, slots=True)
class FakeCell:
    """What a kernel does with a cell: its steps, one after another, and then its end.

    Attributes:
        steps: outputs, pauses and accidents.
        error: name and message of the exception that ends it; None: it succeeds.
        replies: whether its reply comes.
        idles: whether its idle status comes. A cell without both does not end by itself.
        obeys: which interrupt ends it: either of the two ("control"), only the one from outside, since the kernel's
            control thread cannot run ("outside"), or none ("nothing").
    """

    steps: Sequence[Step] = ()
    error: tuple[str, str] | None = None
    replies: bool = True
    idles: bool = True
    obeys: Obeys = "control"


def printed(text: str, name: str = "stdout") -> Output:
    """Return the output of ``print(text, end="")``."""
    return Output("stream", {"name": name, "text": text})


def displayed(data: dict[str, Any], display_id: str | None = None) -> Output:
    """Return the output of ``display`` with a mime bundle."""
    transient = {} if display_id is None else {"display_id": display_id}
    return Output("display_data", {"data": data, "metadata": {}, "transient": transient})


def returned(data: dict[str, Any], execution_count: int = 1) -> Output:
    """Return the output of a cell's last expression, as a mime bundle."""
    return Output("execute_result", {"data": data, "metadata": {}, "execution_count": execution_count})


def raised(ename: str, evalue: str) -> Output:
    """Return the output of an exception. ``FakeCell.error`` sends it by itself."""
    return Output("error", {"ename": ename, "evalue": evalue, "traceback": [f"{ename}: {evalue}"]})
