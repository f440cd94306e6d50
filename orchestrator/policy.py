"""Policies: what a sandbox may use, from the TOML files in ``policies/`` or of the user's own."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.errors import PolicyError
from orchestrator.limits import KernelResourceLimits
from orchestrator.settings import data_folder

Megabytes = Annotated[int, Field(ge=1, le=2**20)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class Limits(_Section):
    """``[limits]``: see ``policies/default.toml`` for the meaning and unit of each key."""

    cpu_percent: float = Field(default=80.0, gt=0, le=100)
    memory_mb: int = Field(default=1024, ge=64, le=2**20)
    pids: int = Field(default=256, ge=32, le=2**15)
    open_files: int = Field(default=1024, ge=64, le=2**20)
    execution_time_s: float = Field(default=30.0, gt=0)
    output_mb: float = Field(default=10.0, gt=0, le=1024)
    idle_timeout_s: float = Field(default=300.0, gt=0)


class Tmpfs(_Section):
    """``[tmpfs]``: sizes of all that a kernel can write to."""

    work_mb: Megabytes = 512
    tmp_mb: Megabytes = 64
    shm_mb: Megabytes = 64


class Policy(_Section):
    """One policy.

    Attributes:
        runtime: container runtime, or "auto".
    """

    runtime: str = Field(default="auto", min_length=1)
    limits: Limits = Limits()
    tmpfs: Tmpfs = Tmpfs()

    @classmethod
    def load(cls, name: str) -> Self:
        """Load a policy by its name in ``policies/``, or by the path of a TOML file.

        Raises:
            PolicyError: there is none, or it cannot be read, or a key is unknown or out of range.
        """
        path = _find(name)
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise PolicyError(f"policy {path} cannot be read: {error}.", path=path) from error
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise PolicyError(f"policy {path}, key {key}: {first['msg']}.", path=path, key=key) from None

    def resource_limits(self) -> KernelResourceLimits:
        return KernelResourceLimits(
            max_cpu_percent=self.limits.cpu_percent,
            max_memory_mb=self.limits.memory_mb,
            max_execution_time=self.limits.execution_time_s,
            max_output_size_mb=self.limits.output_mb,
            idle_timeout_seconds=self.limits.idle_timeout_s,
        )


def _find(name: str) -> Path:
    if name.endswith(".toml") or "/" in name:
        return Path(name)
    folder = data_folder("policies")
    known = sorted(path.stem for path in folder.glob("*.toml"))
    if name not in known:
        raise PolicyError(
            f"there is no policy {name!r}.",
            remedy=f"Known ones: {', '.join(known)}; or give the path of a TOML file.",
        )
    return folder / f"{name}.toml"
