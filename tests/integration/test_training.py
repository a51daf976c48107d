"""Training through Ray Data and Ray Train."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from clippo_core.checkpoints import load_checkpoint, read_state
from clippo_core.config import ScheduleConfig, to_json
from clippo_core.errors import (
    CheckpointError,
    ConfigError,
    DivergedError,
    SampleError,
    StorageError,
)
from clippo_core.rendering import load_font
from clippo_core.rendering.unifont import glyph_table
from pipelines.cli import EXIT_INTERRUPTED, main
from pipelines.config.resolution import read_run_config, resolve
from pipelines.config.settings import RunConfig
from pipelines.datasets.manifest import ShardWriter
from pipelines.runtime.run_checkpoints import whole_checkpoints
from pipelines.runtime.storage import OWNER_FILE, Location, read_json_lines
from pipelines.tracking.mlflow_client import TrackedRun
from pipelines.training.run import RunSummary, train
from tests.integration.colours import colour_samples, write_samples
from tests.integration.plain_loop import losses_of_a_plain_loop

pytestmark = pytest.mark.ray


def run(config: RunConfig) -> RunSummary:
    return train(resolve(config))


def keys_per_step(run_folder: Location) -> dict[int, list[str]]:
    """The keys that all ranks saw, in rank order, for each step."""
    keys: dict[int, list[str]] = {}
    for row in read_json_lines(run_folder / "samples"):
        keys.setdefault(row["step"], []).extend(row["keys"])
    return keys


def logged(summary: RunSummary, metric: str = "train/loss") -> dict[int, float]:
    """The metric's points by step; fails where a step was logged twice."""
    history = MlflowClient(summary.tracked.uri).get_metric_history(summary.tracked.run_id, metric)
    steps = [point.step for point in history]
    assert len(steps) == len(set(steps)), "a step was logged twice"
    return {point.step: point.value for point in history}


def planned_keys(config: RunConfig) -> dict[int, list[str]]:
    plan = resolve(config).stream.plan
    return {s: [f"s{row:04d}" for row in plan.batch(s).row] for s in range(config.train.steps)}


@pytest.mark.slow
def test_two_ranks_see_the_samples_of_one_and_learn_the_same(local_ray, make_config):
    """With patches dropped, and positives by class; also with all that saves time or memory."""
    parts = {"micro_batch_size": 3, "logit_rows": 5, "activation_checkpointing": True}
    cases = {
        "one": ({}, {"num_ranks": 1}),
        "two": ({}, {"num_ranks": 2}),
        "compiled": ({**parts, "compile": True}, {"num_ranks": 2}),
        "divided": (parts, {"num_ranks": 2, "shard_weights": True}),
    }
    losses, norms, embeddings = {}, {}, {}
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    for name, (settings, scaling) in cases.items():
        train = {"steps": 6, "image_patch_drop": 0.5, "unmasked_steps": 2, "positives": "equal"}
        train |= settings
        config = make_config(scaling=scaling, storage={"run": name}, train=train)
        summary = run(config)
        assert keys_per_step(summary.run) == planned_keys(config)
        losses[name] = logged(summary)
        norms[name] = logged(summary, "train/gradient_norm")
        embeddings[name] = load_checkpoint(summary.checkpoint.uri).encode_images(images)
    for name in ("two", "compiled", "divided"):
        for step in range(1, 7):
            assert losses[name][step] == pytest.approx(losses["one"][step], abs=1e-4)
            assert norms[name][step] == pytest.approx(norms["one"][step], rel=1e-3)
        np.testing.assert_allclose(embeddings[name], embeddings["one"], atol=1e-3)


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_learns_what_it_would_have_learnt(
    local_ray, make_config, tmp_path, capsys
):
    """SIGTERM, as a batch system sends it; tests/e2e/test_smoke.py has a driver killed instead."""
    length = {"steps": 100, "checkpoint_every": 10}
    config = make_config(train=length, storage={"run": "stopped"})
    expected = losses_of_a_plain_loop(config)
    (tmp_path / "stopped.json").write_text(to_json(config))
    folder = Location.of(config.storage.root) / "stopped"
    with sigterm_after_a_checkpoint(folder):
        assert main(["train", str(tmp_path / "stopped.json")]) == EXIT_INTERRUPTED
    printed = capsys.readouterr()
    assert f"resume {folder.uri}" in printed.out + printed.err
    step, place = whole_checkpoints(folder)[-1]
    assert 0 < step < 100, "it was to be stopped in mid-training"
    assert read_state(place.uri).values["step"] == step
    tracked = TrackedRun(**(folder / "mlflow.json").read_json())
    client = MlflowClient(tracked.uri)
    assert client.get_run(tracked.run_id).info.status == "KILLED"

    resumed = train(resolve(read_run_config(folder)), is_resumed=True)
    assert resumed.tracked.run_id == tracked.run_id
    assert client.get_run(tracked.run_id).info.status == "FINISHED"
    attempts = {name.partition("-rank")[0] for name in (folder / "samples").names()}
    assert len(attempts) == 2, "both attempts saw samples"
    assert resumed_keys(folder) == planned_keys(config)
    losses = logged(resumed)
    assert losses.keys() == expected.keys() == set(range(1, 101))
    assert losses[100] == pytest.approx(expected[100], abs=1e-4)


