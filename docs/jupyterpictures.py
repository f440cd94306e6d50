"""Draws the pictures of JupyterLab in docs/pictures: a real one, in a real browser, on a kernel in a sandbox.

Run it with ``make screenshots``.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.dashboard.chromium import Page, browser_page
from tests.jupyter.jupyterkernels import place
from tests.jupyter.lab import Notebook, lab
from tests.jupyter.programs import notebook

PICTURES = Path(__file__).with_name("pictures")
CELLS = """\
import pandas as pd

sales = pd.read_csv('/data/notebook/sales.csv', index_col='region')
sales
---
sales.plot.bar(figsize=(7, 2.6), rot=0);
---
import socket

try:
    socket.create_connection(('example.org', 443), timeout=2)
except OSError as error:
    print(error)"""
SALES = "region,spring,autumn\nnorth,118,131\nsouth,96,88\neast,141,150\nwest,77,94\n"


async def draw(page: Page, name: str) -> None:
    await asyncio.sleep(2)  # what has opened is still moving
    (PICTURES / f"{name}.png").write_bytes(await page.picture())
    print(f"screenshots: docs/pictures/{name}.png")


async def main() -> None:
    with place(policy="notebook") as where:
        (where.notebooks / "sales.csv").write_text(SALES)
        notebook(where.notebooks / "sales.ipynb", CELLS.split("\n---\n"))
        async with browser_page(where.folder) as page, lab(where) as address:
            await page.look(width=1100, height=860)
            opened = await Notebook.opened(page, address, "sales.ipynb")
            await opened.command("notebook:run-all-cells")
            await opened.shows("resolution")
            await page.until("document.querySelector('.jp-OutputArea-output img')?.naturalWidth > 100", 60)
            await page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
            await draw(page, "jupyterlab")


if __name__ == "__main__":
    asyncio.run(main())
