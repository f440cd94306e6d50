"""Policies: what a sandbox may use, from a TOML file in ``policies/`` or one of the user.

No key of a policy removes a restriction of the floor (``container/floor.py``), which every container has.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import stat
import tomllib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator, model_validator

from orchestrator.errors import PolicyError, PolicyFault
from orchestrator.limits import KernelResourceLimits
from orchestrator.policy import seccomp
from orchestrator.policy.sections import (
    Audit,
    Channels,
    DataFolder,
    DataName,
    Group,
    GroupName,
    Image,
    Jupyter,
    Limits,
    ModuleName,
    Output,
    Packages,
    Pool,
    Runtime,
    Scheduling,
    Section,
    Sessions,
    Tmpfs,
    Tools,
    Variable,
    VariableName,
    folder_of,
)
from orchestrator.settings import data_folder

_LARGEST = 64 * 1024  # the most bytes of a policy file
_MOST_FAULTS = 20  # faults that one error lists
_MOST_VARIABLES = 100
_LEAST_TMP = 64  # MiB of /tmp


class Policy(Section):
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
    jupyter: Jupyter = Jupyter()
    groups: dict[GroupName, Group] = Field(default_factory=dict, max_length=1000)
    environment: dict[VariableName, Variable] = Field(default_factory=dict, max_length=_MOST_VARIABLES)
    data: dict[DataName, DataFolder] = Field(default_factory=dict, max_length=100)

    @field_validator("seccomp")
    @classmethod
    def _find_profile(cls, name: str, info: ValidationInfo) -> str:
        """Refuse a profile that is invalid or allows too much, and make its path absolute."""
        path = seccomp.find(name, folder_of(info))
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

    @model_validator(mode="after")
    def _keep_names_apart(self) -> Self:
        if self.jupyter.folder in self.data:
            raise ValueError(f"jupyter.folder and a folder in [data] are both named {self.jupyter.folder}")
        return self

    @classmethod
    def load(cls, name: str, *, without_lock: bool = False) -> Self:
        """Return the policy with this name in ``policies/``, or the one in a TOML file.

        Args:
            without_lock: do not look at the lock file that it names, which may not be there yet.

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
            return cls.model_validate(content, context={"folder": path.absolute().parent, "without_lock": without_lock})
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
        settings = self.model_dump(mode="json", exclude={"pool", "scheduling", "groups", "jupyter"})
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
        if isinstance(field.default, Section):
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
