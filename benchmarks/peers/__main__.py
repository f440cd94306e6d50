"""Compares Cellblock with its peers.

Run it with ``make bench-peers``. There are two measures: a repeated execute in an open sandbox, and the time from a
request for a sandbox to its first result. Each peer runs in its own environment with its fastest documented settings.
All subjects take turns in one run. Quote the ratios of the medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchmarks.command import run_main
from benchmarks.peers import chart, preparation, report
from benchmarks.peers.catalogue import PEERS, Peer
from benchmarks.peers.measurement import Bounds, measure
from orchestrator.errors import CellblockError

EXAMPLE = "example: python -m benchmarks.peers --only smolagents --executes 20 --leases 3 --json out/peers.json"
console = Console()


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--executes", type=int, default=30, help="rounds of executes (default: %(default)s)")
    parser.add_argument("--leases", type=int, default=12, help="rounds of leases (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=240, help="time limit of each measure (default: %(default)s)")
    parser.add_argument("--only", metavar="PART", default="", help="only peers whose name contains this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as JSON")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the figures to this SVG file")
    return parser.parse_args()


def run(options: argparse.Namespace) -> report.Figures:
    """Prepare the peers, measure all subjects, and return the figures."""
    bounds = Bounds(options.executes, options.leases, options.seconds)
    chosen = [peer for peer in PEERS if options.only in peer.name]
    with Progress(console=console, transient=True) as progress:
        say = progress.console.print
        pythons: dict[Peer, Path] = {peer: preparation.environment(peer.lock, say) for peer in chosen}
        with preparation.place(say) as place:
            measured = asyncio.run(measure(pythons, place, preparation.CACHE, bounds, progress))
            return report.figures_of(measured, place.engine)


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as after Ctrl-C
    try:
        figures = run(options)
    except (CellblockError, RuntimeError) as error:
        console.print(f"peers: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("peers: interrupted; everything was cleaned up")
        return 130
    report.show(figures, console)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if options.svg:
        options.svg.write_text(chart.draw(figures))
    return 0


if __name__ == "__main__":
    run_main(main)
