"""The server's OpenAPI description is true: schemathesis sends seeded requests made of it, and compares the answers.

``make fuzz-openapi CASES=100 SEED=7`` sends more.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import httpx

from tests.conformance.__main__ import environment
from tests.conftest import REPOSITORY
from tests.server.conftest import serving

CASES = os.environ.get("CELLBLOCK_OPENAPI_CASES", "")
SEED = os.environ.get("CELLBLOCK_OPENAPI_SEED", "1")
CHECKS = ("no_undeclared_failure", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


def test_every_answer_is_of_the_form_that_is_described(tmp_path: Path) -> None:
    """No status of 5xx, no undocumented status or media type, and no JSON of another form."""
    with serving(tmp_path, "--max-kernels", "4", CELLBLOCK_WARM_KERNELS="0") as server:
        made = httpx.post(f"{server.url}/v1/sessions", json={"agent_id": "described"}, timeout=60).json()
        command = [
            str(environment("schemathesis").with_name("schemathesis")), "run", f"{server.url}/openapi.json",
            "--phases", "examples,coverage,fuzzing,stateful" if CASES else "examples,fuzzing",
            "--max-examples", CASES or "4", "--seed", SEED, "--checks", ",".join(CHECKS), "--continue-on-failure",
            "--request-timeout", "60", "--warnings", "off", "--no-color", "--generation-database", "none",
        ]  # fmt: skip
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={
                **os.environ,
                "SESSION": made["session_id"],
                "SCHEMATHESIS_HOOKS": "openapihooks",
                "PYTHONPATH": str(REPOSITORY / "tests" / "server"),
            },
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=3600 if CASES else 300,
        )
        print(done.stdout[-500:])
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        answer = httpx.post(f"{server.url}/v1/sessions/{made['session_id']}/execute", json={"code": "1"}, timeout=60)
        assert answer.status_code in (200, 410)  # a request may have ended the session
