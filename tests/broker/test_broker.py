"""Stock Jupyter clients on one sandboxed kernel, over the broker's ZMQ sockets."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import zmq

from orchestrator import AgentKernelManager, KernelResourceLimits, KernelSession
from orchestrator.broker.zmqserving import serve_zmq
from tests.broker.stockclient import StockClient, connection, stock_client
from tests.conftest import one_session

pytestmark = pytest.mark.asyncio(loop_scope="module")

Served = tuple[AgentKernelManager, KernelSession, dict[str, Any]]


@pytest.fixture(scope="module")
def folder() -> Any:
    with tempfile.TemporaryDirectory(prefix="cb-") as name:
        yield Path(name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(runtime: str, folder: Path) -> AsyncIterator[Served]:
    info = connection(folder)
    async with (
        one_session(runtime, policy="local-dev") as (manager, session),
        serve_zmq(manager, session, info, on_shutdown=lambda _restart: None),
    ):
        yield manager, session, info


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(served: Served) -> AsyncIterator[StockClient]:
    async with stock_client(served[2]) as stock:
        yield stock


async def test_a_cell_comes_as_the_protocol_says(client: StockClient) -> None:
    """Status, input, outputs and reply have the types, order and content that a stock kernel sends."""
    answer = await client.execute("print('a'); 6 * 7")
    assert [kind for kind, _ in answer.shown] == ["status", "execute_input", "stream", "execute_result", "status"]
    assert answer.of("execute_input")[0]["code"] == "print('a'); 6 * 7"
    assert answer.of("execute_result")[0]["data"] == {"text/plain": "42"}
    count = answer.reply["execution_count"]
    assert {answer.of(kind)[0]["execution_count"] for kind in ("execute_input", "execute_result")} == {count}
    assert (answer.reply["status"], answer.reply["payload"]) == ("ok", [])


async def test_an_error_is_published_and_replied(client: StockClient) -> None:
    answer = await client.execute("1 / 0")
    assert answer.reply["status"] == "error"
    assert answer.of("error")[0]["ename"] == answer.reply["ename"] == "ZeroDivisionError"


async def test_what_a_client_executes_is_a_cell_of_the_session(served: Served, client: StockClient) -> None:
    """It is in the history with its outcome, and obeys the session's order."""
    _, session, _ = served
    before = session.cell_count
    await client.execute("raise KeyError('k')")
    entry = (await session.history())[-1]
    assert session.cell_count == before + 1
    assert (entry["code"], entry["result"]["outcome"]) == ("raise KeyError('k')", "error")


async def test_a_cell_of_the_host_is_seen_by_every_client(served: Served, client: StockClient) -> None:
    manager, session, info = served
    async with stock_client(info) as second:
        await manager.execute(session, "print('of the host')")
        for each in (client, second):
            assert (await each.heard("execute_input"))["content"]["code"] == "print('of the host')"
            assert (await each.heard("stream"))["content"]["text"] == "of the host\n"


async def test_two_clients_share_variables_and_see_each_others_cells(served: Served, client: StockClient) -> None:
    async with stock_client(served[2]) as second:
        await second.execute("shared = 'by the second'")
        assert (await client.execute("shared")).of("execute_result")[0]["data"]["text/plain"] == "'by the second'"
        heard = await second.heard("execute_input")
        assert heard["content"]["code"] == "shared"
        assert heard["parent_header"]["session"] == client.client.session.session


@contextlib.asynccontextmanager
async def first_client(served: Served) -> AsyncIterator[StockClient]:
    """Serve the session at new sockets, to a client that has not subscribed to the outputs."""
    manager, session, _ = served
    with tempfile.TemporaryDirectory(prefix="cb-") as name:
        info = connection(Path(name))
        async with serve_zmq(manager, session, info, on_shutdown=lambda _restart: None):
            stock = StockClient(info)
            stock.client.start_channels(iopub=False)
            try:
                yield stock
            finally:
                stock.client.stop_channels()


