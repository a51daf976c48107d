"""When Ray Data's loop looks at its tasks: after what it waits, and for how long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.data._internal.execution import streaming_executor_state

from pipelines.stream import scheduling
from pipelines.stream.scheduling import FETCH_S, REST_S, WAIT_S, WaitForAnyTask


class Task(scheduling.DataOpTask):
    """A render task as the loop sees it; none of Ray's behind it."""

    def __init__(self, number: int) -> None:
        self.number, self.is_ready, self.is_fetching = number, False, False

    def task_index(self) -> int:
        return self.number

    def get_waitable(self) -> Task:
        return self

    def has_pending_emits(self) -> bool:
        return self.is_fetching


class Loop:
    """Turns of an execution with one operator; what the callback waited for after each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tasks, self.outputs, self.waited = list[Task](), 0, list[Any]()
        self.callback = WaitForAnyTask()
        # Which the callback changes, for the whole process.
        monkeypatch.setattr(streaming_executor_state, "WAIT_FOR_TASK_COMPLETION_TIMEOUT_S", WAIT_S)
        monkeypatch.setattr(scheduling.ray, "wait", self._wait)
        monkeypatch.setattr(scheduling.time, "sleep", self.waited.append)

    def _wait(self, tasks: list[Task], *, num_returns: int, timeout: float, fetch_local: bool):
        assert tasks and not fetch_local
        if timeout:
            self.waited.append(([task.number for task in tasks], num_returns, timeout))
        ready = [task for task in tasks if task.is_ready]
        return ready[:num_returns], [task for task in tasks if not task.is_ready]

    def turn(self) -> list[Any]:
        operator = SimpleNamespace(
            get_active_tasks=lambda: self.tasks,
            metrics=SimpleNamespace(num_task_outputs_generated=self.outputs),
        )
        self.waited.clear()
        self.callback.on_execution_step(SimpleNamespace(_topology=[operator]))
        return list(self.waited)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    """Two tasks are at work, and the loop waits for them."""
    loop = Loop(monkeypatch)
    loop.tasks = [Task(0), Task(1)]
    assert loop.turn() == []
    assert loop.turn() == [([0, 1], 1, WAIT_S)]
    return loop


def test_one_task_that_is_done_is_enough(loop):
    loop.tasks[1].is_ready = True
    assert loop.turn() == []


def test_what_may_not_be_handed_over_is_not_waited_for(loop):
    loop.tasks[1].is_ready = True
    loop.turn()
    assert loop.turn() == [([0], 1, WAIT_S)]
    loop.tasks[0].is_ready = True
    assert loop.turn() == []
    assert loop.turn() == [REST_S]


@pytest.mark.parametrize("change", ["output", "task_ends", "task_begins", "another_task"])
def test_after_a_turn_that_changed_something_comes_the_next_at_once(loop, change):
    if change == "output":
        loop.outputs += 1
    elif change == "task_ends":
        loop.tasks.pop()
    elif change == "task_begins":
        loop.tasks.append(Task(2))
    else:
        loop.tasks[0] = Task(2)
    assert loop.turn() == []
    assert loop.turn() == [([task.number for task in loop.tasks], 1, WAIT_S)]


def test_what_is_being_fetched_comes_soon(loop):
    loop.tasks[0].is_fetching = True
    assert loop.turn() == [FETCH_S]


def test_without_a_task_the_loop_rests(loop):
    loop.tasks = []
    assert loop.turn() == []
    assert [loop.turn() for _ in range(3)] == [[REST_S]] * 3


@pytest.mark.parametrize("has_failed", [False, True])
def test_rays_own_wait_is_as_it_was_once_the_execution_is_over(has_failed, monkeypatch):
    name = "WAIT_FOR_TASK_COMPLETION_TIMEOUT_S"
    assert getattr(streaming_executor_state, name) == WAIT_S > 0
    earlier, later = Loop(monkeypatch), Loop(monkeypatch)
    later.turn()
    assert getattr(streaming_executor_state, name) == 0
    if has_failed:
        earlier.callback.after_execution_fails(None, ValueError())
    else:
        earlier.callback.after_execution_succeeds(None)
    assert getattr(streaming_executor_state, name) == WAIT_S
    later.turn()
    assert getattr(streaming_executor_state, name) == 0
