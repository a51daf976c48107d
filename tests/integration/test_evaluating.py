"""Evaluations as Ray tasks: each has its own end."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from clippo_core.checkpoints import load_checkpoint
from clippo_core.errors import ConfigError, SampleError
from pipelines.cli import main
from pipelines.config.resolution import resolve
from pipelines.config.settings import EvaluationOptions
from pipelines.datasets.sources import open_source
from pipelines.evaluation.retrieval_tasks import multilingual_retrieval, retrieval
from pipelines.evaluation.tasks import EvaluationTasks, parse_benchmark
from pipelines.reporting.reports import Benchmark, EvaluationReport
from pipelines.reporting.stored import stored_results, write_report
from pipelines.runtime.storage import Location
from pipelines.training.run import train
from tests.integration.colours import colour_samples, write_samples

pytestmark = pytest.mark.ray
CHECKPOINT = Path(__file__).parents[1] / "parity" / "reference" / "big_vision_checkpoint.npz"


def ends(tasks: EvaluationTasks, *, within_s: float = 60) -> list[EvaluationReport]:
    deadline, reports = time.monotonic() + within_s, []
    while tasks.num_running:
        assert time.monotonic() < deadline
        reports += tasks.finished(wait_s=0.2)
    return reports


def start(benchmarks: list[Benchmark], *, timeout_s: float, cpus: float = 1) -> EvaluationTasks:
    tasks = EvaluationTasks(benchmarks, EvaluationOptions(), cpus=cpus, timeout_s=timeout_s)
    tasks.start(str(CHECKPOINT))
    return tasks


def test_a_big_vision_checkpoint_is_evaluated_as_it_is(local_ray, colours):
    benchmarks = [parse_benchmark(f"{task}:{colours}") for task in ("zero_shot", "retrieval")]
    reports = {report.benchmark.task: report for report in ends(start(benchmarks, timeout_s=60))}
    assert {report.status for report in reports.values()} == {"ok"}
    assert {report.result["precision"] for report in reports.values()} == {"float32"}
    floors = {"chance": 0.25, "most frequent class": 0.25}
    assert reports["zero_shot"].result["floors"]["accuracy"] == floors
    assert reports["zero_shot"].pictures.keys() == {"predictions", "confusion"}
    assert reports["retrieval"].pictures.keys() == {"gallery"}
    recalls = reports["retrieval"].result["metrics"]
    assert 0 <= recalls["image_to_text_recall@1"] <= recalls["image_to_text_recall@10"] <= 1


def test_an_evaluation_that_hangs_is_stopped_at_its_time(local_ray, colours):
    # More CPUs than there are: the task waits for ever.
    tasks = start([parse_benchmark(f"zero_shot:{colours}")], timeout_s=1, cpus=99)
    (report,) = ends(tasks)
    assert (report.status, "not done after 1 s" in report.message) == ("timeout", True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a GPU here")
def test_a_gpu_that_torch_cannot_use_is_no_reason_to_take_the_cpu(local_ray, colours):
    benchmark = parse_benchmark(f"zero_shot:{colours}")
    tasks = EvaluationTasks([benchmark], EvaluationOptions(), cpus=1, gpus=0.5, timeout_s=60)
    tasks.start(str(CHECKPOINT))
    (report,) = ends(tasks)
    assert report.status == "failed"
    assert "Ray has set a GPU aside" in report.message


def test_an_unknown_evaluation_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"no evaluation is called 'zero'.*zero_shot"):
        parse_benchmark("zero:somewhere")


def test_each_language_is_a_retrieval_of_its_own(tmp_path):
    """The numbers of a language are those of `retrieval` on a set with its captions alone."""
    model = load_checkpoint(CHECKPOINT)
    samples = colour_samples(150)
    both = []
    for n, sample in enumerate(samples):
        tags = ["de", "fr", "fr"] if n % 5 else ["de", "rare"]
        captions = [f"{tag} {n} {place}" for place, tag in enumerate(tags)]
        both.append(sample._replace(captions=captions, languages=tags))
    source = open_source(str(write_samples(tmp_path / "both", both)))
    result = multilingual_retrieval(model, source, EvaluationOptions())
    per_language = result.details["per_language"]
    assert per_language.keys() == {"de", "fr"}, "30 pictures make no test of a language"
    assert {name: found["images"] for name, found in per_language.items()} == {"de": 150, "fr": 120}
    for language in ("de", "fr"):
        alone = [
            sample._replace(
                captions=[
                    text
                    for text, tag in zip(sample.captions, sample.languages, strict=True)
                    if tag == language
                ]
            )
            for sample in both
            if language in sample.languages
        ]
        folder = write_samples(tmp_path / language, alone)
        expected = retrieval(model, open_source(str(folder)), EvaluationOptions()).metrics
        for name in ("image_to_text_recall@1", "text_to_image_recall@5"):
            assert per_language[language][name] == expected[name]
    name = "image_to_text_recall@5"
    mean = (per_language["de"][name] + per_language["fr"][name]) / 2
    assert result.metrics[f"mean_{name}"] == pytest.approx(mean)
    assert result.metrics["languages"] == 2


def test_captions_of_unknown_language_are_no_test_of_languages(colours):
    with pytest.raises(SampleError, match="no language has captions of 100 pictures"):
        multilingual_retrieval(
            load_checkpoint(CHECKPOINT), open_source(str(colours)), EvaluationOptions()
        )


def test_what_is_there_is_not_measured_again(local_ray, tmp_path, capsys, monkeypatch):
    """Unless the data, the options or the weights are others, or a person asks for it."""
    data = write_samples(tmp_path / "data", colour_samples(40))
    checkpoint = tmp_path / "model.npz"
    checkpoint.write_bytes(CHECKPOINT.read_bytes())
    benchmarks = [f"zero_shot:{data}", "patch_filters"]
    words = ["evaluate", str(checkpoint), "--cpus", "0.25", "--tasks", *benchmarks]
    assert main(words) == 0
    printed = capsys.readouterr().out
    files = [Location.of(line) for line in printed.splitlines()[-2:]]
    assert sorted(file.name for file in files) == ["colours.json", "weights.json"]
    assert re.search(r"accuracy 0\.\d+ \[0\.\d+ to 0\.\d+; chance 0\.2500, most frequent", printed)

    def measured(*more: str) -> list[str]:
        """The tasks that would be started."""
        asked: list[str] = []

        def note(_evaluated, wanted) -> list[EvaluationReport]:
            asked.extend(benchmark.task for benchmark in wanted)
            return []

        monkeypatch.setattr("pipelines.cli.evaluate.evaluate", note)
        assert main([*words, *more]) == 0
        return asked

    assert measured() == []
    assert capsys.readouterr().out.count("as stored; --again measures anew") == 2
    assert measured("--again") == ["zero_shot", "patch_filters"]
    assert measured("--limit", "8") == ["zero_shot", "patch_filters"]
    assert measured("--templates", "clip7") == ["zero_shot", "patch_filters"]
    failed = files[0].read_json() | {"status": "timeout"}
    stored = {file.uri: file.read_json() for file in files}
    files[0].write_json(failed)
    assert measured() == [failed["task"]]
    for uri, content in stored.items():
        Location.of(uri).write_json(content)
    shutil.rmtree(data)
    write_samples(data, colour_samples(44))
    assert measured() == ["zero_shot"]
    stored_by_task = {content["task"]: content for content in stored.values()}
    assert stored_by_task["patch_filters"]["source"] == "weights"


def test_what_is_measured_later_is_beside_the_run_in_mlflow(local_ray, make_config):
    summary = train(resolve(make_config(train={"steps": 2, "checkpoint_every": 2})))
    assert main(["evaluate", summary.run.uri, "--cpus", "0.25", "--tasks", "patch_filters"]) == 0
    client, run = MlflowClient(summary.tracked.uri), summary.tracked
    (child,) = client.search_runs(
        [run.experiment_id], f"tags.`mlflow.parentRunId` = '{run.run_id}'"
    )
    assert child.info.status == "FINISHED"
    assert child.data.tags["clippo.task"] == "patch_filters"
    assert child.data.tags["clippo.step"] == "2"
    assert "explained_by_10" in child.data.metrics
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_a_failure_goes_when_the_evaluation_succeeds(tmp_path):
    folder, benchmark = Location.of(tmp_path), Benchmark("zero_shot", "/somewhere/test")
    failed = EvaluationReport("model", benchmark, "timeout", {}, "too long")
    place = write_report(failed, folder)
    assert stored_results(folder)["zero_shot/somewhere-test"]["message"] == "too long"
    result = {"source": "fashion-test", "limit": None, "metrics": {"accuracy": 0.5}}
    write_report(EvaluationReport("model", benchmark, "ok", result), folder)
    assert list(stored_results(folder)) == ["zero_shot/fashion-test"]
    assert not place.exists()
