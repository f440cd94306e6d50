"""Libraries that a session uses survive any number of moves to a fresh kernel, and nothing is reported lost falsely."""

from __future__ import annotations

import pytest

from orchestrator import AgentKernelManager, KernelSession
from tests.conftest import make_manager, one_session

# Each library of the image: used a little, in the way that makes its lazy parts.
USES = {
    "string": "import string, threading\nstring.Template.guard = threading.RLock()",
    "tqdm": "from tqdm import tqdm\n[_ for _ in tqdm(range(3))]",
    "pandas": "import pandas as pd\nframe = pd.DataFrame({'n': [1, 2]}); frame.describe().to_html()",
    "tqdm.pandas": "from tqdm.auto import tqdm as bar\nbar.pandas()\nframe.progress_apply(sum)",
    "openpyxl": "frame.to_excel('a.xlsx', engine='openpyxl'); pd.read_excel('a.xlsx')",
    "xlsxwriter": "frame.to_excel('b.xlsx', engine='xlsxwriter')",
    "numpy": "import numpy as np\nnp.linalg.inv(np.eye(2)); np.random.random(2)",
    "matplotlib": "import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.savefig('f.png'); plt.close('all')",
    "seaborn": "import seaborn\nseaborn.lineplot(frame); plt.savefig('g.png'); plt.close('all')",
    "scipy": "import scipy.optimize, scipy.stats\nscipy.stats.norm(0, 1).rvs(3)",
    "PIL": "import PIL.Image\nbool(PIL.Image.open('f.png').load())",
    "tabulate": "import tabulate\nframe.to_markdown(); tabulate.tabulate([[1]])",
    "standard library": "import logging, multiprocessing, sqlite3, urllib.request, uuid, zoneinfo\n"
    "zoneinfo.ZoneInfo('Asia/Tokyo'); uuid.uuid4(); logging.getLogger('a.b').info('x')",
}


async def use_all(manager: AgentKernelManager, session: KernelSession) -> None:
    for name, code in USES.items():
        result = await manager.execute_code(session, code)
        assert result["status"] == "ok", (name, result["error"])


async def test_libraries_survive_four_moves_with_nothing_lost(runtime: str) -> None:
    """Each is used in every kernel, and what it makes for itself is left to it."""
    async with one_session(runtime) as (manager, session):
        for _generation in range(4):
            await use_all(manager, session)
            made = await manager.checkpoint(session)
            assert made.lost == ()
            assert (await manager.restore(session, made)).lost == ()
        await use_all(manager, session)


@pytest.mark.one_runtime
async def test_a_placeholder_in_a_module_or_class_is_lost_again(runtime: str) -> None:
    """And does not keep the next capture from succeeding."""
    setup = """
open('shelf.py', 'w').write('class Shelf: pass')
import shelf, textwrap
shelf.source = textwrap.source = (n for n in 'ab')
shelf.Shelf.source = textwrap.TextWrapper.source = (n for n in 'ab')
"""
    async with one_session(runtime) as (manager, session):
        assert (await manager.execute_code(session, setup))["status"] == "ok"
        for _generation in range(4):
            made = await manager.checkpoint(session)
            names = {loss.name for loss in made.lost}
            assert len(names) >= 2, names
            await manager.restore(session, made)
            for use in ("next(shelf.source)", "next(shelf.Shelf.source)", "next(textwrap.source)"):
                result = await manager.execute_code(session, use)
                assert result["error"]["ename"] == "NotRestoredError", use


@pytest.mark.one_runtime
async def test_a_session_hibernates_again_and_again(runtime: str) -> None:
    """``hibernate`` is true of a session that sleeps with its newest state."""
    async with make_manager(runtime) as manager:
        for number in range(3):
            async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
                code = f"from tqdm import tqdm; y = globals().get('x'); x = {number}; [_ for _ in tqdm(range(3))]; y"
                result = await manager.execute_code(session, code)
                assert (result["status"], result["warnings"]) == ("ok", [])
                assert result["result"] == (str(number - 1) if number else None)
            assert await manager.hibernate("agent")
