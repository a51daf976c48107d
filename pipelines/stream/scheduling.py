"""When Ray Data's loop looks at the tasks of a stream.

By itself (Ray 2.60) it waits until all of them have something to hand over, for 0.1 s at most: a
render worker that is done waits that long for its next task, twice, since a task has two ends, its
block and itself. And where no task is at work, or none may hand over what it has, the loop turns
without a pause and takes half of a core from the ranks.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import ray
from ray.data._internal.execution import streaming_executor_state
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.interfaces.physical_operator import DataOpTask

#: For how long the loop waits for tasks at work, while there are some, as by itself.
WAIT_S: float = streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S
#: For how long it rests where no task can do anything before somebody takes a batch.
REST_S = 0.05
#: And where a thread of Ray's is fetching what a task said of its block.
FETCH_S = 0.002


class _Seen(NamedTuple):
    """What a turn of the loop changes if there is anything to do."""

    active: frozenset[tuple[int, int]]
    ready: frozenset[tuple[int, int]]
    num_outputs: int


class WaitForAnyTask(ExecutionCallback):
    """Lets Ray Data's loop turn as soon as any of its tasks has something to hand over.

    After a turn that changed something comes the next one at once; after one that did not, what is
    ready may not be handed over, and the loop waits for the others.
    """

    def __init__(self) -> None:
        """Of one execution."""
        self._seen: _Seen | None = None

    def after_execution_succeeds(self, executor: Any) -> None:  # noqa: ARG002 - Ray's hook
        """Another execution in this process may be without this callback."""
        streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = WAIT_S

    def after_execution_fails(self, executor: Any, error: Exception) -> None:  # noqa: ARG002
        """Likewise."""
        self.after_execution_succeeds(executor)

    def on_execution_step(self, executor: Any) -> None:
        """After each turn of the loop."""
        # Ray's own wait is for all tasks. At each turn: an execution may end after the next began.
        streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = 0.0
        topology = executor._topology
        tasks = [(n, task) for n, op in enumerate(topology) for task in op.get_active_tasks()]
        # By number: whoever holds on to a task's outputs keeps them in the object store.
        numbers = {task.get_waitable(): (place, task.task_index()) for place, task in tasks}
        ready, pending = _wait(list(numbers), for_all=True, timeout_s=0.0)
        seen = _Seen(
            frozenset(numbers.values()),
            frozenset(numbers[waitable] for waitable in ready),
            sum(operator.metrics.num_task_outputs_generated for operator in topology),
        )
        has_changed, self._seen = seen != self._seen, seen
        if has_changed:
            return
        if any(isinstance(task, DataOpTask) and task.has_pending_emits() for _, task in tasks):
            time.sleep(FETCH_S)
        elif pending:
            _wait(pending, for_all=False, timeout_s=WAIT_S)
        else:
            time.sleep(REST_S)


def _wait(waitables: list[Any], *, for_all: bool, timeout_s: float) -> tuple[list[Any], list[Any]]:
    if not waitables:
        return [], []
    num_returns = len(waitables) if for_all else 1
    return ray.wait(waitables, num_returns=num_returns, timeout=timeout_s, fetch_local=False)
