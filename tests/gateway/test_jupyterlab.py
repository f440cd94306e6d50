"""JupyterLab in a browser, with its kernels in the gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
import pytest_asyncio
from nbformat.v4 import new_code_cell, new_notebook

from tests.dashboard.chromium import Page, browser_page
from tests.gateway.conftest import Gateway
from tests.gateway.labserver import TOKEN, lab_server

pytestmark = pytest.mark.asyncio(loop_scope="module")
CELLS = [
    "import matplotlib.pyplot as plt\nplt.plot([1, 4, 9]); plt.show()",
    "import time; time.sleep(100)",
    "'plt' in globals()",
    "import os; os._exit(1)",
    "print('lives', 6 * 7)",
    "print('lives on')",
]


@dataclass
class Lab:
    """A notebook in a tab."""

    page: Page

    async def run_cell(self) -> None:
        """Run the selected cell, and select the next one."""
        await self.page.evaluate("void jupyterapp.commands.execute('notebook:run-cell-and-select-next')")

    async def until_status(self, status: str) -> None:
        """Wait until the page says so of the kernel."""
        await self.page.until(f"{KERNEL}?.status === '{status}'", seconds=60)

    async def until_output(self, cell: int, condition: str) -> None:
        """Wait until a cell's output fulfils a condition on ``e``, its element."""
        outputs = f"document.querySelectorAll('.jp-Notebook .jp-CodeCell')[{cell}].querySelector('.jp-OutputArea')"
        await self.page.until(f"(e => {condition})({outputs})", seconds=60)

    async def accept(self) -> None:
        """Press the button of the open dialog that agrees."""
        button = "document.querySelector('.jp-Dialog .jp-mod-accept')"
        await self.page.until(button)
        await self.page.click(button)
        await self.page.until("!document.querySelector('.jp-Dialog')")


KERNEL = "jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel"


@pytest_asyncio.fixture(loop_scope="module")
async def lab(gateway: Gateway, tmp_path: Path) -> AsyncIterator[Lab]:
    with lab_server(tmp_path, gateway.url, gateway.mine) as address:
        cells = [new_code_cell(code) for code in CELLS]
        made: Any = new_notebook(cells=cells)
        made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(made, tmp_path / "notebooks" / "n.ipynb")
        async with browser_page(tmp_path) as page:
            await page.look(width=1400)
            await page.goto(f"{address}/lab/tree/n.ipynb?token={TOKEN}")
            await page.until("window.jupyterapp && document.querySelector('.jp-Notebook .jp-CodeCell')", seconds=90)
            yield Lab(page)


async def test_a_notebook_in_jupyterlab(lab: Lab) -> None:
    """It shows a plot, interrupts, restarts without a word of a death, and goes on after a kernel has died."""
    await lab.until_status("idle")
    await lab.run_cell()
    await lab.until_output(0, "e.querySelector('img')?.naturalWidth > 100")
    await lab.until_status("idle")  # until then "busy" is of the first cell, and an interrupt finds no second one
    await lab.run_cell()
    await lab.until_status("busy")
    await lab.page.evaluate("void jupyterapp.commands.execute('notebook:interrupt-kernel')")
    await lab.until_output(1, "e.innerText.includes('KeyboardInterrupt')")
    await lab.page.evaluate("void jupyterapp.commands.execute('notebook:restart-kernel')")
    await lab.accept()
    await lab.until_status("idle")
    await lab.run_cell()
    await lab.until_output(2, "e.innerText.includes('False')")
    assert await lab.page.evaluate("document.querySelector('.jp-Dialog')?.innerText ?? ''") == ""
    await lab.run_cell()
    await lab.until_output(3, "e.innerText.includes('KernelDied')")
    await lab.run_cell()
    await lab.until_output(4, "e.innerText.includes('lives 42')")
    await lab.page.until("document.querySelector('.jp-Dialog')?.innerText.includes('appears to have died')")
    await lab.accept()
    await lab.until_status("idle")
    await lab.run_cell()
    await lab.until_output(5, "e.innerText.includes('lives on')")
