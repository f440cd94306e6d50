"""What E2B's own SDK does with a server of ours. It runs in an environment of the SDK's; ``test_sdk.py`` starts it."""

from __future__ import annotations

import asyncio
import io
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from e2b import (
    CommandExitException,
    FilesystemEventType,
    FileType,
    NotFoundException,
    SandboxException,
    SandboxQuery,
    TimeoutException,
)
from e2b.sandbox.commands.command_handle import PtySize
from e2b_code_interpreter import AsyncSandbox, Sandbox
from e2b_code_interpreter.charts import ChartType

IS_NEW = os.environ["SUITE_SDK"] == "e2b-new"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox.create(timeout=300, envs={"FOO": "sandbox"}, metadata={"purpose": "suite"})
    yield made
    made.kill()


@pytest.fixture
def own_sandbox() -> Iterator[Sandbox]:
    """A sandbox that the test may end."""
    made = Sandbox.create(timeout=60)
    yield made
    made.kill()


def test_code_prints_and_returns(sandbox: Sandbox) -> None:
    """stdout, stderr and the main result come through the callbacks and the result."""
    told: list[object] = []
    execution = sandbox.run_code(
        "import sys; print('out'); print('err', file=sys.stderr); 'text'",
        on_stdout=told.append, on_stderr=told.append, on_result=told.append,
    )  # fmt: skip
    assert (execution.logs.stdout, execution.logs.stderr, execution.text) == (["out\n"], ["err\n"], "text")
    assert len(told) == 3
    assert execution.results[0].is_main_result


def test_the_first_cell_has_number_one(own_sandbox: Sandbox) -> None:
    """The cell that prepares the kernel is not counted."""
    assert [own_sandbox.run_code("pass").execution_count for _ in range(2)] == [1, 2]


def test_output_comes_while_the_code_runs(sandbox: Sandbox) -> None:
    """A line is told long before the code ends."""
    moments: list[float] = []
    began = time.monotonic()
    sandbox.run_code(
        "import time\nprint('now', flush=True)\ntime.sleep(1.5)", on_stdout=lambda _: moments.append(time.monotonic())
    )
    assert moments[0] - began < 1.2 < time.monotonic() - began


def test_an_error_has_name_value_and_traceback(sandbox: Sandbox) -> None:
    error = sandbox.run_code("1/0").error
    assert error is not None
    assert (error.name, error.value) == ("ZeroDivisionError", "division by zero")
    assert "ZeroDivisionError" in error.traceback


def test_every_kind_of_result(sandbox: Sandbox) -> None:
    """Each mime type has its own field, and others are extra."""
    code = """
from IPython.display import display
display({'text/html': '<b>h</b>', 'text/markdown': '*m*', 'text/latex': '$l$', 'image/svg+xml': '<svg></svg>',
         'application/json': {'a': 1}, 'text/vnd.own': 'x'}, raw=True)
"""
    result = sandbox.run_code(code).results[0]
    assert (result.html, result.markdown, result.latex, result.svg) == ("<b>h</b>", "*m*", "$l$", "<svg></svg>")
    assert result.json == {"a": 1}
    assert result.extra == {"text/vnd.own": "x"}
    assert not result.is_main_result


def test_a_table_has_data_and_a_plot_has_a_chart(sandbox: Sandbox) -> None:
    table = sandbox.run_code("import pandas as pd; pd.DataFrame({'a': [1, 2], 'b': ['x', None]})").results[0]
    assert table.data == {"a": [1, 2], "b": ["x", None]}
    assert table.html
    plot = sandbox.run_code("""
import matplotlib.pyplot as plt
figure, (left, right) = plt.subplots(1, 2)
left.bar(['A', 'B'], [1, 2]); left.set_title('Bars'); left.set_xlabel('Time (s)')
right.plot([1.0, 2.0], [3.0, 4.0], label='line')
plt.show()
""").results[0]
    assert plot.png
    assert plot.chart is not None
    bars, line = plot.chart.elements
    assert (bars.title, bars.x_unit, [(bar.label, bar.value) for bar in bars.elements]) == (
        "Bars",
        "s",
        [("A", 1), ("B", 2)],
    )
    assert line.elements[0].points == [(1.0, 3.0), (2.0, 4.0)]


