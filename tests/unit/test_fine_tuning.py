"""Heads, losses and labels of fine-tuning, and the checkpoints that hold them."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from clippo_core.checkpoints import (
    load_checkpoint,
    model_identity,
    read_classifier,
    save_checkpoint,
)
from clippo_core.config import (
    ClassifierConfig,
    ClippoConfig,
    OptimConfig,
    RenderConfig,
    ScheduleConfig,
    VitConfig,
)
from clippo_core.errors import CheckpointError, ConfigError, Rejected
from clippo_core.evaluation.few_shot import pooled_features
from clippo_core.evaluation.vqa import vqa_accuracies
from clippo_core.modeling import Clippo, make_model
from clippo_core.modeling.classifier import HEAD_PREFIX, Classifier
from clippo_core.training.fine_tuning import (
    LabelledBatch,
    classification_loss,
    fine_tuning_step,
    loss_at_chance,
)
from clippo_core.training.state import TrainState
from clippo_core.training.step import Shard, StepMemory, StepOptions
from clippo_core.vocabulary import Vocabulary, train_vocabulary
from pipelines.datasets.labels import Labels, LabelSpec, digest_of_labels, target_of, text_of
from pipelines.datasets.manifest import RawSample

CONFIG = ClippoConfig(
    vit=VitConfig(width=16, depth=1, mlp_dim=32, num_heads=2, patch_size_px=16, embed_dim=8),
    render=RenderConfig(image_size_px=64),
    text_patches="occupied",
)
OPTIM = OptimConfig(
    name="adamw",
    learning_rate=1e-2,
    schedule=ScheduleConfig(decay="constant", warmup_steps=0, cooldown_steps=0),
)
WORDS = ClassifierConfig(task="text_classification", labels=("fruit", "beast", "stone"))
ANSWERS = ClassifierConfig(task="vqa", labels=("yes", "no", "red", "2"))
SCORES = ClassifierConfig(task="glue", glue_task="sts-b", score_mean=2.5, score_deviation=1.5)


def state_of(classifier: ClassifierConfig, **changes) -> TrainState:
    model = make_model(CONFIG, seed=0, classifier=classifier)
    return TrainState.create(model, OPTIM, **changes)


def text_batch(state: TrainState, classifier: ClassifierConfig, count: int = 6) -> LabelledBatch:
    words = ["apple", "tiger", "basalt"]
    texts = state.model.renderer.render_batch([words[n % 3] for n in range(count)])
    targets = torch.eye(3)[torch.arange(count) % 3]
    if classifier.is_regression:
        targets = torch.linspace(-1, 1, count)[:, None]
    return LabelledBatch(torch.empty((0, 64, 64, 3), dtype=torch.uint8), texts, targets)


def test_each_task_has_the_loss_that_its_formula_says():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn((5, 3), generator=generator)
    chosen = torch.tensor([0, 2, 1, 1, 0])
    softmax = outputs.exp() / outputs.exp().sum(1, keepdim=True)
    expected = -sum(float(softmax[row, chosen[row]].log()) for row in range(5)) / 5
    found = classification_loss(outputs, torch.eye(3)[chosen], WORDS)
    assert float(found) == pytest.approx(expected, rel=1e-5)

    outputs = torch.randn((5, 4), generator=generator)
    soft = torch.rand((5, 4), generator=generator)
    p = 1 / (1 + (-outputs).exp())
    expected = float(-(soft * p.log() + (1 - soft) * (1 - p).log()).sum() / 5)
    assert float(classification_loss(outputs, soft, ANSWERS)) == pytest.approx(expected, rel=1e-5)

    outputs, scores = torch.randn((5, 1), generator=generator), torch.rand((5, 1))
    expected = float(((outputs - scores) ** 2).mean())
    assert float(classification_loss(outputs, scores, SCORES)) == pytest.approx(expected)


@pytest.mark.parametrize("hidden", [None, 5])
@pytest.mark.parametrize("classifier", [WORDS, ANSWERS])
def test_a_fresh_head_has_the_loss_of_chance(classifier: ClassifierConfig, hidden):
    classifier = dataclasses.replace(classifier, hidden_dim=hidden)
    model = state_of(classifier).model
    assert isinstance(model, Classifier)
    outputs = torch.from_numpy(model.outputs_of_texts(["a word", "another"]))
    one_right = torch.eye(classifier.num_outputs)[[0, 1]]
    loss = float(classification_loss(outputs, one_right, classifier))
    assert loss == pytest.approx(loss_at_chance(classifier), rel=1e-5)


def test_the_head_reads_the_pooled_features_before_the_embedding_head():
    state = state_of(dataclasses.replace(WORDS, hidden_dim=7))
    model = state.model
    assert isinstance(model, Classifier)
    torch.nn.init.normal_(model.classifier.output.kernel)
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    features = torch.from_numpy(pooled_features(model, images, batch_size=2))
    with torch.no_grad():
        expected = model.classifier(features).numpy()
    np.testing.assert_allclose(model.outputs_of_images(images, batch_size=2), expected, atol=1e-5)


def test_scores_come_out_in_the_unit_that_they_went_in():
    model = state_of(SCORES).model
    assert isinstance(model, Classifier)
    np.testing.assert_allclose(model.outputs_of_texts(["one", "two"]), 2.5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("classifier", [WORDS, SCORES])
def test_steps_learn_and_leave_the_embedding_head_alone(classifier: ClassifierConfig, optimizer):
    optim = dataclasses.replace(OPTIM, name=optimizer)
    state = TrainState.create(make_model(CONFIG, seed=0, classifier=classifier), optim)
    batch = text_batch(state, classifier, count=3)
    before = state.model.encoder.head.kernel.detach().clone()
    losses = [
        float(fine_tuning_step(state, batch, optim, total_steps=99)["loss"]) for _ in range(60)
    ]
    assert losses[-1] < 0.1 * losses[0]
    assert torch.equal(state.model.encoder.head.kernel, before)
    assert (state.step, state.samples_seen) == (60, 180)


@pytest.mark.parametrize("text_input", ["tokens_one_tower", "tokens_two_towers"])
def test_a_baseline_learns_by_what_reads_texts_alone(text_input, tmp_path: Path):
    words = ["apple", "tiger", "basalt"]
    vocabulary = Vocabulary(train_vocabulary(words * 20, size=300))
    config = dataclasses.replace(CONFIG, text_input=text_input, vocabulary_size=300, max_tokens=8)
    model = make_model(config, seed=0, vocabulary=vocabulary, classifier=WORDS)
    state = TrainState.create(model, OPTIM)
    assert isinstance(model, Classifier)
    no_images = torch.empty((0, 64, 64, 3), dtype=torch.uint8)
    batch = LabelledBatch(no_images, model.prepare_texts(words), torch.eye(3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = [
        float(fine_tuning_step(state, batch, OPTIM, total_steps=99)["loss"]) for _ in range(60)
    ]
    assert losses[0] == pytest.approx(loss_at_chance(WORDS), rel=1e-5)
    assert losses[-1] < 0.1 * losses[0]
    frozen = {
        name for name, value in model.state_dict().items() if torch.equal(value, before[name])
    }
    expected = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert frozen == expected
    assert "encoder.patch_embedding.kernel" in frozen
    # Ranks that exchange gradients need one for each parameter that is trained.
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    shared = {name for name in before if name.startswith("encoder.blocks")}
    assert (shared <= frozen) == (text_input == "tokens_two_towers")
    state.save(tmp_path / "tuned")
    again = load_checkpoint(tmp_path / "tuned")
    assert isinstance(again, Classifier)
    np.testing.assert_array_equal(
        again.outputs_of_texts(words), model.eval().outputs_of_texts(words)
    )
    with pytest.raises(ConfigError, match="vqa draws questions"):
        make_model(config, vocabulary=vocabulary, classifier=ANSWERS)


def test_micro_batches_and_shards_add_up_to_the_batch():
    whole, parts = state_of(WORDS), state_of(WORDS)
    batch = text_batch(whole, WORDS)
    by_fours = StepOptions(memory=StepMemory(micro_batch_size=4))
    for _ in range(3):
        one = fine_tuning_step(whole, batch, OPTIM, total_steps=9)
        other = fine_tuning_step(parts, batch, OPTIM, total_steps=9, options=by_fours)
        for name, value in one.items():
            assert float(other[name]) == pytest.approx(float(value), rel=1e-4), name
    halves = [state_of(WORDS) for _ in range(2)]
    reference = fine_tuning_step(state_of(WORDS), batch, OPTIM, total_steps=9)
    for name in ("loss", "accuracy"):
        values = [
            float(
                fine_tuning_step(
                    halves[number],
                    batch.part(3 * number, 3 * number + 3),
                    OPTIM,
                    total_steps=9,
                    options=StepOptions(shard=Shard(number, 2)),
                )[name]
            )
            for number in range(2)
        ]
        halves = [state_of(WORDS) for _ in range(2)]
        assert sum(values) == pytest.approx(float(reference[name]), rel=1e-4)


def test_a_fine_tuned_checkpoint_is_whole_and_says_its_labels(tmp_path: Path):
    state = state_of(dataclasses.replace(WORDS, hidden_dim=5))
    batch = text_batch(state, WORDS)
    fine_tuning_step(state, batch, OPTIM, total_steps=9)
    state.save(tmp_path / "tuned", extra={"rejected": {}})
    again = load_checkpoint(tmp_path / "tuned")
    assert isinstance(again, Classifier)
    assert isinstance(state.model, Classifier)
    assert again.classifier_config == state.model.classifier_config
    texts = ["apple", "tiger"]
    np.testing.assert_array_equal(
        again.outputs_of_texts(texts), state.model.eval().outputs_of_texts(texts)
    )
    np.testing.assert_array_equal(again.encode_texts(texts), state.model.encode_texts(texts))
    resumed = state_of(dataclasses.replace(WORDS, hidden_dim=5))
    resumed.restore(tmp_path / "tuned")
    for current in (state, resumed):
        fine_tuning_step(current, batch, OPTIM, total_steps=9)
    for name, value in state.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    larger = load_checkpoint(tmp_path / "tuned", image_size_px=96)
    assert isinstance(larger, Classifier)


def test_identities_differ_by_labels_and_damage_is_refused(tmp_path: Path):
    model = state_of(WORDS).model
    other = dataclasses.replace(WORDS, labels=("stone", "beast", "fruit"))
    renamed = make_model(CONFIG, classifier=other)
    renamed.load_state_dict(model.state_dict())
    assert model_identity(model) != model_identity(renamed)
    save_checkpoint(tmp_path / "tuned", model)
    config = tmp_path / "tuned" / "config.json"
    good = json.loads(config.read_text())
    for bad, message in (
        ({**good["classifier"], "labels": ["fruit", "beast"]}, "do not fit the model"),
        ({**good["classifier"], "labels": ["fruit"]}, "expected two or more"),
        ({**good["classifier"], "colour": "red"}, "(?s)classifier in .*colour"),
    ):
        config.write_text(json.dumps({**good, "classifier": bad}))
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(tmp_path / "tuned")
    del good["classifier"]
    config.write_text(json.dumps(good))
    with pytest.raises(CheckpointError, match="do not fit the model"):
        load_checkpoint(tmp_path / "tuned")


def test_training_starts_from_the_encoder_of_any_checkpoint_with_a_fresh_head(tmp_path: Path):
    torch.manual_seed(3)
    save_checkpoint(tmp_path / "plain", Clippo(CONFIG))
    tuned = state_of(WORDS, init_from=tmp_path / "plain")
    fine_tuning_step(tuned, text_batch(tuned, WORDS), OPTIM, total_steps=9)
    tuned.save(tmp_path / "tuned")
    assert read_classifier(tmp_path / "plain") is None
    assert read_classifier(tmp_path / "tuned") == WORDS
    for name in ("plain", "tuned"):
        state = state_of(ANSWERS, init_from=tmp_path / name)
        given = load_checkpoint(tmp_path / name).state_dict()
        for key, value in state.model.state_dict().items():
            if key.startswith(HEAD_PREFIX):
                assert not value.any() or key.endswith("bias")
            else:
                assert torch.equal(value, given[key]), key


def test_what_a_classifier_cannot_be_is_refused():
    for changes, message in (
        ({"labels": ("one",)}, "two or more"),
        ({"labels": ("a", "a")}, "twice"),
        ({"labels": ()}, "needs labels"),
        ({"hidden_dim": 0}, "hidden_dim=0"),
        ({"score_deviation": 0.0}, "above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(WORDS, **changes)


def spec_of(config: ClassifierConfig) -> LabelSpec:
    return LabelSpec(
        config.task,
        config.num_outputs,
        digest_of_labels(config.labels),
        config.score_mean,
        config.score_deviation,
    )


def test_targets_name_the_class_by_its_name_whatever_its_number():
    labels = Labels(WORDS.labels, ("stone", "metal", "fruit"))
    sample = RawSample("k", None, ["granite"])
    found = [
        target_of(sample._replace(class_id=number), spec_of(WORDS), labels) for number in (0, 2)
    ]
    np.testing.assert_array_equal(found[0], [0, 0, 1])
    np.testing.assert_array_equal(found[1], [1, 0, 0])
    for number in (None, 1, 3, -1):
        refused = target_of(sample._replace(class_id=number), spec_of(WORDS), labels)
        assert isinstance(refused, Rejected)
        assert refused.reason == "missing_label"


def test_targets_of_questions_are_the_vqa_accuracy_of_each_answer():
    labels = Labels(ANSWERS.labels, ANSWERS.labels)
    said = ["yes"] * 2 + ["red"] * 5 + ["blue"] * 3
    target = target_of(RawSample("k", None, said, question="?"), spec_of(ANSWERS), labels)
    expected = [float(vqa_accuracies([answer], [said])[0]) for answer in ANSWERS.labels]
    assert not isinstance(target, Rejected)
    np.testing.assert_allclose(target, expected, atol=1e-6)
    assert target[0] == pytest.approx(0.6)
    single = target_of(RawSample("k", None, ["no"], question="?"), spec_of(ANSWERS), labels)
    np.testing.assert_array_equal(single, [0, 1, 0, 0])
    unknown = target_of(RawSample("k", None, ["blue"], question="?"), spec_of(ANSWERS), labels)
    np.testing.assert_array_equal(unknown, [0, 0, 0, 0])
    assert isinstance(target_of(RawSample("k", None, []), spec_of(ANSWERS), labels), Rejected)


def test_targets_of_scores_are_normalised():
    labels = Labels((), ())
    target = target_of(RawSample("k", None, ["a", "b"], score=4.0), spec_of(SCORES), labels)
    np.testing.assert_allclose(target, [1.0])
    for score in (None, math.nan):
        assert isinstance(
            target_of(RawSample("k", None, ["a"], score=score), spec_of(SCORES), labels), Rejected
        )


def test_two_texts_are_read_as_one():
    assert text_of(RawSample("k", None, ["one"])) == "one"
    assert text_of(RawSample("k", None, ["one", "two"])) == "one █ two"
    for texts in ([], ["a", "b", "c"], [" "], None):
        assert isinstance(text_of(RawSample("k", None, texts)), Rejected)
