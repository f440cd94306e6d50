"""Measure Cellblock beside its peers.

Run it with ``make bench-peers``. Two measures: a repeated execute in a sandbox that is open, and the time from asking
for a sandbox to its first result. Each peer runs in an environment of its own with its own fastest documented settings;
all take turns in one run, and the figures to quote are the ratios of the medians.
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
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--executes", type=int, default=30, help="rounds of executes (default: %(default)s)")
    parser.add_argument("--leases", type=int, default=12, help="rounds of leases (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=240, help="most for either of the two (default: %(default)s)")
    parser.add_argument("--only", metavar="PART", default="", help="the peers whose name has this in it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the figures")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="save them as a picture")
    return parser.parse_args()


def run(options: argparse.Namespace) -> report.Figures:
    """Prepare the peers, and measure."""
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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: everything is given back
    try:
        figures = run(options)
    except (CellblockError, RuntimeError) as error:
        console.print(f"peers: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("peers: interrupted; everything is given back")
        return 130
    report.show(figures, console)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if options.svg:
        options.svg.write_text(chart.draw(figures))
    return 0


if __name__ == "__main__":
    run_main(main)
