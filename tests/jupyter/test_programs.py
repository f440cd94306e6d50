"""nbconvert with nbclient, papermill, nbval and Jupyter's test of kernels, unmodified, on kernels in sandboxes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.jupyter.jupyterkernels import Place, place
from tests.jupyter.programs import SPECIAL, WIDGET, WIDGETS, notebook, outputs, program


@pytest.fixture(scope="module")
def where() -> Iterator[Place]:
    with place() as made:
        yield made


def converted(where: Place, source: Path, name: str, *options: str) -> Path:
    """Run a notebook with nbconvert, and return the result."""
    program(where, "nbconvert", "--execute", "--to", "notebook", *options, "--output", name, str(source))
    return where.notebooks / name


def test_jupyters_test_of_kernels(where: Place) -> None:
    """``jupyter_kernel_test`` 0.7: all pass; skipped are a kind of history, as on the stock kernel, and the pager."""
    suite = str(REPOSITORY / "tests" / "jupyter" / "suite_kernel.py")
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--noconftest", f"--rootdir={REPOSITORY}"]
    done = program(where, "pytest", *options, suite)
    assert "12 passed, 2 skipped" in done.stdout, done.stdout


def test_a_notebook_ends_as_on_the_stock_kernel(where: Place) -> None:
    """100 cells with plots, errors, HTML and updates: the same outputs, counts and timestamps' names."""
    codes = [*SPECIAL, *(f"x{n} = {n}; print(x{n})" for n in range(100 - len(SPECIAL)))]
    ours = converted(where, notebook(where.notebooks / "ours.ipynb", codes), "ours-run.ipynb", "--allow-errors")
    stock = converted(
        where, notebook(where.notebooks / "stock.ipynb", codes, "python3"), "stock-run.ipynb", "--allow-errors"
    )
    assert outputs(ours) == outputs(stock)
    for mine, theirs in zip(*(json.loads(path.read_text())["cells"] for path in (ours, stock)), strict=True):
        assert mine["execution_count"] == theirs["execution_count"]
        assert mine["metadata"]["execution"].keys() == theirs["metadata"]["execution"].keys()


def test_widgets_are_kept_in_the_notebook() -> None:
    """Under a policy with comms, the state of a widget is in the notebook's metadata, as the kernel changed it."""
    with place(policy=WIDGETS) as where:
        source = notebook(where.notebooks / "widget.ipynb", ["%pip install ipywidgets", WIDGET, "slider.value = 9"])
        metadata = json.loads(converted(where, source, "widget-run.ipynb").read_text())["metadata"]
    models = metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"].values()
    assert [model["state"]["value"] for model in models if model["model_name"] == "IntSliderModel"] == [9]


def test_papermill_fills_in_parameters(where: Place) -> None:
    """It injects a cell, runs all, and reports a failing cell as its own error."""
    source = notebook(where.notebooks / "report.ipynb", ["print(f'{region}: {6 * 7}')"])
    program(where, "papermill", str(source), "report-run.ipynb", "-p", "region", "north")
    assert outputs(where.notebooks / "report-run.ipynb")[-1][0]["text"] == "north: 42\n"
    source = notebook(where.notebooks / "failing.ipynb", ["1 / 0", "print('never')"])
    done = program(where, "papermill", str(source), "failing-run.ipynb", check=False)
    assert done.returncode != 0
    assert "ZeroDivisionError" in done.stderr


def test_the_provisioner_takes_any_python_kernelspec(where: Place) -> None:
    """The variable of jupyter_client sends the stock kernelspec's cells into a sandbox."""
    source = notebook(
        where.notebooks / "provisioned.ipynb", ["import os; print(os.getcwd(), os.getuid() >= 200_000)"], "python3"
    )
    chosen = where.with_variables(JUPYTER_DEFAULT_PROVISIONER_NAME="cellblock")
    assert outputs(converted(chosen, source, "provisioned-run.ipynb"))[0][0]["text"] == "/work True\n"


def test_the_console_and_run(where: Place) -> None:
    """They read code from a terminal and a file; `run` gives the kernel an argument that is the stock kernel's."""
    typed = program(where, "jupyter_console", "--kernel", "sandbox", "--simple-prompt", typed="print(6 * 7)\n")
    assert "42" in typed.stdout
    (where.notebooks / "script.py").write_text("print('ran', 6 * 7)")
    assert program(where, "jupyter", "run", "--kernel", "sandbox", "script.py").stdout == "ran 42\n"


def test_nbval_compares_the_outputs(where: Place) -> None:
    """It runs a notebook again, and finds the outputs that nbconvert got."""
    source = notebook(where.notebooks / "checked.ipynb", ["print(6 * 7)"])
    done = converted(where, source, "checked-run.ipynb")
    assert "1 passed" in program(where, "pytest", "--nbval", "-q", "-p", "no:cacheprovider", str(done)).stdout


def test_nothing_is_left(where: Place) -> None:
    """Each program has ended, and each kernel with it."""
    assert where.containers() == []
