"""Capture the state of a session, and load it into a fresh kernel.

The host keeps the byte stream that ``save`` writes and never looks into it. The stream is ``MAGIC`` and three sections:
the files of the working folder as a tar, the interpreter's surroundings as a pickle, and the variables as a pickle.
"""

import asyncio
import builtins
import contextlib
import importlib
import linecache
import os
import pickle
import sys
import threading
import time
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cellblock_site.machine import LAYER, SITE

from cellblock_session import libraries
from cellblock_session import shell as shell_state
from cellblock_session.capture import Capture
from cellblock_session.notrestored import Lost, NotRestored, lost_of
from cellblock_session.patches import Patches, apply_change
from cellblock_session.pickling import Name
from cellblock_session.shellrefs import Variables
from cellblock_session.stream import Pipe, Sink, Source, reading, writing
from cellblock_session.surroundings import ELSEWHERE, Surroundings
from cellblock_session.tolerant import Tolerant
from cellblock_session.workfolder import WORK, current_folder, load_files, save_files
from cellblock_session.written import Written

MAGIC = b"CELLBLOCK STATE 2 PYTHON %d.%d\n" % sys.version_info[:2]
_MOST_LOST = 1000  # lost objects that are reported one by one
_RECURSION = 5000  # recursion limit while pickling: a level takes a few hundred bytes of the main thread's 8 MB stack
# IPython's own variables. It keeps them up to date itself.
_IPYTHONS = {"In", "Out", "_", "__", "___", "_ih", "_oh", "_dh", "_i", "_ii", "_iii", "__builtins__", "__builtin__",
             "__name__", "__doc__", "__package__", "__loader__", "__spec__"}  # fmt: skip


