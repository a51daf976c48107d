"""CLIP* and 1T-CLIP through the same pipeline as CLIPPO, with nothing but the model's config changed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from clippo_core.checkpoints import load_checkpoint, read_state
from clippo_core.checkpoints.open_clip_api import as_open_clip
from clippo_core.codec import to_json
from clippo_core.errors import CheckpointError, ConfigError
from clippo_core.modeling import Baseline
from clippo_core.rendering import TextRasters
from clippo_core.vocabulary import TokenTexts
from pipelines.cli import main
from pipelines.ingest.stages import from_block, prepare_batch, to_block
from pipelines.resolve import resolve
from pipelines.training.driver import train
from pipelines.training.vocabulary import with_vocabulary
from tests.integration.processes import start_command, wait_for_checkpoint
from tests.integration.test_training import logged, planned_keys, resumed_keys

pytestmark = [pytest.mark.ray, pytest.mark.slow]

BASELINES = ["tokens_one_tower", "tokens_two_towers"]


def model_of(text_input: str) -> dict:
    return {"text_input": text_input, "vocabulary_size": 320, "max_tokens": 8}


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

    other = dataclasses.replace(resolved.config.train, seed=7)
    data = dataclasses.replace(resolved.config.data, sources=config.data.sources * 2, weights=())
    moved = dataclasses.replace(resolved.config.storage, run="another")
    changed = dataclasses.replace(resolved.config, train=other, data=data, storage=moved)
    named = dataclasses.replace(changed.model, vocabulary_sha256="0" * 64)
    with pytest.raises(ConfigError, match="vocabulary-sha256 None"):
        with_vocabulary(resolve(dataclasses.replace(changed, model=named)))


@pytest.mark.parametrize("text_input", BASELINES)
def test_two_ranks_in_micro_batches_learn_what_one_learns(text_input, local_ray, make_config):
    parts = {"micro_batch_size": 3, "logit_rows": 5, "activation_checkpointing": True}
    cases = {
        "plain": ({}, {"num_ranks": 1}),
        "ranks": (parts, {"num_ranks": 2}),
        "divided": ({}, {"num_ranks": 2, "shard_weights": True}),
    }
    losses, embeddings = {}, {}
    for name, (settings, scaling) in cases.items():
        length = {"steps": 4, "image_patch_drop": 0.5, "unmasked_steps": 2, **settings}
        config = make_config(
            model=model_of(text_input), scaling=scaling, storage={"run": name}, train=length
        )
        summary = train(resolve(config))
        losses[name] = logged(summary)
        embeddings[name] = load_checkpoint(summary.checkpoint.uri).encode_texts(["a red patch"])
    for name in ("ranks", "divided"):
        for step in range(1, 5):
            assert losses[name][step] == pytest.approx(losses["plain"][step], abs=1e-4)
        np.testing.assert_allclose(embeddings[name], embeddings["plain"], atol=1e-3)


def test_a_killed_run_resumes_with_its_vocabulary(make_config, tmp_path):
    config = make_config(
        model=model_of("tokens_two_towers"), train={"steps": 150, "checkpoint_every": 20}
    )
    (tmp_path / "killed.json").write_text(to_json(config))
    folder = resolve(config).run
    process = start_command("train", str(tmp_path / "killed.json"))
    wait_for_checkpoint(folder, process)
    process.kill()
    process.communicate()
    process = start_command("resume", folder.uri)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert resumed_keys(folder) == planned_keys(config)
    assert read_state(output.splitlines()[-1]).values["step"] == 150
    (folder / "vocabulary.model").write_bytes(b"another")
    process = start_command("resume", folder.uri)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 2, output


def test_weights_to_start_from_are_of_the_same_kind(local_ray, make_config):
    with_tokens = {"model": model_of("tokens_one_tower"), "train": {"steps": 1}}
    first = train(resolve(make_config(**with_tokens)))
    start = {"init_from": first.checkpoint.uri, "steps": 1}
    second = train(resolve(make_config(**with_tokens | {"train": start}, storage={"run": "next"})))
    models = [load_checkpoint(summary.checkpoint.uri) for summary in (first, second)]
    assert models[0].config == models[1].config
    with pytest.raises(CheckpointError, match="another architecture"):
        train(resolve(make_config(train=start, storage={"run": "other"})))
