"""Draws the pictures of JupyterLab in docs/pictures: a real one, in a real browser, on kernels in sandboxes.

Once with the kernelspec, and once with a server as its gateway. Run it with ``make screenshots``.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from tests.dashboard.chromium import Page, browser_page
from tests.jupyter.jupyterkernels import Place, place
from tests.jupyter.lab import Notebook, lab
from tests.jupyter.programs import notebook
from tests.server.conftest import serving

PICTURES = Path(__file__).with_name("pictures")
LOAD = """\
import io
import pandas as pd

sales = pd.read_csv(io.StringIO('''region,spring,autumn
north,118,131
south,96,88
east,141,150
west,77,94'''), index_col='region')"""
FROM_FOLDER = """\
import pandas as pd

sales = pd.read_csv('/data/notebook/sales.csv', index_col='region')
sales"""
PLOT = "sales.plot.bar(figsize=(7, 2.6), rot=0);"
NETWORK = """\
import socket

try:
    socket.create_connection(('example.org', 443), timeout=2)
except OSError as error:
    print(error)"""
SALES = "region,spring,autumn\nnorth,118,131\nsouth,96,88\neast,141,150\nwest,77,94\n"
_SECONDS = 120.0
_CURRENT = "window.jupyterapp.shell.currentWidget"


async def draw(page: Page, name: str) -> None:
    await asyncio.sleep(2)  # what has opened is still moving
    (PICTURES / f"{name}.png").write_bytes(await page.picture())
    print(f"screenshots: docs/pictures/{name}.png", flush=True)


async def draw_all(where: Place, name: str, *options: str) -> None:
    """Draw a plot, an interrupted loop, and two tabs on one kernel.

    Args:
        name: what the pictures' names begin with.
        options: of JupyterLab.
    """
    async with browser_page(where.folder) as page, lab(where, *options) as address:
        await page.look(width=1100, height=860)
        opened = await Notebook.opened(page, address, "sales.ipynb")
        await opened.command("notebook:run-all-cells")
        await opened.shows("resolution", _SECONDS)
        await page.until("document.querySelector('.jp-OutputArea-output img')?.naturalWidth > 100", _SECONDS)
        await page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
        await draw(page, name)
        await opened.run("while True: pass")
        await page.until(f"{_CURRENT}.sessionContext.session.kernel.status === 'busy'", _SECONDS)
        await opened.press_button("Interrupt the kernel")
        await opened.shows("KeyboardInterrupt", _SECONDS)
        await opened.run("print('goes on with', len(sales), 'regions')")
        await opened.shows("goes on with 4", _SECONDS)
        await draw(page, f"{name}-interrupt")
        await open_beside(page, "second.ipynb")
        second = Notebook(page)
        await second.idle()
        await second.command("notebook:run-all-cells")
        await page.until(f"{_CURRENT}.node.innerText.includes('autumn    463')", _SECONDS)
        await draw(page, f"{name}-tabs")


async def open_beside(page: Page, path: str) -> None:
    """Open a notebook on the right, with the kernel of the one that is open."""
    kernel = f"{{id: {_CURRENT}.sessionContext.session.kernel.id}}"
    wanted = f"{{path: {json.dumps(path)}, kernel: {kernel}, options: {{mode: 'split-right'}}}}"
    await page.evaluate(f"window.jupyterapp.commands.execute('docmanager:open', {wanted}).then(() => null)")
    await page.until(f"{_CURRENT}.context?.path === {json.dumps(path)}", _SECONDS)


async def main() -> None:
    with place(policy="notebook") as where:
        (where.notebooks / "sales.csv").write_text(SALES)
        notebook(where.notebooks / "sales.ipynb", [FROM_FOLDER, PLOT, NETWORK])
        notebook(where.notebooks / "second.ipynb", ["sales.sum()"])
        await draw_all(where, "jupyterlab")
    with place() as where, serving(where.folder, tokens=1) as server:
        token = server.token("lab", "--group", "lab", "--policy", "data-science")
        notebook(where.notebooks / "sales.ipynb", [LOAD, PLOT, NETWORK], kernel="python3")
        notebook(where.notebooks / "second.ipynb", ["sales.sum()"], kernel="python3")
        gateway = (f"--gateway-url={server.url}", f"--GatewayClient.auth_token={token}")
        await draw_all(where, "jupyterlab-gateway", *gateway)


if __name__ == "__main__":
    asyncio.run(main())
