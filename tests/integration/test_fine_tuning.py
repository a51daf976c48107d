"""Fine-tuning through Ray Data and Ray Train, its evaluations, and sweeps."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from clippo_core.checkpoints import load_checkpoint, save_checkpoint
from clippo_core.config import (
    ClassifierConfig,
    ClippoConfig,
    FineTuningTask,
    OptimConfig,
    RenderConfig,
    ScheduleConfig,
    VitConfig,
)
from clippo_core.errors import CheckpointError, ClippoError, ConfigError, SampleError
from clippo_core.modeling import Clippo, make_model
from clippo_core.modeling.classifier import Classifier
from clippo_core.vocabulary import Vocabulary, train_vocabulary
from cluster.job import _begun_run
from pipelines.cli import EXIT_INTERRUPTED, main
from pipelines.cli.finetune import read_arguments, with_own_start
from pipelines.config.fine_tuning import base_config, completed, model_of
from pipelines.config.resolution import read_run_config, resolve, validate
from pipelines.config.settings import (
    DataConfig,
    EvaluationOptions,
    RunConfig,
    ScalingConfig,
    StorageConfig,
    SweepSettings,
    TrackingConfig,
)
from pipelines.datasets.labels import find_labels
from pipelines.datasets.manifest import RawSample, ShardWriter
from pipelines.datasets.sources import Source, open_source
from pipelines.evaluation.tasks import EVALUATIONS, evaluate, parse_benchmark
from pipelines.figures.batch_sheets import draw_batch
from pipelines.reporting.stored import file_name, stored_report, write_report
from pipelines.runtime.run_checkpoints import whole_checkpoints
from pipelines.runtime.storage import Location, read_json_lines
from pipelines.stream.batch import prepare_batch
from pipelines.stream.wire import from_block, to_block
from pipelines.tracking.mlflow_client import connect
from pipelines.tracking.models import write_model
from pipelines.training.run import RunSummary, train
from pipelines.training.sweep import sweep
from tests.integration.colours import COLOURS, encoded_picture
from tests.integration.processes import start_command, wait_for_checkpoint
from tests.integration.test_training import keys_per_step, logged

pytestmark = pytest.mark.ray

WORDS = {"fruit": ("apple", "pear", "plum", "melon"), "beast": ("tiger", "wolf", "zebra", "horse")}
ANSWERS = [*COLOURS, "yes", "no"]
STEPS = 200


def labelled_set(
    folder: Path, name: str, samples: list[RawSample], classes: tuple[str, ...], kind: str
) -> Source:
    writer = ShardWriter(
        Location.of(folder),
        name=name,
        kind=kind,  # pyright: ignore[reportArgumentType]
        class_names=classes,
        evaluation_only=folder.name != "train",
    )
    for sample in samples:
        writer.add(sample)
    writer.close()
    return open_source(str(folder))


def word_samples(count: int, seed: int, classes: tuple[str, ...]) -> list[RawSample]:
    """Two words of one of two classes; no text says which."""
    random = np.random.default_rng(seed)
    names = [classes[n % 2] for n in range(count)]
    texts = [" ".join(random.choice(WORDS[name], 2)) for name in names]
    pairs = enumerate(zip(names, texts, strict=True))
    return [RawSample(f"w{n:04d}", None, [text], classes.index(name)) for n, (name, text) in pairs]


def question_samples(count: int) -> list[RawSample]:
    """Questions that need the picture; whether there is an odd colour needs the question, too."""
    names, samples = list(COLOURS), []
    for number in range(count):
        colour = names[number % 4]
        asked = names[number // 4 % 4]
        is_open = number % 8 < 4
        question = "what colour is it?" if is_open else f"is it {asked}?"
        answer = colour if is_open else ("yes" if asked == colour else "no")
        picture = encoded_picture(COLOURS[colour], number)
        samples.append(
            RawSample(f"q{number:04d}", picture, [answer], ANSWERS.index(answer), question=question)
        )
    return samples


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with fresh weights, and sets of words and of questions."""
    folder = tmp_path_factory.mktemp("fine-tuning")
    torch.manual_seed(0)
    vit = VitConfig(width=32, depth=1, mlp_dim=64, num_heads=2, patch_size_px=16, embed_dim=16)
    render = RenderConfig(image_size_px=64)
    model = Clippo(ClippoConfig(vit=vit, render=render, text_patches="occupied"))
    save_checkpoint(folder / "base", model)
    for split, count, seed, order in (("train", 160, 0, 1), ("test", 60, 1, -1)):
        # The test set numbers its classes the other way round: names count.
        classes = tuple(WORDS)[::order]
        samples = word_samples(count, seed, classes)
        labelled_set(folder / "words" / split, f"words-{split}", samples, classes, "labelled-text")
    for split, count in (("train", 160), ("test", 80)):
        labelled_set(
            folder / "questions" / split,
            f"questions-{split}",
            question_samples(count),
            tuple(ANSWERS),
            "image-question",
        )
    return folder