@pytest.mark.parametrize("options", [{}, {"patch_artist": True}, {"notch": True}, {"orientation": "horizontal"}])
def test_a_box_plot_has_a_chart(sandbox: Sandbox, options: dict[str, Any]) -> None:
    """Also one whose median lies on the box's edge, beside a line for the mean."""
    code = f"""
import matplotlib.pyplot as plt
axes = plt.subplots()[1]
axes.boxplot([[1, 2, 3, 4, 5, 20], [2, 2, 2, 9, 9]], tick_labels=['A', 'B'], showmeans=True, meanline=True, **{options})
axes.set_title('Boxes')
plt.show()
"""
    plot = sandbox.run_code(code).results[0]
    assert plot.png
    assert (plot.chart.type, plot.chart.title) == (ChartType.BOX_AND_WHISKER, "Boxes")
    assert [
        (box.label, box.min, box.first_quartile, box.median, box.third_quartile, box.max, box.outliers)
        for box in plot.chart.elements
    ] == [("A", 1.0, 2.25, 3.5, 4.75, 5.0, [20.0]), ("B", 2.0, 2.0, 2.0, 9.0, 9.0, [])]


def test_a_closed_line_is_no_box_plot(sandbox: Sandbox) -> None:
    square = "import matplotlib.pyplot as plt; plt.plot([0, 1, 1, 0, 0], [0, 0, 1, 1, 0]); plt.show()"
    plot = sandbox.run_code(square).results[0]
    assert plot.png
    assert plot.chart is None


def test_an_image_that_is_saved_or_shown_is_a_result(own_sandbox: Sandbox) -> None:
    """Not one that is written to an open file; and what fails to be saved is not shown."""
    assert own_sandbox.run_code("import sys; 'PIL' in sys.modules").text == "False"
    begin = "from PIL import Image; image = Image.new('RGBA', (16, 16)); "
    for code in ("image.save('saved.png')", "image.show()"):
        [result] = own_sandbox.run_code(begin + code).results
        assert result.png
    assert own_sandbox.run_code("import io; image.save(io.BytesIO(), 'PNG')").results == []
    refused = own_sandbox.run_code("image.save('no/folder.png')")
    assert (refused.error.name, refused.results) == ("FileNotFoundError", [])


def test_the_working_folder_has_the_name_that_e2b_gives_it(own_sandbox: Sandbox) -> None:
    """In cells and contexts, below it, and after a pause; other folders have their own names."""
    where = "from pathlib import Path; str(Path.cwd())"
    assert own_sandbox.run_code(where).text == "/home/user"
    context = own_sandbox.create_code_context(cwd="/home/user/a")
    assert own_sandbox.run_code(where, context=context).text == "/home/user/a"
    assert own_sandbox.run_code("import os; os.chdir('a'); os.path.abspath('b')").text == "/home/user/a/b"
    own_sandbox.pause()
    own_sandbox.connect(timeout=60)
    assert own_sandbox.run_code(where).text == "/home/user/a"
    assert own_sandbox.run_code("os.chdir('/tmp'); os.getcwd()").text == "/tmp"


def test_variables_of_the_environment(sandbox: Sandbox) -> None:
    """The sandbox's are there in cells and commands; a call's own win, and are gone afterwards."""
    code = "import os; os.environ['FOO']"
    texts = [sandbox.run_code(code, envs=envs).text for envs in (None, {"FOO": "cell"}, None)]
    assert texts == ["sandbox", "cell", "sandbox"]
    assert sandbox.commands.run("echo $FOO $BAR", envs={"BAR": "command"}).stdout == "sandbox command\n"


