"""The dashboard in a real browser: who gets in and sees what, what can be done, and that everybody can do it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import nbformat
import pytest

from tests.dashboard.conftest import World

pytestmark = pytest.mark.asyncio(loop_scope="module")
AXE = Path(__file__).with_name("axe-core") / "axe.min.js"
DRAW = """
import base64, struct, zlib
from IPython.display import display, HTML, Image
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
rows = b"".join(b"\\0" + bytes([x % 256, 80, 160]) * 40 for x in range(20))
png = b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 20, 8, 2, 0, 0, 0))
png += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
display(Image(png))
display(HTML("<table style='color:teal'><tr><td>1</td></tr></table>"))
print("\\x1b[31mred\\x1b[0m \\x1b[1;44mon blue\\x1b[0m \\x1b[38;5;208morange\\x1b[0m \\x1b[38;2;9;9;9mdark\\x1b[0m")
1 / 0
"""
FOREVER = "import time\nwhile True: time.sleep(0.05)"


async def test_a_wrong_token_is_refused_and_a_right_one_lets_in(world: World) -> None:
    """The token is in this tab's storage and in a header: not in an address, a cookie, or storage that stays."""
    page, server = world.page, world.server
    await page.goto(f"{server.url}/dashboard/icon.svg")
    await page.evaluate("sessionStorage.clear()")
    await page.goto(f"{server.url}/")
    await page.until("document.activeElement.id === 'token'")
    page.requests.clear()
    await page.type("cb_0123456789abcdef_" + "x" * 43)
    await page.press("Enter")
    await world.said("The token is unknown, revoked or expired.")
    assert await page.evaluate("document.activeElement.id") == "token"
    await page.type(world.operator)
    await page.press("Enter")
    await world.said("Signed in as olga.")
    await page.until("document.querySelector('#who').innerText === 'olga, group ops, operator'")
    assert await page.evaluate("document.cookie") == ""
    assert await page.evaluate("localStorage.length") == 0
    assert not [address for address in page.requests.values() if "cb_" in address]
    await page.click("document.getElementById('sign-out')")
    await world.said("Signed out.")
    assert await page.evaluate("sessionStorage.length") == 0
    assert await page.evaluate("document.activeElement.id") == "token"


async def test_a_revoked_token_leads_back_to_the_form(world: World) -> None:
    """What was shown is gone too."""
    token = world.server.token("rita", "--group", "rita")
    await world.server.session(token, "reporter")
    await world.enter(token, "#/sessions")
    await world.page.until("document.querySelector('tbody').innerText.includes('reporter')")
    world.server.revoke(token)
    await world.page.until("document.getElementById('token')")
    await world.said("The token is no longer valid.")
    assert "reporter" not in await world.page.evaluate("document.body.innerText")
    assert await world.page.evaluate("sessionStorage.length") == 0


async def test_a_group_sees_only_its_own_sessions(world: World) -> None:
    page, server = world.page, world.server
    mine, other = await server.session(world.alice, "mine"), await server.session(world.bob, "other")
    await world.enter(world.alice, "#/sessions")
    await page.until("document.querySelector('tbody').innerText.includes('mine')")
    assert "other" not in await page.evaluate("document.body.innerText")
    assert "Audit log" not in await page.evaluate("document.body.innerText")
    await world.enter(world.alice, f"#/sessions/{other}")
    await world.said("there is no session")
    await world.enter(world.alice)
    await page.until("document.querySelector('.legend').innerText.includes('alice:mine')")
    assert "bob" not in await page.evaluate("document.body.innerText")
    for path in ("sessions", f"sessions/{mine}/view?first=1&last=1", "audit"):
        answer = await server.client.get(
            f"{server.url}/v1/operator/{path}", headers={"Authorization": f"Bearer {world.alice}"}
        )
        assert answer.status_code == 403
    await world.enter(world.operator, "#/sessions")
    await page.until("['alice:mine', 'bob:other'].every(e => document.querySelector('tbody').innerText.includes(e))")


