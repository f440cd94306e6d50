"""Programs that others made with E2B's SDK, unmodified: smolagents and langchain-e2b. ``test_sdk.py`` starts it."""

from __future__ import annotations

from typing import Any

from e2b import Sandbox
from langchain_e2b import E2BSandbox
from smolagents import CodeAgent, tool
from smolagents.models import ChatMessage, MessageRole, Model

STEPS = (
    "Thought: compute.\n<code>\nx = 6 * 7\nprint('x is', x)\n</code>",
    "Thought: answer.\n<code>\nfinal_answer(double(x))\n</code>",
)


class Scripted(Model):
    """A model that says what the script has."""

    def __init__(self) -> None:
        super().__init__(model_id="scripted")
        self._steps = iter(STEPS)

    def generate(self, messages: list[Any], **_options: Any) -> ChatMessage:
        return ChatMessage(role=MessageRole.ASSISTANT, content=next(self._steps))


@tool
def double(n: int) -> int:
    """Doubles a number.

    Args:
        n: the number
    """
    return n * 2


def test_smolagents_reaches_a_final_answer() -> None:
    with CodeAgent(tools=[double], model=Scripted(), executor_type="e2b", verbosity_level=0) as agent:
        assert agent.run("compute") == 84


def test_langchain_executes_and_moves_files() -> None:
    sandbox = Sandbox.create(timeout=60)
    try:
        backend = E2BSandbox(sandbox=sandbox)
        answer = backend.execute("echo out; exit 3")
        assert (answer.exit_code, "out" in answer.output) == (3, True)
        assert backend.upload_files([("/tmp/up/file.bin", b"\x00\xff")])[0].error is None
        assert backend.download_files(["/tmp/up/file.bin"])[0].content == b"\x00\xff"
        assert backend.download_files(["/tmp/nothing"])[0].error == "file_not_found"
    finally:
        sandbox.kill()