def test_contexts_share_files_and_nothing_else(sandbox: Sandbox) -> None:
    context = sandbox.create_code_context(cwd="/home/user/apart")
    assert context.cwd == "/home/user/apart"
    sandbox.run_code("shared = 'default'")
    sandbox.run_code("own = 1; open('file.txt', 'w').write('seen')", context=context)
    assert sandbox.run_code("shared", context=context).error.name == "NameError"
    assert sandbox.run_code("own").error.name == "NameError"
    assert sandbox.run_code("own + 1", context=context).text == "2"
    assert sandbox.run_code("def f(): return own\nf()", context=context).text == "1"
    assert sandbox.files.read("apart/file.txt") == "seen"
    assert [each.id for each in sandbox.list_code_contexts()][-1] == context.id
    sandbox.restart_code_context(context)
    assert sandbox.run_code("own", context=context).error.name == "NameError"
    sandbox.remove_code_context(context)
    with pytest.raises(NotFoundException):
        sandbox.run_code("1", context=context)


def test_another_language(sandbox: Sandbox) -> None:
    """bash runs; what the sandbox has not is refused."""
    assert sandbox.run_code("echo $((40 + 2))", language="bash").logs.stdout == ["42\n"]
    with pytest.raises(SandboxException, match="no kernel for 'r'"):
        sandbox.run_code("1", language="r")


def test_a_client_that_gives_up_interrupts_its_code(sandbox: Sandbox) -> None:
    with pytest.raises(TimeoutException):
        sandbox.run_code("import time; time.sleep(25)", timeout=1)
    assert sandbox.run_code("6 * 7", timeout=5).text == "42"


def test_a_sandbox_killed_while_code_runs(own_sandbox: Sandbox) -> None:
    own_sandbox.run_code("pass")
    threading.Timer(1.0, own_sandbox.kill).start()
    with pytest.raises(TimeoutException, match="killed while the request was in progress"):
        own_sandbox.run_code("import time; time.sleep(20)")
    assert not own_sandbox.is_running()


def test_code_that_ends_its_kernel(own_sandbox: Sandbox) -> None:
    """The error says so, and the sandbox is gone."""
    error = own_sandbox.run_code("import os; os._exit(3)").error
    assert error is not None
    with pytest.raises(TimeoutException):
        own_sandbox.run_code("1")


def test_a_command_has_output_and_exit_code(sandbox: Sandbox) -> None:
    told: list[str] = []
    result = sandbox.commands.run("echo out; echo err >&2; pwd", on_stdout=told.append)
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n/home/user\n", "err\n", 0)
    assert "".join(told) == result.stdout
    assert sandbox.commands.run("pwd", cwd="/tmp").stdout == "/tmp\n"
    with pytest.raises(CommandExitException) as raised:
        sandbox.commands.run("exit 3")
    assert raised.value.exit_code == 3


def test_a_command_that_takes_too_long(sandbox: Sandbox) -> None:
    with pytest.raises(TimeoutException):
        sandbox.commands.run("sleep 20", timeout=1)


def test_a_command_in_the_background(sandbox: Sandbox) -> None:
    """It takes input, is listed, can be come back to, and be killed."""
    handle = sandbox.commands.run("cat; echo over", background=True, stdin=True)
    handle.disconnect()
    assert handle.pid in [process.pid for process in sandbox.commands.list()]
    again = sandbox.commands.connect(handle.pid)
    sandbox.commands.send_stdin(handle.pid, "typed\n")
    if IS_NEW:
        again.close_stdin()
        assert again.wait().stdout == "typed\nover\n"
        assert handle.pid not in [process.pid for process in sandbox.commands.list()]
    sleeping = sandbox.commands.run("sleep 60", background=True)
    assert sleeping.kill()
    with pytest.raises(CommandExitException):
        sleeping.wait()
    assert not sandbox.commands.kill(999_999)


def test_two_clients_follow_one_command(sandbox: Sandbox) -> None:
    first = sandbox.commands.run("sleep 0.5; echo both", background=True)
    second = sandbox.commands.connect(first.pid)
    assert first.wait().stdout == second.wait().stdout == "both\n"


