"""What a command puts out while it runs, and all that is known of it once it has ended.

All of it that came from a sandbox is a claim of hostile code: show it, never run it or render it unescaped.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self, get_args

from orchestrator.outcome import CellOutcome, Outcome
from orchestrator.output import formodels
from orchestrator.output.amounts import amount
from orchestrator.output.fields import Fields
from orchestrator.output.fileinfo import ChangedFile
from orchestrator.output.outputs import StreamName
from orchestrator.output.result import Evidence, KernelState, Truncation

_OUTCOMES: tuple[Outcome, ...] = get_args(CellOutcome)


@dataclass(frozen=True, slots=True)
class CommandOutput:
    """A piece of what a command wrote. A piece may end in the midst of a character.

    Attributes:
        name: "stdout" or "stderr"; a terminal has only "stdout".
    """

    name: StreamName
    data: bytes

    def as_dict(self) -> dict[str, Any]:
        return {"type": "command_output", "name": self.name, **_form("data", self.data)}

    @classmethod
    def from_dict(cls, form: Mapping[str, Any]) -> Self:
        """Return the event that ``as_dict`` described.

        Raises:
            ValueError: a field is missing or invalid; the message names its key.
        """
        fields = Fields(form, "command_output")
        return cls(fields.choice("name", "stdout", "stderr"), _parsed(fields, "data"))


@dataclass(frozen=True, slots=True)
class CommandResult:
    """All that is known of one finished command.

    Attributes:
        number: the command's number in its session, from 1.
        command: the arguments; one argument is a command line, which the shell ran, if ``shell`` is true.
        outcome: how the command ended; compares equal to its string: "ok" (exit code 0), "error" (any other exit
            code), "timeout", "interrupted" (by a signal of ``RunningCommand.kill``), "cancelled" (the task that awaited
            it was), "oom" (it, or the kernel, exceeded the memory limit), "output_limit" (too much output, where the
            policy stops that), "kernel_died" (the kernel ended meanwhile) or "engine_lost" (the Docker engine does not
            answer).
        exit_code: as a shell reports it: 127 for a program that is not there, 126 for one that cannot be run, 128 + n
            for the signal n. None if the kernel did not report the end: it died, or did not answer; or if a cell of
            the session took the exit status with ``os.wait``.
        stdout, stderr: what the command wrote. If it wrote more than the output limit, the beginning and the end, with
            a mark between them.
        duration_s: seconds on the host's clock.
        truncated: None where all of the output is here.
        kernel_state: "idle" (alive), or "dead" (the agent's next kernel begins empty).
        runtime: the container runtime that the command ran under.
        evidence: what the host saw.
        warnings: what else the caller should know.
        changed_files: see ``ExecutionResult``.
    """

    number: int
    command: tuple[str, ...]
    shell: bool
    outcome: Outcome
    exit_code: int | None
    stdout: bytes
    stderr: bytes
    duration_s: float
    truncated: Truncation | None
    kernel_state: KernelState
    runtime: str
    evidence: Evidence
    warnings: tuple[str, ...] = ()
    changed_files: tuple[ChangedFile, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the exit code was 0."""
        return self.outcome is Outcome.OK

    @property
    def timed_out(self) -> bool:
        """Whether the command exceeded its time limit, and was killed."""
        return self.outcome is Outcome.TIMEOUT

    @property
    def stdout_text(self) -> str:
        """``stdout`` as UTF-8, with a replacement character for what is not valid."""
        return self.stdout.decode("utf-8", "replace")

    @property
    def stderr_text(self) -> str:
        """``stderr`` as UTF-8, with a replacement character for what is not valid."""
        return self.stderr.decode("utf-8", "replace")

    def as_text(self, limit: int = formodels.LIMIT) -> str:
        """Return the result as one text for a language model: stdout, stderr, and in brackets what else it must know.

        Args:
            limit: characters, 200 at least. Beyond it the middle of the output is left out.
        """
        return formodels.command_text(self, limit)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields, for JSON. Output that is no valid UTF-8 is in "stdout_base64" or "stderr_base64" too."""
        return {
            "number": self.number,
            "command": list(self.command),
            "shell": self.shell,
            "outcome": self.outcome.value,
            "exit_code": self.exit_code,
            **_form("stdout", self.stdout),
            **_form("stderr", self.stderr),
            "timed_out": self.timed_out,
            "duration_s": self.duration_s,
            "truncated": None if self.truncated is None else self.truncated.as_dict(),
            "kernel_state": self.kernel_state,
            "runtime": self.runtime,
            "evidence": self.evidence.as_dict(),
            "warnings": list(self.warnings),
            "changed_files": [file.as_dict() for file in self.changed_files],
        }

    @classmethod
    def from_dict(cls, form: Mapping[str, Any]) -> Self:
        """Return the result that ``as_dict`` described.

        Raises:
            ValueError: a field is missing or invalid; the message names its key.
        """
        fields = Fields(form)
        return cls(
            number=fields.value("number", int),
            command=fields.texts("command"),
            shell=fields.value("shell", bool),
            outcome=fields.choice("outcome", *_OUTCOMES),
            exit_code=fields.optional("exit_code", int),
            stdout=_parsed(fields, "stdout"),
            stderr=_parsed(fields, "stderr"),
            duration_s=fields.value("duration_s", float),
            truncated=fields.optional_nested("truncated", Truncation.from_dict),
            kernel_state=fields.choice("kernel_state", "idle", "dead"),
            runtime=fields.value("runtime", str),
            evidence=fields.nested("evidence", Evidence.from_dict),
            warnings=fields.texts("warnings"),
            changed_files=fields.each_if_any("changed_files", ChangedFile.from_dict),
        )


@dataclass(frozen=True, slots=True)
class CommandFinished:
    """The last event of a command."""

    result: CommandResult

    def as_dict(self) -> dict[str, Any]:
        return {"type": "command_finished", "result": self.result.as_dict()}

    @classmethod
    def from_dict(cls, form: Mapping[str, Any]) -> Self:
        """Return the event that ``as_dict`` described.

        Raises:
            ValueError: a field is missing or invalid; the message names its key.
        """
        return cls(Fields(form, "command_finished").nested("result", CommandResult.from_dict))


def shortened(result: CommandResult, most: int) -> CommandResult:
    """Return a result with the beginning and the end of each stream, ``most`` bytes at most."""
    return replace(result, stdout=_shortened(result.stdout, most), stderr=_shortened(result.stderr, most))


def _shortened(data: bytes, most: int) -> bytes:
    if len(data) <= most:
        return data
    first = most // 3
    mark = f"\n[... {amount(len(data) - most)} not kept in the history ...]\n".encode()
    return data[:first] + mark + data[len(data) - (most - first) :]


def _form(name: str, data: bytes) -> dict[str, str]:
    text = data.decode("utf-8", "replace")
    exact = {} if text.encode() == data else {f"{name}_base64": base64.b64encode(data).decode()}
    return {name: text, **exact}


def _parsed(fields: Fields, name: str) -> bytes:
    exact = fields.optional(f"{name}_base64", str)
    if exact is None:
        try:
            return fields.value(name, str).encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name!r} has a lone surrogate") from None
    try:
        return base64.b64decode(exact, validate=True)
    except binascii.Error:
        raise ValueError(f"'{name}_base64' is no base64") from None
