"""The IPython shell in which cells run."""

import shutil
import subprocess
import sys
from errno import ENOENT
from functools import partial, wraps
from typing import Any

from ipykernel.displayhook import ZMQShellDisplayHook
from ipykernel.zmqshell import ZMQInteractiveShell
from IPython.core import page
from IPython.core.events import EventManager, available_events
from IPython.utils._process_common import arg_split
from IPython.utils.text import LSString, SList
from jupyter_client.session import extract_header
from traitlets import Type

from cellblock_kernel.figures import show_silent_figures
from cellblock_kernel.messages import BoundedSession
from cellblock_kernel.packages import arguments_of, pip_install
from cellblock_kernel.streams import OrderedStream


def _with_its_program(shebang: Any) -> Any:
    """Return ``%%script`` so that it fails if there is no such program. IPython's prints that, and the cell is ok."""

    @wraps(shebang)
    def run(line: str, cell: str) -> Any:
        _, command = shebang.parser.parse_known_args(arg_split(line, posix=True))
        if command and shutil.which(command[0]) is None:
            raise FileNotFoundError(ENOENT, "there is no such program", command[0])
        return shebang(line, cell)

    return run


class SandboxDisplayHook(ZMQShellDisplayHook):
    """Displays the value of a cell's last expression.

    After a checkpoint that lost something, the hook first checks whether the value contains a lost object. IPython
    alone would print the error and report the cell as successful.
    """

    has_lost = False

    def compute_format_data(self, result: Any) -> Any:
        if self.has_lost:
            repr(result)
        return super().compute_format_data(result)


class SandboxEvents(EventManager):
    """Calls the callbacks of an event, also after one that exits: the cell they surround must run and end."""

    def trigger(self, event: str, *args: Any, **kwargs: Any) -> None:
        for callback in self.callbacks[event][:]:
            try:
                callback(*args, **kwargs)
            except BaseException:  # noqa: BLE001 - SystemExit too
                print(f"Error in callback {callback} (for {event}), with arguments args {args},kwargs {kwargs}:")
                self.shell.showtraceback()


class SandboxShell(ZMQInteractiveShell):
    """A shell that runs ``!command`` through plain pipes.

    Under gVisor, IPython's pseudo-terminal sometimes loses the output of a short command. It also merges stderr into
    stdout and polls.
    """

    displayhook_class = Type(SandboxDisplayHook)
    shown_error: BaseException | None = None  # whose traceback the running cell has shown

    def init_events(self) -> None:
        self.events = SandboxEvents(self, available_events)
        self.events.register("pre_execute", self._clear_warning_registry)
        self.events.register("post_execute", partial(show_silent_figures, self._publish))

    def init_magics(self) -> None:
        super().init_magics()
        register: Any = self.register_magic_function
        register(self._pip, magic_name="pip")
        scripts: Any = self.magics_manager.registry["ScriptMagics"]
        scripts.shebang = _with_its_program(scripts.shebang)  # %%perl and the others call it, too
        register(scripts.shebang, "cell", "script")

    def _pip(self, line: str) -> None:
        """Install packages that the policy allows: ``%pip install NAME``. The host resolves and checks them."""
        arguments = arguments_of(f"pip {line}")
        if arguments is None:
            print("ERROR: in a sandbox, %pip knows `install NAME ...` alone.", file=sys.stderr)
            self._exited(1)
        else:
            self._exited(pip_install(self.kernel.tools, arguments))

    def init_hooks(self) -> None:
        super().init_hooks()
        self.set_hook("show_in_pager", page.as_hook(self._show_page), 0)

    def _publish(self, data: dict[str, Any]) -> None:
        self.display_pub.publish(data)

    def _show_page(self, text: Any, *_args: Any, **_kwargs: Any) -> None:
        """Display what ``len?`` and other commands show in a pager."""
        self._publish(dict(text) if isinstance(text, dict) else {"text/plain": str(text)})

    def set_next_input(self, text: str, replace: bool = False) -> None:
        """Display the code that ``%load`` and ``%recall`` offer for the next cell."""
        self._publish({"text/plain": text})

    def set_parent(self, parent: Any) -> None:
        BoundedSession.current = extract_header(parent)
        super().set_parent(parent)

    def showtraceback(self, exc_tuple: Any = None, *args: Any, **kwargs: Any) -> None:
        """Show a traceback, and note its error: a cell that shows one has failed, whatever caught it."""
        with_error = exc_tuple or self._get_exc_info()
        self.shown_error = self.shown_error or with_error[1]
        super().showtraceback(exc_tuple, *args, **kwargs)

    def showsyntaxerror(self, *args: Any, **kwargs: Any) -> None:
        """Show a syntax error, and note it as ``showtraceback`` does."""
        self.shown_error = self.shown_error or self._get_exc_info()[1]
        super().showsyntaxerror(*args, **kwargs)

    def system_piped(self, cmd: str) -> None:
        """Run a command of ``!``, and say with the result that it failed."""
        if cmd.rstrip().endswith("&"):
            raise OSError("Background processes not supported.")
        if (arguments := arguments_of(self.var_expand(cmd, depth=1))) is not None:
            self._exited(pip_install(self.kernel.tools, arguments))
            return
        self._exited(subprocess.call(self.var_expand(cmd, depth=1), shell=True))
        for stream in OrderedStream.both:
            stream.drain()

    system = system_piped

    def getoutput(self, cmd: str, split: bool = True, depth: int = 0) -> Any:
        """Return the output of a command of ``x = !command``, and say with the result that it failed."""
        if cmd.rstrip().endswith("&"):
            raise OSError("Background processes not supported.")
        done = subprocess.run(
            self.var_expand(cmd, depth=depth + 1), shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, encoding="utf-8", errors="replace",
        )  # fmt: skip
        self._exited(done.returncode)
        return SList(done.stdout.splitlines()) if split else LSString(done.stdout)

    def _exited(self, status: int) -> None:
        self.user_ns["_exit_code"] = status
        if status:
            self.kernel.warn(f"the command exited with status {status}")

    def runs_cells(self) -> bool:
        """Return whether a cell that does nothing can run: whether IPython works with what the session changed in it.

        Calls no callbacks, and publishes nothing.
        """
        last = self.last_execution_succeeded, self.last_execution_result
        events, self.events = self.events, EventManager(self, available_events)
        try:
            SandboxShell.set_parent(self, self.get_parent())
            cell = self.run_cell_async("pass", False, True, transformed_cell=self.transform_cell("pass"))
            try:
                cell.send(None)
            except StopIteration as end:
                return isinstance(events, EventManager) and bool(end.value.success)
        except BaseException:  # noqa: BLE001 - raised by the session's objects
            return False
        finally:
            self.events = events
            self.last_execution_succeeded, self.last_execution_result = last
        return False

    def ask_exit(self) -> None:
        """End the cell for ``exit()`` and ``quit()``, as sys.exit does. The kernel keeps its variables."""
        status: object = self.keepkernel_on_exit  # ipykernel puts their argument there
        raise SystemExit(status if type(status) is int else None)
