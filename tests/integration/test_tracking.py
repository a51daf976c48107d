"""What is told to MLflow arrives in order and once, or is named, whatever MLflow does."""

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
from pipelines.tracking import mlflow_queue
from pipelines.tracking.mlflow_client import DataSet, TrackedRun, metric_name
from pipelines.tracking.mlflow_queue import MlflowQueue
from pipelines.tracking.mlflow_run import RunTracker

RUN = TrackedRun("http://nowhere", "run", "1")


class FakeClient:
    """Holds what was logged; can be down, hang, refuse a call, and lose its answers."""

    def __init__(self) -> None:
        self.points: list[tuple[int, str, float]] = []
        self.taken: list[str] = []
        self.batch_sizes: list[int] = []
        self.is_down, self.refused = False, ""
        self.is_answer_lost = False
        self.hold = threading.Event()
        self.hold.set()

    def get_run(self, _run: str = "") -> None:
        self.hold.wait()
        if self.is_down:
            raise ConnectionError("down")

    def get_metric_history(self, _run: str, key: str) -> list[SimpleNamespace]:
        self.get_run()
        return [SimpleNamespace(step=step) for step, name, _ in self.points if name == key]

    def log_batch(self, _run: str, metrics) -> None:
        self.get_run()
        if self.refused == "metrics":
            raise ValueError("no such run")
        self.batch_sizes.append(len(metrics))
        self.points += [(metric.step, metric.key, metric.value) for metric in metrics]
        self.taken += [f"{metric.key} of {metric.step}" for metric in metrics]
        if self.is_answer_lost:
            self.is_answer_lost = False
            raise TimeoutError("no answer")

    def take(self, what: str) -> None:
        self.get_run()
        if what == self.refused:
            raise ValueError("no such thing")
        self.taken.append(what)

    def steps(self) -> list[int]:
        return [step for step, name, _ in self.points if name == "train/loss"]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    fake = FakeClient()
    monkeypatch.setattr(mlflow_queue, "connect", lambda _uri: fake)
    monkeypatch.setattr(mlflow_queue, "RETRY_EVERY_S", 0.01)
    return fake


def log_steps(queue: MlflowQueue, steps: range) -> None:
    for step in steps:
        queue.log(step, {"train/loss": 1 / step, "speed/pairs_per_s": 5.0})


def test_every_step_is_sent_in_order(client: FakeClient, tmp_path: Path):
    queue = MlflowQueue(RUN, spool=tmp_path / "spool.jsonl")
    log_steps(queue, range(1, 2001))
    queue.close()
    assert client.steps() == list(range(1, 2001))
    assert len(client.points) == 4000
    assert not (tmp_path / "spool.jsonl").exists()


def test_steps_that_are_done_again_after_a_restart_are_not_sent_again(client, tmp_path):
    first = MlflowQueue(RUN, spool=tmp_path / "spool.jsonl")
    log_steps(first, range(1, 31))
    first.close()
    second = MlflowQueue(RUN, spool=tmp_path / "spool.jsonl")
    log_steps(second, range(21, 41))
    second.close()
    assert client.steps() == list(range(1, 41))


def test_while_mlflow_is_down_points_wait_in_the_spool_and_are_sent_later(client, tmp_path):
    spool = tmp_path / "spool.jsonl"
    queue = MlflowQueue(RUN, spool=spool)
    client.is_down = True
    log_steps(queue, range(1, 11))
    queue.flush()
    assert [json.loads(line)["step"] for line in spool.read_text().splitlines()] == [*range(1, 11)]
    client.is_down = False
    time.sleep(0.02)
    log_steps(queue, range(11, 21))
    queue.close()
    assert client.steps() == list(range(1, 21))
    assert not spool.exists()


