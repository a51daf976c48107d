"""The parts of the stream that need no Ray."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pipelines.ingest import stream
from pipelines.ingest.stream import (
    HASTY_STEP_S,
    HASTY_STEPS,
    REST_S,
    RestWhileNothingHappens,
    begun,
)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now, self.rests = 1000.0, list[float]()

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stream, "time", clock)
    return clock


def turn(callback: RestWhileNothingHappens, clock: Clock, seconds: float) -> None:
    clock.now += seconds
    callback.on_execution_step(None)


def test_a_loop_that_waits_for_nothing_rests_at_every_turn(clock):
    callback = RestWhileNothingHappens()
    for _ in range(HASTY_STEPS + 11):
        turn(callback, clock, HASTY_STEP_S / 10)
    # The first turn has none before it, and the next three may be work that came at once.
    assert clock.rests == [REST_S] * 10


def test_a_loop_that_waits_for_tasks_is_left_alone(clock):
    callback = RestWhileNothingHappens()
    for _ in range(20):
        turn(callback, clock, 5 * HASTY_STEP_S)
        for _ in range(HASTY_STEPS):
            turn(callback, clock, HASTY_STEP_S / 10)
    assert clock.rests == []


def test_a_begun_stream_is_asked_for_one_batch_before_anybody_takes_it():
    asked = [threading.Event() for _ in range(3)]

    def batches() -> Iterator[int]:
        for number, event in enumerate(asked):
            event.set()
            yield number

    stream_of_three = begun(batches())
    assert asked[0].wait(10)
    assert not asked[1].wait(0.2)
    assert list(stream_of_three) == [0, 1, 2]


def test_a_begun_stream_ends_and_fails_where_the_stream_does():
    def failing(after: int) -> Iterator[int]:
        yield from range(after)
        raise ValueError("gone")

    assert list(begun(iter(()))) == []
    for after in (0, 2):
        taken: list[int] = []
        failing_stream = begun(failing(after))
        with pytest.raises(ValueError, match="gone"):
            taken.extend(failing_stream)
        assert taken == list(range(after))
