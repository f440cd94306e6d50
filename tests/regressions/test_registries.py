"""What a session registers in libraries, and settings that they keep, are restored or named as lost: never neither."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.conftest import one_session


@dataclass(frozen=True)
class Kind:
    """A cell that sets something, and an expression that is true while it is set."""

    setup: str
    check: str


ACCESSOR = "\nclass {0}:\n    def __init__(self, of): self.of = of\n    def size(self): return len(self.of)"
KINDS = {
    "tqdm.pandas": Kind(
        "import pandas as pd; from tqdm import tqdm; tqdm.pandas(desc='x')",
        "list(pd.Series([1]).progress_apply(lambda v: v + 1)) == [2] and pd.DataFrame([[3]]).progress_apply(sum)[0]",
    ),
    "dataframe accessor": Kind(
        "import pandas as pd\n@pd.api.extensions.register_dataframe_accessor('geo')" + ACCESSOR.format("Geo"),
        "pd.DataFrame([1, 2]).geo.size() == 2",
    ),
    "series accessor": Kind(
        "@pd.api.extensions.register_series_accessor('geo')" + ACCESSOR.format("GeoSeries"),
        "pd.Series([1]).geo.size() == 1",
    ),
    "index accessor": Kind(
        "@pd.api.extensions.register_index_accessor('geo')" + ACCESSOR.format("GeoIndex"),
        "pd.Index([1]).geo.size() == 1",
    ),
    "extension type": Kind(
        "@pd.api.extensions.register_extension_dtype\nclass Money(pd.api.extensions.ExtensionDtype):\n"
        "    name = 'money'\n    type = int\n    @classmethod\n    def construct_array_type(cls): return None",
        "type(pd.api.types.pandas_dtype('money')) is Money",
    ),
    "pandas options": Kind(
        "pd.options.display.max_rows = 3; pd.set_option('display.float_format', '{:.1f}'.format)",
        "pd.options.display.max_rows == 3 and pd.options.display.float_format(1.25) == '1.2'",
    ),
    "pandas plot_params": Kind("pd.plotting.plot_params['xaxis.compat'] = True", "pd.plotting.plot_params['x_compat']"),
    "rcParams": Kind("import matplotlib as mpl; mpl.rcParams['font.size'] = 23", "mpl.rcParams['font.size'] == 23"),
    "rcParamsDefault": Kind("mpl.rcParamsDefault['font.size'] = 9", "mpl.rcParamsDefault['font.size'] == 9"),
    "styles": Kind(
        "import matplotlib.style\nmpl.style.library['mine'] = mpl.RcParams({'font.size': 9})",
        "mpl.style.library['mine']['font.size'] == 9",
    ),
    "colormaps": Kind(
        "mpl.colormaps.register(mpl.colors.ListedColormap(['r', 'g'], name='mine'))", "mpl.colormaps['mine'].N == 2"
    ),
    "colour sequences": Kind(
        "mpl.color_sequences.register('mine', ['r', 'g'])", "mpl.color_sequences['mine'] == ['r', 'g']"
    ),
    "projections": Kind(
        "import matplotlib.axes, matplotlib.projections\nclass Map(mpl.axes.Axes): name = 'map'\n"
        "mpl.projections.register_projection(Map)",
        "mpl.projections.get_projection_class('map') is Map",
    ),
    "warnings": Kind(
        "import warnings; warnings.filterwarnings('error', message='zzz')",
        "any(found[0] == 'error' and found[1] and found[1].pattern == 'zzz' for found in warnings.filters)",
    ),
    "locale": Kind(
        "import locale; locale.setlocale(locale.LC_ALL, 'C.UTF-8')",
        "locale.setlocale(locale.LC_NUMERIC) == 'C.UTF-8'",
    ),
    "decimal": Kind(
        "import decimal; decimal.getcontext().prec = 7; decimal.getcontext().traps[decimal.Inexact] = True",
        "decimal.getcontext().prec == 7 and decimal.getcontext().traps[decimal.Inexact]",
    ),
    "numpy": Kind(
        "import numpy as np; np.random.seed(5); seen = np.random.get_state()[1].tolist()\n"
        "np.set_printoptions(precision=2, formatter={'float': lambda x: 'F'})",
        "np.random.get_state()[1].tolist() == seen and str(np.array([1.5])) == '[F]'",
    ),
    "abstract classes": Kind(
        "import collections.abc, numbers\nclass Thing: pass\n"
        "_set = collections.abc.Sized.register(Thing), numbers.Real.register(Thing)",
        "issubclass(Thing, collections.abc.Sized) and isinstance(Thing(), numbers.Number)",
    ),
    "transformers of the shell": Kind(
        "def tidy(lines): return lines\nget_ipython().input_transformers_post.append(tidy)",
        "tidy in get_ipython().input_transformers_post",
    ),
    "handler of exceptions": Kind(
        "handled = []\ndef handle(shell, kind, error, trace, tb_offset=None): handled.append(kind)\n"
        "get_ipython().set_custom_exc((LookupError,), handle)",
        "get_ipython().custom_exceptions == (LookupError,) and not get_ipython().CustomTB(KeyError, 0, 0) and handled",
    ),
    "import finders": Kind(
        "import sys\nclass Finder:\n    def find_spec(self, *_): return None\n"
        "def hook(path): raise ImportError\nsys.meta_path.append(Finder()); sys.path_hooks.append(hook)",
        "type(sys.meta_path[-1]) is Finder and hook in sys.path_hooks",
    ),
}


async def test_what_a_session_registers_is_restored(runtime: str) -> None:
    """Each is there after one restore and after a second, and nothing is lost."""
    async with one_session(runtime) as (manager, session):
        for name, kind in KINDS.items():
            result = await manager.execute_code(session, kind.setup)
            assert result["outcome"] == "ok", (name, result["error"])
        for _generation in range(2):
            made = await manager.checkpoint(session)
            assert made.lost == ()
            assert (await manager.restore(session, made)).lost == ()
            faults = {}
            for name, kind in KINDS.items():
                result = await manager.execute_code(session, f"bool({kind.check})")
                if result["result"] != "True":
                    faults[name] = result["error"] or result["result"]
            assert faults == {}


@pytest.mark.one_runtime
async def test_a_generator_that_numpy_cannot_take_back_is_named(runtime: str) -> None:
    """``np.random`` with another bit generator starts anew, and the restore says so."""
    async with one_session(runtime) as (manager, session):
        await manager.execute_code(session, "import numpy as np; np.random.set_bit_generator(np.random.PCG64(5))")
        restored = await manager.restore(session, await manager.checkpoint(session))
        assert [loss.name for loss in restored.lost] == ["numpy.random"]
