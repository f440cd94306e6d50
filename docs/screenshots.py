"""Draws the terminal pictures in docs/pictures by running real commands with real kernels.

Run it with ``make screenshots``.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

from orchestrator import AgentKernelManager, KernelResourceLimits, Settings
from orchestrator.container.engine import connect, gvisor_fault
from tests.terminal import Terminal

PICTURES = Path(__file__).with_name("pictures")
COMMAND = str(Path(sys.executable).with_name("cellblock"))
COLUMNS = 132

WORK = {
    "forecast": "import time\nwhile True: sum(range(200_000)); time.sleep(0.01)",
    "scraper-notes": "import time; page = b'x' * 90_000_000\nwhile True: time.sleep(1)",
    "ledger": "import time; table = bytearray(215_000_000)\nwhile True: time.sleep(1)",
    "summary": "total = 6 * 7",
}
FLOOD = """\
import time

print("reading last night's log")
for number in range(100_000):
    print(f"{number:06} nothing unusual")
print("done: 100,000 lines, 3 alarms")
"""
NARROW = "[limits]\noutput_mb = 0.0012\n"

# Names of colours in pyte, and the names that rich uses.
_COLOURS = {"brown": "yellow", "brightbrown": "bright_yellow"}


def picture_of(screen: pyte.Screen, title: str) -> str:
    """Return the terminal's contents as SVG, without empty lines at the end."""
    lines = len("\n".join(screen.display).rstrip().split("\n"))
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=screen.columns, height=lines, file=nowhere, force_terminal=True)
        for row in range(lines):
            line = Text()
            for column in range(screen.columns):
                cell = screen.buffer[row][column]
                line.append(cell.data, _style(cell))
            console.print(line, soft_wrap=True)
        return console.export_svg(title=title)


def _style(cell: pyte.screens.Char) -> Style:
    def colour(name: str) -> str | None:
        if name == "default":
            return None
        if len(name) == 6 and all(digit in "0123456789abcdef" for digit in name):
            return f"#{name}"
        return _COLOURS.get(name, name.replace("bright", "bright_"))

    return Style(
        color=colour(cell.fg),
        bgcolor=colour(cell.bg),
        bold=cell.bold,
        italic=cell.italics,
        underline=cell.underscore,
        reverse=cell.reverse,
    )


@asynccontextmanager
async def agents_at_work(runtime: str, state: str) -> AsyncIterator[None]:
    """Start agents that each run a cell, until the context ends."""
    settings = Settings.load().model_copy(
        update={"runtime": runtime, "warm_kernels": 1, "audit_log": "off", "state_dir": state}
    )
    limits = KernelResourceLimits(max_memory_mb=256, max_execution_time=120)
    async with AsyncExitStack() as stack:
        manager = AgentKernelManager(max_kernels=len(WORK) + 1, resource_limits=limits, settings=settings)
        await stack.enter_async_context(manager)
        running = []
        for agent, code in WORK.items():
            _, session = await stack.enter_async_context(manager.acquire_kernel(f"{agent}-{runtime}", timeout=60))
            running.append(asyncio.create_task(manager.execute_code(session, code)))
        try:
            yield
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


async def top() -> None:
    """Draw `cellblock top` while several agents work."""
    client = connect(30)
    runtimes = ["runc"] if gvisor_fault(client.info()["Runtimes"]) else ["runc", "runsc"]
    client.close()
    with tempfile.TemporaryDirectory(prefix="cb-") as state:
        async with AsyncExitStack() as stack:
            for runtime in runtimes:
                await stack.enter_async_context(agents_at_work(runtime, state))
            terminal = Terminal([COMMAND, "top"], os.environ | {"CELLBLOCK_STATE_DIR": state}, 16, COLUMNS)
            kernels = (len(WORK) + 1) * len(runtimes)
            await terminal.until(
                lambda text: text.count("#1") >= 3 * len(runtimes) and f"{len(runtimes)} ready, 0 starting" in text, 90
            )
            await asyncio.sleep(5)
            await terminal.until(lambda text: f"{kernels} of {kernels} kernels" in text)
            picture = picture_of(terminal.screen, "cellblock top")
            terminal.press("q")
            assert await terminal.wait() == 0
    (PICTURES / "top.svg").write_text(picture)


async def truncated() -> None:
    """Draw `cellblock run` under a policy with a very low output limit."""
    with tempfile.TemporaryDirectory(prefix="cb-") as folder:
        script, policy = Path(folder) / "nightly.py", Path(folder) / "narrow.toml"
        script.write_text(FLOOD)
        policy.write_text(NARROW)
        typed = "cellblock run nightly.py --policy narrow.toml"
        command = f"cd {folder}; PATH={Path(COMMAND).parent}:$PATH; echo '$ {typed}'; {typed}"
        terminal = Terminal([shutil.which("sh") or "/bin/sh", "-c", command], os.environ, 52, 110)
        assert await terminal.wait(90) == 0
    (PICTURES / "truncated.svg").write_text(picture_of(terminal.screen, "a truncated result"))


async def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    await truncated()
    await top()
    for picture in sorted(PICTURES.glob("*.svg")):
        print(f"screenshots: docs/pictures/{picture.name}")


if __name__ == "__main__":
    asyncio.run(main())