class SessionState:
    """The state of one shell.

    Args:
        shell: IPython's.
        surroundings: the sandbox before the first cell.
    """

    def __init__(self, shell: Any, surroundings: Surroundings) -> None:
        self._shell = shell
        self._surroundings = surroundings
        self._written = Written()
        self._left_out: dict[str, NotRestored] = {}  # placeholders for variables that make the whole pickling fail

    # Saving

    def save(self, pipe: Pipe) -> dict[str, Any]:
        """Write the stream.

        Returns:
            A dict for the host: "status", "lost" and "names". The status is "ok", or "again" if the stream is void and
            another attempt may succeed.
        """
        sink = Sink(pipe)
        sink(MAGIC)
        lost = save_files(sink) + list(self._surroundings.hooks())
        names = self._variables()
        patches = self._patches()
        with writing(sink) as section:
            pickle.dump(self._collect_surroundings(), section, protocol=5)
        limit, trace, profile = sys.getrecursionlimit(), sys.gettrace(), sys.getprofile()
        sys.setrecursionlimit(_RECURSION)
        sys.settrace(None)
        sys.setprofile(None)
        try:
            capture = self._save_variables(sink, names, patches)
        except Exception:
            if not self._find_culprits(names, patches):
                raise
            return {"status": "again"}
        finally:
            sys.setrecursionlimit(limit)
            sys.settrace(trace)
            sys.setprofile(profile)
        sink.flush()
        self._left_out = {}
        lost += capture.lost + list(self._ambient())
        return {"status": "ok", "names": len(names), "lost": _report(lost)}

    def _variables(self) -> dict[str, Any]:
        hidden = self._shell.user_ns_hidden
        found = {}
        for name, value in list(self._shell.user_ns.items()):
            numbered = name.startswith("_") and name.lstrip("_i").isdecimal()
            if name in _IPYTHONS or numbered or (name in hidden and hidden[name] is value):
                continue
            found[name] = value
        return found

    def _save_variables(self, sink: Sink, names: Mapping[str, Any], patches: Patches) -> Capture:
        with writing(sink) as section:
            modules = self._surroundings.made_modules()
            capture = Capture(section, self._shell.user_ns, modules)
            changes = [
                (Name(change.name), tuple(change))
                for change in patches.in_modules() if change.name not in self._left_out
            ]  # fmt: skip
            parts = [self._named(part) for part in self._parts(names, modules)]
            capture.dump((*parts, changes))
            members = [*patches.in_classes(), *capture.hooks]
            capture.dump([(Name(f"{kind.__qualname__}.{name}"), kind, value) for kind, name, value in members])
            capture.lost += patches.lost
            capture.lost += [lost_of(value) for name, value in self._left_out.items() if name not in names]
        for name, value in names.items():
            capture.name_again(name, value)
        return capture

    def _parts(self, names: Mapping[str, Any], modules: Sequence[types.ModuleType]) -> tuple[Mapping[str, Any], ...]:
        """Return all that is captured by name, in the order in which it is loaded."""
        space = self._shell.user_ns
        made = {f"sys.modules[{module.__name__!r}]": module for module in modules}
        results = {f"Out[{number}]": value for number, value in space.get("_oh", {}).items()}
        last = {name: space.get(name, "") for name in ("_", "__", "___")}
        return made, names, results, last, libraries.collect(self._surroundings), shell_state.collect(self._shell)

    def _patches(self) -> Patches:
        space, modules = self._shell.user_ns, self._surroundings.made_modules()
        paths = [str(getattr(module, "__file__", None)) for module in list(sys.modules.values())]
        files = {path for path in paths if path.startswith(f"{WORK}/") and path.endswith(".py")}
        files |= {str(path) for path in Path(WORK).glob("*.py")}
        names = self._written.read(space.get("_ih", []), files)
        return Patches(
            self._surroundings, space, names, lambda value: Capture(_Nowhere(), space, modules).loss_of(value)
        )

    def _named(self, values: Mapping[str, Any]) -> list[Any]:
        """Return names and values in turn, so that a lost object is reported under its name."""
        space = self._shell.user_ns
        return [
            part
            for name, value in values.items()
            for part in (Name(name), Variables() if value is space else self._left_out.get(name, value))
        ]

    def _find_culprits(self, names: Mapping[str, Any], patches: Patches) -> bool:
        """Leave out the values that make the whole pickling fail, and return whether there are new ones."""
        found: dict[str, NotRestored] = {}
        modules = self._surroundings.made_modules()
        changes = {change.name: change.value for change in patches.in_modules()}
        for name, value in (item for part in (*self._parts(names, modules), changes) for item in part.items()):
            try:
                Capture(_Nowhere(), self._shell.user_ns, modules).dump(value)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                found[name] = NotRestored(name, type(value).__qualname__, reason)
        new = found.keys() - self._left_out.keys()
        self._left_out |= found
        return bool(new)

    def _collect_surroundings(self) -> dict[str, Any]:
        shell, before = self._shell, self._surroundings
        environment = dict(os.environ)
        modules = [value for value in self._shell.user_ns.values() if isinstance(value, types.ModuleType)]
        packages = {str(getattr(module, "__name__", "")).split(".")[0] for module in modules}
        cells = shell.compile._filename_map
        return {
            "directory": current_folder(),
            "environment": {key: value for key, value in environment.items() if before.environment.get(key) != value},
            "unset": [key for key in before.environment if key not in environment],
            "path": [entry for entry in sys.path if isinstance(entry, str)],
            "recursion_limit": sys.getrecursionlimit(),
            "count": shell.execution_count,
            "inputs": list(shell.user_ns.get("_ih", [])),
            "written": sorted(self._written.names),
            "modules": [name for name in list(sys.modules) if "." in name and name.split(".")[0] in packages],
            "sources": {name: "".join(_cached_lines(name)) for name in cells if name in linecache.cache},
            "cells": dict(cells),
            "raw_inputs": list(shell.history_manager.input_hist_raw),
            "flags": shell.compile.flags,
            "extensions": sorted(shell.extension_manager.loaded - {"storemagic"}),
        }

    def _ambient(self) -> Iterator[Lost]:
        """Yield what runs or lies outside the variables and ends with the kernel."""
        for thread in threading.enumerate():
            if thread.ident not in self._surroundings.threads and type(thread).__module__ in ("__main__", "threading"):
                yield thread.name, "Thread", "a running thread ends with its kernel"
        for task in asyncio.all_tasks():
            frame = getattr(task.get_coro(), "cr_frame", None)
            if frame is not None and frame.f_globals is self._shell.user_ns:
                yield task.get_name(), "Task", "a running task ends with its kernel"
        yield from _processes()
        for place in ELSEWHERE:
            for name in sorted(set(os.listdir(place)) - self._surroundings.elsewhere):
                path = os.path.join(place, name)
                yield path, "folder" if os.path.isdir(path) else "file", "only what is in /work is kept"
        folder = current_folder()
        if folder is None:
            yield "the working directory", "folder", "it was removed"
        elif not (folder + "/").startswith(WORK + "/") and not os.path.isdir(folder):
            yield "the working directory", "folder", "only what is in /work is kept"

    # Loading

    def load(self, pipe: Pipe, tolerant: bool) -> dict[str, Any]:
        """Read the stream into this fresh shell.

        Args:
            tolerant: replace what fails to load. The first attempt does without, because it is faster.

        Returns:
            A dict for the host: "status" and "lost". The status is "ok", or "again" if the host must send the stream
            once more, to be loaded with ``tolerant``.

        Raises:
            ValueError: another version of Python or of this package wrote the stream.
        """
        source = Source(pipe)
        if (found := source(len(MAGIC))) != MAGIC:
            raise ValueError(f"it was made with {_maker(found)}, and this sandbox has {_maker(MAGIC)}")
        lost = load_files(source)
        with reading(source) as section:
            surroundings = pickle.load(section)
        lost += self._apply_surroundings(surroundings)
        with reading(source) as section:
            unpickler: Any = (Tolerant if tolerant else pickle.Unpickler)(section)
            try:
                *parts, changes = unpickler.load()
                members = unpickler.load()
            except Exception:
                if tolerant:
                    raise
                return {"status": "again"}
        lost += getattr(unpickler, "lost", [])
        lost += self._apply(parts, changes, members)
        self._shell.execution_count = surroundings["count"]
        return {"status": "ok", "lost": _report(lost), "has_lost": NotRestored.made > 0}

    def _apply(self, parts: Sequence[Any], changes: Sequence[Any], members: Sequence[Any]) -> list[Lost]:
        """Put everything that was unpickled in its place, and return what failed."""
        _made, variables, results, last, settings, shell = (
            dict(zip(part[::2], part[1::2], strict=True)) for part in parts
        )
        lost = []
        for _name, change in changes:
            lost += apply_change(change)
        for name, kind, value in members:
            with contextlib.suppress(Exception):
                type.__setattr__(kind, name.rsplit(".")[-1], value)
        lost += libraries.apply(settings)
        lost += shell_state.apply(self._shell, shell)
        namespace = self._shell.user_ns
        namespace.update(variables)
        namespace["__builtins__"] = builtins
        for name, value in results.items():
            namespace["_oh"][int(name[4:-1])] = namespace[f"_{name[4:-1]}"] = value
        hook = self._shell.displayhook
        hook._, hook.__, hook.___ = last.values()
        self._shell.push(last, interactive=False)  # as IPython does, which does not update a `_` that a cell changed
        return lost

    def _own_layer(self, path: list[str]) -> list[str]:
        """Return a search path with the layer of this image, which may have another one than the state's."""
        rest = [entry for entry in path if entry != LAYER]
        if LAYER not in self._surroundings.path:
            return rest
        place = path.index(LAYER) if LAYER in path else rest.index(SITE) if SITE in rest else len(rest)
        return [*rest[:place], LAYER, *rest[place:]]

    def _apply_surroundings(self, saved: Mapping[str, Any]) -> list[Lost]:
        lost = []
        os.environ.update(saved["environment"])
        time.tzset()
        for key in saved["unset"]:
            os.environ.pop(key, None)
        sys.path[:] = self._own_layer(saved["path"])
        sys.setrecursionlimit(max(saved["recursion_limit"], self._surroundings.recursion_limit))
        if saved["directory"]:
            try:
                os.chdir(saved["directory"])
            except OSError as error:
                lost.append(("the working directory", "folder", f"{saved['directory']}: {error.strerror}"))
        importlib.invalidate_caches()
        for name in saved["modules"]:
            if name not in sys.modules:
                with contextlib.suppress(Exception), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    importlib.import_module(name)
        for name in saved["extensions"]:
            try:
                self._shell.extension_manager.load_extension(name)
            except Exception as error:
                lost.append((name, "extension", f"{type(error).__name__}: {error}"))
        self._apply_history(saved)
        return lost

    def _apply_history(self, saved: Mapping[str, Any]) -> None:
        shell = self._shell
        inputs, raw = saved["inputs"], saved["raw_inputs"]
        self._written.skip(saved["written"], len(inputs))
        shell.user_ns["_ih"][:] = inputs
        shell.history_manager.input_hist_raw[:] = raw
        shell.user_ns.update({f"_i{number}": text for number, text in enumerate(raw) if number})
        shell.history_manager._i, shell.history_manager._ii, shell.history_manager._iii = (["", "", "", *raw])[:-4:-1]
        shell.compile.flags = saved["flags"]
        shell.compile._filename_map.update(saved["cells"])
        for name, text in saved["sources"].items():
            linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)


