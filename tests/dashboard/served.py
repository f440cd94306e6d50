"""A real server in a process of its own, with tokens, and sessions in it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

_COMMAND = (sys.executable, "-m", "orchestrator.cli.entry")


@dataclass
class Served:
    """A server.

    Attributes:
        url: where it listens.
        audit: its audit log.
    """

    url: str
    audit: Path
    environment: Mapping[str, str]
    client: httpx.AsyncClient = field(repr=False)

    def token(self, name: str, *options: str) -> str:
        """Make a token."""
        made = subprocess.run(
            [*_COMMAND, "token", "create", name, *options, "--json"],
            env=dict(self.environment),
            capture_output=True,
            check=True,
            timeout=60,
        )
        return str(json.loads(made.stdout)["token"])

    def revoke(self, token: str) -> None:
        """Revoke a token."""
        command = [*_COMMAND, "token", "revoke", token.split("_")[1]]
        subprocess.run(command, env=dict(self.environment), capture_output=True, check=True, timeout=60)

    async def ask(self, method: str, path: str, token: str = "", body: Any = None) -> Any:
        """Send a request of the native API, and return its JSON."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = await self.client.request(method, f"{self.url}{path}", headers=headers, json=body)
        assert answer.is_success, f"{path}: {answer.text}"
        return answer.json()

    async def session(self, token: str, agent: str) -> str:
        """Make a session, and return its id."""
        made = await self.ask("POST", "/v1/sessions", token, {"agent_id": agent})
        return str(made["session_id"])

    async def run(self, token: str, session: str, code: str) -> Any:
        """Run a cell."""
        return await self.ask("POST", f"/v1/sessions/{session}/execute", token, {"code": code})

    async def start(self, token: str, session: str, code: str) -> None:
        """Start a cell that outlives the request."""
        await self.ask("POST", f"/v1/sessions/{session}/cells", token, {"code": code})

    async def state(self, token: str, session: str) -> str:
        """Return "live", "asleep" or "ended"."""
        found = await self.ask("GET", f"/v1/sessions/{session}", token)
        return str(found["state"])

    def audited(self) -> list[dict[str, Any]]:
        """Return the entries of the audit log."""
        return [json.loads(line) for line in self.audit.read_text().splitlines()]


@contextlib.asynccontextmanager
async def served(**variables: str) -> AsyncIterator[Served]:
    """Start a server on a free port, and end it with everything in it.

    Args:
        variables: further environment variables of the server.
    """
    with tempfile.TemporaryDirectory(prefix="cb-", ignore_cleanup_errors=True) as folder:
        audit = Path(folder) / "audit.jsonl"
        environment = os.environ | {
            "CELLBLOCK_DATA_DIR": f"{folder}/d",
            "CELLBLOCK_STATE_DIR": f"{folder}/s",
            "CELLBLOCK_AUDIT_LOG": str(audit),
            "CELLBLOCK_RUNTIME": "runc",
            "CELLBLOCK_WARM_KERNELS": "0",
            "COLUMNS": "200",
            **variables,
        }
        process = await asyncio.create_subprocess_exec(
            *_COMMAND, "serve", "--port", "0", "--max-kernels", "6",
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            async with asyncio.timeout(60):
                line = (await process.stdout.readline()).decode()
            assert "serving on " in line, line
            async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
                yield Served(line.split()[-1], audit, environment, client)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(40):
                    await process.communicate()
            except TimeoutError:
                process.kill()
                await process.wait()