def config_of(
    place: Path,
    task: FineTuningTask,
    source: str,
    run: str,
    *,
    start: Path | None = None,
    **train_changes,
) -> RunConfig:
    checkpoint = Location.of(start or place / "base")
    base = base_config(task, model_of(checkpoint))
    schedule = ScheduleConfig(decay="constant", warmup_steps=0, cooldown_steps=0)
    fixed = {"steps": STEPS, "checkpoint_every": 50, "log_every": 1, "precision": "float32"}
    changes = fixed | train_changes
    config = dataclasses.replace(
        base,
        optim=OptimConfig(name="adamw", learning_rate=3e-3, schedule=schedule),
        data=DataConfig(sources=(str(place / source / "train"),), run_length=4, record_keys=True),
        train=dataclasses.replace(base.train, global_batch_size=16, **changes),
        scaling=ScalingConfig(renderer_cpus=0.5, max_renderers=2, max_failures=1),
        storage=StorageConfig(root=str(place / "runs"), run=run),
        tracking=TrackingConfig(pictures=False),
    )
    return completed(config, task, checkpoint)


@pytest.fixture(scope="module")
def undisturbed(local_ray, place: Path) -> RunSummary:
    """Words, learned by one rank."""
    config = config_of(place, "text_classification", "words", "undisturbed", checkpoint_every=STEPS)
    return train(resolve(config))


@pytest.mark.slow
def test_classes_of_texts_are_learned_and_measured_beside_training(undisturbed, place):
    assert logged(undisturbed)[1] == pytest.approx(np.log(2), abs=1e-3), "a fresh head is at chance"
    assert logged(undisturbed, "train/accuracy")[STEPS] == 1.0
    folder = undisturbed.run / "evaluations" / undisturbed.checkpoint.name
    result = (folder / "text_classification/words-test.json").read_json()
    assert result["status"] == "ok"
    assert result["metrics"]["accuracy"] > 0.9
    assert result["floors"]["accuracy"] == {"chance": 0.5, "most frequent class": 0.5}
    low, high = result["intervals"]["accuracy"]
    assert 0.5 < low <= result["metrics"]["accuracy"] <= high
    assert set(result["details"]["accuracy_per_class"]) == set(WORDS)
    model = load_checkpoint(undisturbed.checkpoint.uri)
    assert isinstance(model, Classifier)
    assert model.classifier_config.labels == tuple(WORDS)
    assert model.encode_texts(["a text"]).shape == (1, 16), "it embeds as before"


@pytest.mark.slow
def test_two_ranks_see_and_learn_what_one_does(undisturbed, place):
    config = config_of(place, "text_classification", "words", "two", checkpoint_every=STEPS)
    # An evaluation would only take time.
    config = dataclasses.replace(
        config,
        scaling=dataclasses.replace(config.scaling, num_ranks=2),
        evaluation=dataclasses.replace(config.evaluation, tasks=()),
    )
    found = train(resolve(config))
    assert keys_in_rank_order(found.run) == keys_per_step(undisturbed.run)
    losses, expected = logged(found), logged(undisturbed)
    assert losses.keys() == expected.keys() == set(range(1, STEPS + 1))
    for step in (1, 2, 10, 50):
        assert losses[step] == pytest.approx(expected[step], abs=1e-3)


def keys_in_rank_order(run: Location) -> dict[int, list[str]]:
    """Keys per step; steps that were made again must have seen the same."""
    parts: dict[tuple[int, int], list[str]] = {}
    for row in read_json_lines(run / "samples"):
        assert parts.setdefault((row["step"], row["rank"]), row["keys"]) == row["keys"]
    keys: dict[int, list[str]] = {}
    for step, rank in sorted(parts):
        keys.setdefault(step, []).extend(parts[step, rank])
    return keys


@pytest.fixture(scope="module")
def answering(local_ray, place: Path) -> RunSummary:
    """Questions, on a larger canvas than the checkpoint's, with an MLP on top."""
    config = config_of(place, "vqa", "questions", "answering", steps=120, checkpoint_every=120)
    render = dataclasses.replace(config.model.render, image_size_px=96)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, render=render),
        finetune=dataclasses.replace(config.finetune, hidden_dim=32),
    )
    return train(resolve(config))