def test_a_terminal(sandbox: Sandbox) -> None:
    terminal = sandbox.pty.create(PtySize(24, 80), envs={"OWN": "variable"})
    sandbox.pty.resize(terminal.pid, PtySize(30, 100))
    sandbox.pty.send_stdin(terminal.pid, b"echo $OWN; stty size; exit 4\n")
    pieces: list[bytes] = []
    with pytest.raises(CommandExitException) as raised:
        terminal.wait(on_pty=pieces.append)
    seen = b"".join(pieces)
    assert raised.value.exit_code == 4
    assert b"variable" in seen
    assert b"30 100" in seen


def test_files(sandbox: Sandbox) -> None:
    """All that the SDK does with files, by relative and absolute paths."""
    files = sandbox.files
    assert files.write("made/file.txt", "text").path == "/home/user/made/file.txt"
    assert files.read("/home/user/made/file.txt") == files.read("/work/made/file.txt") == "text"
    assert bytes(files.read("made/file.txt", format="bytes")) == b"text"
    info = files.get_info("made/file.txt")
    assert (info.name, info.type, info.size, info.permissions) == ("file.txt", FileType.FILE, 4, "-rw-r--r--")
    assert files.make_dir("made/deep/er")
    assert not files.make_dir("made/deep")
    assert [(each.path, each.type) for each in files.list("made", depth=2)] == [
        ("/home/user/made/deep", FileType.DIR),
        ("/home/user/made/deep/er", FileType.DIR),
        ("/home/user/made/file.txt", FileType.FILE),
    ]
    assert files.rename("made/file.txt", "made/other.txt").path == "/home/user/made/other.txt"
    assert (files.exists("made/file.txt"), files.exists("made/other.txt")) == (False, True)
    files.remove("made")
    assert not files.exists("made")
    for missing in (files.read, files.get_info, files.list):
        with pytest.raises(NotFoundException):
            missing("made/nothing")


def test_large_and_many_files(sandbox: Sandbox) -> None:
    """A file goes up and down as a stream, and several go in one request."""
    data = os.urandom(9 * 2**20)
    sandbox.files.write("large.bin", io.BytesIO(data))
    assert b"".join(sandbox.files.read("large.bin", format="stream")) == data
    sandbox.files.write("large2.bin", data)
    assert bytes(sandbox.files.read("large2.bin", format="bytes")) == data
    many = sandbox.files.write_files([{"path": f"many/{n}.txt", "data": str(n)} for n in range(20)])
    assert [sandbox.files.read(each.path) for each in many] == [str(n) for n in range(20)]
    sandbox.files.write("packed.txt", "packed" * 1000, gzip=True)
    assert sandbox.files.read("packed.txt", gzip=True) == "packed" * 1000


def test_watching_a_folder(sandbox: Sandbox) -> None:
    sandbox.files.make_dir("watched")
    watcher = sandbox.files.watch_dir("watched", recursive=True)
    sandbox.files.write("watched/in/new.txt", "1")
    seen = {(event.name, event.type) for event in watcher.get_new_events()}
    assert {("in", FilesystemEventType.CREATE), ("in/new.txt", FilesystemEventType.WRITE)} <= seen
    sandbox.files.remove("watched/in")
    assert ("in/new.txt", FilesystemEventType.REMOVE) in {(one.name, one.type) for one in watcher.get_new_events()}
    watcher.stop()
    with pytest.raises(NotFoundException):
        sandbox.files.watch_dir("nothing here")


def test_signed_urls(sandbox: Sandbox) -> None:
    """They need no header, are for one path and one direction, and expire."""
    sandbox.files.write("signed.txt", "signed")
    url = sandbox.download_url("signed.txt")
    with urllib.request.urlopen(url) as answer:  # noqa: S310 - the server's own
        assert answer.read() == b"signed"
    for wrong in (url.replace("signed.txt", "other.txt"), sandbox.upload_url("signed.txt"),
                  sandbox.download_url("signed.txt", use_signature_expiration=-10)):  # fmt: skip
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(wrong)  # noqa: S310
        assert raised.value.code == 401


