"""Makes of a result the one text that a language model reads. Pure.

The text has what the cell put out, in its order, without control characters; of a traceback the frames of the user's
own code; pictures and other rich output by name; and one sentence for what went wrong or is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from orchestrator.outcome import Outcome
from orchestrator.output.amounts import amount, memory_of
from orchestrator.output.outputs import DisplayData, ErrorOutput, ExecuteResult, Output, StreamOutput
from orchestrator.output.printable import printable, printable_lines

if TYPE_CHECKING:
    from orchestrator.output.commandresult import CommandResult
    from orchestrator.output.fileinfo import ChangedFile
    from orchestrator.output.result import ExecutionResult, Truncation

LIMIT = 20_000  # characters, unless the caller says otherwise: about 5,000 tokens
_LEAST = 200  # characters that a limit may have
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])")
_FRAME = re.compile(r"(?:Cell (?:In ?\[\d+\]|\[?In ?\[?\d*\]?), line \d+|File (?P<file>[^\n,]+?)(?::\d+|, line \d+))")
_OWN_FOLDERS = ("/work/", "/tmp/", "/home/user/", "/workspace/", "/mnt/data/", "~/")  # noqa: S108 - of the sandbox
_MOST_FILES = 20
_BLANK_LINES = re.compile(r"\n{3,}")
_TEXTS = ("text/plain", "text/markdown", "text/latex")

_SENTENCES = {
    Outcome.TIMEOUT: "The time limit was exceeded after {duration:.3g} s",
    Outcome.INTERRUPTED: "It was interrupted",
    Outcome.CANCELLED: "It was cancelled",
    Outcome.OOM: "The memory limit was exceeded",
    Outcome.OUTPUT_LIMIT: "It was stopped, because it put out too much",
    Outcome.KERNEL_DIED: "The kernel ended",
    Outcome.ENGINE_LOST: "The sandbox's engine was lost",
}


def cell_text(result: ExecutionResult, limit: int) -> str:
    """Return a cell's result as text. See ``ExecutionResult.as_text``."""
    parts = [output_text(output) for output in result.outputs]
    if result.error is not None and not any(isinstance(output, ErrorOutput) for output in result.outputs):
        parts.append(_error_text(result.error))
    lives = result.kernel_state == "idle"
    state = "the variables are kept" if lives else "all variables are lost; the next cell starts in a fresh kernel"
    notes = list(_notes(result.outcome, result.duration_s, state, result.truncated, result.warnings))
    if not any(part.strip() for part in parts) and result.outcome is Outcome.OK:
        notes.insert(0, "[no output]")
    return _joined(parts, [*notes, *_files(result.changed_files)], limit)


def command_text(result: CommandResult, limit: int) -> str:
    """Return a command's result as text. See ``CommandResult.as_text``."""
    parts = [plain(result.stdout_text)]
    if result.stderr:
        parts.append(f"[stderr]\n{plain(result.stderr_text)}" if result.stdout else plain(result.stderr_text))
    state = "the session goes on" if result.kernel_state == "idle" else "the session's variables are lost"
    notes = list(_notes(result.outcome, result.duration_s, state, result.truncated, result.warnings))
    if result.exit_code is not None and (result.exit_code or not (result.stdout or result.stderr)):
        notes.insert(0, f"[exit code {result.exit_code}]")
    return _joined(parts, [*notes, *_files(result.changed_files)], limit)


def _notes(
    outcome: Outcome, duration: float, state: str, truncated: Truncation | None, warnings: Sequence[str]
) -> Iterator[str]:
    if outcome in _SENTENCES:
        yield f"[{_SENTENCES[outcome].format(duration=duration)}; {state}.]"
    if truncated is not None:
        yield f"[{amount(truncated.dropped_bytes)} of output were left out: its beginning and its end are shown.]"
    for warning in warnings:
        yield f"[warning: {printable(warning)}]"


def _files(changed: Sequence[ChangedFile]) -> Iterator[str]:
    if not changed:
        return
    named = [
        f"{printable(file.path, 200)} ({file.change}{'' if file.change == 'removed' else ', ' + amount(file.size)})"
        for file in changed[:_MOST_FILES]
    ]
    more = f", and {len(changed) - _MOST_FILES} more" if len(changed) > _MOST_FILES else ""
    yield f"[files: {', '.join(named)}{more}]"


def output_text(output: Output) -> str:
    """Return one output as text, without control characters: rich output by name."""
    if isinstance(output, StreamOutput):
        return plain(output.text)
    if isinstance(output, ErrorOutput):
        return _error_text(output)
    return _rich_text(output)


def _rich_text(output: DisplayData | ExecuteResult) -> str:
    """Return the plain text of rich output, and the names of what has none."""
    text = next((str(output.data[mime]) for mime in _TEXTS if mime in output.data), "")
    pictures = [mime for mime in output.data if mime.startswith("image/")]
    others = [mime for mime in output.data if mime not in _TEXTS and mime not in pictures]
    if pictures:
        size = sum(memory_of(output.data[mime]) for mime in pictures)
        drawn = "" if text.startswith("<") else f" of {printable(text, 200)}" if text else ""
        return f"[picture: {', '.join(pictures)}, {amount(size)}{drawn}]"
    if text:
        return plain(text)
    return f"[{', '.join(printable(mime, 100) for mime in others)}]"


def _error_text(error: ErrorOutput) -> str:
    """Return a traceback's last line, after the frames of the user's own code."""
    frames = list(_own_frames(error.traceback))
    last = f"{plain(error.ename)}: {plain(error.evalue)}".rstrip(": \n")
    return "\n".join([*frames, last])


def _own_frames(traceback: Sequence[str]) -> Iterator[str]:
    """Yield the frames of cells and of files in the session's folders, and how many others there are between them."""
    left_out = 0
    for block in traceback:
        text = plain(block).strip("\n")
        found = _FRAME.match(text.lstrip())
        if found is None:
            continue
        file = found["file"]
        if file is not None and not file.startswith(_OWN_FOLDERS) and "/" in file:
            left_out += 1
            continue
        if left_out:
            yield f"[{left_out} frames of libraries]"
            left_out = 0
        yield text
    if left_out:
        yield f"[{left_out} frames of libraries]"


def plain(text: str) -> str:
    """Return text without colours, with every other control character escaped."""
    return printable_lines(_ANSI.sub("", text))


def _joined(parts: Sequence[str], notes: Sequence[str], limit: int) -> str:
    """Join the parts and the notes. Above the limit, the parts lose their middle, and the notes stay."""
    body = "".join(part if part.endswith("\n") else f"{part}\n" for part in parts if part)
    body = _BLANK_LINES.sub("\n\n", body).rstrip("\n")
    foot = "\n".join(notes)
    limit = max(limit, _LEAST)
    foot = shortened(foot, limit // 2)
    body = shortened(body, limit - len(foot) - bool(foot))
    return "\n".join(part for part in (body, foot) if part)


def shortened(text: str, limit: int) -> str:
    """Return at most ``limit`` characters: the beginning and the end, and how many characters are missing."""
    if len(text) <= limit:
        return text
    mark = f"\n[... {len(text) - limit:,} characters left out ...]\n"
    kept = max(0, limit - len(mark) - 2)
    head = kept * 2 // 3
    return text[:head] + mark + text[len(text) - (kept - head) :]
