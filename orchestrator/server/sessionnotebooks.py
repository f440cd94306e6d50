"""The open notebooks of a session of the server: the same for ``/v1`` and MCP. Their files are those of the sandbox."""

from __future__ import annotations

from orchestrator.notebooks.notebooks import Notebooks
from orchestrator.notebooks.sandboxfiles import SandboxFiles
from orchestrator.server.directory import Served

_PLACE = "notebooks"


def notebooks_of(served: Served) -> Notebooks:
    """Return the open notebooks of a session. They are there until they are closed, or the session ends."""
    found: Notebooks | None = served.attachments.get(_PLACE)
    if found is None:
        files = SandboxFiles(served.manager, served.session)
        found = Notebooks(served.manager, served.session, files=files, environment=served.environment(None))
        served.attachments[_PLACE] = found
    return found
