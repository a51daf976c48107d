"""The parts of the stream that need no Ray."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pipelines.stream.stream import begun


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
