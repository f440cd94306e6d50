"""The sections of a policy: their keys, bounds and defaults.

See ``policies/default.toml`` for the meaning and unit of each key.
"""

from __future__ import annotations

import fnmatch
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from packaging.requirements import InvalidRequirement, Requirement
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator

from orchestrator.policy import datafolder, packagelock

_LONGEST_VALUE = 32 * 1024  # the most characters of a variable
_RESERVED = re.compile(r"HOME|PATH|HOSTNAME|USER|IPYTHONDIR|MPLCONFIGDIR|LD_.*")

Megabytes = Annotated[int, Field(ge=1, le=2**20)]
Runtime = Literal["auto", "runsc", "runc", "require-runsc"]
MimePattern = Annotated[str, StringConstraints(pattern=r"^[\w.+*-]+/[\w.+*-]+$", max_length=200)]


def _not_reserved(name: str) -> str:
    if _RESERVED.fullmatch(name):
        raise ValueError("this variable is set by the sandbox itself")
    return name


def _fits(value: str) -> str:
    if "\0" in value or len(value) > _LONGEST_VALUE:
        raise ValueError(f"the value must have at most {_LONGEST_VALUE} characters and no NUL")
    return value


def folder_of(info: ValidationInfo) -> Path:
    """Return the folder that relative paths start from."""
    return info.context["folder"] if info.context else Path.cwd()


def _resolve(path: Path, info: ValidationInfo) -> Path:
    return datafolder.check(folder_of(info) / path)


VariableName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=200), AfterValidator(_not_reserved)
]
Variable = Annotated[str, AfterValidator(_fits)]
DataFolder = Annotated[Path, Field(strict=False), AfterValidator(_resolve)]
ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$", max_length=200)]
GroupName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
DataName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Limits(Section):
    """``[limits]``: see ``policies/default.toml`` for the meaning and unit of each key."""

    cpu_percent: float = Field(default=80.0, gt=0, le=100)
    memory_mb: int = Field(default=1024, ge=64, le=2**20)
    pids: int = Field(default=256, ge=32, le=2**15)
    open_files: int = Field(default=1024, ge=64, le=2**20)
    execution_time_s: float = Field(default=30.0, gt=0, le=7 * 86400)
    output_mb: float = Field(default=10.0, gt=0, le=1024)
    commands: int = Field(default=16, ge=1, le=1000)
    command_time_s: float = Field(default=600.0, gt=0, le=7 * 86400)
    idle_timeout_s: float = Field(default=300.0, gt=0, le=30 * 86400)
    warn_percent: float = Field(default=80.0, gt=0, le=100)


class Tmpfs(Section):
    """``[tmpfs]``: the sizes of all folders that a kernel can write to.

    Without ``tmp_mb``, a policy with little memory gets a smaller /tmp: what the other folders leave, at least 64 MiB.
    """

    work_mb: Megabytes = 512
    tmp_mb: Megabytes = 256
    shm_mb: Megabytes = 64


class Output(Section):
    """``[output]``: which output reaches the agent. ``*`` matches any part of a MIME type."""

    mime_types: tuple[MimePattern, ...] = Field(
        default=("text/*", "image/*", "application/json", "application/*+json"),
        strict=False,
        min_length=1,
        max_length=100,
    )
    messages: int = Field(default=100_000, ge=10, le=10**7)
    displays: int = Field(default=200, ge=2, le=10**5)
    past_limit: Literal["continue", "stop"] = "continue"

    def passes(self, mime_type: str) -> bool:
        """Return whether content of this MIME type reaches the agent."""
        return self._pattern.fullmatch(mime_type) is not None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(fnmatch.translate, self.mime_types)), re.IGNORECASE)


class Channels(Section):
    """``[channels]``: which requests a cell may make to the host, beside displaying output."""

    stdin: bool = False
    comms: bool = False


class Sessions(Section):
    """``[sessions]``: when sessions hibernate, and limits of their checkpoints."""

    hibernate: bool = True
    incomplete: Literal["evict", "keep"] = "evict"
    checkpoint_every: int = Field(default=0, ge=0, le=10**6)
    checkpoint_mb: int = Field(default=1024, ge=1, le=2**20)
    checkpoint_time_s: float = Field(default=60.0, gt=0, le=3600)


