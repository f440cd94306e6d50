"""Let plotly draw pictures without a browser of the system.

plotly asks version 1 of the package kaleido, which needs Chrome. Version 0.2 brings a browser of its own; this module
offers the calls of version 1 with it. The browser runs for one call: it would use memory, and no checkpoint holds it.
The image adds calls of these functions to plotly's modules where it has that version.
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from typing import Any

_SECONDS = 60.0  # for one start of the browser and its pictures; under gVisor a start takes about 4
# One process: under runc, the seccomp profile refuses the namespaces that the browser makes for others.
_OPTIONS = ("--disable-gpu", "--allow-file-access-from-files", "--disable-breakpad", "--disable-dev-shm-usage",
            "--no-sandbox", "--no-zygote", "--single-process")  # fmt: skip
_TEXT = ("svg", "json")


class Kaleido:
    """The part of kaleido's version 1 that plotly calls.

    Args:
        browser: the program of version 0.2.
        plotlyjs: the JavaScript of plotly.
    """

    def __init__(self, browser: str, plotlyjs: str) -> None:
        self._command = [browser, "plotly", f"--plotlyjs={plotlyjs!r}", *_OPTIONS]

    def calc_fig_sync(self, fig: Any, opts: Mapping[str, Any] | None = None, **_: object) -> bytes:
        """Return the picture of a figure.

        Raises:
            ValueError: the browser could not draw it.
        """
        return self._draw([(fig, opts or {})])[0]

    def write_fig_from_object_sync(self, fig_dicts: Sequence[Mapping[str, Any]], **_: object) -> None:
        """Write the pictures of several figures to their files.

        Raises:
            ValueError: the browser could not draw one. None is written.
        """
        pictures = self._draw([(each["fig"], each["opts"]) for each in fig_dicts])
        for each, picture in zip(fig_dicts, pictures, strict=True):
            each["path"].write_bytes(picture)

    def _draw(self, wanted: Sequence[tuple[Any, Mapping[str, Any]]]) -> list[bytes]:
        requests = [_request(figure, options) for figure, options in wanted]
        done = subprocess.run(
            self._command,
            input="\n".join([*requests, ""]).encode(),
            env={**os.environ, "HOME": tempfile.gettempdir()},  # where it makes a cache
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
        answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")][1:]
        for answer in answers:
            if answer.get("code"):
                raise ValueError(f"the figure cannot be drawn: {answer.get('message')}")
        if len(answers) != len(wanted):
            raise ValueError(f"the figure cannot be drawn: the browser ended with status {done.returncode}")
        return [
            answer["result"].encode() if answer["format"] in _TEXT else base64.b64decode(answer["result"])
            for answer in answers
        ]


def _request(figure: Any, options: Mapping[str, Any]) -> str:
    from plotly.io import to_json

    format_ = str(options.get("format") or "png").lower()
    data = json.loads(to_json(figure, validate=False, remove_uids=False))
    request = {"format": "jpeg" if format_ == "jpg" else format_, "data": data}
    for name, default in (("width", 700), ("height", 500), ("scale", 1)):
        request[name] = options.get(name) or default
    return json.dumps(request)


def install_in_export(module: Any) -> None:
    """Offer the calls to ``plotly.io._kaleido``."""
    import kaleido
    import plotly

    browser = os.path.join(os.path.dirname(kaleido.__file__), "executable", "kaleido")
    errors = types.ModuleType("kaleido.errors")
    errors.ChromeNotFoundError = type("ChromeNotFoundError", (Exception,), {})  # type: ignore[attr-defined]
    sys.modules["kaleido.errors"] = errors
    module.kaleido = Kaleido(browser, os.path.join(os.path.dirname(plotly.__file__), "package_data", "plotly.min.js"))
    module._KALEIDO_AVAILABLE = True


def install_in_renderers(renderers: Any) -> None:
    """Show figures as a picture, and as JSON for front ends that draw them themselves."""
    if "PLOTLY_RENDERER" not in os.environ:
        renderers.default = "plotly_mimetype+png"
