"""A headless Chromium, driven over its DevTools protocol: what a person sees and presses, and every request it makes.

The protocol's own messages are the only place that names each request of each frame, also of frames in processes of
their own.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

_START = 30.0  # seconds
_ANSWER = 30.0  # seconds
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_KEYS = {"ArrowRight": 39, "Tab": 9, "Enter": 13, "Escape": 27, " ": 32}
_SWITCHES = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--disable-sync",
    "--disable-features=Translate,OptimizationHints,MediaRouter", "--hide-scrollbars", "--mute-audio",
    "--remote-debugging-port=0", "--remote-debugging-address=127.0.0.1",
)  # fmt: skip


def executable() -> str:
    """Return the browser's path.

    Raises:
        AssertionError: there is none. The tests fail then: nobody would notice if they were skipped.
    """
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    assert found is not None, (
        "these tests need Chromium: `make chromium`, or as root on Debian: apt-get install chromium"
    )
    return found


class Page:
    """One tab.

    Attributes:
        browser: where the browser's protocol is spoken.
        requests: the addresses that the tab and its frames asked for, by request; not those that a policy refused.
        navigations: the addresses that any frame went to.
        problems: what the browser's log says of errors and of refused scripts, styles and loads.
        said: what scripts wrote to the console, and the dialogs that they opened.
        downloads: the names of saved files.
    """

    def __init__(self, socket: ClientConnection, browser: str) -> None:
        self._socket = socket
        self.browser = browser
        self._number = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session = ""
        self.requests: dict[str, str] = {}
        self.navigations: list[str] = []
        self.problems: list[str] = []
        self.said: list[str] = []
        self.downloads: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def open(self, folder: Path) -> None:
        """Make the tab. Called once."""
        made = await self.call("Target.createTarget", {"url": "about:blank"}, browser=True)
        attached = await self.call(
            "Target.attachToTarget", {"targetId": made["targetId"], "flatten": True}, browser=True
        )
        self._session = attached["sessionId"]
        await self._watch(self._session)
        await self.call("Target.activateTarget", {"targetId": made["targetId"]}, browser=True)
        await self.call("Emulation.setFocusEmulationEnabled", {"enabled": True})
        await self.call(
            "Browser.setDownloadBehavior",
            {"behavior": "allow", "downloadPath": str(folder), "eventsEnabled": True},
            browser=True,
        )

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.wait({self._reading})

    async def call(self, method: str, parameters: dict[str, Any] | None = None, *, browser: bool = False) -> Any:
        """Send one command of the protocol, and return its result."""
        return await self._send(method, parameters or {}, "" if browser else self._session)

    async def goto(self, url: str) -> None:
        await self.call("Page.navigate", {"url": url})
        await self.until("document.readyState === 'complete'")

    async def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page; a promise is waited for."""
        how = {"expression": expression, "awaitPromise": True, "returnByValue": True, "userGesture": True}
        answer = await self.call("Runtime.evaluate", how)
        assert "exceptionDetails" not in answer, f"{expression[:200]}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    async def until(self, expression: str, seconds: float = 20) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(AssertionError):  # the page may be between two documents
                if await self.evaluate(f"!!({expression})"):
                    return
            if time.monotonic() > deadline:
                text = await self.evaluate("document.body.innerText.slice(0, 3000)")
                raise AssertionError(f"{expression} is not true; {self.problems[-5:]}; the page says:\n{text}")
            await asyncio.sleep(0.05)

    async def press(self, key: str, *, shift: bool = False) -> None:
        """Press one key, as a keyboard does."""
        fields: dict[str, Any] = {"key": key, "code": key, "modifiers": 8 if shift else 0}
        fields["windowsVirtualKeyCode"] = _KEYS[key]
        text = {"Enter": "\r", " ": " "}.get(key)
        down = {**fields, "type": "keyDown" if text else "rawKeyDown", **({"text": text} if text else {})}
        await self.call("Input.dispatchKeyEvent", down)
        await self.call("Input.dispatchKeyEvent", {**fields, "type": "keyUp"})

    async def type(self, text: str) -> None:
        await self.call("Input.insertText", {"text": text})

    async def tab_to(self, name: str, most: int = 80) -> None:
        """Press Tab until the element of this accessible name has the focus."""
        for _ in range(most):
            await self.press("Tab")
            if await self.focused() == name:
                return
        raise AssertionError(f"{most} times Tab did not lead to {name!r}")

    async def focused(self) -> str:
        """Return the name of the element that has the focus."""
        return str(
            await self.evaluate(
                "(e => e.getAttribute('aria-label') ?? e.labels?.[0]?.innerText ?? e.innerText ?? '')"
                "(document.activeElement).trim()"
            )
        )

    async def click(self, expression: str) -> None:
        """Click with the mouse in the middle of the element that an expression returns."""
        at = await self.evaluate(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect();"
            f" return {{x: r.x + r.width / 2, y: r.y + r.height / 2}} }})({expression})"
        )
        for kind in ("mousePressed", "mouseReleased"):
            how = {"type": kind, **at, "button": "left", "clickCount": 1}
            await self.call("Input.dispatchMouseEvent", how)

    async def look(self, *, width: int = 1100, height: int = 900, dark: bool = False, scale: float = 1) -> None:
        """Set the size of the window, and the colours that the user prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", {"features": [scheme]})

    async def picture(self) -> bytes:
        """Return what the window shows, as PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot", {"format": "png"}))["data"])

    async def _send(self, method: str, parameters: dict[str, Any], session: str) -> dict[str, Any]:
        self._number += 1
        number = self._number
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        message = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        await self._socket.send(json.dumps(message))
        try:
            async with asyncio.timeout(_ANSWER):
                return await answer
        finally:
            del self._answers[number]

    async def _watch(self, session: str) -> None:
        """Follow one target, and those that it makes, from before their first request on."""
        for domain in ("Network", "Page", "Runtime", "Log"):
            with contextlib.suppress(AssertionError):  # workers have no pages
                await self._send(f"{domain}.enable", {}, session)
        follow = {"autoAttach": True, "waitForDebuggerOnStart": True, "flatten": True}
        await self._send("Target.setAutoAttach", follow, session)
        with contextlib.suppress(AssertionError):
            await self._send("Runtime.runIfWaitingForDebugger", {}, session)

    async def _read(self) -> None:
        watching: set[asyncio.Task[None]] = set()
        try:
            async for text in self._socket:
                message = json.loads(text)
                if "id" in message:
                    answer = self._answers.get(message["id"])
                    if answer is not None and not answer.done():
                        if "error" in message:
                            answer.set_exception(AssertionError(message["error"]["message"]))
                        else:
                            answer.set_result(message["result"])
                elif message["method"] == "Target.attachedToTarget":
                    watching.add(asyncio.create_task(self._watch(message["params"]["sessionId"])))
                else:
                    self._note(message["method"], message["params"])
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)

    def _note(self, method: str, fields: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests[fields["requestId"]] = fields["request"]["url"]
        elif method == "Network.loadingFailed" and fields.get("blockedReason"):
            self.requests.pop(fields["requestId"], None)
        elif method == "Page.frameNavigated":
            self.navigations.append(fields["frame"]["url"])
        elif method == "Log.entryAdded":
            self.problems.append(f"{fields['entry']['source']}: {fields['entry']['text']}")
        elif method == "Runtime.exceptionThrown":
            self.problems.append(f"exception: {json.dumps(fields['exceptionDetails'])[:500]}")
        elif method == "Runtime.consoleAPICalled":
            self.said.append(" ".join(str(each.get("value")) for each in fields["args"]))
        elif method == "Page.javascriptDialogOpening":
            self.said.append(f"dialog: {fields['message']}")
        elif method == "Browser.downloadWillBegin":
            self.downloads.append(fields["suggestedFilename"])


@contextlib.asynccontextmanager
async def browser_page(folder: Path) -> AsyncIterator[Page]:
    """Start a browser with a profile of its own, and yield a tab.

    Args:
        folder: gets the downloads, and ``net.json``: all that the browser's network did, look-ups of names too.
    """
    with tempfile.TemporaryDirectory(prefix="cb-browser-", ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            executable(),
            *_SWITCHES,
            f"--user-data-dir={profile}",
            f"--log-net-log={folder / 'net.json'}",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            address = await _address(Path(profile) / "DevToolsActivePort", process)
            async with tab(address, folder) as page:
                try:
                    yield page
                finally:
                    with contextlib.suppress(TimeoutError, AssertionError):
                        await page.call("Browser.close", browser=True)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            await process.wait()


@contextlib.asynccontextmanager
async def tab(browser: str, folder: Path) -> AsyncIterator[Page]:
    """Yield a new tab of a browser; ``Page.browser`` is its address."""
    async with connect(browser, max_size=None, compression=None, proxy=None) as socket:
        page = Page(socket, browser)
        try:
            await page.open(folder)
            yield page
        finally:
            await page.close()


async def _address(port: Path, process: asyncio.subprocess.Process) -> str:
    """Wait until the browser says where it listens."""
    deadline = time.monotonic() + _START
    while time.monotonic() < deadline:
        assert process.returncode is None, f"Chromium ended with status {process.returncode}"
        if port.exists() and len(lines := port.read_text().split()) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        await asyncio.sleep(0.05)
    raise AssertionError("Chromium has not started within 30 s")
