"""What a run says of itself in MLflow: its description, and figures over many nodes and ranks."""

from __future__ import annotations

import pytest
import torch

from pipelines.reporting.reports import Benchmark, EvaluationReport
from pipelines.tracking.description import RunDescription
from pipelines.tracking.node_metrics import spread_over
from pipelines.training import gauges


def report(task: str, step: int, status="ok", **result) -> tuple[EvaluationReport, int]:
    benchmark = Benchmark(task, "/data/set")
    found = EvaluationReport(f"c/step_{step:08d}", benchmark, status, result, "no\nclasses", 1.0)
    return found, step


def test_a_description_says_how_a_run_stands_and_what_to_do():
    description = RunDescription("runs/x", steps=100, step=40, num_rejected=3)
    description.bottleneck = "decode: ranks wait for data 40% of the time"
    accuracy = {"metrics": {"accuracy": 0.8, "other": 1.0}, "floors": {"accuracy": {"chance": 0.1}}}
    description.evaluated(*report("zero_shot", 40, **accuracy, source="set"))
    description.evaluated(*report("vqa", 40, status="failed"))
    text = description.text("running")
    assert text.splitlines()[0] == "**running**, 40 of 100 steps"
    assert "accuracy 0.8 (chance 0.1) (step 40)" in text
    assert "- **failed**: vqa" in text
    assert "(step 40): failed: no classes" in text
    assert "- limited by decode: ranks wait" in text
    assert "inspect runs/x --rejects" in text
    assert "resume runs/x" in text
    assert len(description.failed) == 1

    description.evaluated(*report("vqa", 80, metrics={"accuracy": 0.5}, floors={}, source="set"))
    assert description.failed == [], "a later checkpoint was evaluated well"
    description.evaluated(*report("vqa", 20, status="timeout"))
    assert description.failed == [], "an older one does not matter any more"
    assert "resume" not in description.text("completed")


def test_a_thousand_nodes_make_as_many_charts_as_two():
    few, many = (
        spread_over("system", {f"n{i}": {"cpu": float(i), "disk": 1.0} for i in range(number)})
        for number in (2, 1000)
    )
    assert few.keys() == many.keys()
    assert many["system/cpu/least"] == 0
    assert many["system/cpu/mean"] == 499.5
    assert many["system/cpu/greatest"] == 999
    assert spread_over("system", {}) == {}


@pytest.mark.parametrize("ranks", [1, 64])
def test_a_thousand_ranks_make_as_many_charts_as_one(ranks: int, monkeypatch):
    used = [[float(rank == 3) + 1] for rank in range(ranks)]
    monkeypatch.setattr(gauges, "gather_numbers", lambda *_: used)
    found = gauges.memory_gb(torch.device("cpu"))
    assert set(found) == {
        f"memory/rss_gb/{which}" for which in ("least", "mean", "greatest", "greatest_rank")
    }
    assert found["memory/rss_gb/greatest_rank"] == (3 if ranks > 3 else 0)