async def test_a_client_that_subscribes_a_moment_late_misses_nothing(served: Served) -> None:
    """A client that has waited for the sockets connects them one by one, and may have asked for a cell by then."""
    async with first_client(served) as late:
        cell = late.client.execute("print('of the first cell')")
        await asyncio.sleep(0.3)
        late.client.iopub_channel.start()
        assert (await late.answer(cell)).text == "of the first cell\n"


async def test_a_client_that_never_subscribes_is_answered(served: Served) -> None:
    async with first_client(served) as deaf:
        cell = deaf.client.execute("1")
        reply = await deaf.client.get_shell_msg(timeout=30)
        assert (reply["parent_header"]["msg_id"], reply["content"]["status"]) == (cell, "ok")


async def test_sockets_close_while_a_request_waits_for_a_subscriber(served: Served) -> None:
    async with asyncio.timeout(30):
        async with first_client(served) as deaf:
            deaf.client.execute("1")
            await asyncio.sleep(0.2)


async def test_a_silent_cell_is_not_counted_by_the_kernel(client: StockClient) -> None:
    before = (await client.execute("1")).reply["execution_count"]
    silent = await client.execute("2", silent=True)
    assert [kind for kind, _ in silent.shown] == ["status", "status"]
    unstored = await client.execute("3", store_history=False)
    assert unstored.of("execute_result")[0]["data"] == {"text/plain": "3"}
    assert (await client.execute("4")).reply["execution_count"] == before + 1


async def test_user_expressions_are_evaluated(client: StockClient) -> None:
    answer = await client.execute("x = 5", user_expressions={"double": "x * 2"})
    assert answer.reply["user_expressions"]["double"]["data"]["text/plain"] == "10"


async def test_questions_of_an_editor_are_answered(client: StockClient) -> None:
    """Completion, inspection, completeness and the kernel's info."""
    await client.execute("some_name = 1")
    kernel = client.client
    complete = (await client.answer(kernel.complete("some_na"))).reply
    assert (complete["status"], complete["matches"]) == ("ok", ["some_name"])
    inspected = (await client.answer(kernel.inspect("some_name"))).reply
    assert inspected["found"]
    assert "int" in inspected["data"]["text/plain"]
    assert (await client.answer(kernel.is_complete("for a in b:"))).reply["status"] == "incomplete"
    info = (await client.answer(kernel.kernel_info())).reply
    assert (info["protocol_version"], info["language_info"]["name"]) == ("5.4", "python")


async def test_the_history_is_that_of_the_session(client: StockClient) -> None:
    for code in ("11", "12", "11"):
        await client.execute(code)
    kernel = client.client
    tail = (await client.answer(kernel.history(hist_access_type="tail", n=2, output=True, raw=True))).reply["history"]
    assert [line[2] for line in tail] == [["12", "12"], ["11", "11"]]
    found = (await client.answer(kernel.history(hist_access_type="search", pattern="1[12]", unique=True))).reply
    assert [line[2] for line in found["history"]] == ["12", "11"]
    last = tail[-1][1]
    ranged = kernel.history(hist_access_type="range", session=0, start=last, stop=last + 1)
    assert [line[2] for line in (await client.answer(ranged)).reply["history"]] == ["11"]


async def test_input_is_asked_of_the_client_that_runs_the_cell(served: Served, client: StockClient) -> None:
    """Another client gets no question, and its answer is not taken."""
    async with stock_client(served[2]) as second:
        second.client.input("of a stranger")
        request = client.client.execute("input('name? ')", allow_stdin=True)
        question = await client.client.get_stdin_msg(timeout=20)
        assert question["content"] == {"prompt": "name? ", "password": False}
        second.client.input("of a stranger")
        await asyncio.sleep(0.2)
        client.client.input("of the asker")
        answer = await client.answer(request)
        assert answer.of("execute_result")[0]["data"]["text/plain"] == "'of the asker'"
        with pytest.raises(queue.Empty):
            await second.client.get_stdin_msg(timeout=0.1)