async def test_an_operator_interrupts_hibernates_exports_and_ends(world: World) -> None:
    """Each action does what it says, and is in the audit log with the operator's name; so is the reading."""
    page, server = world.page, world.server
    session = await server.session(world.alice, "worker")
    await server.run(world.alice, session, "x = 42\nprint('before')")
    await server.start(world.alice, session, FOREVER)
    await world.enter(world.operator)
    await page.until("document.querySelector('tbody')?.innerText.includes('busy')")
    await world.press_button("Interrupt alice:worker")
    await world.said("The running cell of alice:worker was interrupted.")
    await world.press_button("Hibernate alice:worker")
    await world.said("alice:worker sleeps.")
    assert await server.state(world.alice, session) == "asleep"
    await world.enter(world.operator, f"#/sessions/{session}")
    await page.until("document.querySelectorAll('.cell').length === 2")
    assert "interrupted" in await page.evaluate("document.querySelector('.cells').innerText")
    await world.press_button("Export alice:worker")
    await world.said("The notebook of alice:worker was saved.")
    saved = world.folder / "alice-worker.ipynb"
    for _ in range(100):
        if saved.exists():
            break
        await asyncio.sleep(0.05)
    notebook = nbformat.read(saved, as_version=4)
    assert [each.source for each in notebook.cells if each.cell_type == "code"] == ["x = 42\nprint('before')", FOREVER]
    await world.press_button("End alice:worker")
    await page.until("document.getElementById('question').open")
    await page.press("Escape")
    await page.until("!document.getElementById('question').open")
    assert await server.state(world.alice, session) == "asleep"
    await world.press_button("End alice:worker")
    await page.until("document.getElementById('question').open")
    await page.click("document.getElementById('question-yes')")
    await world.said("The session of alice:worker has ended.")
    assert await server.state(world.alice, session) == "ended"
    await page.evaluate("location.hash = '#/audit'")
    await page.until("document.querySelector('tbody')?.innerText.includes('operator.kill')")
    assert "time.sleep" not in await page.evaluate("document.body.innerText")
    entries = [each for each in server.audited() if each["event"].startswith("operator.")]
    done = [each["event"] for each in entries if each["session"] == session]
    assert done == ["operator.interrupt", "operator.hibernate", "operator.read", "operator.kill"]
    assert {each["operator"]["name"] for each in entries} == {"olga"}


async def test_a_session_is_shown_as_a_notebook_shows_it(world: World) -> None:
    page, server = world.page, world.server
    session = await server.session(world.bob, "painter")
    await server.run(world.bob, session, DRAW)
    page.problems.clear()
    await world.enter(world.bob, f"#/sessions/{session}")
    await page.until("document.querySelector('iframe')")
    size = await page.evaluate("(e => [e.alt, e.naturalWidth])(document.querySelector('.output img'))")
    assert size == ["Output 1 of cell 1: a picture of 40 by 20 pixels", 40]
    colours = await page.evaluate("[...document.querySelectorAll('.stream span')].map(e => e.className)")
    assert colours == ["ansi-red-fg", "bold ansi-blue-bg", "ansi-yellow-fg"]
    assert "ZeroDivisionError: division by zero" in await page.evaluate("document.querySelector('.error').innerText")
    assert "error, after" in await page.evaluate("document.querySelector('.cell').innerText")
    refused = [each for each in page.problems if "Policy" in each]
    assert all("Applying inline style" in each for each in refused)  # in the document that the sanitiser parses


async def test_new_cells_come_without_taking_focus_or_place(world: World) -> None:
    """A page that follows a session keeps what the user reads, and says nothing by itself."""
    page, server = world.page, world.server
    session = await server.session(world.bob, "talker")
    for number in range(22):
        await server.run(world.bob, session, f"print('line {number}\\n' * 12)")
    await world.enter(world.bob, f"#/sessions/{session}")
    await page.until("document.querySelectorAll('.cell').length === 20")
    await page.evaluate("document.querySelectorAll('.code')[10].focus()")
    await page.evaluate("window.kept = document.activeElement; window.heard = [];")
    before = await page.evaluate("window.kept.getBoundingClientRect().top")
    await page.evaluate(
        "new MutationObserver(() => heard.push(1)).observe(document.getElementById('status'), {childList: true})"
    )
    await server.run(world.bob, session, "print('the newest')")
    await page.until("document.querySelector('.cells').innerText.includes('the newest')")
    assert await page.evaluate("document.activeElement === window.kept")
    assert abs(await page.evaluate("window.kept.getBoundingClientRect().top") - before) < 2
    assert await page.evaluate("document.querySelectorAll('.cell').length") == 20
    assert await page.evaluate("heard.length") == 0
    await page.click("[...document.querySelectorAll('button')].find(e => e.innerText === 'Earlier cells')")
    await page.until("document.querySelector('.cells').innerText.includes('line 0')")


async def test_a_running_cell_shows_what_it_has_put_out(world: World) -> None:
    """Whoever started it, for its group and for an operator. What does not change is not made anew."""
    page, server = world.page, world.server
    session = await server.session(world.alice, "runs")
    code = (
        "import os, time\nfrom IPython.display import display, HTML\ndisplay(HTML('<b>shown</b>'))\nprint('first')\n"
        "while not os.path.exists('go'): time.sleep(0.05)\nprint('second')\n"
        "while os.path.exists('go'): time.sleep(0.05)\nprint('third')"
    )
    running = asyncio.create_task(server.run(world.alice, session, code))
    try:
        await world.enter(world.alice, f"#/sessions/{session}")
        await page.until("document.querySelector('.outcome-running .outputs')?.innerText.includes('first')")
        await page.until("document.querySelector('.outputs iframe')?.src")
        await page.evaluate("window.frame = document.querySelector('.outputs iframe')")
        await page.evaluate("document.querySelector('.output.stream pre').focus()")
        await server.ask("POST", f"/v1/sessions/{session}/commands", world.alice, {"command": "touch go"})
        await page.until("document.querySelector('.outcome-running .outputs').innerText.includes('second')")
        assert await page.evaluate("document.activeElement.innerText.includes('second')")
        assert await page.evaluate("frame.isConnected && frame === document.querySelector('.outputs iframe')")
        await world.enter(world.operator, f"#/sessions/{session}")
        await page.until("document.querySelector('.outcome-running .outputs')?.innerText.includes('second')")
        await server.ask("POST", f"/v1/sessions/{session}/commands", world.alice, {"command": "rm go"})
        await page.until("document.querySelector('.outcome-ok .outputs')?.innerText.includes('third')")
    finally:
        running.cancel()
        await asyncio.wait({running})