@pytest.mark.slow
def test_questions_are_answered_and_need_picture_and_question(answering, place, tmp_path):
    checkpoint = answering.checkpoint
    benchmark = parse_benchmark(f"vqa:{place / 'questions/test'}")
    found = {}
    for blank in (None, "picture", "question"):
        options = EvaluationOptions(blank=blank)
        report = evaluate(checkpoint.uri, benchmark, options)
        written = write_report(report, Location.of(tmp_path))
        assert written.name == f"questions-test{'' if blank is None else f'-blank-{blank}'}.json"
        again = stored_report(
            checkpoint, report.result["model"], benchmark, options, Location.of(tmp_path)
        )
        assert again is not None
        assert file_name(again) == file_name(report)
        found[blank] = report.result
    accuracy = {blank: result["metrics"]["accuracy"] for blank, result in found.items()}
    floors = found[None]["floors"]["accuracy"]
    assert floors["most frequent answer"] < floors["most frequent answer to the question"]
    assert accuracy[None] > floors["most frequent answer to the question"] + 0.1
    assert accuracy["picture"] <= floors["most frequent answer to the question"] + 1e-9
    assert accuracy["question"] < accuracy[None]
    assert found[None]["details"]["share_with_an_answer_in_the_vocabulary"] == 1.0
    assert list(found[None]["also_read"]) == [str(place / "questions/train")]
    model = load_checkpoint(checkpoint.uri)
    assert model.config.render.image_size_px == 96


@pytest.mark.slow
def test_people_who_disagree_make_a_vqa_accuracy(answering, place, tmp_path):
    samples = question_samples(16)
    several = [s._replace(captions=[*(s.captions or [])] * 2 + ["puce"] * 2) for s in samples]
    source = labelled_set(
        tmp_path / "several", "several", several, tuple(ANSWERS), "image-question"
    )
    model = load_checkpoint(answering.checkpoint.uri)
    result = EVALUATIONS["vqa"](model, source, EvaluationOptions())
    assert list(result.metrics) == ["vqa_accuracy", "accuracy"]
    # Two of four people said so: 2/3, or 1/3 where one of them is left out.
    assert result.metrics["vqa_accuracy"] == pytest.approx(result.metrics["accuracy"] / 2)
    assert set(result.floors) == set(result.metrics)


@pytest.mark.slow
def test_a_stopped_sweep_goes_on_by_the_same_command_and_keeps_the_best(
    local_ray, place, tmp_path, capsys
):
    words = ["finetune", "text_classification", "--checkpoint", str(place / "base")]
    words += ["--data.sources", str(place / "words/train"), "--data.record-keys"]
    words += ["--train.steps", "100", "--train.global-batch-size", "16"]
    words += ["--train.checkpoint-every", "50", "--tracking.no-pictures"]
    words += ["--storage.root", str(tmp_path), "--storage.run", "sweep"]
    words += ["--sweep.learning-rates", "1e-7", "3e-3", "--sweep.held-out-share", "0.2"]
    folder = Location.of(tmp_path) / "sweep"
    run = folder / "learning-rate-1e-07"
    process = start_command(*words)
    wait_for_checkpoint(run, process)
    process.terminate()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == EXIT_INTERRUPTED, output
    assert f"the same command goes on from the last checkpoints in {folder.uri}" in output
    assert not (folder / "sweep.json").exists()
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    runs = client.search_runs([experiment.experiment_id])
    assert [r.info.status for r in runs if r.info.run_name == "sweep"] == ["KILLED"]
    stopped_at = whole_checkpoints(run)[-1][0]

    assert main(words) == 0
    assert "0.003" in capsys.readouterr().out
    stored = (folder / "sweep.json").read_json()
    trials = stored["trials"]
    assert [trial["learning_rate"] for trial in trials] == [1e-7, 3e-3]
    worse, better = trials
    assert better["score"] > worse["score"]
    assert stored["best"] == "learning-rate-0.003"
    check_held_out(folder, Location.of(better["run"]), stored["num_held_out"], place)
    for trial in trials:
        assert whole_checkpoints(Location.of(trial["run"]))[-1][0] == 100
    # The first run went on from its last checkpoint; what it had done after that was the same.
    attempts = {name.split("-rank")[0] for name in (run / "samples").names()}
    assert len(attempts) == (2 if stopped_at < 100 else 1)
    keys: dict[int, list[str]] = {}
    for row in read_json_lines(run / "samples"):
        assert keys.setdefault(row["step"], row["keys"]) == row["keys"]
    assert sorted(keys) == list(range(100))


