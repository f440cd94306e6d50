"""The examples for `ray up` and KubeRay: Ray's schema, its options, and what the files refer to."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.conformance.__main__ import environment


def test_ray_accepts_the_examples(repository: Path) -> None:
    done = subprocess.run(
        [environment("ray"), "-m", "tests.cluster.checkexamples"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "the examples can be used\n", done.stderr[-3000:]
