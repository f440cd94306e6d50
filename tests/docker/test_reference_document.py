"""Every Python snippet of the document that the project came from runs, with only its import line changed."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

import pytest

from orchestrator import AgentKernelManager, KernelResourceLimits, KernelSession
from tests.conftest import SHARED

DOCUMENT = SHARED / "reference" / "kernel-manager.md"
OLD_IMPORT = re.compile(r"from spreadsheet_analyzer\.agents\.kernel_manager import")


def snippets() -> list[str]:
    if not DOCUMENT.is_file():
        return []
    return re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)


async def run(snippet: str, names: dict[str, Any]) -> None:
    """Run a snippet as a notebook would, with ``await`` at its top level."""
    source = OLD_IMPORT.sub("from cellblock import", snippet)
    code = compile(source, "snippet", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    value = eval(code, names)  # noqa: S307 - the document's own snippet
    if inspect.isawaitable(value):
        await value


async def test_all_snippets_run_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    """One after the other in one namespace, as a reader would; what each comment promises is printed.

    The one cell that is to run into its limit has the snippet's own 60 s; here the manager that the error-handling
    snippet leaves to its reader has a limit of one.
    """
    found = snippets()
    if not found:
        pytest.skip(f"{DOCUMENT} is not here: the test of its snippets needs it")
    assert len(found) == 6
    basic, limits, persistence, checkpointing, errors, example = found
    names: dict[str, Any] = {"KernelSession": KernelSession}

    await run(basic, names)
    assert "ok\n[{'type': 'stream'" in capsys.readouterr().out.replace("'output_type': 'stream', ", "")
    assert names["result"]["outputs"][0]["text"] == "Result: 30\n"

    await run(limits, names)
    assert names["manager"].resource_limits.max_memory_mb == 2048
    try:
        await run(persistence, names)
        assert names["result"]["stdout"] == "15\n"
        await run(checkpointing, names)
        assert [entry["code"] for entry in names["new_session"].execution_history][-1] == "print(total)"
    finally:
        await names["manager"].shutdown()

    async with AgentKernelManager(resource_limits=KernelResourceLimits(max_execution_time=1)) as manager:
        await run(errors, names | {"manager": manager})
    assert "Execution exceeded time limit" in capsys.readouterr().out

    await run(example, names)
    await names["analyze_spreadsheet_with_agents"]()
