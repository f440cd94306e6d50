"""Policies: what a sandbox may use, from a TOML file in ``policies/`` or one of the user.

No key of a policy removes a restriction of the floor (``container/floor.py``), which every container has.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import json
import re
import stat
import tomllib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from packaging.requirements import InvalidRequirement, Requirement
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from orchestrator.errors import PolicyError, PolicyFault
from orchestrator.limits import KernelResourceLimits
from orchestrator.policy import datafolder, packagelock, seccomp
from orchestrator.settings import data_folder

_LARGEST = 64 * 1024  # the most bytes of a policy file
_MOST_FAULTS = 20  # faults that one error lists
_MOST_VARIABLES = 100
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


def _folder(info: ValidationInfo) -> Path:
    """Return the folder that relative paths start from."""
    return info.context["folder"] if info.context else Path.cwd()


def _resolve(path: Path, info: ValidationInfo) -> Path:
    return datafolder.check(_folder(info) / path)


VariableName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=200), AfterValidator(_not_reserved)
]
Variable = Annotated[str, AfterValidator(_fits)]
DataFolder = Annotated[Path, Field(strict=False), AfterValidator(_resolve)]
ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$", max_length=200)]
GroupName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
DataName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


_LEAST_TMP = 64  # MiB of /tmp


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Limits(_Section):
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


class Tmpfs(_Section):
    """``[tmpfs]``: the sizes of all folders that a kernel can write to.

    Without ``tmp_mb``, a policy with little memory gets a smaller /tmp: what the other folders leave, at least 64 MiB.
    """

    work_mb: Megabytes = 512
    tmp_mb: Megabytes = 256
    shm_mb: Megabytes = 64


class Output(_Section):
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


class Channels(_Section):
    """``[channels]``: which requests a cell may make to the host, beside displaying output."""

    stdin: bool = False
    comms: bool = False


class Sessions(_Section):
    """``[sessions]``: when sessions hibernate, and limits of their checkpoints."""

    hibernate: bool = True
    incomplete: Literal["evict", "keep"] = "evict"
    checkpoint_every: int = Field(default=0, ge=0, le=10**6)
    checkpoint_mb: int = Field(default=1024, ge=1, le=2**20)
    checkpoint_time_s: float = Field(default=60.0, gt=0, le=3600)


class Pool(_Section):
    """``[pool]``: kernels that are started in advance, and callers that wait for one."""

    warm: int = Field(default=1, ge=0, le=1000)
    max_age_s: float = Field(default=3600.0, ge=1, le=30 * 86400)
    check_every_s: float = Field(default=30.0, ge=1, le=86400)
    exhausted: Literal["wait", "fail"] = "wait"
    queue: int = Field(default=10_000, ge=1, le=10**6)


class Scheduling(_Section):
    """``[scheduling]``: the order in which callers get kernels, and how many kernels fit on the host."""

    aging_s: float = Field(default=60.0, gt=0, le=86400)
    group_quota: int = Field(default=0, ge=0, le=10**6)
    memory_reserve_mb: int = Field(default=512, ge=0, le=2**24)
    memory_overcommit: float = Field(default=1.0, gt=0, le=100)
    cpu_overcommit: float = Field(default=50.0, gt=0, le=1000)


class Group(_Section):
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


class Packages(_Section):
    """``[packages]``: what sessions may install while they run. The host fetches wheels, and never builds any."""

    allow: tuple[AllowedPackage, ...] = Field(default=(), strict=False, max_length=1000)
    index: str = Field(default="", pattern=r"^(https?://\S+)?$", max_length=2000)
    max_mb: int = Field(default=200, ge=1, le=2**16)


class Image(_Section):
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
        if name in ("", packagelock.SHIPPED):
            return name
        path = packagelock.find(name, _folder(info)).absolute()
        packagelock.check(path)
        return str(path)


class Tools(_Section):
    """``[tools]``: limits of the calls of host tools by one cell."""

    calls: int = Field(default=1000, ge=1, le=10**6)
    concurrent: int = Field(default=64, ge=1, le=10**4)
    argument_kb: int = Field(default=256, ge=1, le=900)
    result_kb: int = Field(default=1024, ge=1, le=3 * 1024)
    time_s: float = Field(default=300.0, gt=0, le=7 * 86400)


class Audit(_Section):
    """``[audit]``: what the audit log contains of a cell, and whether each entry is synced to disk."""

    code: Literal["digest", "full"] = "digest"
    fsync: bool = True


class Policy(_Section):
    """One policy.

    Attributes:
        runtime: "auto" means runsc if it works on the engine, else runc. "require-runsc" means runsc, and no setting
            can choose another runtime.
        seccomp: a profile in ``policies/seccomp/``, or the path of a JSON file. It applies under runc. gVisor handles
            system calls itself.
        preload: modules that every kernel imports before an agent gets it.
        groups: shares and quotas of groups of agents, by the group names that callers use.
        environment: environment variables of every kernel.
        data: folders of the host that every kernel can read at ``/data/NAME``.
    """

    runtime: Runtime = "auto"
    seccomp: str = Field(default="cellblock", min_length=1, max_length=4096)
    preload: tuple[ModuleName, ...] = Field(default=(), strict=False, max_length=100)
    limits: Limits = Limits()
    tmpfs: Tmpfs = Tmpfs()
    output: Output = Output()
    channels: Channels = Channels()
    sessions: Sessions = Sessions()
    pool: Pool = Pool()
    scheduling: Scheduling = Scheduling()
    image: Image = Image()
    packages: Packages = Packages()
    tools: Tools = Tools()
    audit: Audit = Audit()
    groups: dict[GroupName, Group] = Field(default_factory=dict, max_length=1000)
    environment: dict[VariableName, Variable] = Field(default_factory=dict, max_length=_MOST_VARIABLES)
    data: dict[DataName, DataFolder] = Field(default_factory=dict, max_length=100)

    @field_validator("seccomp")
    @classmethod
    def _find_profile(cls, name: str, info: ValidationInfo) -> str:
        """Refuse a profile that is invalid or allows too much, and make its path absolute."""
        path = seccomp.find(name, _folder(info))
        seccomp.load(path)
        return name if "/" not in name and not name.endswith(".json") else str(path)

    @model_validator(mode="after")
    def _fit_into_memory(self) -> Self:
        left = self.limits.memory_mb - self.tmpfs.work_mb - self.tmpfs.shm_mb
        if "tmp_mb" not in self.tmpfs.model_fields_set and _LEAST_TMP <= left < self.tmpfs.tmp_mb:
            object.__setattr__(self, "tmpfs", self.tmpfs.model_copy(update={"tmp_mb": left}))  # the model is frozen
        total = self.tmpfs.work_mb + self.tmpfs.tmp_mb + self.tmpfs.shm_mb
        if total > self.limits.memory_mb:
            raise ValueError(
                f"the sizes in [tmpfs] add up to {total} MiB, more than limits.memory_mb = {self.limits.memory_mb}; "
                "files in a tmpfs count as memory"
            )
        return self

    @classmethod
    def load(cls, name: str) -> Self:
        """Return the policy with this name in ``policies/``, or the one in a TOML file.

        Raises:
            PolicyError: there is no such policy, the file cannot be read, or a key is unknown or out of range. The
                error lists every fault with its file, line and key.
        """
        path = policy_path(name)
        text = _read(path)
        try:
            content = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            line = re.search(r"at line (\d+)", str(error))
            number = int(line[1]) if line else text.count("\n") + 1
            raise PolicyError.of(path, [PolicyFault("", number, f"this is not valid TOML: {error}")]) from error
        except RecursionError as error:
            raise PolicyError.of(path, [PolicyFault("", 1, "the file is nested too deeply")]) from error
        try:
            return cls.model_validate(content, context={"folder": path.absolute().parent})
        except ValidationError as error:
            faults = [_fault(fault, text) for fault in error.errors()[:_MOST_FAULTS]]
            raise PolicyError.of(path, sorted(faults, key=lambda fault: fault.line or 0)) from None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all settings. It does not depend on the file or on the order of keys."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    @cached_property
    def restrictions_digest(self) -> str:
        """SHA-256 of the settings that can affect a container's restrictions. Those of pool and scheduling cannot."""
        settings = self.model_dump(mode="json", exclude={"pool", "scheduling", "groups"})
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    @cached_property
    def seccomp_json(self) -> str:
        """The seccomp profile in the format of the engine."""
        return json.dumps(seccomp.load(seccomp.find(self.seccomp, Path())), separators=(",", ":"))

    def choose_runtime(self, setting: str) -> str:
        """Return the runtime to request: the operator's setting, or else the policy's.

        Raises:
            PolicyError: the policy requires runsc, and the operator set another runtime.
        """
        if self.runtime != "require-runsc":
            return setting or self.runtime
        if setting not in ("", "auto", "runsc"):
            raise PolicyError(
                f"the policy requires the runtime runsc, and CELLBLOCK_RUNTIME is {setting!r}.",
                remedy="Unset CELLBLOCK_RUNTIME, or choose another policy.",
            )
        return "runsc"

    def resource_limits(self) -> KernelResourceLimits:
        return KernelResourceLimits(
            max_cpu_percent=self.limits.cpu_percent,
            max_memory_mb=self.limits.memory_mb,
            max_execution_time=self.limits.execution_time_s,
            max_output_size_mb=self.limits.output_mb,
            idle_timeout_seconds=self.limits.idle_timeout_s,
        )


