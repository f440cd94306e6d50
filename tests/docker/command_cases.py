"""Commands, each with its exact result. ``test_commands`` runs every one under every runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

KIB = 1024
MIB = 1024 * 1024


@dataclass(frozen=True)
class Case:
    """One command.

    Attributes:
        exit_code: None: the kernel reports none.
        stdout, stderr: exact bytes; None: anything.
        outcome: "" for the one that follows from the exit code.
        arguments: of ``run_command``.
    """

    name: str
    command: str | list[str]
    exit_code: int | None = 0
    stdout: bytes | None = b""
    stderr: bytes | None = b""
    outcome: str = ""
    arguments: dict[str, Any] | None = None


def python(code: str) -> list[str]:
    return ["python3", "-c", code]


CASES = [
    # Exit codes
    Case("success", "true"),
    Case("failure", "exit 3", 3),
    Case("the highest exit code", "exit 255", 255),
    Case("a missing program in a shell", "nosuchprogram", 127, b"", None),
    Case("a missing program", ["nosuchprogram"], 127, b"", b"cellblock: nosuchprogram: No such file or directory\n"),
    Case("a missing path", ["/work/nosuch"], 127, b"", b"cellblock: /work/nosuch: No such file or directory\n"),
    Case("a folder as program", ["/work"], 126, b"", b"cellblock: /work: Permission denied\n"),
    Case("a file that is no program", ["/etc/passwd"], 126, b"", b"cellblock: /etc/passwd: Permission denied\n"),
    Case("a folder as program in a shell", "/work", 126, b"", None),
    Case("a shell's syntax error", "if then", 2, b"", None),
    Case("a pipe's last exit code", "false | true"),
    Case("a pipe with pipefail", "set -o pipefail; false | true", 1),
    Case("bash's own syntax", "a=(1 2 3); echo ${a[1]} {x,y}", 0, b"2 x y\n"),
    # Signals
    Case("killed by itself", "kill -KILL $$", 137),
    Case("terminated by itself", "kill -TERM $$", 143),
    Case("interrupted by itself", python("import os, signal; os.kill(os.getpid(), signal.SIGINT)"), 130, b"", None),
    Case("aborted", python("import os; os.abort()"), 134, b"", None),
    Case("a segmentation fault", python("import ctypes; ctypes.string_at(0)"), 139, b"", None),
    Case("SIGPIPE ends a writer", "yes | head -n 2; echo ${PIPESTATUS[0]}", 0, b"y\ny\n141\n"),
    Case("SIGINT is not ignored", python("import signal; print(signal.getsignal(2) is signal.SIG_IGN)"), 0, b"False\n"),
    Case("a signal that is caught", "trap 'echo caught; exit 5' USR1; kill -USR1 $$; sleep 5", 5, b"caught\n"),
    # Where and as whom
    Case("the working directory", "pwd", 0, b"/work\n"),
    Case("another directory", "pwd", 0, b"/tmp\n", arguments={"cwd": "/tmp"}),
    Case("a relative directory", "mkdir -p sub && cd sub && pwd", 0, b"/work/sub\n"),
    Case("the user", "id -un; test $(id -u) -ne 0", 0, b"sandbox\n"),
    Case("the home folder", "echo $HOME", 0, b"/work\n"),
    Case("a variable", "echo $A", 0, b"one two\n", arguments={"env": {"A": "one two"}}),
    Case("a variable of bytes", "printf %s \"$A\"", 0, b"\xff\xfe", arguments={"env": {"A": "\udcff\udcfe"}}),
    Case("an argument that a shell would change", ["printf", "%s|", "a b", "$HOME", "*"], 0, b"a b|$HOME|*|"),
    Case("an argument of bytes", ["printf", "%s", "\udcff"], 0, b"\xff"),
    Case("an empty argument", ["printf", "[%s]", ""], 0, b"[]"),
    Case("a group of its own", python("import os; print(os.getpgid(0) == os.getpid() == os.getsid(0))"), 0, b"True\n"),
    Case("no network", python("import socket; socket.create_connection(('1.1.1.1', 80), 1)"), 1, b"", None),
    Case("a read-only root", "touch /nothing", 1, b"", None),
    Case("no terminal", "test -t 0 || test -t 1 || test -t 2", 1),
    # Input
    Case("no input", "cat"),
    Case("some input", "cat", 0, b"\x00\xffline\n", arguments={"stdin": b"\x00\xffline\n"}),
    Case("text as input", "cat", 0, "ü€\n".encode(), arguments={"stdin": "ü€\n"}),
    Case("much input", "wc -c", 0, b"5000000\n", arguments={"stdin": bytes(5_000_000)}),
    Case("input that nobody reads", "true", arguments={"stdin": bytes(5_000_000)}),
    Case("input that is read in part", "head -c 3", 0, b"abc", arguments={"stdin": b"abc" + bytes(3 * MIB)}),
    Case("input that comes back", "cat | wc -c; echo end", 0, b"2000000\nend\n", arguments={"stdin": bytes(2_000_000)}),
    # Output
    Case("both streams", "echo out; echo err >&2", 0, b"out\n", b"err\n"),
    Case("bytes that are no UTF-8", ["printf", "\\377\\000\\376"], 0, b"\xff\x00\xfe"),
    Case("no line end", ["printf", "x"], 0, b"x"),
    Case("1 MB", "head -c 1000000 /dev/zero", 0, bytes(1_000_000)),
    Case("9 MB on one stream", "head -c 9000000 /dev/zero >&2", 0, b"", bytes(9_000_000)),
    Case("both closed at once", python("import os, time; os.close(1); os.close(2); time.sleep(0.3); os._exit(7)"), 7),
    Case("a late writer", "echo a; exec > >(sleep 0.1; cat); echo b", 0, b"a\nb\n"),
    Case("escape sequences as they are", ["printf", "\\033[31mred"], 0, b"\x1b[31mred"),
    # Background
    Case("a child in the background", "sleep 60 & echo started", 0, b"started\n"),
    Case("a child that goes on writing", "(sleep 0.05; echo late; sleep 60) & echo now", 0, b"now\nlate\n"),
    Case("a child that was waited for", "sleep 0.1 & wait; echo done", 0, b"done\n"),
    Case("a daemon", "nohup sleep 60 >/dev/null 2>&1 & echo up", 0, b"up\n"),
    Case("orphans are reaped", "for i in 1 2 3; do (true &); done; echo ok", 0, b"ok\n"),
    # Timeouts
    Case("a timeout", "echo before; sleep 60", 137, b"before\n", b"", "timeout", {"timeout": 0.7}),
    Case("a timeout of a group", "sleep 60 | sleep 60", 137, b"", b"", "timeout", {"timeout": 0.7}),
    Case("a timeout of one that ignores signals", "trap '' TERM INT HUP; echo on; while :; do sleep 1; done", 137,
         b"on\n", b"", "timeout", {"timeout": 0.7}),
    Case("a timeout of one that writes no end", "yes", 137, None, b"", "timeout", {"timeout": 0.7}),
    Case("a timeout of one that reads", ["cat"], 0, b"", b""),
    Case("less than its timeout", "sleep 0.2; echo done", 0, b"done\n", b"", "", {"timeout": 20}),
    # Files and devices
    Case("a script that was written", "printf '#!/bin/sh\\necho hello' > s && chmod +x s && ./s", 0, b"hello\n"),
    Case("a script without a first line", ["/work/plain"], 126, b"", b"cellblock: /work/plain: Exec format error\n"),
    Case("a name in bytes", "touch $'\\xff\\xfe' && ls | grep -ac $'\\xff'; rm $'\\xff\\xfe'", 0, b"1\n"),
    Case("devices", "cat /dev/null; head -c 2 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c", 0, b"2\n3\n"),
    Case("a full device", "echo x > /dev/full", 1, b"", None),
    Case("a named pipe", "mkfifo f && (echo through > f & cat f); rm f", 0, b"through\n"),
    Case("a loop of links", "ln -s a b; ln -s b a; cat a; rm a b", 0, b"", None),
    Case("a file that grows", "(for i in 1 2 3; do echo $i; sleep 0.05; done > g); cat g", 0, b"1\n2\n3\n"),
    Case("a full folder", "head -c 70000000 /dev/zero > /dev/shm/big; rc=$?; rm /dev/shm/big; exit $rc", 1, b"", None),
    Case("a fork bomb's first hundred", "for i in $(seq 100); do sleep 0.3 & done; wait; echo ok", 0, b"ok\n"),
]  # fmt: skip