def check_held_out(sweep: Location, run: Location, count: int, place: Path) -> None:
    """That a run saw nothing of what it is measured on, and MLflow knows it as the best."""
    seen = {key for row in read_json_lines(run / "samples") for key in row["keys"]}
    data = sweep / "data" / "0"
    held_out = {sample.key for sample in open_source((data / "held_out").uri)}
    assert len(held_out) == count
    assert not seen & held_out
    everything = {sample.key for sample in open_source(str(place / "words/train"))}
    assert {s.key for s in open_source((data / "train").uri)} | held_out == everything
    tracked = (run / "mlflow.json").read_json()
    client = MlflowClient(tracked["uri"])
    parent = client.get_run(tracked["run_id"]).data.tags["mlflow.parentRunId"]
    assert client.get_run(parent).data.tags["clippo.best_run"] == run.uri


def test_what_a_sweep_cannot_do_is_refused(place):
    config = config_of(place, "text_classification", "words", "refused")
    for changes, message in (
        ({"learning_rates": (1e-3, 1e-3)}, "different numbers"),
        ({"held_out_share": 1.0}, "held-out-share"),
        ({"concurrent": 0}, "concurrent"),
    ):
        settings = dataclasses.replace(SweepSettings(learning_rates=(1e-3,)), **changes)
        with pytest.raises(ConfigError, match=message):
            sweep(config, settings)


def glue_set(folder: Path, task: str, split: str = "dev") -> Source:
    """Eight pairs of sentences with classes, or with scores."""
    is_scored = task == "sts-b"
    samples = [
        RawSample(
            f"{n}",
            None,
            [f"sentence {n}", "another one"],
            None if is_scored else n % 2,
            score=n / 2 if is_scored else None,
        )
        for n in range(8)
    ]
    classes = () if is_scored else ("not_equivalent", "equivalent")
    name = f"glue_{task}-{split}"
    return labelled_set(folder / task / split, name, samples, classes, "labelled-text")


def test_glue_is_scored_by_its_own_metrics(place, tmp_path):
    model = load_checkpoint(place / "base")
    for task, metrics in (("mrpc", ["f1", "accuracy"]), ("sts-b", ["spearman", "pearson"])):
        source = glue_set(tmp_path, task)
        classifier = find_labels("glue", [source])
        assert classifier.glue_task == task
        tuned = make_model(model.config, classifier=classifier).eval()
        assert isinstance(tuned, Classifier)
        torch.nn.init.normal_(tuned.classifier.output.kernel, std=5)
        result = EVALUATIONS["glue"](tuned, source, EvaluationOptions())
        assert list(result.metrics) == metrics
        assert set(result.floors) == set(result.intervals) == set(metrics)
        other = glue_set(tmp_path / "other", "rte")
        with pytest.raises(SampleError, match=f"is of rte, but .* fine-tuned for {task}"):
            EVALUATIONS["glue"](tuned, other, EvaluationOptions())
    assert classifier.score_mean == pytest.approx(1.75)
    with pytest.raises(SampleError, match="is no set of GLUE"):
        find_labels("glue", [open_source(str(place / "words/train"))])


def test_a_batch_of_labels_survives_its_block(place):
    for task, source in (("text_classification", "words"), ("vqa", "questions")):
        resolved = resolve(config_of(place, task, source, "none"))
        spec = resolved.stream
        batch = prepare_batch(spec, spec.plan.batch(0), step=0)
        again = from_block(to_block(batch), spec.render)
        assert batch.targets is not None
        assert again.targets is not None
        np.testing.assert_array_equal(again.targets, batch.targets)
        np.testing.assert_array_equal(again.images, batch.images)
        np.testing.assert_array_equal(again.texts.to_pixels(), batch.texts.to_pixels())
        assert again.keys == batch.keys
        samples = {s.key: s for s in resolved.sources[0]}
        for key, target in zip(batch.keys, batch.targets, strict=True):
            assert target.argmax() == samples[key].class_id
            assert target.sum() == 1
        assert draw_batch(spec, resolved.config, None).keys() == {"samples"}