def test_a_damaged_checkpoint_is_passed_over_and_a_whole_run_goes_on_longer(
    local_ray, make_config, capsys
):
    """Weights with a NaN in them, as a bad disk may make; and no word of the run in MLflow."""
    config = make_config(train={"steps": 12, "checkpoint_every": 6})
    first = run(config)
    assert main(["resume", first.run.uri]) == 0
    assert f"{first.run.uri} is complete: 12 steps" in capsys.readouterr().out
    expected = load_checkpoint(first.checkpoint.uri).state_dict()
    weights = Path(first.checkpoint.uri) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-4:] = np.float32(np.nan).tobytes()
    weights.write_bytes(bytes(content))
    (first.run / "mlflow.json").remove_file()
    assert main(["resume", first.run.uri]) == 0
    printed = capsys.readouterr()
    said = printed.out + printed.err
    assert f"passed over {first.checkpoint.name}, now damaged_{first.checkpoint.name}: " in said
    assert "mlflow.json cannot be read" in said
    assert (first.run / "checkpoints").names()[0] == f"damaged_{first.checkpoint.name}"
    restored = load_checkpoint(first.checkpoint.uri).state_dict()
    assert all(torch.equal(restored[name], tensor) for name, tensor in expected.items())

    assert main(["resume", first.run.uri, "--train.steps", "6"]) == 2
    assert "train.steps=6, but" in capsys.readouterr().err
    assert main(["resume", first.run.uri, "--train.steps", "18"]) == 0
    assert "18 steps instead of 12: the learning rate of step 12 is" in capsys.readouterr().out
    assert [step for step, _ in whole_checkpoints(first.run)][-1] == 18
    longer = make_config(train={"steps": 18, "checkpoint_every": 6}, storage={"run": "at once"})
    assert resumed_keys(first.run) == keys_per_step(run(longer).run)


@contextlib.contextmanager
def sigterm_after_a_checkpoint(run_folder: Location) -> Iterator[None]:
    """Ask this process to stop, as a batch system does, once the run has a checkpoint."""
    has_ended = threading.Event()

    def watch() -> None:
        while not whole_checkpoints(run_folder):
            if has_ended.wait(0.01):
                return
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()


def resumed_keys(run_folder: Location) -> dict[int, list[str]]:
    """Keys per step over all attempts; steps that were done again must have seen the same."""
    keys: dict[int, list[str]] = {}
    for row in read_json_lines(run_folder / "samples"):
        assert keys.setdefault(row["step"], row["keys"]) == row["keys"]
    return keys


def test_data_that_is_bad_throughout_ends_the_run_with_its_reason(local_ray, make_config, tmp_path):
    """The first samples are fine, so that only the workers find out."""
    samples = colour_samples(1000)
    bad = [*samples[:64], *(sample._replace(image=b"gone") for sample in samples[64:])]
    source = str(write_samples(tmp_path / "bad", bad, name="bad"))
    with pytest.raises(SampleError, match=r"samples in a row cannot be used.*unknown_image_format"):
        run(make_config(data={"sources": (source,)}))


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_last_good_checkpoint(
    local_ray, make_config
):
    config = make_config(
        optim={"learning_rate": 1e18, "schedule": ScheduleConfig(warmup_steps=6, cooldown_steps=0)},
        train={"checkpoint_every": 1},
        storage={"keep_checkpoints": 20},
    )
    with pytest.raises(DivergedError, match=r"diverged at step \d+.*checkpoints/step_0000000\d"):
        run(config)
    tracked = TrackedRun(**(Location.of(config.storage.root) / "run/mlflow.json").read_json())
    ended = MlflowClient(tracked.uri).get_run(tracked.run_id)
    assert ended.info.status == "FAILED"
    assert ended.data.tags["clippo.state"].startswith("DivergedError: training diverged at step")


