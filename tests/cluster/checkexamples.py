"""Check the files of examples/cluster/ with Ray's own code: ``python -m tests.cluster.checkexamples``, where Ray is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "cluster"


def main() -> None:
    """Raise an error if one of them cannot be used."""
    validate_config(prepare_config(yaml.safe_load((FOLDER / "ray-up.yaml").read_text())))
    cluster: dict[str, Any] = yaml.safe_load((FOLDER / "kuberay.yaml").read_text())
    known = {option.removeprefix("--") for parameter in start.params for option in parameter.opts}
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    for group in groups:
        assert set(group["rayStartParams"]) <= known, group["rayStartParams"]
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod.get("volumes", ())}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", ())} == volumes
            assert {each["name"] for each in container["env"]} >= {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
    print("the examples can be used")


if __name__ == "__main__":
    main()
