"""Cells of our own: they warm a kernel up, import what the policy preloads, and leave no trace."""

from __future__ import annotations

import pytest

from orchestrator.errors import KernelDiedError, KernelStartError
from orchestrator.kernel.fakecell import Die, FakeCell
from orchestrator.kernel.fakekernel import FakeKernel
from orchestrator.kernel.warmup import preload, run_first_cells, silent_cell


async def test_first_cells_are_not_in_the_history() -> None:
    """The last of them is silent, and removes what the others left."""
    kernel = FakeKernel()
    await run_first_cells(kernel)
    assert kernel.executed[0] == "1"
    assert kernel.asked == 4
    assert silent_cell("1")["store_history"] is silent_cell("1", silent=False)["store_history"] is False


async def test_a_kernel_that_dies_ends_the_warming() -> None:
    with pytest.raises(KernelDiedError):
        await run_first_cells(FakeKernel(default=FakeCell([Die()])))


async def test_a_module_that_cannot_be_preloaded_is_named() -> None:
    """With the kernel's own words, bounded and without characters that a terminal would obey."""
    kernel = FakeKernel(default=FakeCell(error=("ModuleNotFoundError", "\x1b[2J" + "x" * 1000)))
    with pytest.raises(KernelStartError, match=r"preloads 'numpy'.*ModuleNotFoundError: \\x1b\[2Jx+") as caught:
        await preload(kernel, "numpy")
    assert caught.value.cause == "policy"
    assert len(caught.value.message) < 700


async def test_a_module_that_can_be_preloaded_is_imported_silently() -> None:
    kernel = FakeKernel()
    await preload(kernel, "numpy")
    assert (kernel.asked, kernel.executed) == (1, [])