@pytest.mark.slow
def test_without_mlflow_a_run_ends_and_leaves_no_run_behind(local_ray, make_config):
    """Ranks start while MLflow is asked; they are told that it does not answer."""
    config = make_config(tracking={"uri": "http://127.0.0.1:9"}, train={"checkpoint_every": 1})
    with pytest.raises(StorageError, match=r"MLflow at http://127.0.0.1:9 does not answer"):
        train(resolve(config))
    left = {path.name for path in Path(config.storage.root, "run").iterdir()}
    assert left == {OWNER_FILE}
    # The same folder can be named again, and that run makes every step.
    summary = train(resolve(make_config(train={"checkpoint_every": 12})))
    assert read_state(summary.checkpoint.uri).values["step"] == 12
    steps = [row["step"] for row in read_json_lines(summary.run / "samples")]
    assert sorted(steps) == list(range(12))


@pytest.mark.slow
def test_evaluations_run_beside_training_and_their_failures_stay_theirs(
    local_ray, make_config, tmp_path, colours
):
    nameless = ShardWriter(Location.of(tmp_path / "nameless"), name="nameless")
    for sample in colour_samples(8):
        nameless.add(sample._replace(class_id=None))
    nameless.close()
    tasks = (f"zero_shot:{colours}", f"retrieval:{colours}", f"zero_shot:{nameless.folder.uri}")
    config = make_config(
        train={"steps": 40, "checkpoint_every": 20},
        evaluation={"tasks": tasks, "templates": ("a {} patch",), "cpus": 0.25, "limit": 40},
        storage={"keep_checkpoints": 1},
    )
    summary = run(config)
    assert [step for step, _ in whole_checkpoints(summary.run)] == [40]
    by_status = Counter((r.benchmark.task, r.status) for r in summary.evaluations)
    assert by_status == {("zero_shot", "ok"): 2, ("retrieval", "ok"): 2, ("zero_shot", "failed"): 2}
    failed = next(report for report in summary.evaluations if report.status == "failed")
    assert "no class names" in failed.message
    accuracies = logged(summary, "eval/zero_shot/colours/accuracy")
    assert accuracies.keys() == {20, 40}
    assert accuracies[40] > 0.9, "four colours are easy"
    results = summary.run / "evaluations" / summary.checkpoint.name / "zero_shot"
    stored = results / "colours-first-40.json"
    assert stored.read_json()["metrics"]["accuracy"] == accuracies[40]
    assert stored.read_json()["num_samples"] == 40


@pytest.mark.slow
def test_a_custom_font_and_two_sources_travel_through_the_whole_run(
    local_ray, make_config, tmp_path
):
    bundled = load_font()
    letters = list(range(32, 127))
    table = glyph_table(np.array(letters, np.int32), bundled.columns[bundled.index[letters]])
    (tmp_path / "letters.glyphs.xz").write_bytes(table.to_bytes())
    font = str(tmp_path / "letters.glyphs.xz")
    more = write_samples(tmp_path / "more", colour_samples(40), name="more")
    config = make_config()
    render = dataclasses.replace(config.model.render, font=font)
    config = make_config(
        model={"render": render},
        data={"sources": (*config.data.sources, str(more)), "weights": (3.0, 1.0)},
        train={"steps": 4},
    )
    summary = run(config)
    model = load_checkpoint(summary.checkpoint.uri)
    assert model.config.render.font_sha256 == table.sha256
    assert model.encode_texts(["a red patch"]).shape == (1, 16)
    (tmp_path / "letters.glyphs.xz").unlink()
    resumed = train(resolve(read_run_config(summary.run)), is_resumed=True)
    assert resumed.checkpoint == summary.checkpoint


def test_a_run_is_not_started_twice_nor_over_the_machines_there_are(local_ray, make_config):
    run(make_config(train={"steps": 1}))
    with pytest.raises(ConfigError, match="is a run already"):
        run(make_config(train={"steps": 1}))
    with pytest.raises(ConfigError, match=r"room for 0 of 1 ranks of 99\.5 CPUs"):
        run(make_config(scaling={"cpus_per_rank": 99.5}, storage={"run": "huge"}))
    with pytest.raises(ConfigError, match=r"room for \d of 16 ranks of 1 CPUs and a GPU"):
        run(make_config(scaling={"use_gpu": True, "num_ranks": 16}, storage={"run": "gpus"}))


def test_weights_to_start_from_are_checked_before_a_machine_is_taken(make_config, tmp_path):
    npz = Path(__file__).parents[1] / "parity" / "reference" / "big_vision_checkpoint.npz"
    for path, message in ((npz, "another architecture"), (tmp_path / "none", "does not exist")):
        with pytest.raises(CheckpointError, match=message):
            run(make_config(train={"init_from": str(path)}))