@pytest.mark.slow
def test_pictures_of_samples_say_what_a_checkpoint_takes_them_for(undisturbed, answering):
    for summary in (undisturbed, answering):
        resolved = resolve(read_run_config(summary.run))
        pictures = draw_batch(resolved.stream, resolved.config, summary.checkpoint.uri)
        assert pictures["samples"].startswith(b"\x89PNG")


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) in (2, 3)
    return capsys.readouterr().err


def test_what_cannot_be_fine_tuned_is_refused_with_what_to_do(place, capsys):
    base, words = str(place / "base"), str(place / "words/train")
    questions = str(place / "questions/train")
    start = ["--checkpoint", base, "--data.sources"]
    for command, message in (
        (["finetune", "poems"], "there are text_classification, glue, vqa"),
        (["finetune", "vqa", "--data.sources", questions], "needs --checkpoint"),
        (["finetune", "text_classification", *start, questions], "needs labelled-text"),
        (["finetune", "vqa", *start, words], "needs image-question"),
        (["finetune", "glue", *start, words], "is no set of GLUE"),
        (["finetune", "vqa", *start, str(place / "questions/test")], "for evaluation only"),
        (["finetune", "vqa", "--checkpoint", "nowhere"], "nowhere does not exist"),
        (
            ["evaluate", base, "--tasks", f"text_classification:{words}", "--blank", "picture"],
            "--blank is for vqa",
        ),
    ):
        assert message in refused(command, capsys), command


@pytest.fixture(scope="module")
def baseline(place: Path) -> Path:
    """A checkpoint of CLIP* with fresh weights."""
    model = load_checkpoint(place / "base")
    texts = [f"the {one} and the {other}" for one in WORDS["fruit"] for other in WORDS["beast"]]
    vocabulary = Vocabulary(train_vocabulary(texts * 20, size=300))
    tokens = dataclasses.replace(
        model.config, text_input="tokens_two_towers", vocabulary_size=300, max_tokens=16
    )
    save_checkpoint(place / "tokens", make_model(tokens, vocabulary=vocabulary))
    return place / "tokens"


@pytest.mark.slow
def test_a_baseline_learns_classes_of_texts_on_two_ranks(local_ray, place, baseline):
    config = config_of(
        place, "text_classification", "words", "tokens", start=baseline, checkpoint_every=STEPS
    )
    config = dataclasses.replace(config, scaling=dataclasses.replace(config.scaling, num_ranks=2))
    resolved = resolve(config)
    validate(resolved)
    summary = train(resolved)
    (report,) = summary.evaluations
    assert report.result["metrics"]["accuracy"] > 0.9
    assert "share_of_texts_that_fill_max_tokens" in report.result["details"]
    model = load_checkpoint(summary.checkpoint.uri)
    assert isinstance(model, Classifier)
    assert model.config.text_input == "tokens_two_towers"
    assert model.vocabulary is not None
    spec = resolve(read_run_config(summary.run)).stream
    assert spec.vocabulary is not None
    assert list(draw_batch(spec, config, summary.checkpoint.uri)) == ["samples"]


def test_a_baseline_is_asked_no_questions_about_pictures(baseline, capsys):
    words = ["finetune", "vqa", "--checkpoint", str(baseline)]
    assert "is a baseline that reads tokens" in refused(words, capsys)


@pytest.mark.slow
def test_a_job_that_is_tried_again_goes_on_with_its_run(undisturbed, place):
    words = ["finetune", "text_classification", "--checkpoint", str(place / "base")]
    words += ["--data.sources", str(place / "words"), "--storage.root", str(place / "runs")]
    begun = _begun_run([*words, "--storage.run", undisturbed.run.name])
    assert begun is not None
    assert begun.train.init_from == str(place / "base")
    assert _begun_run([*words, "--storage.run", "another"]) is None
    assert _begun_run(words) is None


def test_a_registered_model_is_copied_into_the_run_that_starts_from_it(
    place, tmp_path, monkeypatch
):
    """It is on this disk while a command lasts; a later `resume` needs it, too."""
    uri, config = f"sqlite:///{tmp_path}/mlflow.db", load_checkpoint(place / "base").config
    write_model(tmp_path / "model", place / "base", config, run_id="r", model_id="m")
    client = connect(uri)
    client.create_registered_model("words")
    version = client.create_model_version("words", str(tmp_path / "model")).version
    client.set_registered_model_alias("words", "champion", version)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    words = ["text_classification", "--checkpoint", "models:/words@champion"]
    words += ["--data.sources", str(place / "words"), "--storage.root", str(tmp_path)]
    arguments, found = read_arguments([*words, "--storage.run", "tuned"])
    started = with_own_start(found, str(arguments.checkpoint))
    assert started.train.init_from == str(tmp_path / "tuned" / "start")
    resolved = resolve(started)
    assert validate(resolved) == {"words-train": 0}
    kept, base = (load_checkpoint(path) for path in (tmp_path / "tuned/start", place / "base"))
    np.testing.assert_array_equal(kept.encode_texts(["wolf"]), base.encode_texts(["wolf"]))


