"""The tools, over HTTP, on real kernels under each runtime."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types import BlobResourceContents, TextResourceContents

from orchestrator.manager import AgentKernelManager
from orchestrator.output.tokencount import tokens
from tests.conftest import make_manager
from tests.mcp.servers import (
    PATIENCE,
    call,
    ended,
    http_client,
    http_server,
    id_in,
    images_of,
    in_a_task,
    links_of,
    refused,
    text_of,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def manager() -> AsyncIterator[AgentKernelManager]:
    async with make_manager("runc", max_kernels=3) as manager:
        yield manager


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url(manager: AgentKernelManager) -> AsyncIterator[str]:
    async with in_a_task(http_server(manager)) as url:
        yield url


@pytest_asyncio.fixture(loop_scope="module")
async def client(url: str) -> AsyncIterator[Client]:
    async with in_a_task(http_client(url)) as client:
        yield client


async def test_the_tools_cost_a_model_less_than_2000_tokens(client: Client) -> None:
    """The whole of tools/list, as JSON: 4,600 characters were 1,195 tokens of o200k_base."""
    listed = await client.list_tools()
    form = [tool.model_dump(by_alias=True, exclude_none=True, mode="json") for tool in listed.tools]
    assert len(json.dumps(form)) < 5650
    assert len(form) == 15
    assert all(tool["description"] for tool in form)
    assert [tool["name"] for tool in form if "annotations" in tool] == ["wait", "read_file", "list_files", "variables"]


async def test_commands_share_the_files_of_cells(client: Client) -> None:
    """Exit codes, stderr, and a command that outlives its call and is stopped."""
    await call(client, "run_python", code="open('a.txt', 'w').write('from a cell')")
    assert await call(client, "run_command", command="cat a.txt") == "from a cell"
    failed = await call(client, "run_command", command="ls nothing", cwd="/tmp")
    assert "[exit code 2]" in failed
    long = await client.call_tool("run_command", {"command": "echo begun; sleep 60"})
    assert "begun" in text_of(long)
    stopped = await ended(client, await client.call_tool("interrupt", {"id": id_in(long)}))
    assert "interrupted" in text_of(stopped)
    assert "begun" in await call(client, "wait", id=id_in(long))


async def test_a_cell_longer_than_a_call_is_waited_for(client: Client) -> None:
    """Each answer has the output so far, and the last one all of it. Files and variables can be looked at meanwhile."""
    await call(client, "write_file", path="here.txt", content="x")
    code = "import time\nfor i in range(5): print('step', i, flush=True); time.sleep(0.4)"
    result = await client.call_tool("run_python", {"code": code})
    assert "step 0" in text_of(result)
    assert 'wait("cell-' in text_of(result)
    assert "here.txt" in await call(client, "list_files")
    assert "i: int" in await call(client, "variables")
    assert text_of(await ended(client, result)) == "".join(f"step {i}\n" for i in range(5)).strip()


async def test_interrupt_keeps_the_variables_and_the_output(client: Client) -> None:
    """Without an id: the running cell. A cell that waits behind it runs then."""
    loop = await client.call_tool("run_python", {"code": "kept = 1\nprint('on')\nwhile True: pass"})
    behind = await client.call_tool("run_python", {"code": "kept + 1"})
    assert "it waits for its turn" in text_of(behind)
    stopped = await client.call_tool("interrupt", {})
    assert id_in(stopped) == id_in(loop)
    assert "KeyboardInterrupt" in text_of(await ended(client, stopped))
    assert text_of(await ended(client, behind)) == "2"
    assert "no cell is running" in await refused(client, "interrupt")


async def test_a_cell_that_waits_for_its_turn_is_taken_back(client: Client) -> None:
    """Interrupting the second leaves the first alone."""
    first = await client.call_tool("run_python", {"code": "import time; time.sleep(2.8); 'first'"})
    second = await client.call_tool("run_python", {"code": "second = 1"})
    assert "was stopped before" in text_of(await client.call_tool("interrupt", {"id": id_in(second)}))
    assert text_of(await ended(client, first)) == "'first'"
    assert "NameError" in await call(client, "run_python", code="second")


async def test_files_go_in_and_out(client: Client) -> None:
    """Text in parts, bytes as a resource, pictures as pictures, names that are hostile."""
    written, read, offset = "grüße\n" * 10_000, "", 0
    await call(client, "write_file", path="sub/text.txt", content=written)
    while offset < len(written.encode()):
        text, _line, end = (await call(client, "read_file", path="sub/text.txt", offset=offset)).rpartition("\n[bytes ")
        assert tokens(text) < 10_000
        read += text
        offset = int(end.split()[2])
    assert read == written
    assert "ße\ngr" in await call(client, "read_file", path="sub/text.txt", offset=3)

    data = bytes(range(256)) * 1000
    await call(client, "write_file", path="data.bin", content=base64.b64encode(data).decode(), encoding="base64")
    (link,) = links_of(await client.call_tool("read_file", {"path": "data.bin"}))
    (content,) = (await client.read_resource(str(link.uri))).contents
    assert isinstance(content, BlobResourceContents)
    assert base64.b64decode(content.blob) == data

    await call(client, "run_python", code="from PIL import Image; Image.new('RGB', (9, 9)).save('dot.png')")
    assert [each.mime_type for each in images_of(await client.call_tool("read_file", {"path": "dot.png"}))] == [
        "image/png"
    ]
    await call(client, "run_python", code="open('\\x1b[31mred\\n\\u202etxt', 'w').close()")
    listed = await call(client, "list_files")
    assert "\\x1b[31mred\\n\\u202etxt" in listed
    assert "\x1b" not in listed
    assert "/work/sub/text.txt" in await call(client, "list_files", pattern="**/*.txt")
    assert "file_transfer: " in await refused(client, "read_file", path="missing")
    assert "no base64" in await refused(client, "write_file", path="x", content="?", encoding="base64")


async def test_output_stays_within_10000_tokens(client: Client) -> None:
    """The rest is a resource. Hostile text counts too: numbers, random letters, other scripts."""
    for code in (
        "print('the quick brown fox ' * 20_000)",
        "import random; print(*(random.random() for _ in range(20_000)))",
        "import os, base64; print(base64.b64encode(os.urandom(100_000)).decode())",
        "print('数据' * 50_000)",
    ):
        result = await ended(client, await client.call_tool("run_python", {"code": code}))
        assert tokens(text_of(result)) < 10_000
        assert "characters left out" in text_of(result)
        (link,) = links_of(result)
        (content,) = (await client.read_resource(str(link.uri))).contents
        assert isinstance(content, TextResourceContents)
        assert len(content.text) > 80_000
        assert len(text_of(result)) > 6_000


async def test_rich_output_that_the_text_only_names_is_a_resource(client: Client) -> None:
    """HTML with a plain text beside it is not; what is no picture is not shown as one."""
    code = """
