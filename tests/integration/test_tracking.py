"""Step metrics reach MLflow once each, whatever MLflow does."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from clippo_core.errors import StorageError
from pipelines.storage import Location
from pipelines.tracking import mlflow_tracker
from pipelines.tracking.mlflow_tracker import RunTracker, StepLogger, TrackedRun, metric_name

RUN = TrackedRun("http://nowhere", "run", "1")


class FakeClient:
    """Holds what was logged; can be down, or slow."""

    def __init__(self) -> None:
        self.points: list[tuple[int, str, float]] = []
        self.is_down = False
        self.hold = threading.Event()
        self.hold.set()

    def _answer(self) -> None:
        self.hold.wait()
        if self.is_down:
            raise ConnectionError("down")

    def get_metric_history(self, _run: str, key: str) -> list[SimpleNamespace]:
        self._answer()
        return [SimpleNamespace(step=step) for step, name, _ in self.points if name == key]

    def log_batch(self, _run: str, metrics) -> None:
        self._answer()
        self.points += [(metric.step, metric.key, metric.value) for metric in metrics]

    def steps(self) -> list[int]:
        return [step for step, name, _ in self.points if name == "train/loss"]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    fake = FakeClient()
    monkeypatch.setattr(mlflow_tracker, "connect", lambda _uri: fake)
    monkeypatch.setattr(mlflow_tracker, "_RETRY_EVERY_S", 0.01)
    return fake


def log_steps(logger: StepLogger, steps: range) -> None:
    for step in steps:
        logger.log(step, {"train/loss": 1 / step, "speed/pairs_per_s": 5.0})


def test_every_step_is_sent_in_order(client: FakeClient, tmp_path: Path):
    logger = StepLogger(RUN, spool=tmp_path / "spool.jsonl")
    log_steps(logger, range(1, 2001))
    logger.close()
    assert client.steps() == list(range(1, 2001))
    assert len(client.points) == 4000
    assert not (tmp_path / "spool.jsonl").exists()


def test_steps_that_are_done_again_after_a_restart_are_not_sent_again(client, tmp_path):
    first = StepLogger(RUN, spool=tmp_path / "spool.jsonl")
    log_steps(first, range(1, 31))
    first.close()
    second = StepLogger(RUN, spool=tmp_path / "spool.jsonl")
    log_steps(second, range(21, 41))
    second.close()
    assert client.steps() == list(range(1, 41))


def test_while_mlflow_is_down_points_wait_in_the_spool_and_are_sent_later(client, tmp_path):
    spool = tmp_path / "spool.jsonl"
    logger = StepLogger(RUN, spool=spool)
    client.is_down = True
    log_steps(logger, range(1, 11))
    logger.flush()
    assert [json.loads(line)["step"] for line in spool.read_text().splitlines()] == [*range(1, 11)]
    client.is_down = False
    time.sleep(0.02)
    log_steps(logger, range(11, 21))
    logger.close()
    assert client.steps() == list(range(1, 21))
    assert not spool.exists()


def test_what_a_killed_process_left_in_the_spool_is_sent_by_the_next(client, tmp_path):
    spool = tmp_path / "spool.jsonl"
    client.is_down = True
    first = StepLogger(RUN, spool=spool)
    log_steps(first, range(1, 6))
    first.close()
    client.is_down = False
    second = StepLogger(RUN, spool=spool)
    log_steps(second, range(4, 9))
    second.close()
    assert client.steps() == list(range(1, 9))


def test_logging_does_not_wait_for_a_server_that_hangs(client: FakeClient, tmp_path: Path):
    logger = StepLogger(RUN, spool=tmp_path / "spool.jsonl")
    client.hold.clear()
    log_steps(logger, range(1, 3))
    time.sleep(1.2)  # the thread is inside a call now
    started = time.monotonic()
    log_steps(logger, range(3, 1000))
    assert time.monotonic() - started < 1
    client.hold.set()
    logger.close()
    assert client.steps() == list(range(1, 1000))


def test_a_tracking_server_that_is_not_there_is_told_of_at_the_start(tmp_path: Path):
    with pytest.raises(StorageError, match="does not answer"):
        RunTracker.open(
            "http://127.0.0.1:9",
            experiment="e",
            name="n",
            artifacts=Location.of(tmp_path),
            tags={},
        )


def test_a_run_holds_its_params_pictures_and_end(tmp_path: Path):
    from PIL import Image

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = RunTracker.open(
        uri,
        experiment="e",
        name="n",
        artifacts=Location.of(tmp_path / "artifacts"),
        tags={"a": "b"},
    )
    tracker.log_params({f"p{number}": number for number in range(250)} | {"long": "x" * 9000})
    tracker.log_metrics({"eval/recall@1": 0.5}, step=3)
    tracker.log_image(Image.new("RGB", (4, 4)), "pictures/one.png")
    tracker.finish("FINISHED")
    run = MlflowClient(uri).get_run(tracker.run.run_id)
    assert len(run.data.params) == 251
    assert run.data.metrics == {"eval/recall_at_1": 0.5}
    assert (run.info.status, run.data.tags["a"]) == ("FINISHED", "b")
    assert [f.path for f in MlflowClient(uri).list_artifacts(run.info.run_id, "pictures")] == [
        "pictures/one.png"
    ]
    assert tracker.num_failures == 0


def test_after_the_start_tracking_never_raises(tmp_path: Path):
    tracker = RunTracker(TrackedRun("http://127.0.0.1:9", "gone", "1"))
    with pytest.warns(UserWarning, match="training goes on"):
        tracker.set_tag("a", "b")
    tracker.set_tag("a", "c")
    assert tracker.num_failures == 2


def test_names_are_made_to_fit_mlflow():
    assert metric_name("eval/retrieval/my set (1)/recall@5") == (
        "eval/retrieval/my set _1_/recall_at_5"
    )
