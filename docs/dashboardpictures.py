"""Draws the pictures of the dashboard in docs/pictures: a real server with agents at work, in a real browser.

Run it with ``make screenshots``.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from tests.dashboard.chromium import Page, browser_page
from tests.dashboard.served import Served, served

PICTURES = Path(__file__).with_name("pictures")
WAVES = """
import math, time
for step in range(3000):
    wave = 1 + math.sin(step / {pace})
    block = bytearray(int(20e6 + 60e6 * wave))
    sum(range(int(4e6 * wave)))
    time.sleep(0.4)
"""
LEDGER = """
from IPython.display import HTML, SVG, display
rows = [("north", 118, 4.2), ("south", 96, -1.3), ("east", 141, 7.9)]
cells = "".join(f"<tr><td>{name}</td><td>{sold}</td><td>{change:+}&nbsp;%</td></tr>" for name, sold, change in rows)
display(HTML(f"<table><thead><tr><th>region</th><th>sold</th><th>change</th></tr></thead><tbody>{cells}</tbody></table>"))
bars = "".join(
    f"<rect x='{20 + 70 * at}' y='{150 - sold}' width='44' height='{sold}' fill='#0a56c4'/>"
    f"<text x='{24 + 70 * at}' y='168' font-size='13'>{name}</text>"
    for at, (name, sold, _) in enumerate(rows)
)
display(SVG(f"<svg xmlns='http://www.w3.org/2000/svg' width='240' height='175'>{bars}</svg>"))
"""
FAULT = "print('\\x1b[32mread 3 regions\\x1b[0m')\nrows['west']"


async def at_work(server: Served) -> str:
    """Let agents work for a while, and return the session of one."""
    for agent, pace in (("forecast", 9), ("scraper", 5)):
        session = await server.session("", agent)
        await server.start("", session, WAVES.replace("{pace}", str(pace)))
    session = await server.session("", "ledger")
    for code in ("total = 6 * 7\ntotal", LEDGER, FAULT):
        await server.run("", session, code)
    return session


async def draw(page: Page, name: str) -> None:
    await asyncio.sleep(1)
    (PICTURES / f"dashboard-{name}.png").write_bytes(await page.picture())
    print(f"screenshots: docs/pictures/dashboard-{name}.png")


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with served(CELLBLOCK_POLICY="local-dev") as server, browser_page(Path(folder)) as page:
            session = await at_work(server)
            await asyncio.sleep(75)  # the charts need some points
            await page.look(width=1100, height=640)
            await page.goto(f"{server.url}/#/kernels")
            await page.until("document.querySelectorAll('tbody tr').length >= 3")
            await draw(page, "light")
            await page.look(width=1100, height=900, dark=True)
            await page.goto(f"{server.url}/#/sessions/{session}")
            await page.until("document.querySelectorAll('iframe').length === 2")
            await draw(page, "dark")
            await page.look(width=320, height=640, scale=1.5)
            await page.goto(f"{server.url}/#/kernels")
            await page.until("document.querySelectorAll('tbody tr').length >= 3")
            await draw(page, "phone")


if __name__ == "__main__":
    asyncio.run(main())
