"""The mark of output that was left out stands where the output was: in a stream's text only where text is missing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator import KernelResourceLimits
from orchestrator.limits import OutputLimits
from orchestrator.output.collector import OutputCollector
from orchestrator.output.events import (
    ClearOutput,
    DisplayData,
    ErrorOutput,
    ExecuteResult,
    Output,
    OutputEvent,
    StreamOutput,
)
from tests.conftest import make_manager

LARGE = "x" * 60_000
LIMIT = 50_000
OUT, ERR = StreamOutput("stdout", "hello\n"), StreamOutput("stderr", "oops\n")
LARGE_OUT, LARGE_ERR = StreamOutput("stdout", LARGE), StreamOutput("stderr", LARGE)
DISPLAY, RESULT = DisplayData({"text/html": LARGE}), ExecuteResult({"text/plain": LARGE})
ERROR = ErrorOutput("E", "v", (LARGE,))
CASES: dict[str, tuple[list[OutputEvent], str]] = {
    "display": ([OUT, DISPLAY], "display"),
    "display first": ([DISPLAY, OUT], "display"),
    "display between": ([OUT, DISPLAY, OUT], "display"),
    "display after stderr": ([ERR, DISPLAY], "display"),
    "result": ([OUT, RESULT], "display"),
    "error": ([OUT, ERROR], "display"),
    "displays": ([OUT, *[DisplayData({"text/html": "x" * 5000})] * 30, OUT], "display"),
    "stdout": ([OUT, LARGE_OUT], "stdout"),
    "stderr": ([OUT, LARGE_ERR], "stderr"),
    "stderr between": ([OUT, LARGE_ERR, OUT], "stderr"),
    "stderr, then a display": ([LARGE_ERR, DisplayData({"text/plain": "x"})], "stderr"),
    "stdout and a display": ([LARGE_OUT, DISPLAY], "stdout"),
    "both streams": ([LARGE_OUT, LARGE_ERR], "stdout"),
    "cleared text": ([StreamOutput("stdout", "x" * 30_000), ClearOutput(True)] * 200, "stdout"),
    "cleared displays": ([DisplayData({"text/plain": "x" * 30_000}), ClearOutput(True)] * 200, "display"),
}


def collected(events: list[OutputEvent], *, unread: bool) -> tuple[Output, ...]:
    """Return the outputs of a cell under a limit of 50 KB. ``unread``: large events are left out unread."""
    collector = OutputCollector(OutputLimits(LIMIT))
    for event in events:
        if unread and event in (LARGE_OUT, LARGE_ERR, DISPLAY, RESULT, ERROR):
            collector.refuse(60_000, text=isinstance(event, StreamOutput))
        else:
            collector.add(event)
    list(collector.finish())
    assert collector.truncation is not None
    return collector.outputs()


@pytest.mark.parametrize("unread", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_mark_stands_where_the_output_was(case: str, unread: bool) -> None:
    """One mark: a display where no text was left out, else a part of the text that was."""
    events, where = CASES[case]
    outputs = collected(events, unread=unread)
    if unread and where == "stderr":
        where = next((output.name for output in outputs if isinstance(output, StreamOutput)), "stdout")  # not known
    marks = [
        output.name if isinstance(output, StreamOutput) else "display"
        for output in outputs
        if "left out here" in str(output)
    ]
    assert marks == [where]
    assert str(outputs).count("left out here") == 1


@pytest.mark.one_runtime
async def test_displays_that_are_too_large_leave_stdout_alone(runtime: str) -> None:
    """Of 12 displays of 200 KB, 1 MiB has room for the first and last: stdout is what was printed."""
    limits = replace(KernelResourceLimits(), max_output_size_mb=1)
    code = (
        "print('before')\nfor n in range(12): display({'text/html': f'{n}' + 'x' * 200_000}, raw=True)\nprint('after')"
    )
    async with (
        make_manager(runtime, limits=limits) as manager,
        manager.acquire_kernel("agent", timeout=60) as (_kernel, session),
    ):
        result = await manager.execute_code(session, code)
    assert result["stdout"] == "before\nafter\n"
    marks = [output for output in result["outputs"] if "left out here" in str(output)]
    assert [mark["type"] for mark in marks] == ["display_data"]
    assert result["truncated"]["dropped_messages"] == 12 + 3 - len(result["outputs"])
