"""A run on an MLflow server that is killed for a while in mid-run, and what is there afterwards."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

from clippo_core.checkpoints import load_checkpoint
from pipelines.config.resolution import resolve
from pipelines.runtime.run_checkpoints import whole_checkpoints
from pipelines.runtime.storage import Location
from pipelines.tracking import mlflow_run
from pipelines.tracking.models import CHAMPION
from pipelines.training.run import train
from tests.integration.mlflow_server import MlflowServer

pytestmark = [pytest.mark.ray, pytest.mark.slow]
STEPS, EVERY = 120, 30


@pytest.fixture
def server(tmp_path) -> Iterator[MlflowServer]:
    (tmp_path / "server").mkdir()
    server = MlflowServer(tmp_path / "server")
    server.start()
    yield server
    server.kill()


def away_for_a_checkpoint(server: MlflowServer, run: Location) -> None:
    """Kill the server at the first checkpoint, and start it again once there is another."""
    while not whole_checkpoints(run):
        time.sleep(0.05)
    server.kill()
    first = whole_checkpoints(run)[-1][0]
    while whole_checkpoints(run)[-1][0] < min(first + EVERY, STEPS):
        time.sleep(0.05)
    server.start()


def test_what_happens_while_the_server_is_away_is_there_afterwards(
    local_ray, make_config, colours, server, monkeypatch
):
    # On a busy machine the server may take long to come back.
    monkeypatch.setattr(mlflow_run, "PATIENCE_AT_END_S", 300.0)
    config = make_config(
        train={"steps": STEPS, "checkpoint_every": EVERY},
        evaluation={"tasks": (f"zero_shot:{colours}", f"retrieval:{colours}"), "cpus": 0.25},
        tracking={"uri": server.uri, "registered_model": "tiny", "pictures": True},
        storage={"keep_checkpoints": 2},
    )
    resolved = resolve(config)
    outage = threading.Thread(
        target=away_for_a_checkpoint, args=(server, resolved.run), daemon=True
    )
    outage.start()
    summary = train(resolved)
    outage.join()

    client = MlflowClient(server.uri, registry_uri=server.uri)
    run_id, experiment = summary.tracked.run_id, summary.tracked.experiment_id
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run_id, "train/loss")
    assert [point.step for point in history] == list(range(1, STEPS + 1))
    assert {
        "speed/mfu",
        "speed/is_bfloat16",
        "embedding/modality_gap",
        "memory/rss_gb/greatest",
    } <= set(run.data.metrics)
    assert run.data.metrics["mixture/colours/realised"] == 1
    check_documented(run.data.metrics)
    description = run.data.tags["mlflow.note.content"]
    assert description.startswith(f"**completed**, {STEPS} of {STEPS} steps\n- ")
    assert "zero_shot/colours: accuracy" in description
    assert "- limited by " in description
    (nodes,) = client.list_artifacts(run_id, "nodes")
    table = Path(client.download_artifacts(run_id, nodes.path)).read_text()
    assert table.startswith("node,metric,samples,least,mean,greatest\n")
    assert ",cpu_utilization_percentage," in table
    assert {d.dataset.name for d in run.inputs.dataset_inputs} == {"colours"}

    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'")
    found = Counter(r.data.tags["clippo.step"] for r in children if r.info.status == "FINISHED")
    assert found == {str(step): 2 for step in range(EVERY, STEPS + 1, EVERY)}
    last = [f.path for f in client.list_artifacts(run_id, f"pictures/step_{STEPS:08d}/batch")]
    assert {path.rpartition("/")[2] for path in last} == {
        "pairs.png",
        "rendered_texts.png",
        "similarity.png",
    }
    check_models(client, run_id, experiment)
    check_champion(client, server.uri, summary.run)


def check_documented(metrics: Iterable[str]) -> None:
    """Every chart stands in the table of docs/dashboard.md, under its section."""
    text = (Path(__file__).parents[2] / "docs/dashboard.md").read_text()
    table = text.partition("## All charts")[2].partition("## ")[0]
    rows = dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", table, re.MULTILINE))
    named = {
        section.partition("/")[0]: set(re.findall("`([^`]+)`", r)) for section, r in rows.items()
    }
    for metric in metrics:
        section, *parts = metric.split("/")
        if section in ("eval", "system", "rejected"):
            assert section in named
            continue
        parts = parts[1:] if section == "mixture" else parts
        stage = re.sub("^(read|decode|render)_", "…_", parts[0])
        assert {stage, *parts[1:]} <= named[section], metric


def check_models(client: MlflowClient, run_id: str, experiment: str) -> None:
    """Those of the checkpoints that are kept, and the champion; each with its metrics."""
    champion = client.get_model_version_by_alias("tiny", CHAMPION)
    models = client.search_logged_models([experiment])
    kept = {champion.tags["clippo.step"], str(STEPS), str(STEPS - EVERY)}
    assert {model.tags["clippo.step"] for model in models} == kept
    for model in models:
        assert model.source_run_id == run_id
        assert "eval/zero_shot/colours/accuracy" in {metric.key for metric in model.metrics}
    versions = client.search_model_versions("name='tiny'")
    assert {version.tags["clippo.step"] for version in versions} == kept


def check_champion(client: MlflowClient, uri: str, run: Location) -> None:
    """The alias is where the accuracy was best first; what it loads is that checkpoint."""
    champion = client.get_model_version_by_alias("tiny", CHAMPION)
    accuracies = client.get_metric_history(champion.run_id, "eval/zero_shot/colours/accuracy")
    best = max(point.value for point in accuracies)
    assert best == {str(p.step): p.value for p in accuracies}[champion.tags["clippo.step"]]
    newest = whole_checkpoints(run)[-1]
    version = next(
        v
        for v in client.search_model_versions("name='tiny'")
        if v.tags["clippo.step"] == str(newest[0])
    )
    mlflow.set_tracking_uri(uri)
    try:
        loaded = mlflow.pyfunc.load_model(f"models:/tiny/{version.version}")
        embeddings = loaded.predict([{"text": "a red patch"}, {"text": "grey number 3"}])
    finally:
        mlflow.set_tracking_uri(None)
    expected = load_checkpoint(newest[1].uri).encode_texts(["a red patch", "grey number 3"])
    np.testing.assert_allclose(embeddings, expected, atol=1e-6)
