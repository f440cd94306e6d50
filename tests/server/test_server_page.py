"""The programs of docs/tasks/server.md, and its example: four workers of gunicorn in front of one server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.conformance.__main__ import environment
from tests.conftest import REPOSITORY
from tests.docker.snippets import printed, programs
from tests.server.conftest import Server, serving

PAGE = REPOSITORY / "docs" / "tasks" / "server.md"


def test_every_program_of_the_page_prints_what_it_promises(server: Server, tmp_path: Path) -> None:
    """With the address of this server in place of the default one."""
    found = programs(PAGE)
    assert len(found) == 2
    for source in found:
        code = source.replace("http://127.0.0.1:8730", server.url)
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        for promise in printed(source):
            assert promise in done.stdout


def test_four_workers_share_the_kernels_of_one_server(tmp_path: Path) -> None:
    """One agent counts on, whichever worker serves it; agents are apart."""
    python = environment("gunicorn")
    with serving(tmp_path, tokens=1) as server:
        token = server.token("web", "--group", "web")
        folder = REPOSITORY / "examples" / "server"
        command = [
            str(python.parent / "gunicorn"),
            "--workers=4",
            f"--bind=unix:{tmp_path}/http",
            "wsgi_app:application",
        ]
        variables = os.environ | {"CELLBLOCK_URL": server.url, "CELLBLOCK_TOKEN": token}
        with (tmp_path / "gunicorn.log").open("w") as log:
            workers = subprocess.Popen(command, cwd=folder, env=variables, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 30
            while not (tmp_path / "http").exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            transport = httpx.HTTPTransport(uds=str(tmp_path / "http"))
            with httpx.Client(transport=transport, base_url="http://workers", timeout=60) as http:

                def ask(agent: str, code: str) -> dict[str, object]:
                    answer = http.post(f"/?agent={agent}", content=code, headers={"Connection": "close"})
                    found: dict[str, object] = json.loads(answer.text)
                    return found

                for agent in ("one", "two"):
                    assert ask(agent, "n = 0")["outcome"] == "ok"
                with ThreadPoolExecutor(8) as pool:
                    answers = list(pool.map(lambda _: ask("one", "n += 1; n"), range(40)))
                assert sorted(int(str(answer["result"])) for answer in answers) == list(range(1, 41))
                assert len({answer["worker"] for answer in answers}) > 1
                assert ask("two", "n")["result"] == "0"
        finally:
            workers.terminate()
            workers.wait(30)
