"""SharedImage: an image of this machine's engine in another engine's data folder, without a copy of its layers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from orchestrator.container.engine import connect

_STORE = Path("image", "overlay2")
# A daemon mounts this folder, and the one that it is in, on themselves unless that is so. Such a mount would hide those
# of the layers.
LAYERS = Path("overlay2")


@dataclass(frozen=True)
class SharedImage:
    """An image whose layers another engine reads where they are. Layers never change."""

    name: str
    identity: str
    chains: tuple[str, ...]
    source: Path

    @classmethod
    def find(cls, name: str) -> Self | None:
        """Return the image, or None if this machine's engine does not keep its images as overlay2 does."""
        with contextlib.closing(connect(60)) as client:
            info: dict[str, Any] = client.info()
            image: dict[str, Any] = client.api.inspect_image(name)
        source = Path(info["DockerRootDir"])
        if info["Driver"] != "overlay2" or not (source / _STORE / "layerdb").is_dir():
            return None
        return cls(name, image["Id"], tuple(_chains(image["RootFS"]["Layers"])), source)

    def describe(self, root: Path) -> None:
        """Write what an engine that is not started yet has to know of it, with an empty folder for each layer."""
        for chain in self.chains:
            shutil.copytree(self.source / self._row(chain), root / self._row(chain))
            source, target = self.source / self._layer(chain), root / self._layer(chain)
            for folder in (target / "diff", target / "work"):
                folder.mkdir(parents=True)
            for file in filter(Path.is_file, source.iterdir()):
                shutil.copy(file, target)
            short = root / LAYERS / "l" / (source / "link").read_text()
            short.parent.mkdir(exist_ok=True)
            short.symlink_to(Path("..", target.name, "diff"))
        content = _STORE / "imagedb" / "content" / self.identity.replace(":", "/")
        (root / content).parent.mkdir(parents=True)
        shutil.copy(self.source / content, root / content)
        names = {self.name.rpartition(":")[0]: {self.name: self.identity}}
        (root / _STORE / "repositories.json").write_text(json.dumps({"Repositories": names}))

    def mounts(self, root: Path) -> Iterator[tuple[Path, Path]]:
        """Yield the folder of each layer, and the one in which the other engine looks for it."""
        for chain in self.chains:
            yield self.source / self._layer(chain) / "diff", root / self._layer(chain) / "diff"

    def _row(self, chain: str) -> Path:
        return _STORE / "layerdb" / chain.replace(":", "/")

    def _layer(self, chain: str) -> Path:
        return LAYERS / (self.source / self._row(chain) / "cache-id").read_text()


def _chains(layers: list[str]) -> Iterator[str]:
    """Yield the names of layers with those below them, as the OCI image specification forms them."""
    chain = ""
    for layer in layers:
        chain = layer if not chain else f"sha256:{hashlib.sha256(f'{chain} {layer}'.encode()).hexdigest()}"
        yield chain
