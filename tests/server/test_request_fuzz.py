"""Requests at random: none gets an answer that the server did not mean, and the server stays as it was.

``make fuzz-server CASES=100000 SEED=7`` sends more.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path

import httpx
import psutil
import pytest

from tests.server.conftest import serving
from tests.server.requestfuzzer import Fuzzer

CASES = int(os.environ.get("CELLBLOCK_FUZZ_REQUESTS", "1500"))
SEED = int(os.environ.get("CELLBLOCK_FUZZ_SEED", "1"))
AT_ONCE = 8
DECLARED = {503}  # with a problem that says why


@pytest.mark.alone
async def test_no_request_gets_an_answer_that_was_not_meant(tmp_path: Path) -> None:
    """No 5xx but declared refusals, no traceback in the log, every refusal typed; and it goes on serving.

    A file that is being sent when another request ends its session is cut off, which is not a fault.
    """
    with serving(tmp_path, "--max-kernels", "4") as server:
        http = httpx.AsyncClient(base_url=server.url, timeout=60)
        async with http:
            first = [await http.post("/v1/sessions", json={"agent_id": f"fuzz-{n}"}) for n in range(2)]
            sessions = [answer.json()["session_id"] for answer in first]
            fuzzer = Fuzzer((await http.get("/openapi.json")).json(), sessions, SEED)
            statuses: Counter[int] = Counter()
            faults: list[str] = []

            async def send(count: int) -> None:
                for number in range(count):
                    request = fuzzer.request()
                    try:
                        async with asyncio.timeout(60):
                            answer = await http.request(
                                request.method, request.path, headers=request.headers, content=request.content
                            )
                    except (httpx.HTTPError, TimeoutError) as error:
                        # Another request ended the session while a file was sent: the client must see that it is cut.
                        if request.method == "GET" and "/files/" in request.path and "incomplete" in str(error):
                            continue
                        faults.append(f"{error!r}: {request}"[:600])
                        continue
                    statuses[answer.status_code] += 1
                    meant = answer.status_code in DECLARED and b'"code"' in answer.content
                    if answer.status_code >= 500 and not meant:
                        faults.append(f"{answer.status_code} {answer.text[:300]}: {request}"[:900])
                    if request.method == "DELETE" or number % 20 == 0:  # what the fuzzer has ended is made anew
                        for n in range(2):
                            made = await http.post("/v1/sessions", json={"agent_id": f"fuzz-{n}"})
                            if made.status_code < 300:  # else a request of the fuzzer holds all kernels
                                sessions[n] = made.json()["session_id"]

            await send(50)
            before = psutil.Process(server.process.pid).memory_info().rss
            await asyncio.gather(*(send(CASES // AT_ONCE) for _ in range(AT_ONCE)))
            grown = (psutil.Process(server.process.pid).memory_info().rss - before) / 2**20
            print(f"{statuses.total()} requests: {dict(statuses)}; +{grown:.0f} MiB")
            assert not faults, "\n".join(faults[:10])
            assert grown < 100
            session = (await http.post("/v1/sessions", json={"agent_id": "after"})).json()["session_id"]
            answer = await http.post(f"/v1/sessions/{session}/execute", json={"code": "6 * 7"})
            assert answer.json()["result"] == "42", answer.text
        log = server.log.read_text().splitlines()
        raised = next((number for number, line in enumerate(log) if "Traceback" in line), None)
        assert raised is None, "\n".join(
            line[:200] for line in log[max(0, raised - 2) : raised + 60] if '"request"' not in line
        )
