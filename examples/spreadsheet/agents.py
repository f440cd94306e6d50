"""The three agents: their names, their scripts, and the shape of what they hand out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from spreadsheet.findings import Findings, FormulaFindings, PatternFindings, PictureFindings

EXAMPLES = Path(__file__).resolve().parent.parent
INSIDE = EXAMPLES / "spreadsheet" / "inside"

_CELL_MARK = re.compile(r"^# %% (.+)\n", re.MULTILINE)


class AgentCell(NamedTuple):
    """One cell of an agent's script."""

    title: str
    code: str


@dataclass(frozen=True)
class Agent:
    """One agent.

    Attributes:
        name: by which the kernel manager knows it.
        task: what it is for, in a few words.
        script: its cells, in a file of ``inside/``; the last one displays the findings as JSON.
        shape: of these findings.
    """

    name: str
    task: str
    script: str
    shape: type[Findings]

    def cells(self) -> list[AgentCell]:
        return split_cells((INSIDE / self.script).read_text())


@dataclass
class Outcome:
    """How an agent's work ended: with findings or with a failure."""

    agent: Agent
    findings: Findings | None = None
    failure: str = ""
    seconds: float = 0.0
    notebook: Path | None = None
    pictures: list[Path] = field(default_factory=list)


AGENTS = (
    Agent("formula-agent", "How the workbook computes", "formula_agent.py", FormulaFindings),
    Agent("pattern-agent", "What its tables hold", "pattern_agent.py", PatternFindings),
    Agent("picture-agent", "What it looks like", "picture_agent.py", PictureFindings),
)


def split_cells(script: str) -> list[AgentCell]:
    """Cut a script at its ``# %% Title`` lines; what stands before the first one is for its readers on the host."""
    _, *parts = _CELL_MARK.split(script)
    return [
        AgentCell(title, f"# {title}\n{code.strip()}\n") for title, code in zip(parts[::2], parts[1::2], strict=True)
    ]


def modules() -> Iterator[tuple[Path, str]]:
    """The modules that the scripts import, and where Python finds them in a sandbox."""
    for path in sorted(INSIDE.glob("*.py")):
        if not path.stem.endswith("_agent"):
            yield path, str(path.relative_to(EXAMPLES))
