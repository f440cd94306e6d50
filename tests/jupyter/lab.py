"""A real JupyterLab, and what a person sees and presses in it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

from tests.conformance.__main__ import environment
from tests.dashboard.chromium import Page
from tests.jupyter.jupyterkernels import Place

_START = 180.0  # seconds
_TOKEN = "of-the-test"  # noqa: S105 - of a server on the loopback address
_IDLE = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
_NEWS = "lab/user-settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"


@contextlib.asynccontextmanager
async def lab(where: Place, *options: str, program: str = "jupyterlab") -> AsyncIterator[str]:
    """Start JupyterLab, or another program of its kind, and yield its address.

    Args:
        program: "jupyterlab" or "notebook".
        options: of the command, such as ``--gateway-url=…``, with which the kernels are those of a gateway.
    """
    command = [
        str(environment("jupyter")), "-m", program, "--no-browser", "--allow-root", "--port=0",
        f"--IdentityProvider.token={_TOKEN}", f"--ServerApp.root_dir={where.notebooks}",
        "--LabApp.expose_app_in_browser=True", "--JupyterNotebookApp.expose_app_in_browser=True", *options,
    ]  # fmt: skip
    asks = where.folder / "c" / _NEWS
    asks.parent.mkdir(parents=True, exist_ok=True)
    asks.write_text('{"fetchNews": "false"}')
    log = (where.folder / "lab.log").open("wb")
    with log:
        process = await asyncio.create_subprocess_exec(
            *command, env=dict(where.variables), cwd=where.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield await _address(where.folder / "r" / f"jpserver-{process.pid}.json", process, where.folder / "lab.log")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_START):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _address(file: Path, process: asyncio.subprocess.Process, log: Path) -> str:
    deadline = time.monotonic() + _START
    while time.monotonic() < deadline and process.returncode is None:
        with contextlib.suppress(OSError, ValueError):
            return str(json.loads(file.read_text())["url"]).rstrip("/")
        await asyncio.sleep(0.1)
    raise AssertionError(f"JupyterLab has not started: {log.read_text()[-3000:]}")


class Notebook:
    """One notebook in one tab."""

    def __init__(self, page: Page) -> None:
        self.page = page

    @classmethod
    async def opened(cls, page: Page, address: str, name: str, path: str = "lab/tree") -> Notebook:
        """Open a notebook, and wait until its kernel is idle.

        Args:
            path: where the program shows notebooks; Notebook 7 does at "notebooks".
        """
        await page.goto(f"{address}/{path}/{quote(name)}?token={_TOKEN}")
        opened = cls(page)
        await opened.idle()
        return opened

    async def idle(self) -> None:
        """Wait until the kernel waits for cells."""
        await self.page.until(_IDLE, 180)

    async def press_button(self, name: str) -> None:
        """Click a button of the notebook's toolbar."""
        await self.page.click(f"document.querySelector('.jp-NotebookPanel-toolbar [aria-label={json.dumps(name)}]')")

    async def press_dialog(self, name: str) -> None:
        """Click a button of the dialog that has opened."""
        button = (
            f"[...document.querySelectorAll('.jp-Dialog button')].find(each => each.innerText === {json.dumps(name)})"
        )
        await self.page.until(button)
        await self.page.click(button)

    async def command(self, name: str) -> None:
        """Run one of JupyterLab's commands, as its menus and keys do."""
        await self.page.evaluate(f"window.jupyterapp.commands.execute({json.dumps(name)}).then(() => null)")

    async def run(self, code: str) -> None:
        """Type a cell at the end of the notebook, and press Shift and Enter."""
        cells = await self.page.evaluate("document.querySelectorAll('.jp-Notebook .jp-Cell').length")
        await self.page.click("document.querySelector('.jp-Notebook-footer')")
        await self.page.until(f"document.querySelectorAll('.jp-Notebook .jp-Cell').length === {cells + 1}")
        await self.page.click("[...document.querySelectorAll('.jp-Notebook .jp-Cell .cm-content')].at(-1)")
        await self.page.type(code)
        await self.page.press("Enter", shift=True)

    async def shows(self, text: str, seconds: float = 60) -> None:
        """Wait until an output has this text."""
        outputs = "[...document.querySelectorAll('.jp-OutputArea-output')].map(each => each.innerText).join('\\n')"
        await self.page.until(f"{outputs}.includes({json.dumps(text)})", seconds)
