"""Cells that once cost other tenants or the host, as seeds: the fuzzer varies how much of each, and on what stream."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.regressions.test_interpreter import HOSTILE

_OUTPUT = frozenset({"ok", "output_limit"})
_FAILS = frozenset({"error", "output_limit"})
_ANY = frozenset({"ok", "error"})


@dataclass(frozen=True)
class Seed:
    """One kind of hostile cell.

    Attributes:
        code: returns the cell's code, varied by chance.
        outcomes: how the cell may end.
        seconds: in which it must be over, and a plain cell after it, without the load of the machine.
    """

    code: Callable[[random.Random], str]
    outcomes: frozenset[str] = _OUTPUT
    seconds: float = 10.0


def _of(template: str, least: int, most: int) -> Callable[[random.Random], str]:
    def code(chance: random.Random) -> str:
        stream = chance.choice(("sys.stdout", "sys.stderr"))
        odd = chance.choice(("\\x1b]0;t\\x07", "\\u202e", "\\n", "\\r", "\\x9b31m", "\\u2028", "\\x00"))
        return "import sys\nfrom IPython.display import clear_output, update_display\n" + template.replace(
            "{n}", str(chance.randint(least, most))
        ).replace("{stream}", stream).replace("{odd}", odd)

    return code


SEEDS = {
    "E1 mime types": Seed(_of("display({f'a/{i:05d}': '' for i in range({n})}, raw=True)", 5000, 29_900)),
    "E1 metadata": Seed(_of("display(1, metadata={f'a/{i:05d}': {'b/c': i} for i in range({n})})", 5000, 20_000)),
    "E2 unique ids": Seed(_of("for i in range({n}): display(i, display_id='%0255d' % i)", 500, 2000)),
    "E2 unknown ids": Seed(_of("for i in range({n}): update_display(i, display_id='%0255d' % i)", 500, 2000)),
    "E4 many displays": Seed(_of("for i in range(150): display({'text/html': 'ä' * {n}}, raw=True)", 10_000, 40_000)),
    "E5 streams in turn": Seed(_of("for i in range({n}): print(i, file=(sys.stdout, sys.stderr)[i % 2])", 2000, 8000)),
    "E5 codes in a traceback": Seed(_of("raise ValueError('\\x1b[0m' * {n})", 50_000, 500_000), _FAILS),
    "E7 clears": Seed(_of("for i in range(200): print('x' * {n}, file={stream}); clear_output()", 1000, 200_000)),
    "E7 updates": Seed(
        _of(
            "h = display('x', display_id=True)\nfor i in range(200): h.update({'text/plain': 'x' * {n}}, raw=True)",
            1000,
            100_000,
        )
    ),
    "F odd types": Seed(
        _of("for i in range({n}): display({'application/a{odd}b+json': 1, 'text/{odd}': ''}, raw=True)", 1, 100)
    ),
    "F no base64": Seed(_of("display({'image/png': '{odd}' * {n}, 'text/plain': 'x'}, raw=True)", 1, 100_000)),
    "F html in metadata": Seed(_of("display('x', metadata={'text/html': '<b>{odd}</b>' * {n}})", 1, 10_000)),
    "F odd text": Seed(_of("print('{odd}' * {n}, file={stream}); raise ValueError('{odd}' * {n})", 1, 100_000), _FAILS),
    "B interpreter": Seed(lambda chance: chance.choice(sorted(HOSTILE.values())), _ANY, 15.0),
}
