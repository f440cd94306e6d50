"""Which tests run in one process, when two processes share the suite (``pytest -n 2 --dist loadgroup``)."""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling

_RUNTIME = re.compile(r"\[(runc|runsc)[-\]]")

# No two tests of files that share something of the engine run at the same time: test_layers looks at all images, and
# removes those that are new; test_user_ids has the same ids under both runtimes.
_SHARING = {
    "test_deployment.py": "images",
    "test_image.py": "images",
    "test_layers.py": "images",
    "test_user_ids.py": "user ids",
}


class FileScheduling(LoadScopeScheduling):
    """Gives the tests of one file and runtime to one process: they share their module's manager and its kernels.

    pytest-xdist has marks for groups, but its 3.8 does not see them under pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        """Return the group of a test. Called by pytest-xdist, once for each."""
        file = nodeid.partition("::")[0]
        if shared := _SHARING.get(file.rpartition("/")[2]):
            return shared
        runtime = _RUNTIME.search(nodeid)
        return f"{file} {runtime[1] if runtime else ''}"
