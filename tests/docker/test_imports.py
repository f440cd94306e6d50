"""What a kernel has imported before its first cell: little, and what its policy preloads."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import KernelStartError
from tests.conftest import make_manager, one_session

NAMES = "sorted(name for name in globals() if not name.startswith('_'))"
PLOT = "import matplotlib.pyplot as plt\nfigure = plt.plot([1, 2])"


def policy(folder: Path, modules: str) -> str:
    path = folder / "preloading.toml"
    path.write_text(f"preload = {modules}\n")
    return str(path)


async def test_what_is_preloaded_is_there_and_unseen(runtime: str, tmp_path: Path) -> None:
    """A first cell finds the modules imported, and its namespace and history as without them."""
    async with one_session(runtime) as (manager, session):
        bare = await manager.execute_code(session, NAMES)
    async with one_session(runtime, policy=policy(tmp_path, "['pandas', 'matplotlib.pyplot']")) as (manager, session):
        first = await manager.execute_code(session, NAMES)
        assert (first["result"], first["execution_count"]) == (bare["result"], 1)
        loaded = await manager.execute_code(session, "import sys; {'pandas', 'matplotlib.pyplot'} <= set(sys.modules)")
        assert loaded["result"] == "True"
        assert (await manager.execute_code(session, "sorted(Out)"))["result"] == "[1, 2]"
        drawn = await manager.execute_code(session, PLOT)
        assert any("image/png" in output.get("data", {}) for output in drawn["outputs"])


async def test_state_moves_between_kernels_that_preload(runtime: str, tmp_path: Path) -> None:
    """A library that was there before the first cell is still the library's, and a patch of it still the session's."""
    async with one_session(runtime, policy=policy(tmp_path, "['pandas']")) as (manager, session):
        await manager.execute_code(session, "import pandas as pd\nframe = pd.DataFrame({'a': [1]})\npd.mine = 5")
        made = await manager.checkpoint(session)
        assert made.lost == ()
        await manager.restore(session, made)
        assert (await manager.execute_code(session, "frame.a[0] + pd.mine"))["result"] == "np.int64(6)"


async def test_a_module_that_cannot_be_imported_is_named(runtime: str, tmp_path: Path) -> None:
    """It is the policy's fault, and told as that; not a kernel that has no pandas."""
    manager = make_manager(runtime, policy=policy(tmp_path, "['no_such_module']"))
    with pytest.raises(KernelStartError, match=r"preloads 'no_such_module'.*ModuleNotFoundError") as caught:
        async with manager, manager.acquire_kernel("agent", timeout=60):
            pass
    assert caught.value.cause == "policy"


async def test_what_no_cell_needs_is_imported_when_it_is_asked_for(runtime: str) -> None:
    """Of jupyter_client a kernel has the session alone; a cell that wants the rest gets it."""
    async with one_session(runtime) as (manager, session):
        lean = await manager.execute_code(session, "import sys; 'jupyter_client.manager' in sys.modules")
        assert lean["result"] == "False"
        asked = await manager.execute_code(session, "import jupyter_client; jupyter_client.KernelManager.__name__")
        assert asked["result"] == "'KernelManager'"
        taken = await manager.execute_code(session, "from jupyter_client import AsyncKernelClient; AsyncKernelClient()")
        assert taken["status"] == "ok"
        missing = await manager.execute_code(session, "jupyter_client.no_such_name")
        assert missing["error"]["ename"] == "AttributeError"
