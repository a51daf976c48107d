"""Step metrics reach MLflow once each, whatever MLflow does."""

from __future__ import annotations

import io
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient
from PIL import Image

from clippo_core.errors import StorageError
from pipelines.runtime.storage import Location
from pipelines.tracking import outbox, step_logger
from pipelines.tracking.mlflow_run import DataSet, RunTracker, TrackedRun, metric_name
from pipelines.tracking.outbox import Outbox
from pipelines.tracking.step_logger import StepLogger

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
    monkeypatch.setattr(step_logger, "connect", lambda _uri: fake)
    monkeypatch.setattr(step_logger, "_RETRY_EVERY_S", 0.01)
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


def open_run(folder: Path) -> RunTracker:
    return RunTracker.open(
        f"sqlite:///{folder}/mlflow.db",
        experiment="e",
        name="n",
        artifacts=Location.of(folder / "artifacts"),
        tags={"a": "b"},
    )


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_a_run_holds_its_params_data_pictures_and_end(tmp_path: Path):
    tracker = open_run(tmp_path)
    tracker.log_params({f"p{number}": number for number in range(250)} | {"long": "x" * 9000})
    tracker.log_inputs([DataSet("pairs", "0123", "s3://bucket/pairs")], context="training")
    tracker.log_metrics({"eval/recall@1": 0.5}, step=3)
    tracker.log_picture(png(), "eval/one (1)", step=3)
    assert tracker.finish("FINISHED") == []
    client = MlflowClient(tracker.run.uri)
    run = client.get_run(tracker.run.run_id)
    assert len(run.data.params) == 251
    assert run.data.metrics == {"eval/recall_at_1": 0.5}
    assert (run.info.status, run.data.tags["a"]) == ("FINISHED", "b")
    (data_set,) = run.inputs.dataset_inputs
    assert (data_set.dataset.name, data_set.dataset.digest) == ("pairs", "0123")
    assert data_set.tags[0].value == "training"
    stored = client.list_artifacts(run.info.run_id, "pictures/step_00000003/eval")
    assert [file.path for file in stored] == ["pictures/step_00000003/eval/one (1).png"]
    series = [file.path for file in client.list_artifacts(run.info.run_id, "images")]
    assert all(path.startswith("images/eval~one _1_+step+3+") for path in series)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "RETRY_EVERY_S", 0.01)


class FakeServer:
    """Takes calls; can be away, and refuse some."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.is_away, self.refused = False, ""

    def probe(self) -> None:
        if self.is_away:
            raise ConnectionError("away")

    def take(self, what: str) -> None:
        self.probe()
        if what == self.refused:
            raise ValueError("no such thing")
        self.taken.append(what)


def test_what_is_sent_while_the_server_is_away_arrives_later_in_order(impatient):
    server = FakeServer()
    box = Outbox("there", server.probe)
    server.is_away = True
    for letter in "abc":
        box.add(letter, lambda letter=letter: server.take(letter))
    time.sleep(0.05)
    assert server.taken == []
    server.is_away = False
    assert box.close(patience_s=10) == []
    assert server.taken == ["a", "b", "c"]


def test_what_a_server_refuses_is_told_and_holds_up_nothing(impatient):
    server = FakeServer()
    server.refused = "b"
    box = Outbox("there", server.probe)
    for letter in "abc":
        box.add(letter, lambda letter=letter: server.take(letter))
    assert box.close(patience_s=10) == ["b (no such thing)"]
    assert server.taken == ["a", "c"]


def test_what_never_arrived_is_told_at_the_end(impatient):
    server = FakeServer()
    server.is_away = True
    box = Outbox("there", server.probe)
    box.add("a", lambda: server.take("a"))
    box.add("b", lambda: server.take("b"))
    assert box.close(patience_s=0.05) == ["a", "b"]


def test_names_are_made_to_fit_mlflow():
    assert metric_name("eval/retrieval/my set (1)/recall@5") == (
        "eval/retrieval/my set _1_/recall_at_5"
    )