def test_what_a_killed_process_left_in_the_spool_is_sent_by_the_next(client, tmp_path):
    spool = tmp_path / "spool.jsonl"
    client.is_down = True
    first = MlflowQueue(RUN, spool=spool)
    log_steps(first, range(1, 6))
    first.close()
    client.is_down = False
    second = MlflowQueue(RUN, spool=spool)
    log_steps(second, range(4, 9))
    second.close()
    assert client.steps() == list(range(1, 9))


def test_logging_does_not_wait_for_a_server_that_hangs(client: FakeClient, tmp_path: Path):
    queue = MlflowQueue(RUN, spool=tmp_path / "spool.jsonl")
    client.hold.clear()
    log_steps(queue, range(1, 3))
    time.sleep(1.2)  # the thread is inside a call now
    started = time.monotonic()
    log_steps(queue, range(3, 1000))
    assert time.monotonic() - started < 1
    client.hold.set()
    queue.close()
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


def add_letters(queue: MlflowQueue, client: FakeClient, letters: str) -> None:
    for letter in letters:
        queue.add(letter, lambda letter=letter: client.take(letter))


def test_what_is_sent_while_the_server_is_away_arrives_later_in_order(client, caplog):
    queue = MlflowQueue(RUN)
    client.is_down = True
    add_letters(queue, client, "abc")
    queue.log(1, {"x": 1.0})
    add_letters(queue, client, "d")
    time.sleep(0.05)
    assert client.taken == []
    client.is_down = False
    assert queue.close(patience_s=10) == []
    assert client.taken == ["a", "b", "c", "x of 1", "d"]
    assert caplog.text.count("training goes on") == 1


def test_what_a_server_refuses_is_told_and_holds_up_nothing(client):
    client.refused = "b"
    queue = MlflowQueue(RUN)
    add_letters(queue, client, "abc")
    assert queue.close(patience_s=10) == ["b (no such thing)"]
    assert client.taken == ["a", "c"]


def test_what_never_arrived_is_told_at_the_end(client):
    client.is_down = True
    queue = MlflowQueue(RUN)
    add_letters(queue, client, "ab")
    queue.log(7, {"x": 1.0})
    assert queue.close(patience_s=0.05) == ["a", "b", "metrics of step 7"]


def test_metrics_that_a_server_refuses_stay_in_the_spool_or_are_told(client, tmp_path):
    client.refused = "metrics"
    spooled, plain = MlflowQueue(RUN, spool=tmp_path / "spool.jsonl"), MlflowQueue(RUN)
    for queue in (spooled, plain):
        log_steps(queue, range(1, 3))
    assert plain.close(patience_s=10) == ["metrics of steps 1 to 2 (no such run)"]
    spooled.flush()
    client.refused = ""
    spooled.close()
    assert client.steps() == [1, 2]


def test_steps_whose_answer_is_lost_are_not_sent_twice(client, tmp_path):
    client.is_answer_lost = True
    queue = MlflowQueue(RUN, spool=tmp_path / "spool.jsonl")
    log_steps(queue, range(10, 60, 10))
    queue.flush()
    queue.close(patience_s=10)
    assert client.steps() == [10, 20, 30, 40, 50]


def test_calls_have_at_most_a_thousand_metrics_and_whole_steps(client, tmp_path):
    queue = MlflowQueue(RUN, spool=tmp_path / "spool.jsonl")
    many = {f"mixture/{number}": 1.0 for number in range(398)}
    for step in range(1, 6):
        queue.log(step, {"train/loss": 1.0} | many)
    queue.log(6, {"train/loss": 1.0} | many | {f"rejected/{n}": 1.0 for n in range(1000)})
    queue.close()
    assert client.batch_sizes == [798, 798, 399, 399, 1000]
    assert client.points[-1000:][0][1] == "train/loss", "speaks for the rest, so it comes last"


def test_names_are_made_to_fit_mlflow():
    assert metric_name("eval/retrieval/my set (1)/recall@5") == (
        "eval/retrieval/my set _1_/recall_at_5"
    )