async def test_an_interrupt_ends_the_cell_and_aborts_what_the_client_has_sent_after_it(client: StockClient) -> None:
    kernel = client.client
    running = kernel.execute("import time\nprint('runs', flush=True)\ntime.sleep(60)")
    waiting = [kernel.execute("late = 1") for _ in range(3)]
    kept = kernel.execute("kept = 1", stop_on_error=False)
    while (await client.heard("stream"))["content"]["text"] != "runs\n":
        pass
    kernel.control_channel.send(kernel.session.msg("interrupt_request", {}))
    assert (await kernel.get_control_msg(timeout=20))["content"]["status"] == "ok"
    replies = {}
    for _ in range(5):
        reply = await kernel.get_shell_msg(timeout=20)
        replies[reply["parent_header"]["msg_id"]] = reply["content"]
    assert replies[running]["ename"] == "KeyboardInterrupt"
    assert [replies[each]["status"] for each in (*waiting, kept)] == ["aborted"] * 4
    assert (await client.execute("'late' in globals()")).of("execute_result")[0]["data"]["text/plain"] == "False"


async def test_a_completion_that_does_not_end_is_interrupted(client: StockClient) -> None:
    """An object whose attributes take for ever costs the client an answer, and not the kernel."""
    await client.execute("class Slow:\n    def __dir__(self):\n        while True: pass\nslow = Slow()\nkept = 8")
    answer = await client.answer(client.client.complete("slow."), timeout=60)
    assert answer.reply["status"] in ("ok", "error")
    assert (await client.execute("kept")).of("execute_result")[0]["data"]["text/plain"] == "8"


_NAMED_RESULT = """
kernel = get_ipython().kernel
content = {"data": {"text/plain": "first"}, "metadata": {}, "execution_count": 1, "transient": {"display_id": "r"}}
sent = kernel.session.send(kernel.iopub_socket, "execute_result", content)
"""


async def test_a_later_cell_updates_an_earlier_display(served: Served, client: StockClient) -> None:
    """Both clients get the id of a display, and of a result that has one, and each may update what the other showed."""
    async with stock_client(served[2]) as second:
        shown = await client.execute("from IPython.display import display\nhandle = display('a', display_id='later')")
        assert shown.of("display_data")[0]["transient"] == {"display_id": "later"}
        assert (await second.heard("display_data"))["content"]["transient"] == {"display_id": "later"}
        named = await client.execute(_NAMED_RESULT)
        assert named.of("execute_result")[0]["transient"] == {"display_id": "r"}
        assert (await second.heard("execute_result"))["content"]["transient"] == {"display_id": "r"}
        for name in ("later", "r"):
            code = f"from IPython.display import update_display\nupdate_display('b', display_id='{name}')"
            updates = (
                (await second.execute(code)).of("update_display_data"),
                [(await client.heard("update_display_data"))["content"]],
            )
            expected = {"data": {"text/plain": "'b'"}, "metadata": {}, "transient": {"display_id": name}}
            assert updates == ([expected], [expected])


async def test_display_updates_and_clears_come_unchanged(client: StockClient) -> None:
    answer = await client.execute(
        "from IPython.display import display, clear_output\n"
        "h = display('a', display_id='d')\nh.update('b')\nclear_output(wait=True)\ndisplay('c')"
    )
    assert [kind for kind, _ in answer.shown[2:-1]] == [
        "display_data", "update_display_data", "clear_output", "display_data",
    ]  # fmt: skip
    assert answer.of("display_data")[0]["transient"] == answer.of("update_display_data")[0]["transient"]
    assert answer.of("clear_output") == [{"wait": True}]


COMM = """
import sys, threading
from ipykernel.comm import Comm
def handled(comm, m):
    print('handled')
    print('noted', file=sys.stderr)
    comm.send({'twice': 2 * m['content']['data']['n']}, metadata={'m': 1}, buffers=[b'\\x00\\x01'])
def opened(comm, message):
    comm.on_msg(lambda m: handled(comm, m))
get_ipython().kernel.comm_manager.register_target('test', opened)
threading.Timer(0.3, lambda: (print('between'), display('shown between'))).start()
"""


