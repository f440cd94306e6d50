"""Runs the main function of a benchmark."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from orchestrator.cli.render import INTERRUPTED, complain
from orchestrator.errors import CellblockError


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run ``main`` and exit with its result. Ctrl-C and errors of Cellblock are reported without a traceback."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except CellblockError as error:
        complain(error)
        sys.exit(1)