def test_lists_and_information(sandbox: Sandbox) -> None:
    info = sandbox.get_info()
    assert (info.metadata, info.state.value) == ({"purpose": "suite"}, "running")
    found = Sandbox.list(SandboxQuery(metadata={"purpose": "suite"})).next_items()
    assert [each.sandbox_id for each in found] == [sandbox.sandbox_id]
    more = [Sandbox.create(timeout=60, metadata={"page": "yes"}) for _ in range(3)]
    pages, listing = [], Sandbox.list(SandboxQuery(metadata={"page": "yes"}), limit=2)
    while listing.has_next:
        pages.append([each.sandbox_id for each in listing.next_items()])
    assert [len(page) for page in pages] == [2, 1]
    assert {each for page in pages for each in page} == {each.sandbox_id for each in more}
    assert all(each.kill() for each in more)
    assert not more[0].kill()
    assert sandbox.get_metrics()[0].mem_used > 0


def test_pause_and_resume(own_sandbox: Sandbox) -> None:
    """Variables and files come back. While it is paused, nothing but a resume wakes it."""
    own_sandbox.run_code("kept = [1, 2]")
    own_sandbox.files.write("kept.txt", "kept")
    own_sandbox.commands.run("sleep 60", background=True)
    own_sandbox.pause() if IS_NEW else own_sandbox.beta_pause()
    assert not own_sandbox.is_running()
    assert own_sandbox.get_info().state.value == "paused"
    with pytest.raises(TimeoutException):
        own_sandbox.run_code("kept")
    resumed = Sandbox.connect(own_sandbox.sandbox_id, timeout=60)
    assert resumed.run_code("kept").text == "[1, 2]"
    assert resumed.files.read("kept.txt") == "kept"
    assert own_sandbox.is_running()


def test_a_sandbox_expires() -> None:
    made = Sandbox.create(timeout=60)
    made.set_timeout(1)
    for _ in range(50):
        if not made.is_running():
            break
        time.sleep(0.1)
    assert not made.is_running()
    assert not made.kill()


@pytest.mark.skipif(not IS_NEW, reason="the older SDK has no forks and no names of snapshots")
def test_forks_and_snapshots(own_sandbox: Sandbox) -> None:
    own_sandbox.run_code("state = 'original'")
    fork = own_sandbox.fork(timeout=60)[0]
    assert fork.run_code("state").text == "original"
    fork.run_code("state = 'fork'")
    snapshot = own_sandbox.create_snapshot(name="named")
    own_sandbox.run_code("state = 'later'")
    assert [each.snapshot_id for each in Sandbox.list_snapshots(name="named").next_items()] == [snapshot.snapshot_id]
    made = Sandbox.create(snapshot.snapshot_id, timeout=60)
    assert [each.run_code("state").text for each in (own_sandbox, fork, made)] == ["later", "fork", "original"]
    assert Sandbox.delete_snapshot(snapshot.snapshot_id)
    assert not Sandbox.delete_snapshot(snapshot.snapshot_id)
    assert made.kill()
    assert fork.kill()


def test_what_has_no_meaning_here_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(SandboxException, match="network rules"):
        Sandbox.create(network={"deny_out": ["0.0.0.0/0"]})


async def test_the_asynchronous_client() -> None:
    sandbox = await AsyncSandbox.create(timeout=60)
    try:
        execution = await sandbox.run_code("print('hello'); 1 + 1")
        assert (execution.text, execution.logs.stdout) == ("2", ["hello\n"])
        assert (await sandbox.commands.run("echo async")).stdout == "async\n"
        await sandbox.files.write("a.txt", "async")
        assert await sandbox.files.read("a.txt") == "async"
        seen: list[object] = []
        watching = await sandbox.files.watch_dir(".", on_event=seen.append)
        await sandbox.files.write("b.txt", "event")
        for _ in range(30):
            if seen:
                break
            await asyncio.sleep(0.1)
        assert seen
        await watching.stop()
    finally:
        await sandbox.kill()