async def test_everything_can_be_done_with_the_keyboard(world: World) -> None:
    """Tab and Enter alone: sign in, open a session, end it, sign out. The focus comes back from the question."""
    page, server = world.page, world.server
    session = await server.session(world.bob, "typist")
    await page.goto(f"{server.url}/dashboard/icon.svg")
    await page.evaluate("sessionStorage.clear()")
    await page.goto(f"{server.url}/")
    await page.until("document.activeElement.id === 'token'")
    await page.type(world.operator)
    await page.press("Enter")
    await page.until("document.querySelector('tbody')?.innerText.includes('bob:typist')")
    await page.goto(f"{server.url}/#/sessions")
    await page.until("document.querySelector('tbody')?.innerText.includes('bob:typist')")
    order = ["Skip to content", "Kernels", "Sessions", "Audit log", "Sign out", "Show ended sessions"]
    for name in order:
        await page.tab_to(name, most=30 if name == order[0] else 1)
    await page.tab_to("bob:typist")
    assert await page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    await page.press("Enter")
    await page.until("document.activeElement.innerText === 'Session of bob:typist'")
    await page.tab_to("End bob:typist")
    await page.press("Enter")
    await page.until("document.getElementById('question').open")
    await page.press("Escape")
    await page.until("!document.getElementById('question').open")
    assert await page.focused() == "End bob:typist"
    await page.press("Enter")
    await page.until("document.getElementById('question').open")
    await page.tab_to("End it")
    await page.press("Enter")
    await world.said("The session of bob:typist has ended.")
    assert await server.state(world.bob, session) == "ended"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_each_view_can_be_read_by_everybody(world: World, dark: bool) -> None:
    """axe-core finds no fault of names, roles and contrast; and nothing needs a wider window than 320 pixels."""
    page, server = world.page, world.server
    session = await server.session(world.bob, f"reader-{dark}")
    await server.run(world.bob, session, DRAW)
    await page.look(dark=dark)
    for view in ("#/kernels", "#/sessions", f"#/sessions/{session}", "#/audit", "sign-in"):
        await world.enter(world.operator, view if view != "sign-in" else "")
        if view == "sign-in":
            await page.click("document.getElementById('sign-out')")
            await page.until("document.getElementById('token')")
        else:
            await page.until("document.querySelector('main tbody tr, main .output')")
        ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(17, 22, 28)" if dark else "rgb(255, 255, 255)")
        await page.evaluate(AXE.read_text())
        how = {"runOnly": ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa", "best-practice"], "iframes": False}
        faults = await page.evaluate(
            f"axe.run(document, {json.dumps(how)}).then(found => found.violations.map("
            "e => `${e.id}: ${e.nodes.map(n => n.html.slice(0, 200)).join(' | ')}`))"
        )
        assert not faults, f"{view}: {faults}"
        await page.look(width=320, height=640, dark=dark)
        await asyncio.sleep(0.2)
        assert await page.evaluate("document.scrollingElement.scrollWidth") <= 320, view
        await page.look(dark=dark)
    await page.look()


async def test_the_page_allows_only_its_own_files(world: World) -> None:
    """Headers of the page, of a frame, and of what is not there."""
    client, url = world.server.client, world.server.url
    page = await client.get(f"{url}/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["cross-origin-opener-policy"] == "same-origin"
    assert "<script>" not in page.text
    assert " style=" not in page.text
    again = await client.get(f"{url}/", headers={"If-None-Match": page.headers["etag"]})
    assert again.status_code == 304
    for path in ("/dashboard/nothing.js", "/dashboard/..%2f..%2fservice.py", "/dashboard/vendor/VENDOR.toml"):
        assert (await client.get(f"{url}{path}")).status_code == 404
    refused = await client.post(f"{url}/dashboard/frames", content=b"<p>x")
    assert refused.status_code == 401
    headers = {"Authorization": f"Bearer {world.bob}"}
    made = await client.post(f"{url}/dashboard/frames", content=b"<p>x", headers=headers)
    frame = await client.get(f"{url}{made.json()['path']}")
    assert frame.headers["content-security-policy"].endswith("; sandbox")
    assert "<p>x" in frame.text
    assert (await client.get(f"{url}{made.json()['path']}")).status_code == 404  # a name works once
    foreign = {**headers, "Origin": "https://elsewhere.test"}
    assert (await client.post(f"{url}/dashboard/frames", content=b"x", headers=foreign)).status_code == 403