class _Nowhere:
    """A file that discards what is written to it."""

    @staticmethod
    def write(data: Any) -> int:
        return len(data)


def _cached_lines(name: str) -> list[str]:
    cached: Any = linecache.cache[name]
    lines: list[str] = cached[2]
    return lines


def _maker(magic: bytes) -> str:
    """Return what the first line of a state says of who made it."""
    words = magic.decode("ascii", "replace").split()
    return f"Python {words[4]} and version {words[2]} of the format" if len(words) == 5 else "something else"


def _processes() -> Iterator[Lost]:
    """Yield the other processes of the sandbox, without zombies."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            if int(process.name) != os.getpid() and (process / "stat").read_text().rsplit(")")[-1].split()[0] != "Z":
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                yield command.strip()[:80] or process.name, "process", "a running process ends with its kernel"


def _report(lost: Sequence[Lost]) -> list[dict[str, str]]:
    """Return what is lost as the host reads it: without duplicates, at most 1000 entries and a count of the rest."""
    unique = list(dict.fromkeys(lost))
    report = [{"name": name[:200], "kind": kind[:200], "reason": reason} for name, kind, reason in unique[:_MOST_LOST]]
    if len(unique) > _MOST_LOST:
        report.append({"name": "…", "kind": "", "reason": f"and {len(unique) - _MOST_LOST} more"})
    return report
