"""The three agents: their names, scripts, and the models of their findings."""

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
        name: its agent id.
        task: a short description of its task.
        script: the file in ``inside/`` with its cells; the last cell displays the findings as JSON.
        shape: the model of the findings.
    """

    name: str
    task: str
    script: str
    shape: type[Findings]

    def cells(self) -> list[AgentCell]:
        """Return the cells of the script."""
        return split_cells((INSIDE / self.script).read_text())


@dataclass
class Outcome:
    """The result of an agent: findings or a failure."""

    agent: Agent
    findings: Findings | None = None
    failure: str = ""
    seconds: float = 0.0
    notebook: Path | None = None
    pictures: list[Path] = field(default_factory=list)


AGENTS = (
    Agent("formula-agent", "How the workbook calculates", "formula_agent.py", FormulaFindings),
    Agent("pattern-agent", "What its tables contain", "pattern_agent.py", PatternFindings),
    Agent("picture-agent", "What it looks like", "picture_agent.py", PictureFindings),
)


def split_cells(script: str) -> list[AgentCell]:
    """Return the cells of a script, split at its ``# %% Title`` lines. Text before the first such line is ignored."""
    _, *parts = _CELL_MARK.split(script)
    return [
        AgentCell(title, f"# {title}\n{code.strip()}\n") for title, code in zip(parts[::2], parts[1::2], strict=True)
    ]


def modules() -> Iterator[tuple[Path, str]]:
    """Yield each module that the scripts import, with its path in the sandbox."""
    for path in sorted(INSIDE.glob("*.py")):
        if not path.stem.endswith("_agent"):
            yield path, str(path.relative_to(EXAMPLES))