async def test_a_comm_goes_both_ways_with_metadata_and_buffers(client: StockClient) -> None:
    """A widget's front end talks with its model between cells, and every message has its request as parent.

    What the handler prints is among them. What a thread has put out before waits for the next cell, past all of it.
    """
    await client.execute(COMM)
    await asyncio.sleep(1)
    kernel = client.client
    await client.answer(kernel.complete("thr"))
    opening = kernel.session.msg("comm_open", {"comm_id": "c1", "target_name": "test", "data": {}})
    kernel.shell_channel.send(opening)
    sent = kernel.session.msg("comm_msg", {"comm_id": "c1", "data": {"n": 21}})
    kernel.shell_channel.send(sent)
    heard = [await client.heard("comm_msg", "stream") for _ in range(3)]
    printed = [each["content"]["text"] for each in heard if each["msg_type"] == "stream"]
    message = next(each for each in heard if each["msg_type"] == "comm_msg")
    assert message["content"] == {"comm_id": "c1", "data": {"twice": 42}}
    assert (message["metadata"], [bytes(each) for each in message["buffers"]]) == ({"m": 1}, [b"\x00\x01"])
    assert printed == ["handled\n", "noted\n"]
    assert {each["parent_header"]["msg_id"] for each in heard} == {sent["header"]["msg_id"]}
    following = await client.execute("print('of the cell')")
    assert following.text == "between\nof the cell\n"
    assert [each["data"]["text/plain"] for each in following.of("display_data")] == ["'shown between'"]
    info = await client.answer(kernel.comm_info(target_name="test"))
    assert info.reply["comms"] == {"c1": {"target_name": "test"}}


async def test_a_time_limit_is_named_in_the_reply(runtime: str, state: Path) -> None:
    """The client learns that the host stopped the cell, and the variables are still there."""
    info = connection(state)
    limits = KernelResourceLimits(max_execution_time=1)
    async with (
        one_session(runtime, limits=limits) as (manager, session),
        serve_zmq(manager, session, info, on_shutdown=lambda _restart: None),
        stock_client(info) as client,
    ):
        answer = await client.execute("x = 3\nwhile True: pass")
        assert answer.reply["ename"] == "KernelTimeoutError"
        assert (await client.execute("x")).of("execute_result")[0]["data"]["text/plain"] == "3"
        died = await client.execute("import os; os._exit(3)")
        assert died.reply["ename"] == "KernelDied"
        fresh = await client.execute("'x' in globals()")
        assert fresh.of("execute_result")[0]["data"]["text/plain"] == "False"
        assert "kernel" in fresh.text  # the warning that says what was lost
        lost = await client.heard("status")  # after the cell: JupyterLab forgets then what it has asked
        assert (lost["content"]["execution_state"], lost["parent_header"]) == ("restarting", {})


async def test_a_shutdown_is_replied_to_all_and_reported(served: Served, client: StockClient, state: Path) -> None:
    manager, session, _ = served
    asked: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    info = connection(state)
    async with (
        serve_zmq(manager, session, info, on_shutdown=asked.set_result),
        stock_client(info) as other,
    ):
        other.client.control_channel.send(other.client.session.msg("shutdown_request", {"restart": True}))
        reply = await other.client.get_control_msg(timeout=20)
        assert reply["content"] == {"status": "ok", "restart": True}
        assert await asyncio.wait_for(asked, 20) is True
        assert (await other.heard("shutdown_reply"))["content"]["restart"] is True


async def test_a_wrong_key_gets_nothing_done(served: Served) -> None:
    """Messages with another key, cut ones and replayed ones are dropped; those of others are served on."""
    _, session, info = served
    before = session.cell_count
    stranger = StockClient({**info, "key": "another"})
    stranger.client.start_channels()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    try:
        stranger.client.execute("1")
        socket.connect(f"ipc://{info['ip']}-1")
        for frames in ([b""], [b"<IDS|MSG>"], [b"<IDS|MSG>", b"x" * 64, b"{}", b"{}", b"{}", b"{}"], [b"\xff"] * 9):
            socket.send_multipart(frames)
        with contextlib.suppress(Exception):
            await stranger.client.get_shell_msg(timeout=0.5)
        async with stock_client(info) as good:
            assert (await good.execute("1")).reply["status"] == "ok"
        assert session.cell_count == before + 1
    finally:
        stranger.client.stop_channels()
        socket.close(linger=0)
        context.term()
