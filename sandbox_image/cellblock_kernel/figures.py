"""Show the figures of a matplotlib backend that shows nothing by itself."""

import sys
from base64 import b64encode
from typing import Any

SILENT = frozenset({"agg", "cairo", "pdf", "pgf", "ps", "svg", "template"})


def show_silent_figures(publish: Any) -> None:
    """Display each open figure that was drawn on and neither saved nor displayed since.

    Only for backends that draw to files, as after ``matplotlib.use("Agg")``: inline figures display themselves. The
    figures stay open, because a later cell may save them.

    Args:
        publish: IPython's ``display_pub.publish``.
    """
    pyplot = sys.modules.get("matplotlib.pyplot")
    numbers = getattr(getattr(sys.modules.get("matplotlib._pylab_helpers"), "Gcf", None), "figs", None)
    if pyplot is None or not numbers or str(sys.modules["matplotlib"].get_backend()).lower() not in SILENT:
        return
    from IPython.core.pylabtools import print_figure

    for manager in list(numbers.values()):
        figure = manager.canvas.figure
        if figure.stale and figure.axes:
            image = print_figure(figure, fmt="png")
            figure.stale = False
            if image:
                publish({"image/png": b64encode(image).decode("ascii"), "text/plain": repr(figure)})
