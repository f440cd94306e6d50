"""The `cellblock` command, run as a process with real kernels."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, engine_runtimes


def cellblock(*arguments: str, cwd: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command, under runc unless ``environment`` says otherwise: its kernels start sooner."""
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli.app", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "200", "CELLBLOCK_RUNTIME": "runc"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_run_shows_output_and_passes_files_and_arguments(runtime: str, tmp_path: Path) -> None:
    """A script gets its files, arguments and name, and its stdout and stderr stay separate."""
    (tmp_path / "script.py").write_text(
        "import sys, helper\nprint(__name__, sys.argv[1:], helper.NAME, open('data.txt').read())\n"
        "print('warning', file=sys.stderr)\n1 + 1\n"
    )
    (tmp_path / "helper.py").write_text("NAME = 'helper'")
    (tmp_path / "data.txt").write_text("payload")
    done = cellblock(
        "run", "script.py", "--file", "helper.py", "--file", "data.txt", "one", "two",
        cwd=tmp_path, CELLBLOCK_RUNTIME=runtime,
    )  # fmt: skip
    assert done.stdout == "__main__ ['one', 'two'] helper payload\n"
    assert done.stderr == "warning\n"
    assert done.returncode == 0


def test_run_passes_arguments_unchanged(tmp_path: Path) -> None:
    """Emoji, quotes and backslashes in arguments arrive unchanged."""
    arguments = ["😀", "it's", "a\\b"]
    (tmp_path / "script.py").write_text("import sys; print(sys.argv[1:])")
    done = cellblock("run", "script.py", *arguments, cwd=tmp_path, PYTHONIOENCODING="utf-8")
    assert done.stdout == f"{arguments}\n"


def test_run_survives_invalid_picture_data(tmp_path: Path) -> None:
    """Invalid picture data and characters that the terminal cannot show cause no traceback."""
    (tmp_path / "bad.py").write_text(
        "from IPython.display import display\ndisplay({'image/png': 'é'}, raw=True)\nprint('é\\u4e2d')"
    )
    done = cellblock("run", "bad.py", "--out", "pictures", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("script", "status", "said"),
    [
        ("import sys; sys.exit(7)", 7, ""),
        ("import sys; sys.exit()", 0, ""),
        ("1/0", 1, "ZeroDivisionError"),
        ("import os; os._exit(5)", 1, "exit code 5"),
        ("import time; time.sleep(30)", 124, "ran past its limit"),
        ("this is no python", 1, "SyntaxError"),
    ],
)
def test_run_exits_as_the_script_does(tmp_path: Path, script: str, status: int, said: str) -> None:
    """The exit status shows how the script ended, and stderr says why."""
    (tmp_path / "script.py").write_text(script)
    done = cellblock("run", "script.py", "--timeout", "2", cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert said in done.stderr


def test_run_saves_pictures(tmp_path: Path) -> None:
    """With --out, each figure that the script shows is saved as a PNG file."""
    (tmp_path / "plot.py").write_text("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\n")
    done = cellblock("run", "plot.py", "--out", "pictures", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pictures/picture-1.png").read_bytes().startswith(b"\x89PNG")


def test_run_reports_a_picture_that_cannot_be_saved(tmp_path: Path) -> None:
    """If --out names a file, the command exits with 1 and one message, without a traceback."""
    (tmp_path / "plot.py").write_text("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\n")
    (tmp_path / "pictures").write_text("")
    done = cellblock("run", "plot.py", "--out", "pictures", cwd=tmp_path)
    assert (done.returncode, "cannot be written" in done.stderr, "Traceback" in done.stderr) == (1, True, False)


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["run", "missing.py"], {}, "missing.py does not exist"),
        (["run", "."], {}, ". is a directory"),
        (["run", "ok.py", "--file", "missing.csv"], {}, "missing.csv does not exist"),
        (["run", "binary.py"], {}, "not a Python script"),
        (["run", "ok.py", "--timeout", "-1"], {}, "must be positive"),
        (["run", "ok.py"], {"CELLBLOCK_RUNTIME": "kata"}, "no runtime 'kata'"),
        (["run", "ok.py"], {"CELLBLOCK_POLICY": "nosuch"}, "no policy 'nosuch'"),
        (["run", "ok.py"], {"CELLBLOCK_POLICY": "bad.toml"}, "limits.memory_mb"),
        (["run", "ok.py"], {"CELLBLOCK_POLICY": "unknown.toml"}, "limits.memroy_mb"),
        (["run", "ok.py"], {"CELLBLOCK_IMAGE": "nosuch:1"}, "CELLBLOCK_IMAGE names it"),
        (["run", "ok.py"], {"CELLBLOCK_WARM_KERNELS": "many"}, "CELLBLOCK_WARM_KERNELS"),
        (["run", "ok.py"], {"CELLBLOCK_STATE_DIR": "/proc/nowhere"}, "CELLBLOCK_STATE_DIR"),
        (["run", "ok.py"], {"CELLBLOCK_STATE_DIR": "/tmp/" + "x" * 120}, "CELLBLOCK_STATE_DIR"),
        (["run", "ok.py"], {"DOCKER_HOST": "unix:///nonexistent.sock"}, "no Docker engine answers"),
        (["doctor"], {"DOCKER_HOST": "unix:///nonexistent.sock"}, "no Docker engine answers"),
    ],
)
def test_mistakes_get_one_clear_message(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], said: str
) -> None:
    """A mistake gives exit status 1 and one message that names the problem, without a traceback."""
    (tmp_path / "ok.py").write_text("print('ok')")
    (tmp_path / "binary.py").write_bytes(b"\x89PNG\xff\xfe")
    (tmp_path / "bad.toml").write_text("[limits]\nmemory_mb = -5\n")
    (tmp_path / "unknown.toml").write_text("[limits]\nmemroy_mb = 5\n")
    too_long = Path("/tmp/" + "x" * 120)
    was_there = too_long.exists()  # left by somebody else
    done = cellblock(*arguments, cwd=tmp_path, **environment)
    assert done.returncode == (2 if "--timeout" in arguments else 1)
    assert said in " ".join((done.stderr + done.stdout).split())
    assert "Traceback" not in done.stderr
    assert was_there or not too_long.exists()


