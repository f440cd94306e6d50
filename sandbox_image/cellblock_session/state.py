"""Capture the state of a session, and load it into a fresh kernel.

The host keeps the stream of bytes that ``save`` writes, and never looks into it: ``MAGIC``, then three sections: the
files of the working folder as a tar, what is beside the variables as a pickle, and the variables as another.
"""

import asyncio
import builtins
import contextlib
import importlib
import linecache
import os
import pickle
import sys
import tarfile
import threading
import time
import types
import warnings
from pathlib import Path

from cellblock_session import libraries
from cellblock_session import shell as shell_state
from cellblock_session.notrestored import NotRestored
from cellblock_session.pickling import Capture, Name, Tolerant
from cellblock_session.stream import PIECE, Sink, Source, reading, writing
from cellblock_session.surroundings import ELSEWHERE

MAGIC = b"CELLBLOCK STATE 1 PYTHON %d.%d\n" % sys.version_info[:2]
WORK = "/work"
_MOST_LOST = 1000  # that are told one by one
_RECURSION = 5000  # while pickling: each level takes a few hundred bytes of the main thread's 8 MB


class SessionState:
    """The state of one shell.

    Args:
        shell: IPython's.
        surroundings: as they were before the first cell.
    """

    def __init__(self, shell, surroundings):
        self._shell = shell
        self._surroundings = surroundings
        self._left_out = {}  # what stands for the variables with which the pickling as a whole fails

    # Saving

    def save(self, pipe):
        """Write the stream.

        Returns:
            A dict for the host: "status" ("ok", or "again" where the stream is void and another attempt may succeed),
            "lost" and "names".
        """
        sink = Sink(pipe)
        sink(MAGIC)
        lost = self._save_files(sink) + list(self._surroundings.hooks())
        names = self._variables()
        with writing(sink) as section:
            pickle.dump(self._collect_surroundings(), section, protocol=5)
        limit, trace, profile = sys.getrecursionlimit(), sys.gettrace(), sys.getprofile()
        sys.setrecursionlimit(_RECURSION)
        sys.settrace(None)
        sys.setprofile(None)
        try:
            capture = self._save_variables(sink, names)
        except Exception:
            if not self._find_culprits(names):
                raise
            return {"status": "again"}
        finally:
            sys.setrecursionlimit(limit)
            sys.settrace(trace)
            sys.setprofile(profile)
        sink.flush()
        self._left_out = {}
        lost += capture.lost + list(self._ambient())
        return {"status": "ok", "names": len(names), "lost": _told(lost)}

    def _variables(self):
        hidden = self._shell.user_ns_hidden
        own = {"In", "Out", "_", "__", "___", "_ih", "_oh", "_dh", "_i", "_ii", "_iii", "__builtins__", "__builtin__",
               "__name__", "__doc__", "__package__", "__loader__", "__spec__"}  # fmt: skip
        found = {}
        for name, value in list(self._shell.user_ns.items()):
            numbered = name.startswith("_") and name.lstrip("_i").isdecimal()
            if name in own or numbered or (name in hidden and hidden[name] is value):
                continue
            found[name] = value
        return found

    def _save_variables(self, sink, names):
        with writing(sink) as section:
            modules = self._surroundings.made_modules()
            capture = Capture(section, self._shell.user_ns, modules)
            results = {f"Out[{number}]": value for number, value in self._shell.user_ns.get("_oh", {}).items()}
            last = {name: self._shell.user_ns.get(name, "") for name in ("_", "__", "___")}
            patches = [
                (module, Name(f"{module}.{name}"), there, value)
                for module, name, there, value in self._surroundings.patches(self._shell.user_ns)
            ]
            patches += [
                ("builtins", Name(f"builtins.{name}"), True, value)
                for name, value in vars(builtins).items() if name not in self._surroundings.builtins
            ]  # fmt: skip
            made = {f"sys.modules[{module.__name__!r}]": module for module in modules}
            settings = libraries.collect(self._surroundings), shell_state.collect(self._shell)
            parts = [self._named(part) for part in (made, names, results, last, *settings)]
            capture.dump((*parts, patches))
            members = [*self._surroundings.class_patches(self._shell.user_ns), *capture.hooks]
            capture.dump([(Name(f"{kind.__qualname__}.{name}"), kind, value) for kind, name, value in members])
        for name, value in names.items():
            capture.name_again(name, value)
        return capture

    def _named(self, values):
        """Return names and values in turn, so that what is lost is told under its name."""
        return [part for name, value in values.items() for part in (Name(name), self._left_out.get(name, value))]

    def _find_culprits(self, names):
        """Leave out the variables with which the pickling as a whole fails. Returns whether there are any."""
        found = {}
        results = {f"Out[{number}]": value for number, value in self._shell.user_ns.get("_oh", {}).items()}
        for name, value in {**names, **results}.items():
            try:
                Capture(_Nowhere(), self._shell.user_ns, self._surroundings.made_modules()).dump(value)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                found[name] = NotRestored(name, type(value).__qualname__, reason)
        new = found.keys() - self._left_out.keys()
        self._left_out |= found
        return bool(new)

    def _save_files(self, sink):
        lost = []
        with (
            writing(sink) as section,
            tarfile.open(fileobj=section, mode="w|", format=tarfile.PAX_FORMAT, bufsize=PIECE) as archive,
        ):
            for folder, folders, files in os.walk(WORK):
                for name in sorted(folders + files):
                    path = os.path.join(folder, name)
                    if os.path.islink(path) or name in files or not os.path.ismount(path):
                        reason = self._add_file(archive, path)
                        if reason:
                            lost.append((os.path.relpath(path, WORK), "file", reason))
        return lost

    @staticmethod
    def _add_file(archive, path):
        try:
            info = archive.gettarinfo(path, os.path.relpath(path, WORK))
            if info is None:
                return "it is no file, folder, link or fifo"
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            if not info.isreg():
                archive.addfile(info)
                return None
            with open(path, "rb") as file:
                archive.addfile(info, _Exactly(file, info.size))
            return None
        except OSError as error:
            return f"it cannot be read: {error.strerror}"

    def _collect_surroundings(self):
        shell, before = self._shell, self._surroundings
        environment = dict(os.environ)
        modules = [name for name, value in self._shell.user_ns.items() if isinstance(value, types.ModuleType)]
        packages = {self._shell.user_ns[name].__name__.split(".")[0] for name in modules}
        cells = shell.compile._filename_map
        return {
            "directory": _directory(),
            "environment": {key: value for key, value in environment.items() if before.environment.get(key) != value},
            "unset": [key for key in before.environment if key not in environment],
            "path": [entry for entry in sys.path if isinstance(entry, str)],
            "recursion_limit": sys.getrecursionlimit(),
            "count": shell.execution_count,
            "inputs": list(shell.user_ns.get("_ih", [])),
            "modules": [name for name in list(sys.modules) if "." in name and name.split(".")[0] in packages],
            "sources": {name: "".join(linecache.cache[name][2]) for name in cells if name in linecache.cache},
            "cells": dict(cells),
            "raw_inputs": list(shell.history_manager.input_hist_raw),
            "flags": shell.compile.flags,
            "extensions": sorted(shell.extension_manager.loaded - {"storemagic"}),
        }

    def _ambient(self):
        """Yield what runs beside the variables, and ends with the kernel."""
        for thread in threading.enumerate():
            if thread.ident not in self._surroundings.threads and type(thread).__module__ in ("__main__", "threading"):
                yield thread.name, "Thread", "a running thread ends with its kernel"
        for task in asyncio.all_tasks():
            frame = getattr(task.get_coro(), "cr_frame", None)
            if frame is not None and frame.f_globals is self._shell.user_ns:
                yield task.get_name(), "Task", "a running task ends with its kernel"
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError):
                if (
                    int(process.name) != os.getpid()
                    and (process / "stat").read_text().rsplit(")")[-1].split()[0] != "Z"
                ):
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                    yield command.strip()[:80] or process.name, "process", "a running process ends with its kernel"
        for folder in ELSEWHERE:
            for name in sorted(set(os.listdir(folder)) - self._surroundings.elsewhere):
                path = os.path.join(folder, name)
                yield path, "folder" if os.path.isdir(path) else "file", "only what is in /work is kept"
        if _directory() is None:
            yield "the working directory", "folder", "it was removed"
        elif not (_directory() + "/").startswith(WORK + "/") and not os.path.isdir(_directory()):
            yield "the working directory", "folder", "only what is in /work is kept"

    # Loading

    def load(self, pipe, tolerant):
        """Read the stream into this fresh shell.

        Returns:
            A dict for the host: "status" ("ok", or "again" where it has to be sent once more, to be loaded with
            ``tolerant``) and "lost".
        """
        source = Source(pipe)
        if source(len(MAGIC)) != MAGIC:
            raise ValueError(f"the state is of another version than this sandbox's ({MAGIC.decode().strip()})")
        lost = self._load_files(source)
        with reading(source) as section:
            surroundings = pickle.load(section)
        lost += self._apply_surroundings(surroundings)
        with reading(source) as section:
            unpickler = (Tolerant if tolerant else pickle.Unpickler)(section)
            try:
                *parts, patches = unpickler.load()
                members = unpickler.load()
            except Exception:
                if tolerant:
                    raise
                return {"status": "again"}
        _made, variables, results, last, settings, shell = (
            dict(zip(part[::2], part[1::2], strict=True)) for part in parts
        )
        lost += getattr(unpickler, "lost", [])
        for module, name, there, value in patches:
            lost += self._apply_patch(module, name, there, value)
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
        self._shell.push(last, interactive=False)  # as IPython does: a `_` that it finds changed it would leave alone
        self._shell.execution_count = surroundings["count"]
        return {"status": "ok", "lost": _told(lost), "has_lost": NotRestored.made > 0}

    @staticmethod
    def _load_files(source):
        lost = []
        with reading(source) as section, tarfile.open(fileobj=section, mode="r|", bufsize=PIECE) as archive:
            folders = []
            for member in archive:
                path = os.path.join(WORK, member.name)
                try:
                    if member.isdir():
                        folders.append((path, member))
                        os.makedirs(path, exist_ok=True)
                        os.chmod(path, 0o700)
                    else:
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(path)  # from the first attempt
                        archive.extract(member, WORK)
                except (OSError, tarfile.TarError) as error:
                    lost.append((member.name, "file", f"it could not be written: {error}"))
            for path, folder in reversed(folders):  # what is in a folder changes its time, and its rights may forbid it
                with contextlib.suppress(OSError):
                    os.utime(path, (folder.mtime, folder.mtime))
                    os.chmod(path, folder.mode)
        return lost

    def _apply_surroundings(self, saved):
        lost = []
        os.environ.update(saved["environment"])
        time.tzset()
        for key in saved["unset"]:
            os.environ.pop(key, None)
        sys.path[:] = saved["path"]
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

    def _apply_history(self, saved):
        shell = self._shell
        inputs, raw = saved["inputs"], saved["raw_inputs"]
        shell.user_ns["_ih"][:] = inputs
        shell.history_manager.input_hist_raw[:] = raw
        shell.user_ns.update({f"_i{number}": text for number, text in enumerate(raw) if number})
        shell.history_manager._i, shell.history_manager._ii, shell.history_manager._iii = (["", "", "", *raw])[:-4:-1]
        shell.compile.flags = saved["flags"]
        shell.compile._filename_map.update(saved["cells"])
        for name, text in saved["sources"].items():
            linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)

    @staticmethod
    def _apply_patch(module, name, there, value):
        attribute = name[len(module) + 1 :]
        try:
            target = importlib.import_module(module)
            if there:
                setattr(target, attribute, value)
            else:
                delattr(target, attribute)
        except Exception as error:
            return [(name, "patch", f"{type(error).__name__}: {error}")]
        return []


class _Nowhere:
    @staticmethod
    def write(data):
        return len(data)


class _Exactly:
    """A file that has exactly as many bytes as its header says, though it is written to meanwhile."""

    def __init__(self, file, size):
        self._file, self._left = file, size

    def read(self, size):
        data = self._file.read(min(size, self._left))
        data += bytes(min(size, self._left) - len(data))
        self._left -= len(data)
        return data


def _directory():
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _told(lost):
    lost = list(dict.fromkeys(lost))
    told = [{"name": name[:200], "kind": kind[:200], "reason": reason} for name, kind, reason in lost[:_MOST_LOST]]
    if len(lost) > _MOST_LOST:
        told.append({"name": "…", "kind": "", "reason": f"and {len(lost) - _MOST_LOST} more"})
    return told
