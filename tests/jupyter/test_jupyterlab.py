"""A real JupyterLab in a real browser, on a kernel in a sandbox."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.dashboard.chromium import browser_page, tab
from tests.jupyter.jupyterkernels import Place, place
from tests.jupyter.lab import Notebook, lab
from tests.jupyter.programs import PLOT, WIDGET, WIDGETS, notebook

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def where() -> Iterator[Place]:
    with place(policy=WIDGETS) as made:
        notebook(made.notebooks / "sales.ipynb", ["x = 41", PLOT])
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address(where: Place) -> AsyncIterator[str]:
    async with lab(where) as served:
        yield served


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(where: Place, address: str) -> AsyncIterator[Notebook]:
    async with browser_page(where.folder) as page:
        await page.look(width=1200, height=900)
        yield await Notebook.opened(page, address, "sales.ipynb")


async def test_a_notebook_runs_and_plots(opened: Notebook) -> None:
    """Its cells run in order, and the plot is a picture in the page."""
    await opened.command("notebook:run-all-cells")
    await opened.page.until("document.querySelector('.jp-OutputArea-output img')?.naturalWidth > 100", 60)
    await opened.run("print('x is', x + 1)")
    await opened.shows("x is 42")


async def test_the_debugger_is_off_and_no_subshell_is_asked_for(opened: Notebook) -> None:
    """As ``kernel_info`` says: the debugger's button cannot be pressed, and JupyterLab takes the main shell."""
    kernel = "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel"
    info = await opened.page.evaluate(f"{kernel}.info.then(info => [info.debugger, info.supported_features])")
    assert info == [False, []]
    assert await opened.page.evaluate(f"{kernel}.supportsSubshells") is False
    button = "document.querySelector('.jp-NotebookPanel-toolbar .jp-DebuggerBugButton')"
    assert await opened.page.evaluate(f"{button} === null || {button}.getAttribute('aria-disabled') === 'true'")


async def test_a_widget_and_its_variable_move_together(opened: Notebook) -> None:
    """The kernel moves the slider in the page, and a key on the slider changes the kernel's variable."""
    await opened.run("%pip install ipywidgets")
    await opened.shows("Successfully installed ipywidgets")
    await opened.run(WIDGET)
    await opened.page.until("document.querySelector('.widget-readout')?.innerText === '7'", 60)
    await opened.run("slider.value = 9")
    await opened.page.until("document.querySelector('.widget-readout').innerText === '9'", 60)
    await opened.page.evaluate("document.querySelector('.widget-slider .noUi-handle').focus()")
    await opened.page.press("ArrowRight")
    await opened.page.until("document.querySelector('.widget-readout').innerText === '10'", 60)
    await opened.run("print('the slider is at', slider.value)")
    await opened.shows("the slider is at 10")


async def test_two_tabs_share_one_kernel(opened: Notebook, address: str, where: Place) -> None:
    """The second tab has the first one's variables, and no kernel of its own."""
    async with tab(opened.page.browser, where.folder) as page:
        second = await Notebook.opened(page, address, "sales.ipynb")
        await second.run("print('the other tab has', x)")
        await second.shows("the other tab has 41")
    assert len(where.containers()) == 1


async def test_the_button_interrupts_a_loop(opened: Notebook) -> None:
    await opened.idle()  # until then "busy" is of an earlier cell
    await opened.run("while True: pass")
    await opened.page.until("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'busy'")
    await opened.press_button("Interrupt the kernel")
    await opened.shows("KeyboardInterrupt")
    await opened.run("print('goes on', x)")
    await opened.shows("goes on 41")


async def test_the_button_restarts_the_kernel(opened: Notebook) -> None:
    """The variables are gone, and the notebook goes on."""
    await opened.press_button("Restart the kernel")
    await opened.press_dialog("Restart")
    await opened.idle()
    await opened.run("print('x' in globals(), 'after the restart')")
    await opened.shows("False after the restart")
