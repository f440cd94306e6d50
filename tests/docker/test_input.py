"""`input()`: answered where the policy and the caller allow it, an error at once everywhere else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from orchestrator import AgentKernelManager, KernelSession, KernelTimeoutError
from orchestrator.output.events import InputRequest
from tests.conftest import make_manager

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASK = "name = input('who? '); print(f'hello {name}')"
Asking = tuple[AgentKernelManager, KernelSession]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def asking(runtime: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Asking]:
    """A session whose policy lets cells ask."""
    policy = tmp_path_factory.mktemp("policy") / "asking.toml"
    policy.write_text("[limits]\nexecution_time_s = 5\n[channels]\nstdin = true\n")
    manager = make_manager(runtime, max_kernels=1, policy=str(policy))
    async with manager, manager.acquire_kernel("asking") as (_kernel, session):
        yield manager, session


async def test_an_answer_reaches_the_cell(asking: Asking) -> None:
    manager, session = asking
    seen: list[InputRequest] = []

    async def answer(request: InputRequest) -> str:
        seen.append(request)
        return "Ada"

    result = await manager.execute_code(session, ASK, answer=answer)
    assert result["stdout"] == "hello Ada\n"
    assert seen == [InputRequest("who? ", password=False)]
    hidden = await manager.execute_code(session, "import getpass; len(getpass.getpass('secret: '))", answer=answer)
    assert hidden["result"] == "3"
    assert seen[1:] == [InputRequest("secret: ", password=True)]


async def test_each_question_of_a_cell_is_answered_in_turn(asking: Asking) -> None:
    manager, session = asking
    lines = iter("abc")

    async def answer(_request: InputRequest) -> str:
        await asyncio.sleep(0.05)
        return next(lines)

    result = await manager.execute_code(session, "[input() for _ in range(3)]", answer=answer)
    assert result["result"] == "['a', 'b', 'c']"


async def test_a_long_question_is_cut_and_asked(asking: Asking) -> None:
    manager, session = asking
    seen: list[str] = []

    async def answer(request: InputRequest) -> str:
        seen.append(request.prompt)
        return "yes"

    result = await manager.execute_code(session, "input('sure? ' * 500_000)", answer=answer)
    assert result["result"] == "'yes'"
    assert len(seen[0]) < 100_000
    assert seen[0].startswith("sure? sure? ")


async def test_the_end_of_file_reaches_the_cell(asking: Asking) -> None:
    manager, session = asking

    async def nobody(_request: InputRequest) -> str:
        raise EOFError

    result = await manager.execute_code(session, ASK, answer=nobody)
    assert result["error"]["ename"] == "EOFError"


async def test_without_an_answerer_asking_fails_at_once(asking: Asking) -> None:
    manager, session = asking
    result = await manager.execute_code(session, ASK)
    assert result["error"]["ename"] == "StdinNotImplementedError"


async def test_a_cell_that_nobody_answers_meets_its_deadline(asking: Asking) -> None:
    manager, session = asking
    called_off = asyncio.Event()

    async def never(_request: InputRequest) -> str:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            called_off.set()
            raise
        return ""

    with pytest.raises(KernelTimeoutError):
        await manager.execute_code(session, ASK, answer=never)
    await asyncio.wait_for(called_off.wait(), 5)
    assert (await manager.execute_code(session, "6 * 7"))["result"] == "42"


async def test_an_answerer_that_fails_ends_the_cell_and_its_caller_learns_why(asking: Asking) -> None:
    manager, session = asking

    async def broken(_request: InputRequest) -> str:
        raise LookupError("no terminal")

    with pytest.raises(LookupError, match="no terminal"):
        await manager.execute_code(session, ASK, answer=broken)
    assert (await manager.execute_code(session, "6 * 7"))["result"] == "42"


@pytest.mark.one_runtime
async def test_a_question_that_was_not_allowed_is_dropped(runtime: str) -> None:
    """Under the default policy a forged question reaches no answerer."""
    asked: list[InputRequest] = []

    async def answer(request: InputRequest) -> str:
        asked.append(request)
        return "never"

    forge = (
        "kernel = get_ipython().kernel\n"
        "kernel.session.send(kernel.stdin_socket, 'input_request', {'prompt': 'sudo: ', 'password': True},\n"
        "    parent=kernel.get_parent(), ident=b'host')\n"
        "import time; time.sleep(0.3)"
    )
    async with make_manager(runtime) as manager, manager.acquire_kernel("agent") as (_kernel, session):
        result = await manager.execute_code(session, forge, answer=answer)
    assert result["outcome"] == "ok"
    assert asked == []
