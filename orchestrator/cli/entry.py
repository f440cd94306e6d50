"""The entry point of the `cellblock` command. Imports nothing of the extra ``cli`` before it knows that it is there."""

from __future__ import annotations

import sys
from importlib.util import find_spec

_NEEDED = ("typer", "rich", "textual")


def main() -> None:
    """Run the command line, or exit with 2 when the extra ``cli`` is not installed."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        print(f"cellblock: the command line needs {', '.join(missing)}: pip install 'cellblock[cli]'", file=sys.stderr)
        sys.exit(2)
    from orchestrator.cli.app import main as run_command_line

    run_command_line()


if __name__ == "__main__":
    main()