class Pool(Section):
    """``[pool]``: kernels that are started in advance, and callers that wait for one."""

    warm: int = Field(default=1, ge=0, le=1000)
    max_age_s: float = Field(default=3600.0, ge=1, le=30 * 86400)
    check_every_s: float = Field(default=30.0, ge=1, le=86400)
    exhausted: Literal["wait", "fail"] = "wait"
    queue: int = Field(default=10_000, ge=1, le=10**6)


class Scheduling(Section):
    """``[scheduling]``: the order in which callers get kernels, and how many kernels fit on the host."""

    aging_s: float = Field(default=60.0, gt=0, le=86400)
    group_quota: int = Field(default=0, ge=0, le=10**6)
    memory_reserve_mb: int = Field(default=512, ge=0, le=2**24)
    memory_overcommit: float = Field(default=1.0, gt=0, le=100)
    cpu_overcommit: float = Field(default=50.0, gt=0, le=1000)


class Group(Section):
    """``[groups.NAME]``: a group of agents. Its quota defaults to ``scheduling.group_quota``; 0 means no limit."""

    weight: float = Field(default=1.0, ge=0.001, le=1000)
    quota: int | None = Field(default=None, ge=0, le=10**6)

    def __str__(self) -> str:
        return f"weight {self.weight:g}" + ("" if self.quota is None else f", quota {self.quota}")


def _requirement(text: str) -> str:
    try:
        found = Requirement(text)
    except InvalidRequirement as error:
        raise ValueError(f"this is no requirement, such as emoji or emoji==2.*: {error}") from None
    if found.url is not None:
        raise ValueError("a URL is not allowed here")
    return text


AllowedPackage = Annotated[str, StringConstraints(min_length=1, max_length=500), AfterValidator(_requirement)]


class Packages(Section):
    """``[packages]``: what sessions may install while they run. The host fetches wheels, and never builds any."""

    allow: tuple[AllowedPackage, ...] = Field(default=(), strict=False, max_length=1000)
    index: str = Field(default="", pattern=r"^(https?://\S+)?$", max_length=2000)
    max_mb: int = Field(default=200, ge=1, le=2**16)


class Image(Section):
    """``[image]``: what the sandbox image has beside the packages that every image has.

    Attributes:
        requirements: the path of a lock file, "full" for the one that comes with Cellblock, or "" for none.
        python: its Python; "": that of the host's Debian release.
    """

    requirements: str = Field(default="", max_length=4096)
    python: Literal["", "3.11", "3.12", "3.13"] = ""

    @field_validator("requirements")
    @classmethod
    def _find_lock(cls, name: str, info: ValidationInfo) -> str:
        """Refuse a file that is no lock file, and make its path absolute."""
        if name in ("", packagelock.SHIPPED) or (info.context or {}).get("without_lock"):
            return name
        path = packagelock.find(name, folder_of(info)).absolute()
        packagelock.check(path)
        return str(path)


class Tools(Section):
    """``[tools]``: limits of the calls of host tools by one cell."""

    calls: int = Field(default=1000, ge=1, le=10**6)
    concurrent: int = Field(default=64, ge=1, le=10**4)
    argument_kb: int = Field(default=256, ge=1, le=900)
    result_kb: int = Field(default=1024, ge=1, le=3 * 1024)
    time_s: float = Field(default=300.0, gt=0, le=7 * 86400)


class Audit(Section):
    """``[audit]``: what the audit log contains of a cell, and whether each entry is synced to disk."""

    code: Literal["digest", "full"] = "digest"
    fsync: bool = True


class Jupyter(Section):
    """``[jupyter]``: what a kernel that Jupyter starts has beside this policy.

    Attributes:
        folder: the name under ``/data`` at which the sandbox can read the notebook's folder; "": not at all.
    """

    folder: str = Field(default="", pattern=r"^([a-z0-9][a-z0-9_-]{0,62})?$")