from IPython.display import display
display({'text/html': '<b>bold</b>'}, raw=True)
display({'text/html': '<i>table</i>', 'text/plain': 'table'}, raw=True)
display({'image/png': 'aGVsbG8='}, raw=True)
"""
    result = await client.call_tool("run_python", {"code": code})
    assert images_of(result) == []
    assert [each.mime_type for each in links_of(result)] == ["text/html", "image/png"]
    (content,) = (await client.read_resource(str(links_of(result)[0].uri))).contents
    assert isinstance(content, TextResourceContents)
    assert content.text == "<b>bold</b>"


async def test_checkpoints_and_forks(client: Client) -> None:
    """A restore brings back what was, and a fork has a copy of its own."""
    await call(client, "run_python", code="here = 1")
    await call(client, "run_python", code="state = 'old'", session="branch")
    saved = await call(client, "checkpoint", session="branch")
    checkpoint = re.findall(r"[0-9a-f]{32}", saved)[0]
    await call(client, "run_python", code="state = 'new'", session="branch")
    assert "after cell 1" in await call(client, "restore", checkpoint=checkpoint, session="branch")
    assert await call(client, "run_python", code="state", session="branch") == "'old'"
    assert "twig" in await call(client, "fork", into=["twig"], session="branch")
    assert await call(client, "run_python", code="state = state + ' copy'; state", session="twig") == "'old copy'"
    assert await call(client, "run_python", code="state", session="branch") == "'old'"
    for path in ("/etc/passwd", f"../{checkpoint}", f"{checkpoint}\n", ""):  # the manager would open a path of the host
        assert "32 characters" in await refused(client, "restore", checkpoint=path, session="branch")
    assert "checkpoint" in await refused(client, "restore", checkpoint=checkpoint)
    listed = await call(client, "sessions")
    assert {"branch", "main", "twig"} == {line.partition(":")[0] for line in listed.splitlines()}
    for name in ("branch", "twig"):
        assert await call(client, "sessions", end=name) == f"Ended {name}."
    assert "no session" in await refused(client, "sessions", end="twig")


async def test_restart_and_install(client: Client) -> None:
    """A restart drops the variables; what the policy does not allow is refused with a reason."""
    await call(client, "run_python", code="gone = 1; open('stays', 'w').close()")
    assert "were kept" in await call(client, "restart")
    assert "NameError" in await call(client, "run_python", code="gone")
    assert "stays" in await call(client, "list_files")
    assert "package: " in await refused(client, "install", packages=["emoji"])


@pytest.mark.parametrize(
    "name", ["../main", "a/b", "a:b", "", " ", "a\nb", "\u202ea", "x" * 65, "-a", "a-", ".", "é", "two:main"]
)
async def test_hostile_names_of_sessions_are_refused(client: Client, name: str) -> None:
    if name:
        assert "a session's name has" in await refused(client, "run_python", code="1", session=name)
        assert "a session's name has" in await refused(client, "sessions", end=name)
        assert "a session's name has" in await refused(client, "fork", into=[name])


async def test_malformed_arguments_are_answered(client: Client) -> None:
    """With what is wrong, and never with a traceback or an internal error."""
    for tool, arguments, said in (
        ("run_python", {}, "code"),
        ("run_python", {"code": 5}, "code"),
        ("run_python", {"code": ""}, "the code is empty"),
        ("run_python", {"code": "a\0b"}, "NUL"),
        ("run_python", {"code": "1", "timeout": -1}, "above 0"),
        ("run_python", {"code": "1", "timeout": "soon"}, "timeout"),
        ("run_python", {"code": f"# {'x' * 1_100_000}"}, "write_file"),
        ("run_command", {"command": ""}, "command"),
        ("run_command", {"command": "ls", "cwd": "/none"}, "none"),
        ("wait", {"id": "cell-000000"}, "there is no"),
        ("wait", {"id": "x" * 100_000}, "there is no"),
        ("read_file", {"path": "/etc/hostname", "offset": -1}, "offset"),
        ("list_files", {"path": "\0"}, ""),
        ("fork", {"into": []}, "1 to 16"),
        ("write_file", {"path": "x", "content": "y", "encoding": "rot13"}, "encoding"),
        ("nothing", {}, "nothing"),
    ):
        try:
            told = await refused(client, tool, **arguments)
        except MCPError as error:
            told = str(error)
        assert said in told
        assert "Traceback" not in told
        assert len(told) < 5000


async def test_a_megabyte_of_code_runs(client: Client) -> None:
    code = f"data = '{'x' * 1_000_000}'\nlen(data)"
    assert await call(client, "run_python", code=code) == "1000000"


async def test_the_policys_time_limit_is_a_result(client: Client) -> None:
    """The variables are kept, and the text says so."""
    result = await ended(client, await client.call_tool("run_python", {"code": "while True: pass", "timeout": 1}))
    assert (result.meta or {})["org.cellblock/outcome"] == "timeout"
    assert "the variables are kept" in text_of(result)


async def test_a_kernel_that_dies_is_told_and_replaced(client: Client) -> None:
    """What runs meanwhile is over, and the next call works."""
    died = await call(client, "run_python", code="import os; os._exit(1)", session="dying")
    assert "all variables are lost" in died
    assert "2" in await call(client, "run_python", code="1 + 1", session="dying")
    await call(client, "sessions", end="dying")


async def test_nobody_starts_calls_without_end(client: Client) -> None:
    """A principal has at most 32 that run; the others are refused, and all can be stopped."""
    codes = ["import time; time.sleep(9)", *["1"] * 35]
    first, *rest = await asyncio.gather(*(client.call_tool("run_python", {"code": code}) for code in codes))
    assert sum(each.is_error for each in rest) == 4
    assert "command_limit" in next(text_of(each) for each in rest if each.is_error)
    await client.call_tool("interrupt", {"id": id_in(first)})
    for each in rest:
        if not each.is_error:
            await ended(client, each)


async def test_each_runtime_serves(runtime: str) -> None:
    """Text, a picture and an interrupted loop."""
    async with make_manager(runtime) as manager, http_server(manager, 4 * PATIENCE) as url, http_client(url) as client:
        assert await call(client, "run_python", code="x = 1\nx + 1") == "2"
        plot = "import matplotlib.pyplot as plt; _ = plt.plot([1, 4]); plt.show()"
        assert len(images_of(await ended(client, await client.call_tool("run_python", {"code": plot})))) == 1
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await client.call_tool("run_python", {"code": "while True: pass"})
        assert (await call(client, "run_python", code="x")).startswith("1\n[An earlier call")


async def notebook(client: Client, op: str, **arguments: object) -> dict[str, Any]:
    """Carry out an operation of the notebook protocol."""
    answer: dict[str, Any] = json.loads(await call(client, "notebook", op=op, args=arguments, session="nb"))
    return answer


async def test_a_notebook_is_edited_run_saved_and_opened_again(client: Client) -> None:
    """Its code shares the session's variables; its files are those of the sandbox; a picture comes as one."""
    assert (await notebook(client, "add_cell", source="x = 20"))["outputs"] == []
    shown = await notebook(client, "add_cell", source="x * 2 + 2")
    assert shown["outputs"] == [{"type": "execute_result", "text": "42"}]
    assert await call(client, "run_python", code="x", session="nb") == "20"
    failed = await notebook(client, "edit_cell", index=0, source="x = undefined")
    assert (failed["status"], failed["stale"]) == ("error", 1)
    await notebook(client, "edit_cell", index=0, source="x = 1")
    assert (await notebook(client, "execute_cells", stale=True))["cells"][0]["outputs"][0]["text"] == "4"
    code = "import matplotlib.pyplot as plt; plt.plot([1]); plt.show()"
    drawn = await notebook(client, "add_cell", source=code)
    wanted = {"cell_id": drawn["cell_id"], "output": 0}
    picture = await client.call_tool("notebook", {"op": "get_output", "args": wanted, "session": "nb"})
    assert [image.mime_type for image in images_of(picture)] == ["image/png"]
    assert "base64" not in text_of(picture)
    await notebook(client, "save_notebook", path="made.ipynb")
    await notebook(client, "close_notebook")
    assert "made.ipynb" in await call(client, "list_files", session="nb")
    assert (await notebook(client, "open_notebook", path="made.ipynb"))["total"] == 3
    refusal = await refused(client, "notebook", op="open_notebook", args={"path": __file__}, session="nb")
    assert "notebook_creation: there is no file" in refusal
    assert "There are: create_notebook" in await refused(client, "notebook", op="explode")


async def test_a_long_run_of_a_notebook_is_waited_for_and_interrupted(client: Client) -> None:
    """Reading goes on meanwhile; the interrupt ends the whole run, and the rest is stale."""
    await notebook(client, "create_notebook")
    for source in ("import time; print('begun', flush=True); time.sleep(30)", "'next'"):
        await notebook(client, "add_cell", source=source, execute=False)
    arguments = {"op": "execute_cells", "args": {"stop_on_error": False}, "session": "nb"}
    running = await client.call_tool("notebook", arguments)
    assert "begun" in text_of(running)
    assert (await notebook(client, "get_notebook"))["stale"] == 2
    stopped = await client.call_tool("interrupt", {"id": id_in(running)})
    ran = json.loads(text_of(await ended(client, stopped)))
    assert (ran["ran"], ran["cells"][0]["outcome"]) == (1, "interrupted")