def shipped() -> dict[str, Path]:
    """Return the files of the policies that come with the package, by name."""
    return {path.stem: path for path in sorted(data_folder("policies").glob("*.toml"))}


def policy_path(name: str) -> Path:
    """Return the path of a policy's file.

    Raises:
        PolicyError: there is no policy with this name.
    """
    if name.endswith(".toml") or "/" in name:
        return Path(name)
    known = shipped()
    if name not in known:
        raise PolicyError(
            f"there is no policy {name!r}.",
            remedy=f"Use one of {', '.join(known)}, or give the path of a TOML file.",
        )
    return known[name]


def keys(model: type[BaseModel] = Policy, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, default value) of every setting of a policy."""
    for name, field in model.model_fields.items():
        if isinstance(field.default, _Section):
            yield from keys(type(field.default), f"{name}.")
        else:
            yield f"{prefix}{name}", field.get_default(call_default_factory=True)


def _read(path: Path) -> str:
    """Return the text of a small regular file. Anything else could block when it is opened, or never end."""
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise PolicyError(f"policy {path} is not a regular file.", path=path)
        if info.st_size > _LARGEST:
            raise PolicyError(f"policy {path} has {info.st_size} bytes, more than the {_LARGEST} allowed.", path=path)
        return path.read_bytes()[:_LARGEST].decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the path
        raise PolicyError(f"policy {str(path)!r} cannot be read: {error}.", path=path) from error


def _fault(fault: Any, text: str) -> PolicyFault:
    location = [part for part in fault["loc"] if part != "[key]"]
    key = ".".join(str(part) for part in location)
    reason = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(key, [known for known, _ in keys()], n=1)
        reason = "there is no such key" + (f"; did you mean {nearest[0]}?" if nearest else "")
    if not location and "[tmpfs]" in reason:
        location, key = ["tmpfs"], "tmpfs"
    return PolicyFault(key, _line_of(location, text), reason)


def _line_of(location: list[str | int], text: str) -> int | None:
    """Return the line where a key's value begins, or None if it is not found.

    tomllib reports no positions, so this parses the first line, the first two lines and so on. The value ends on the
    last line of the first such part that has the key. It begins after the last such part that does not have it.
    """
    lines = text.splitlines(keepends=True)
    without = 0
    for number in range(1, len(lines) + 1):
        try:
            content = tomllib.loads("".join(lines[:number]))
        except tomllib.TOMLDecodeError:
            continue  # the part ends inside a value of several lines
        if _holds(content, location):
            return without + 1
        without = number
    return None


def _holds(content: Any, location: list[str | int]) -> bool:
    for part in location:
        if isinstance(part, int) or not isinstance(content, dict):
            return True  # inside a list or a value, which has no lines of its own here
        if part not in content:
            return False
        content = content[part]
    return True
