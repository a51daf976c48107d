from __future__ import annotations

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clippo_core.errors import ConfigError
from clippo_core.sample_plan import SamplePlan, permute

BILLION = 1_000_000_000


def plan_of(**changes) -> SamplePlan:
    settings = {
        "seed": 0,
        "batch_size": 32,
        "num_rows": (1000,),
        "weights": (1.0,),
        "run_length": 8,
    }
    return SamplePlan(**(settings | changes))


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_permute_visits_every_value_once(size: int, key: int):
    assert sorted(permute(np.arange(size), size=size, key=key)) == list(range(size))


def test_permute_looks_random():
    values = permute(np.arange(10_000), size=10_000, key=7).astype(float)
    assert abs(np.corrcoef(values, np.arange(10_000))[0, 1]) < 0.05
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 0.05


@given(
    num_rows=st.integers(1, 500),
    run_length=st.integers(1, 40),
    seed=st.integers(0, 2**63),
)
@settings(max_examples=60, deadline=None)
def test_a_pass_reaches_every_row_and_doubles_less_than_a_run(num_rows, run_length, seed):
    num_runs = -(-num_rows // run_length)
    plan = plan_of(
        seed=seed, num_rows=(num_rows,), run_length=run_length, batch_size=num_runs * run_length
    )
    for step in range(2):
        rows = plan.batch(step).row
        assert set(rows) == set(range(num_rows))
        assert len(rows) - num_rows < run_length


@given(
    weights=st.lists(st.sampled_from([0.1, 0.25, 0.3, 1.0, 2.0, 7.0]), min_size=1, max_size=5),
    batch_size=st.integers(1, 100),
    step=st.integers(0, 10**9),
)
@settings(max_examples=100, deadline=None)
def test_ratios_stay_within_half_a_row_per_halving_and_never_run_backwards(
    weights, batch_size, step
):
    plan = plan_of(
        weights=tuple(weights), num_rows=tuple([50] * len(weights)), batch_size=batch_size
    )
    before, after = np.array(plan.rows_drawn(step)), np.array(plan.rows_drawn(step + 1))
    assert after.sum() - before.sum() == batch_size
    assert (after >= before).all()
    shares = [Fraction(str(weight)) for weight in weights]
    ideal = [share / sum(shares) * step * batch_size for share in shares]
    halvings = math.ceil(math.log2(len(weights)))
    off_by = max(abs(int(b) - i) for b, i in zip(before, ideal, strict=True))
    assert off_by <= Fraction(halvings, 2)


def test_whole_ratios_are_exact_in_every_batch():
    plan = plan_of(num_rows=(300, 50, 900), weights=(0.5, 0.125, 0.375), batch_size=32)
    for step in range(200):
        assert np.bincount(plan.batch(step).source).tolist() == [16, 4, 12]


def test_the_same_step_gives_the_same_samples_and_another_seed_others():
    one, again, other = (plan_of(seed=seed).batch(5) for seed in (1, 1, 2))
    assert one.row.tolist() == again.row.tolist()
    assert one.draw.tolist() == again.draw.tolist()
    assert one.row.tolist() != other.row.tolist()


def test_passes_differ_in_order_and_in_draws():
    plan = plan_of(num_rows=(64,), batch_size=64)
    first, second = plan.batch(0), plan.batch(1)
    assert sorted(first.row) == sorted(second.row)
    assert first.row.tolist() != second.row.tolist()
    by_row = [dict(zip(b.row.tolist(), b.draw.tolist(), strict=True)) for b in (first, second)]
    assert all(by_row[0][row] != by_row[1][row] for row in range(64))


def test_samples_come_in_runs_of_consecutive_rows():
    rows = plan_of().batch(3).row.reshape(-1, 8)
    assert (np.diff(rows, axis=1) == 1).all()


def test_every_part_of_a_batch_holds_about_the_same_mixture():
    plan = plan_of(num_rows=(5000, 5000), weights=(3.0, 1.0), batch_size=1024)
    for quarter in np.split(plan.batch(9).source, 4):
        assert abs((quarter == 0).sum() - 192) <= 8


@given(step=st.integers(0, 50), position=st.integers(0, 31))
@settings(max_examples=50, deadline=None)
def test_a_reserve_is_outside_the_batch_and_has_no_end_before_a_run_is_through(step, position):
    plan = plan_of()
    batch = plan.batch(step)
    sample = batch[position : position + 1]
    reserve = [int(plan.reserve(sample, attempt).row[0]) for attempt in range(1, 9)]
    assert len(set(reserve)) == 8
    assert not set(reserve) & set(batch.row.tolist())


def test_a_source_of_a_single_row_still_fills_a_batch():
    plan = plan_of(num_rows=(1,))
    assert plan.batch(3).row.tolist() == [0] * 32
    assert plan.reserve(plan.batch(3)[:1], 1).row.tolist() == [0]


def test_a_billion_samples_cost_no_more_than_a_thousand():
    small, large = plan_of(), plan_of(num_rows=(BILLION,))
    assert len(pickle.dumps(large)) <= len(pickle.dumps(small)) + 8
    rows = large.batch(BILLION).row
    assert 0 <= rows.min() <= rows.max() < BILLION


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weights": (1.0, 1.0)}, "1 sources and 2 weights"),
        ({"weights": (0.0,)}, "above 0"),
        ({"num_rows": (0,)}, "has no rows"),
        ({"run_length": 0}, "run_length=0"),
        ({"num_rows": (), "weights": ()}, "at least one"),
    ],
)
def test_impossible_plans_are_refused(wrong, message: str):
    with pytest.raises(ConfigError, match=message):
        plan_of(**wrong)
