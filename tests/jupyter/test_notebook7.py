"""A real Notebook 7 in a real browser, on a kernel in a sandbox."""

from __future__ import annotations

from tests.dashboard.chromium import browser_page
from tests.jupyter.jupyterkernels import place
from tests.jupyter.lab import Notebook, lab
from tests.jupyter.programs import PLOT, notebook


async def test_a_notebook_runs_plots_and_restarts() -> None:
    """All cells run in order, the plot is a picture in the page, and a restart forgets the variables."""
    with place() as where:
        notebook(where.notebooks / "sales.ipynb", ["x = 41", PLOT])
        async with lab(where, program="notebook") as address, browser_page(where.folder) as page:
            await page.look(width=1200, height=900)
            opened = await Notebook.opened(page, address, "sales.ipynb", "notebooks")
            await opened.command("notebook:run-all-cells")
            await page.until("document.querySelector('.jp-OutputArea-output img')?.naturalWidth > 100", 60)
            await opened.run("print('x is', x + 1)")
            await opened.shows("x is 42")
            await opened.press_button("Restart the kernel")
            await opened.press_dialog("Restart")
            await opened.idle()
            await opened.run("print('known' if 'x' in globals() else 'forgotten')")
            await opened.shows("forgotten")
            assert len(where.containers()) == 1