def test_dry_run_says_what_would_be_done(place, capsys):
    code = main(
        [
            *("finetune", "text_classification", "--checkpoint", str(place / "base")),
            *("--data.sources", str(place / "words"), "--image-size-px", "96", "--dry-run"),
        ]
    )
    output = capsys.readouterr().out
    assert code == 0
    assert "loss_at_chance: 0.6931" in output
    assert "patches_per_canvas: 36" in output
    assert "would train in" in output


@pytest.mark.slow
def test_models_are_measured_only_as_what_they_were_tuned_for(place, undisturbed):
    plain, tuned = load_checkpoint(place / "base"), load_checkpoint(undisturbed.checkpoint.uri)
    questions, words = (open_source(str(place / n / "test")) for n in ("questions", "words"))
    with pytest.raises(
        CheckpointError, match=r"(?s)has no classifier, and vqa needs.*finetune vqa"
    ):
        EVALUATIONS["vqa"](plain, questions, EvaluationOptions())
    with pytest.raises(CheckpointError, match="is fine-tuned for text_classification, and vqa"):
        EVALUATIONS["vqa"](tuned, questions, EvaluationOptions())
    with pytest.raises(CheckpointError, match="has no classifier"):
        EVALUATIONS["text_classification"](plain, words, EvaluationOptions())


@pytest.mark.slow
def test_unknown_labels_of_a_test_set_are_named(undisturbed, tmp_path):
    source = labelled_set(
        tmp_path / "odd",
        "odd",
        [*word_samples(4, 0, tuple(WORDS)), RawSample("x", None, ["granite"], 2)],
        (*WORDS, "stone"),
        "labelled-text",
    )
    model = load_checkpoint(undisturbed.checkpoint.uri)
    with pytest.raises(SampleError, match=r"not trained on: \['stone'\]; it knows \['fruit'"):
        EVALUATIONS["text_classification"](model, source, EvaluationOptions())


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_labels(undisturbed, place, tmp_path):
    config = read_run_config(undisturbed.run)
    shutil.copytree(place / "words", tmp_path / "words")
    manifest = tmp_path / "words" / "train" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "class_names": ["fruit", "monster"]}))
    data = dataclasses.replace(config.data, sources=(str(tmp_path / "words" / "train"),))
    with pytest.raises(ConfigError, match=r"gone: \['beast'\], new: \['monster'\]"):
        validate(resolve(dataclasses.replace(config, data=data)))


def test_samples_without_a_label_are_rejected_by_key(place, tmp_path):
    samples = word_samples(40, 0, tuple(WORDS))
    bad = [s._replace(class_id=None) if n % 5 == 0 else s for n, s in enumerate(samples)]
    labelled_set(tmp_path / "holes" / "train", "holes", bad, tuple(WORDS), "labelled-text")
    config = config_of(place, "text_classification", "words", "holes")
    data = dataclasses.replace(config.data, sources=(str(tmp_path / "holes" / "train"),))
    resolved = resolve(dataclasses.replace(config, data=data))
    assert validate(resolved) == {"holes": 8}
    spec = resolved.stream
    batch = prepare_batch(spec, spec.plan.batch(0), step=0)
    assert {row.reason for row in batch.rejected} <= {"missing_label"}
    labelled = {s.key for s in bad if s.class_id is not None}
    assert set(batch.keys) <= labelled


def test_sets_with_different_labels_do_not_go_together(place, tmp_path):
    other = labelled_set(
        tmp_path / "train", "other", word_samples(4, 0, tuple(WORDS)), (*WORDS, "stone"),
        "labelled-text",
    )  # fmt: skip
    with pytest.raises(SampleError, match="different labels"):
        find_labels("text_classification", [open_source(str(place / "words/train")), other])


def test_configs_that_contradict_are_refused(place):
    config = config_of(place, "text_classification", "words", "none")
    with pytest.raises(ClippoError, match="image_patch_drop"):
        dataclasses.replace(config, train=dataclasses.replace(config.train, image_patch_drop=0.5))
    assert ClassifierConfig(task="vqa", labels=("a", "b")).num_outputs == 2