def test_missing_permission_for_the_engine_is_reported_as_such() -> None:
    """A socket that the user may not open gives another error and another remedy than a missing engine."""
    code = (
        "import os\nfrom orchestrator.container.engine import connect\nfrom orchestrator.errors import CellblockError\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: connect(10)\nexcept CellblockError as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.startswith("EnginePermissionError"), done.stderr
    assert "`docker` group" in done.stdout


def test_doctor_reports_what_this_host_promises() -> None:
    """If kernels can run, doctor exits with 0 and reports a kernel under each runtime."""
    done = cellblock("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    for runtime in engine_runtimes():
        assert f"a kernel under {runtime}" in done.stdout
    assert done.stdout.count("6 * 7 = 42") == len(engine_runtimes())


def test_a_current_image_is_not_rebuilt() -> None:
    """`cellblock image build` returns quickly if the image matches its sources."""
    begun = time.monotonic()
    done = cellblock("image", "build")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.one_runtime
def test_a_signal_ends_run_with_130(runtime: str, tmp_path: Path, ending: signal.Signals) -> None:
    """SIGINT and SIGTERM during a script end the command with one message and status 130."""
    (tmp_path / "slow.py").write_text("print('begun', flush=True)\nimport time; time.sleep(25)")
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli.app", "run", "slow.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "CELLBLOCK_RUNTIME": runtime},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(ending)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in stderr
    assert "Traceback" not in stderr


def test_run_gives_options_after_the_script_to_the_script(tmp_path: Path) -> None:
    """Options that `run` does not have reach the script, with and without "--"; before the script they are refused."""
    (tmp_path / "script.py").write_text("import sys; print(sys.argv[1:])")
    done = cellblock("run", "script.py", "--epochs", "3", "-v", "--a=b", "--", "--timeout", "x", cwd=tmp_path)
    assert done.stdout == "['--epochs', '3', '-v', '--a=b', '--timeout', 'x']\n", done.stderr
    assert cellblock("run", "--epochs", "script.py", cwd=tmp_path).returncode == 2


@pytest.mark.one_runtime
def test_run_copies_what_the_script_made(runtime: str, tmp_path: Path) -> None:
    """New and changed files of /work are in --out, but no links, hidden names or inputs; sys.exit prints no advice."""
    (tmp_path / "data.txt").write_text("old")
    (tmp_path / "same.txt").write_text("same")
    (tmp_path / "script.py").write_text(
        "import os, sys\nos.makedirs('deep/er')\nopen('deep/er/new.csv', 'w').write('a,b')\n"
        "open('data.txt', 'w').write('changed')\nopen('.bashrc', 'w').write('evil')\n"
        "os.symlink('/etc/passwd', 'link')\n"
        "os.chdir('/tmp')\nsys.exit(7)\n"
    )
    done = cellblock(
        "run", "script.py", "--file", "data.txt", "--file", "same.txt", "--out", "out",
        cwd=tmp_path, CELLBLOCK_RUNTIME=runtime,
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    out = tmp_path / "out"
    found = {str(path.relative_to(out)): path.read_text() for path in out.rglob("*") if path.is_file()}
    assert found == {"deep/er/new.csv": "a,b", "data.txt": "changed"}
    assert "To exit" not in done.stderr
    assert "'.bashrc'" in done.stderr


@pytest.mark.parametrize(("stop", "status", "printed"), [("-3", 253, ""), ("'no data'", 1, "no data\n"), ("5", 5, "")])
def test_run_reads_a_script_from_standard_input(tmp_path: Path, stop: str, status: int, printed: str) -> None:
    """`-` is the script, and sys.exit has the meaning that it has in Python."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli.app", "run", "-", "one"],
        input=f"import sys; print(sys.argv); sys.exit({stop})", cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "CELLBLOCK_RUNTIME": "runc"}, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (status, "['-', 'one']\n", printed)
