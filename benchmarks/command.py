"""How a benchmark is run from a shell."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from orchestrator.cli.render import INTERRUPTED, complain
from orchestrator.errors import CellblockError


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run ``main`` and exit with what it returns; Ctrl-C, and what Cellblock refuses, are told in a line."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except CellblockError as error:
        complain(error)
        sys.exit(1)
