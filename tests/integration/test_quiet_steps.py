"""Between two looks at its figures a rank waits for nothing, and tells nobody anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from clippo_core.config import to_json

#: The embeddings of both sides, and their gradients.
OF_THE_LOSS = ["all_gather", "all_gather", "all_reduce", "all_reduce"]


@pytest.mark.parametrize(
    "train",
    [
        pytest.param({}, id="whole"),
        pytest.param(
            {"micro_batch_size": 3, "positives": "equal"},
            id="micro-batches",
            marks=pytest.mark.slow,
        ),
        pytest.param({"image_patch_drop": 0.5}, id="FLIP", marks=pytest.mark.slow),
    ],
)
def test_a_step_that_is_not_looked_at_reads_nothing_back_and_exchanges_only_for_the_loss(
    train: dict, make_config, tmp_path: Path
):
    config = make_config(
        train={"log_every": 5, "checkpoint_every": 100, **train}, scaling={"num_ranks": 2}
    )
    path = tmp_path / "run.json"
    path.write_text(to_json(config))
    ended = subprocess.run(
        [sys.executable, "-m", "tests.integration.quiet_steps", str(path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    steps = json.loads(ended.stdout.splitlines()[-1])
    assert [step["step"] for step in steps] == list(range(1, 13))
    looked_at = [step["step"] for step in steps if step.get("is_looked_at")]
    # The first one says how long a step takes; then those that are logged, and the last.
    assert looked_at == [1, 5, 10, 12]
    # The groups of all pairs, where equal ones are positives.
    groups = ["all_gather"] * (train.get("positives") == "equal")
    for step in steps:
        assert sorted(step["collectives"]) == [*groups, *OF_THE_LOSS]
        assert bool(step["read_back"]) == (step["step"] in looked_at), step
