"""A server with tokens and a browser, shared by the tests of one module."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.dashboard.canary import Canary, canary_server
from tests.dashboard.chromium import Page, browser_page
from tests.dashboard.served import Served, served


@dataclass
class World:
    """A server, a browser, and tokens.

    Attributes:
        operator: the token of an operator, whose group is "ops".
        alice, bob: tokens of two groups.
        folder: has what the browser saved.
    """

    server: Served
    page: Page
    operator: str
    alice: str
    bob: str
    folder: Path

    async def enter(self, token: str, view: str = "#/kernels") -> None:
        """Open the page anew, signed in with a token, as the form would leave it."""
        await self.page.goto(f"{self.server.url}/dashboard/icon.svg")  # of the page's origin, and runs nothing
        await self.page.evaluate(f"sessionStorage.setItem('cellblock-token', '{token}')")
        await self.page.goto(f"{self.server.url}/{view}")
        await self.page.until("document.querySelector('#view h2') && !document.getElementById('who').hidden")

    async def press_button(self, name: str) -> None:
        """Click the button of this accessible name."""
        await self.page.click(f"document.querySelector('button[aria-label=\"{name}\"]')")

    async def said(self, text: str) -> None:
        """Wait until the page says something."""
        await self.page.until(f"document.getElementById('status').innerText.includes({text!r})")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("browser")
    async with served() as server, browser_page(folder) as page:
        operator = server.token("olga", "--group", "ops", "--operator")
        alice, bob = server.token("alice", "--group", "alice"), server.token("bob", "--group", "bob")
        await page.look()
        yield World(server, page, operator, alice, bob, folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def canary() -> AsyncIterator[Canary]:
    async with canary_server() as server:
        yield server
