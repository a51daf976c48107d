"""CLIP* and 1T-CLIP through the pipeline, with nothing but the model's config changed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from clippo_core.checkpoints import load_checkpoint, read_state, save_checkpoint
from clippo_core.checkpoints.open_clip_api import as_open_clip
from clippo_core.config import ClippoConfig, RenderConfig, VitConfig
from clippo_core.errors import CheckpointError, ConfigError
from clippo_core.modeling import Baseline, make_model
from clippo_core.rendering import TextRasters
from clippo_core.vocabulary import TokenTexts, Vocabulary, train_vocabulary
from pipelines.cli import main
from pipelines.config.resolution import read_run_config, resolve, validate
from pipelines.config.settings import EvaluationOptions
from pipelines.datasets.manifest import RawSample, ShardWriter
from pipelines.datasets.sources import open_source
from pipelines.evaluation.model_tasks import patch_filters_of
from pipelines.evaluation.tasks import find_evaluation
from pipelines.runtime.run_checkpoints import remove_checkpoint
from pipelines.runtime.storage import Location
from pipelines.serving.application import embed_queries
from pipelines.stream.batch import open_vocabulary, prepare_batch
from pipelines.stream.wire import from_block, to_block
from pipelines.training.run import train
from pipelines.training.token_vocabulary import with_vocabulary
from tests.integration.plain_loop import losses_of_a_plain_loop
from tests.integration.test_training import logged, planned_keys, resumed_keys

pytestmark = pytest.mark.ray

OPTIONS = EvaluationOptions(templates=("a {} patch",), limit=24)
BASELINES = ["tokens_one_tower", "tokens_two_towers"]


def model_of(text_input: str) -> dict:
    return {"text_input": text_input, "vocabulary_size": 320, "max_tokens": 8}


@pytest.mark.slow
@pytest.mark.parametrize("text_input", BASELINES)
def test_a_baseline_learns_and_its_checkpoint_works_everywhere(
    text_input, local_ray, make_config, tmp_path, colours, capsys
):
    config = make_config(
        model=model_of(text_input),
        train={"steps": 60, "checkpoint_every": 60},
        evaluation={
            "tasks": (f"zero_shot:{colours}", f"retrieval:{colours}", f"behaviour:{colours}"),
            "templates": ("a {} patch",),
            "cpus": 0.25,
            "limit": 40,
        },
    )
    summary = train(resolve(config))
    assert {report.status for report in summary.evaluations} == {"ok"}
    stored = summary.run / "evaluations" / summary.checkpoint.name / "zero_shot"
    result = (stored / "colours-first-40.json").read_json()
    assert result["metrics"]["accuracy"] > 0.8 > 3 * result["floors"]["accuracy"]["chance"]

    checkpoint = summary.checkpoint.uri
    model = load_checkpoint(checkpoint)
    assert isinstance(model, Baseline)
    texts = ["a red patch", "a blue patch", "Größe", ""]
    opened, _, tokenizer = as_open_clip(checkpoint)
    through_open_clip = opened.encode_text(tokenizer(texts)).detach().numpy()
    np.testing.assert_allclose(through_open_clip, model.encode_texts(texts), atol=1e-6)

    assert main(["convert", checkpoint, "--to", "native", "--out", str(tmp_path / "again")]) == 0
    assert "largest difference on a probe batch: 0\n" in capsys.readouterr().out
    again = load_checkpoint(tmp_path / "again")
    np.testing.assert_array_equal(again.encode_texts(texts), model.encode_texts(texts))
    assert main(["convert", checkpoint, "--to", "big_vision", "--out", str(tmp_path / "b")]) == 2
    assert "no place for a baseline" in capsys.readouterr().err


def test_texts_travel_as_tokens_of_the_runs_own_vocabulary(make_config):
    """What has no ink is rejected all the same: the pairs are those that CLIPPO sees."""
    config = make_config(model=model_of("tokens_two_towers"))
    resolved = with_vocabulary(resolve(config))
    assert with_vocabulary(resolve(config)).config == resolved.config, "the same texts and seed"
    spec = resolved.stream
    batch = prepare_batch(spec, spec.plan.batch(0), step=0)
    assert isinstance(batch.texts, TokenTexts)
    drawn = prepare_batch(resolve(config).stream, spec.plan.batch(0), step=0)
    assert isinstance(drawn.texts, TextRasters)
    assert drawn.keys == batch.keys
    again = from_block(to_block(batch), spec.render, spec.vocabulary)
    for sent, received in ((batch.texts, again.texts), (batch.left_texts, again.left_texts)):
        assert isinstance(received, TokenTexts)
        np.testing.assert_array_equal(received.ids, sent.ids)

    moved = dataclasses.replace(config.storage, run="another")
    named = dataclasses.replace(config.model, vocabulary_sha256="0" * 64)
    with pytest.raises(ConfigError, match="vocabulary-sha256 None"):
        with_vocabulary(resolve(dataclasses.replace(config, model=named, storage=moved)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text_input", "is_divided"), [("tokens_one_tower", True), ("tokens_two_towers", False)]
)
def test_two_ranks_in_micro_batches_learn_what_one_learns(
    text_input, is_divided, local_ray, make_config, tmp_path
):
    """Some of the pairs are texts alone, and some micro-batches hold no picture."""
    texts = ShardWriter(Location.of(tmp_path / "texts"), name="texts", kind="parallel-texts")
    for number, colour in enumerate(("red", "green", "blue", "grey") * 5):
        texts.add(RawSample(f"t{number}", None, [f"a {colour} patch", f"{colour} it is"], None))
    texts.close()
    mixture = {"sources": (*make_config().data.sources, str(tmp_path / "texts")), "text_share": 0.5}
    parts = {"micro_batch_size": 3, "logit_rows": 5, "activation_checkpointing": True}
    config = make_config(
        model=model_of(text_input),
        data=mixture,
        train={"steps": 5, **parts},
        scaling={"num_ranks": 2, "shard_weights": is_divided},
    )
    plain = losses_of_a_plain_loop(config)
    found = logged(train(resolve(config)))
    assert found.keys() == plain.keys()
    for step, loss in plain.items():
        assert found[step] == pytest.approx(loss, abs=1e-4)


@pytest.mark.slow
def test_a_run_goes_on_with_its_vocabulary(local_ray, make_config):
    config = make_config(
        model=model_of("tokens_two_towers"), train={"steps": 8, "checkpoint_every": 4}
    )
    folder = resolve(config).run
    last = train(resolve(config)).checkpoint
    expected = load_checkpoint(last.uri).encode_texts(["a red patch"])
    remove_checkpoint(last)
    resumed = train(resolve(read_run_config(folder)), is_resumed=True)
    assert resumed.checkpoint == last
    assert resumed_keys(folder) == planned_keys(config)
    assert read_state(last.uri).values["step"] == 8
    again = load_checkpoint(last.uri).encode_texts(["a red patch"])
    np.testing.assert_allclose(again, expected, atol=1e-5)
    (folder / "vocabulary.model").write_bytes(
        Vocabulary(train_vocabulary(["b"] * 9, size=300)).model
    )
    open_vocabulary.cache_clear()  # as in the process that a person resumes with
    with pytest.raises(ConfigError, match="not the vocabulary that the run began with"):
        with_vocabulary(resolve(read_run_config(folder)))


def test_weights_to_start_from_bring_their_vocabulary(make_config, tmp_path):
    vocabulary = Vocabulary(train_vocabulary(["another corpus", "of its own"] * 9, size=300))
    config = make_config(model=model_of("tokens_one_tower"))
    save_checkpoint(tmp_path / "start", make_model(config.model, vocabulary=vocabulary))
    start = {"init_from": str(tmp_path / "start")}
    resolved = resolve(make_config(model=model_of("tokens_one_tower"), train=start))
    validate(resolved)
    assert with_vocabulary(resolved).config.model.vocabulary_sha256 == vocabulary.sha256
    with pytest.raises(CheckpointError, match="another architecture"):
        validate(resolve(make_config(train=start)))


@pytest.fixture(scope="module")
def untrained() -> Baseline:
    vocabulary = Vocabulary(train_vocabulary(["a red patch", "blue number"] * 9, size=320))
    vit = VitConfig(width=32, depth=1, mlp_dim=64, num_heads=2, patch_size_px=16, embed_dim=16)
    config = ClippoConfig(
        vit=vit, render=RenderConfig(image_size_px=32), **model_of("tokens_two_towers")
    )
    model = make_model(config, vocabulary=vocabulary).eval()
    assert isinstance(model, Baseline)
    return model


def test_evaluations_take_a_baseline_like_any_model(untrained, colours, tmp_path):
    for task in ("typographic", "modality_gap", "behaviour"):
        found = find_evaluation(task)(untrained, open_source(str(colours)), OPTIONS)
        assert all(np.isfinite(value) for value in found.metrics.values()), task
        assert "upside_down_accuracy" not in found.metrics
    assert patch_filters_of(untrained).metrics
    place = Location.of(tmp_path / "texts")
    texts = ShardWriter(place, name="texts", kind="labelled-text", class_names=["red", "blue"])
    for number in range(8):
        words = "a" if number else "a red patch " * 9
        texts.add(RawSample(f"t{number}", None, [words], number % 2))
    texts.close()
    found = find_evaluation("text_zero_shot")(untrained, open_source(place.uri), OPTIONS)
    assert found.details["share_of_texts_that_fill_max_tokens"] == 1 / 8


def test_the_page_embeds_tokens_and_pictures_that_come_together(untrained):
    canvas = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    one, other = (untrained.prepare_texts([text]) for text in ("a red patch", "blue"))
    found = embed_queries(untrained, [one, canvas, other])
    expected = untrained.encode_texts(["a red patch", "blue"])
    np.testing.assert_allclose([found[0], found[2]], expected, atol=1e-6)
    np.testing.assert_allclose(found[1], untrained.encode_images(canvas[None])[0], atol=1e-6)
