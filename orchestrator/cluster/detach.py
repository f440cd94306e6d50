"""Become a process that nobody's end ends, then another program: ``python -m orchestrator.cluster.detach``.

    python -m orchestrator.cluster.detach LOCK RECORD NICENESS COMMAND …

``Detached`` starts it. LOCK is the descriptor of a lock that the program holds until it ends; RECORD is the file that
says which process it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

from orchestrator.host.enginedaemon import start_ticks
from orchestrator.store.wholefile import write_whole


def main(lock: int, record: Path, niceness: int, command: list[str]) -> None:
    """Leave the parent, its session and its process group, and become the command.

    Ray kills the children and the process group of a worker that ends. It runs workers at nice 15, and has Linux kill
    them first when memory runs out.
    """
    if os.fork():
        os._exit(0)
    os.setsid()
    with contextlib.suppress(OSError):  # only root may lower it
        os.setpriority(os.PRIO_PROCESS, 0, niceness)
        Path("/proc/self/autogroup").write_text(str(niceness))  # of this session, beside which the other counts little
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("0")
    write_whole(record, json.dumps({"pid": os.getpid(), "started": start_ticks(os.getpid())}), mode=0o600)
    os.set_inheritable(lock, True)
    os.chdir("/")
    os.execvp(command[0], command)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
