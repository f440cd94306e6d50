"""A Celery application for `celery --app celery_app worker --concurrency 2`. Any worker process may serve any agent.

QUEUE is a folder for the queue and the results. With RabbitMQ or Redis, pass their addresses instead.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from celery import Celery  # type: ignore[import-not-found,unused-ignore] # no dependency of Cellblock's
from celery.signals import worker_process_shutdown  # type: ignore[import-not-found,unused-ignore]

from cellblock.sync import Manager

_queue = Path(os.environ["QUEUE"])
for _name in ("queue", "control", "results"):
    (_queue / _name).mkdir(exist_ok=True)
app: Any = Celery("agents", broker="filesystem://", backend=f"file://{_queue}/results")
app.conf.broker_transport_options = {
    "data_folder_in": f"{_queue}/queue",
    "data_folder_out": f"{_queue}/queue",
    "control_folder": f"{_queue}/control",
}


@cache
def manager() -> Manager:
    """Return this worker process's manager. It is made with the first task, so after the fork."""
    return Manager(max_kernels=2, keep_sessions=True)


def close(**_: object) -> None:
    """Keep the sessions for the next worker. Celery calls it when a worker process ends."""
    if manager.cache_info().currsize:
        manager().shutdown()


worker_process_shutdown.connect(close)


def run(agent: str, code: str) -> dict[str, Any]:
    """Run one cell of an agent."""
    with manager().acquire_kernel(agent, timeout=60, handover=True) as (_kernel, session):
        result = manager().execute(session, code)
    return {"worker": os.getpid(), "outcome": str(result.outcome), "result": result.result}


run_task: Any = app.task(run, name="run")
