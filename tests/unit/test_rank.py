"""What a rank does that needs no other one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipelines.config.presets import demo
from pipelines.training.rank import Rank


def test_a_batch_of_a_step_that_is_not_the_states_ends_the_attempt():
    """A checkpoint that came after the stream was begun: it would train on samples once more."""
    rank = object.__new__(Rank)
    rank._config = demo()
    rank._batches = iter([SimpleNamespace(step=3)])  # pyright: ignore
    rank.state = SimpleNamespace(step=5)  # pyright: ignore
    with pytest.raises(RuntimeError, match="the stream is at step 3, not 5"):
        rank.run()
