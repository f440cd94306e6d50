"""The state machine of a session: after every step its fields, its row in the store and a simple model agree."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from orchestrator.errors import CheckpointError
from orchestrator.kernel.fakekernel import FakeKernel
from orchestrator.outcome import Outcome
from orchestrator.sessions.session import KernelSession
from orchestrator.store.history import History
from tests.unit.sessionworld import Inheritance, World

T = TypeVar("T")
AGENTS = st.sampled_from(["a", "b"])
STEPS = [
    "acquire", "acquire", "wake", "wake", "run_cell", "run_cell", "checkpoint", "hibernate", "end", "kernel_dies",
    "restore", "fork", "wake_fails", "process_dies", "shut_down",
]  # fmt: skip
MOST_KERNELS = 8  # more than agents: nobody is evicted
SETTINGS = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=20,
    stateful_step_count=25,
    suppress_health_check=list(HealthCheck),
)


@dataclass
class Expected:
    """What the model says of one session."""

    agent: str
    state: str = "live"
    owner: str | None = "process-1"
    kernel_id: str = ""
    cells: int = 0
    end_reason: str | None = None
    last_end: str | None = None
    checkpoint_cell: int | None = None  # the last cell in its newest checkpoint


class SessionMachine(RuleBasedStateMachine):
    """Agents acquire, run, checkpoint, hibernate, restore, fork and end; kernels and processes die."""

    deaf_to: tuple[object, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.processes = 1
        self.world = self.run(self._world())
        self.model: dict[str, Expected] = {}
        self.objects: dict[str, KernelSession] = {}  # as callers hold them; those of dead processes are gone
        self.checkpoints: dict[str, Any] = {}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    async def _world(self) -> World:
        world = World(Path(self.folder.name), name=f"process-{self.processes}", max_kernels=MOST_KERNELS)
        world.store.deaf_to = self.deaf_to
        return world

    def teardown(self) -> None:
        self.run(self.world.close())
        self.run(self.loop.shutdown_default_executor())
        self.loop.close()
        self.folder.cleanup()

    def of_agent(self, agent: str, *states: str) -> str | None:
        """The agent's session, where it is in one of these states."""
        return next((key for key, one in self.model.items() if one.agent == agent and one.state in states), None)

    def live(self, agent: str) -> str | None:
        """The agent's live session, or any other one, so that few steps are in vain."""
        others = [key for key, one in self.model.items() if one.state == "live"]
        return self.of_agent(agent, "live") or next(iter(others), None)

    def held(self, session_id: str) -> KernelSession:
        return self.objects[session_id]

    @initialize()
    def begin(self) -> None:
        self.acquire("a")

    @rule(step=st.sampled_from(STEPS), agent=AGENTS)
    def take_step(self, step: str, agent: str) -> None:
        """Take any step: one rule, since Hypothesis would leave out some of several in each example."""
        getattr(self, step)(agent)

    def acquire(self, agent: str) -> None:
        known = self.of_agent(agent, "live", "asleep")
        session = self.run(self.world.acquire(agent))
        if known is None:
            assert session.session_id not in self.model
            last = [one.end_reason for one in self.model.values() if one.agent == agent]
            self.model[session.session_id] = Expected(agent, owner=self.world.owners.name)
            assert session.previous_end in [None, *last]
        else:
            assert session.session_id == known
        expected = self.model[session.session_id]
        if expected.state == "asleep":
            assert session.kernel_id != expected.kernel_id
            assert session.restored is not None
            assert session.restored.cell == expected.checkpoint_cell
            expected.state, expected.owner = "live", self.world.owners.name
        elif expected.kernel_id:
            assert session.kernel_id == expected.kernel_id
        expected.kernel_id = session.kernel_id
        self.objects[session.session_id] = session

    def wake(self, _agent: str) -> None:
        if (agent := next((one.agent for one in self.model.values() if one.state == "asleep"), None)) is not None:
            self.acquire(agent)

    def run_cell(self, agent: str) -> None:
        if (session_id := self.live(agent)) is not None:
            result = self.run(self.world.run(self.held(session_id)))
            assert result.outcome == "ok"
            self.model[session_id].cells += 1

    def checkpoint(self, agent: str) -> None:
        if (session_id := self.live(agent)) is not None:
            self.checkpoints[session_id] = self.run(self.world.checkpoint(self.held(session_id)))
            self.model[session_id].checkpoint_cell = self.model[session_id].cells

    def hibernate(self, agent: str) -> None:
        if (session_id := self.live(agent)) is not None:
            assert self.run(self.world.hibernation.hibernate(self.held(session_id), Outcome.HIBERNATE))
            self.model[session_id].checkpoint_cell = self.model[session_id].cells
            self._sleeps(session_id, "hibernate")

    def end(self, agent: str) -> None:
        session_id = self.of_agent(agent, "live", "asleep")
        assert self.run(self.world.acquiring.end(agent, "end_session")) == (session_id is not None)
        if session_id is not None:
            self._ends(session_id, "end_session")

    def kernel_dies(self, agent: str) -> None:
        if (session_id := self.live(agent)) is not None:
            self.run(self.world.die(self.held(session_id)))
            self._loses_kernel(session_id, "kernel_died")

    def restore(self, agent: str) -> None:
        session_id = self.live(agent)
        if session_id is not None and session_id in self.checkpoints:
            session = self.held(session_id)
            self.run(self.world.restore(session, self.checkpoints[session_id]))
            expected = self.model[session_id]
            assert session.kernel_id != expected.kernel_id
            expected.kernel_id, expected.checkpoint_cell = session.kernel_id, expected.cells

    def fork(self, agent: str) -> None:
        session_id = self.live(agent)
        if session_id is not None and not self.of_agent("a~1", "live", "asleep"):
            parent = self.held(session_id)
            (fork,) = self.run(self.world.forking.fork(parent, 1, ["a~1"]))
            self.model[session_id].checkpoint_cell = self.model[session_id].cells
            self.model[fork.session_id] = Expected("a~1", "asleep", None, parent.kernel_id, checkpoint_cell=0)
            self.objects[fork.session_id] = fork
            assert fork.parent_id == session_id

    def wake_fails(self, agent: str) -> None:
        if self.of_agent(agent, "asleep"):
            self.world.next_kernel = _refuse_to_load
            with pytest.raises(CheckpointError):
                self.run(self.world.acquire(agent))
            self.world.next_kernel = lambda _kernel: None

    def process_dies(self, agent: str) -> None:
        """The next process adopts the kernels that live on; other sessions sleep, or have ended."""
        self.run(self.world.crash())
        self._start_next({agent})

    def shut_down(self, agent: str) -> None:
        keep = agent == "a"
        live = [key for key, one in self.model.items() if one.state == "live"]
        known = self.world.registry.inherited
        for session_id in live:
            if keep or session_id in known or self.model[session_id].checkpoint_cell is not None:
                self.model[session_id].checkpoint_cell = self.model[session_id].cells
        self.run(self.world.close(keep=keep))
        for session_id in live:
            self._loses_kernel(session_id, "shutdown")
        self.check()
        self._start_next(set())

    @invariant()
    def check(self) -> None:
        if self.world.registry.closed:
            return
        records = self.run(self.world.store.run(History.sessions))
        assert {record.session_id for record in records} == set(self.model)
        for session_id, expected in self.model.items():
            record = self.run(self.world.row(session_id))
            assert record is not None
            row = (record.state, record.owner, record.kernel_id, record.cells, record.end_reason)
            assert row == (
                expected.state, expected.owner, expected.kernel_id, expected.cells, expected.end_reason
            )  # fmt: skip
            if (session := self.objects.get(session_id)) is not None:
                assert session.state == expected.state
                assert (session.kernel is not None and session.is_awake) == (expected.state == "live")
                assert session.kernel_id == expected.kernel_id
                assert session.cell_count == expected.cells
                assert session.ended == expected.end_reason
                assert [entry["result"]["status"] for entry in session.execution_history] == ["ok"] * expected.cells

    def _start_next(self, survivors: set[str]) -> None:
        """Start the next process, which takes over what the last one had."""
        dead = self.world.owners.name
        live = {key: one for key, one in self.model.items() if one.state == "live"}
        left = {one.kernel_id for one in live.values() if one.agent in survivors}
        self.processes += 1
        self.world = self.run(self._world())
        self.world.owners.dead = {dead}
        recovery = self.run(self.world.recover(Inheritance(left)))
        assert set(recovery.sessions) == set(live)
        self.objects.clear()
        for session_id, expected in live.items():
            if expected.kernel_id in left:
                expected.owner = self.world.owners.name
                self.objects[session_id] = self.world.registry.sessions[expected.agent]
            else:
                self._loses_kernel(session_id, "orchestrator_lost")

    def _loses_kernel(self, session_id: str, reason: str) -> None:
        if self.model[session_id].checkpoint_cell is None:
            self._ends(session_id, reason)
        else:
            self._sleeps(session_id, reason)

    def _sleeps(self, session_id: str, reason: str) -> None:
        expected = self.model[session_id]
        expected.state, expected.owner, expected.last_end = "asleep", None, reason

    def _ends(self, session_id: str, reason: str) -> None:
        expected = self.model[session_id]
        expected.state, expected.owner, expected.end_reason = "ended", None, reason


def _refuse_to_load(kernel: FakeKernel) -> None:
    kernel.state.refusal = "it does not want to"


SessionMachine.TestCase.settings = SETTINGS
test_fields_and_row_agree_with_the_model = SessionMachine.TestCase


@pytest.mark.parametrize(
    "write",
    [
        History.add_session,
        History.add_forks,
        History.session_lives,
        History.session_sleeps,
        History.session_ends,
        History.take_ownership,
        History.begin_cell,
    ],
)
def test_the_model_finds_a_transition_that_does_not_write_its_row(write: object) -> None:
    """With a store that ignores one kind of write, the same seed finds a disagreement."""

    class DeafMachine(SessionMachine):
        deaf_to = (write,)

    with pytest.raises((AssertionError, CheckpointError)):
        run_state_machine_as_test(DeafMachine, settings=settings(SETTINGS, phases=[Phase.generate]))
