"""One token that asks for much, and a server that ends meanwhile: others are served, and what was said holds."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import httpx

from orchestrator import AgentKernelManager
from tests.server.conftest import serving

CROWD = int(os.environ.get("CELLBLOCK_CROWD", "500"))  # sessions; 2,000 take a minute
CALLS = int(os.environ.get("CELLBLOCK_TOOL_CALLS", "1000"))


async def test_crowds_of_sessions_and_streams_of_one_token_hold_up_no_other(tmp_path: Path) -> None:
    """It lists its sessions again and again, and opens more streams than it may."""
    with serving(tmp_path, "--concurrent", "64", tokens=1, CELLBLOCK_WARM_KERNELS="0") as server:
        crowd, other = server.token("crowd", "--group", "crowd"), server.token("other", "--group", "other")
        limits = httpx.Limits(max_connections=200)
        async with (
            httpx.AsyncClient(base_url=server.url, timeout=120, headers={"X-API-Key": crowd}, limits=limits) as many,
            httpx.AsyncClient(base_url=server.url, timeout=60, headers={"X-API-Key": other}) as one,
        ):
            made = (await many.post("/v1/sessions", json={"agent_id": "parent"})).json()
            path = f"/v1/sessions/{made['session_id']}"
            for begin in range(0, CROWD, 500):
                names = [f"child-{begin + number}" for number in range(500)]
                answer = await many.post(f"{path}/fork", json={"count": 500, "agent_ids": names})
                assert answer.status_code == 201, answer.text
            cell = (await many.post(f"{path}/cells", json={"code": "import time; time.sleep(6)"})).json()["cell_id"]
            listing = {asyncio.create_task(listed(many)) for _ in range(4)}
            streams = {asyncio.create_task(followed(many, f"{path}/cells/{cell}/events")) for _ in range(100)}
            await asyncio.sleep(1)
            mine = (await one.post("/v1/sessions", json={"agent_id": "mine"})).json()["session_id"]
            slowest = 0.0
            for number in range(10):
                begun = time.monotonic()
                answer = await one.post(f"/v1/sessions/{mine}/execute", json={"code": f"{number}"})
                assert answer.json()["result"] == str(number)
                slowest = max(slowest, time.monotonic() - begun)
            await one.delete(f"/v1/sessions/{mine}")
            done, running = await asyncio.wait({*listing, *streams}, timeout=60)
            print(f"the other token's slowest cell took {slowest:.2f} s")
            assert not running
            assert {each.result() for each in done & listing} == {CROWD + 1}
            assert sorted(each.result() for each in done & streams) == [200] * 64 + [429] * 36
            assert slowest < 10


async def listed(http: httpx.AsyncClient) -> int:
    for _ in range(5):
        found = (await http.get("/v1/sessions", params={"limit": 10_000})).json()["sessions"]
    return len(found)


async def followed(http: httpx.AsyncClient, path: str) -> int:
    async with http.stream("GET", path) as answer:
        async for line in answer.aiter_lines():
            if "cell_finished" in line:
                break
    return answer.status_code


async def test_thousands_of_tool_calls_of_one_cell(tmp_path: Path) -> None:
    """Each is answered once, by this process; and the server keeps nothing of them."""
    policy = tmp_path / "calls.toml"
    policy.write_text(f"[tools]\ncalls = {CALLS}\ntime_s = 600\n[limits]\nexecution_time_s = 600\n")
    seen: list[int] = []

    async def double(number: int) -> int:
        """Return twice the number."""
        seen.append(number)
        return 2 * number

    code = (
        f"import asyncio, tools\nasync def some(begin):\n"
        f"    return [await tools.double.async_(n) for n in range(begin, {CALLS}, 20)]\n"
        f"sum(map(sum, await asyncio.gather(*map(some, range(20)))))"
    )
    with serving(tmp_path, "--policy", str(policy)) as server:
        async with (
            AgentKernelManager.connect(server.url) as manager,
            manager.acquire_kernel("calls", 60, tools=[double]) as (_kernel, session),
        ):
            begun = time.monotonic()
            result = await manager.execute(session, code)
            print(f"{CALLS} calls took {time.monotonic() - begun:.1f} s")
            assert (result.outcome, result.result) == ("ok", str(CALLS * (CALLS - 1))), result.as_text()
            assert sorted(seen) == list(range(CALLS))


async def test_what_was_said_of_an_end_holds_when_the_server_ends_meanwhile(tmp_path: Path, state: Path) -> None:
    """SIGTERM while sessions are ended: one that was said to have ended is over; another goes on with its state."""
    with serving(tmp_path, CELLBLOCK_STATE_DIR=str(state)) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            paths = []
            for name in ("a", "b", "c"):
                made = (await http.post("/v1/sessions", json={"agent_id": name})).json()
                paths.append(f"/v1/sessions/{made['session_id']}")
                await http.post(f"{paths[-1]}/execute", json={"code": f"x = {name!r}"})
            deleting = [asyncio.create_task(http.delete(path)) for path in paths]
            await asyncio.sleep(0.05)
            assert await asyncio.to_thread(server.stop) == 0
            await asyncio.wait(deleting)
    ended = [each.exception() is None and each.result().status_code == 200 for each in deleting]
    with serving(tmp_path, CELLBLOCK_STATE_DIR=str(state)) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            for path, name, is_over in zip(paths, ("a", "b", "c"), ended, strict=True):
                found = (await http.get(path)).json()
                if is_over or found["state"] == "ended":
                    assert (found["state"], found["end_reason"]) == ("ended", "end_session")
                    continue
                assert (await http.post(f"{path}/execute", json={"code": "x"})).json()["result"] == repr(name)
                assert (await http.delete(path)).json() == {"ended": True}
            assert (await http.get("/v1/sessions")).json()["sessions"] == []
        assert "Traceback" not in server.log.read_text()
