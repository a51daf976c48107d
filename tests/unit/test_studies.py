"""Studies: what a verdict rests on, that each claim's runs measure what it compares, the page."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from clippo_core.config import to_json
from pipelines.runtime.storage import Location
from pipelines.studies import study as studies
from pipelines.studies.claims import ARMS, CLAIMS, Arm
from pipelines.studies.page import write_page
from pipelines.studies.study import StudySettings, study
from pipelines.studies.verdicts import Comparison, estimate, together
from pipelines.training.many_runs import EndedRun


def test_the_interval_is_students():
    values = [0.71, 0.74, 0.78]
    found = estimate(values)
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx(
        (low, high)
    )
    assert estimate([0.5]).half_width == float("inf")
    assert estimate([0.5]).text == "0.500"


@pytest.mark.parametrize(
    ("ours", "theirs", "margin", "verdict"),
    [
        ([0.8, 0.81, 0.82], [0.7, 0.71, 0.72], 0.0, "shown"),
        ([0.7, 0.71, 0.72], [0.8, 0.81, 0.82], 0.0, "contradicted"),
        ([0.7, 0.71, 0.72], [0.8, 0.81, 0.82], 0.2, "shown"),
        ([0.8, 0.7, 0.75], [0.7, 0.8, 0.74], 0.0, "not shown"),
        ([0.9], [0.1], 0.0, "one run"),
    ],
)
def test_a_verdict_needs_the_interval_on_one_side(ours, theirs, margin, verdict):
    more = Comparison("", "", "a", "b", margin)
    assert more.judge(ours, theirs)[0] == verdict
    less = dataclasses.replace(more, is_less_better=True)
    opposite = [[1 - value for value in values] for values in (ours, theirs)]
    assert less.judge(*opposite)[0] == verdict


def test_a_claim_is_shown_by_all_its_parts():
    assert together(["shown", "shown"]) == "shown"
    assert together(["shown", "not shown"]) == "not shown"
    assert together(["contradicted", "shown"]) == "contradicted"
    assert together(["one run", "shown"]) == "shown"
    assert together(["one run", "contradicted"]) == "contradicted"
    assert together(["one run", "one run"]) == "one run"
    assert together([]) == "not shown"


def test_an_arm_that_takes_long_has_fewer_runs():
    assert [ARMS["clippo"].num_seeds(asked) for asked in (1, 3)] == [1, 3]
    assert [ARMS["answers"].num_seeds(asked) for asked in (1, 3)] == [1, 1]


@pytest.mark.parametrize("name", CLAIMS)
def test_each_run_of_a_claim_measures_what_it_compares(name: str):
    claim = CLAIMS[name]
    assert claim.says.endswith(".")
    for comparison in claim.comparisons:
        task, source, _ = comparison.metric.split("/")
        for arm in (comparison.ours, comparison.theirs):
            if isinstance(arm, str):
                of_task = [
                    text for text in ARMS[arm].config.evaluation.tasks if text.startswith(task)
                ]
                assert any(
                    "-".join(text.partition(":")[2].split("/")).endswith(source) for text in of_task
                ), (arm, comparison.metric)


def test_arms_differ_in_what_their_name_says_alone():
    base = ARMS["clippo"].config
    for name, group in (("clip", "model"), ("1t-clip", "model"), ("all-patches", "model")):
        other = ARMS[name].config
        restored = dataclasses.replace(
            other, **{group: getattr(base, group)}, evaluation=base.evaluation
        )
        assert to_json(restored) == to_json(base), name


@pytest.fixture
def two_arms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Two arms whose runs are made by writing their results; the names of those that were made."""
    config = dataclasses.replace(
        ARMS["clippo"].config,
        evaluation=dataclasses.replace(ARMS["clippo"].config.evaluation, tasks=()),
    )
    arms = {name: Arm(name, config, 10) for name in ("good", "bad")}
    comparison = Comparison("accuracy", "test/set/accuracy", "good", "bad")
    claim = dataclasses.replace(CLAIMS["positives"], name="made-up", comparisons=(comparison,))
    monkeypatch.setattr(studies, "ARMS", arms)
    monkeypatch.setitem(CLAIMS, "made-up", claim)
    monkeypatch.setattr(studies, "prepare_missing", lambda _: [])
    made: list[str] = []

    def make(configs, root, *, concurrent):
        assert concurrent == 1
        ended = {}
        for config in configs:
            name = config.storage.run
            made.append(name)
            if name == "bad-seed-2" and made.count(name) == 1:
                ended[name] = EndedRun(f"{tmp_path}/{name}", "DivergedError: at step 3")
                continue
            whole = root / name / "checkpoints" / f"step-{config.train.steps:08d}"
            results = root / name / "evaluations" / whole.name / "test/set.json"
            value = 0.9 if name.startswith("good") else 0.5
            metrics = {"accuracy": value + config.train.seed / 100}
            results.write_json({"status": "ok", "metrics": metrics, "num_samples": 10})
            (whole / "made").write_bytes(b"")
            ended[name] = EndedRun(f"{tmp_path}/{name}")
        return ended

    def whole(run: Location):
        return [
            (int(name.partition("-")[2]), run / "checkpoints" / name)
            for name in (run / "checkpoints").names()
        ]

    monkeypatch.setattr(studies, "make_runs", make)
    monkeypatch.setattr(studies, "whole_checkpoints", whole)
    return made


def test_runs_that_are_there_are_not_made_again_and_failures_are_named(two_arms, tmp_path: Path):
    settings = StudySettings(str(tmp_path), seeds=3, is_quick=True, concurrent=1)
    (finding,) = study([CLAIMS["made-up"]], settings)
    assert two_arms == [f"{arm}-seed-{seed}" for arm in ("good", "bad") for seed in range(3)]
    assert finding.verdict == "not shown"
    assert finding.missing == {"bad-seed-2": "DivergedError: at step 3"}
    page = Location.of(tmp_path / "page.md")
    write_page([finding], page, command="python -m pipelines study made-up --quick", about="A.")
    assert "Missing: bad-seed-2: DivergedError: at step 3" in page.read_bytes().decode()

    del two_arms[:-1]
    (finding,) = study([CLAIMS["made-up"]], settings)
    assert two_arms == ["bad-seed-2", "bad-seed-2"]
    assert finding.verdict == "shown"
    assert finding.missing == {}
    assert finding.table["test/set/accuracy"]["good"].mean == pytest.approx(0.91)
    files = write_page(
        [finding], page, command="python -m pipelines study made-up --quick", about="A."
    )
    text = page.read_bytes().decode()
    assert "| [Where classes repeat" in text
    assert "0.910 ± 0.025" in text
    assert "`python -m pipelines study made-up --quick`" in text
    assert [Path(file).exists() for file in files] == [True, True]
