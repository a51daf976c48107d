"""CLIP* and 1T-CLIP, and the vocabulary that they read with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from clippo_core.checkpoints import (
    load_checkpoint,
    model_identity,
    save_checkpoint,
    write_big_vision,
)
from clippo_core.config import ClippoConfig, RenderConfig, VitConfig, vit_config
from clippo_core.contrastive import contrastive_loss
from clippo_core.errors import CheckpointError, ConfigError, RenderError, SampleError
from clippo_core.evaluation.sequence_length import sequence_lengths
from clippo_core.modeling import Clippo, make_model, without_values
from clippo_core.modeling.baselines import Baseline
from clippo_core.rendering import TextRenderer
from clippo_core.training.step import PairBatch, StepMemory, StepOptions, accumulate_gradients
from clippo_core.vocabulary import (
    END_ID,
    TokenTexts,
    Vocabulary,
    concatenate_texts,
    train_vocabulary,
)

TINY = VitConfig(width=32, depth=1, mlp_dim=64, num_heads=2, patch_size_px=16, embed_dim=16)
BASELINES = ["tokens_one_tower", "tokens_two_towers"]
CORPUS = [f"a {colour} {thing}" for colour in ("red", "blue", "green") for thing in ("car", "boat")]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(train_vocabulary(CORPUS * 20, size=320))


def config_of(text_input: str, **changes) -> ClippoConfig:
    settings = {"vit": TINY, "vocabulary_size": 320, "max_tokens": 16}
    render = RenderConfig(image_size_px=64)
    return ClippoConfig(text_input=text_input, render=render, **(settings | changes))


def baseline(text_input: str, vocabulary: Vocabulary, **changes) -> Baseline:
    torch.manual_seed(0)
    return Baseline(config_of(text_input, **changes), vocabulary)


def test_the_same_corpus_makes_the_same_vocabulary(vocabulary: Vocabulary):
    assert train_vocabulary(CORPUS * 20, size=320) == vocabulary.model
    assert vocabulary.size <= 320


def test_texts_are_cut_or_filled_with_ends(vocabulary: Vocabulary):
    ids = vocabulary.encode(["a red car", "", "a red car " * 19], max_tokens=16).ids
    num = vocabulary.count_tokens("a red car")
    assert (ids[0, :num] > END_ID).all()
    assert (ids[0, num:] == END_ID).all()
    assert (ids[1] == END_ID).all()
    assert ids[2, -1] == END_ID
    assert (ids[2, :-1] > END_ID).all()
    assert 2 <= num < 16


def test_capitals_and_scripts_never_seen_have_tokens_too(vocabulary: Vocabulary):
    one, shouted, foreign = vocabulary.encode(["a red car", "A RED CAR", "语"], max_tokens=16).ids
    np.testing.assert_array_equal(one, shouted)
    assert (foreign > END_ID).sum() >= 3


def test_what_is_no_vocabulary_or_no_corpus_is_refused():
    with pytest.raises(ConfigError, match="no vocabulary"):
        Vocabulary(b"nonsense")
    with pytest.raises(SampleError, match="no vocabulary of 320"):
        train_vocabulary([], size=320)


def test_texts_of_another_vocabulary_are_refused(vocabulary: Vocabulary):
    model, foreign = (
        baseline("tokens_two_towers", vocabulary),
        TokenTexts(np.zeros((1, 16), np.int32), "other"),
    )
    with pytest.raises(ConfigError, match="another vocabulary"):
        model.embed_texts(foreign)
    with pytest.raises(ConfigError, match="different vocabularies"):
        TokenTexts.concatenate([foreign, vocabulary.encode(["a"], max_tokens=16)])
    with pytest.raises(ConfigError, match="vocabulary_size is 10"):
        baseline("tokens_two_towers", vocabulary, vocabulary_size=10)


@pytest.mark.parametrize("text_input", BASELINES)
def test_a_baseline_learns_pairs_by_heart(text_input: str, vocabulary: Vocabulary):
    model = baseline(text_input, vocabulary)
    images = torch.randint(0, 256, (6, 64, 64, 3), dtype=torch.uint8)
    texts = vocabulary.encode(CORPUS, max_tokens=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        left, right, scale = model(images, texts)
        loss = contrastive_loss(left, right, scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5
    assert all(parameter.grad is not None for parameter in model.parameters())
    similarity = model.encode_images(images.numpy()) @ model.encode_texts(CORPUS, batch_size=4).T
    assert (similarity.argmax(1) == np.arange(6)).all()


def test_pairs_of_texts_follow_those_with_a_picture(vocabulary: Vocabulary):
    model = baseline("tokens_one_tower", vocabulary)
    images = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    texts, left = (vocabulary.encode(CORPUS[:n], max_tokens=16) for n in (5, 3))
    with torch.no_grad():
        found, right, _ = model(images, texts, left)
    np.testing.assert_allclose(found[2:].numpy(), right[:3].numpy(), atol=1e-6)
    np.testing.assert_allclose(right.numpy(), model.encode_texts(CORPUS[:5]), atol=1e-6)


def test_parameters_can_be_set_side_by_side(vocabulary: Vocabulary):
    vit = vit_config("B/16")
    configs = {name: ClippoConfig(vit=vit, text_input=name) for name in ("pixels", *BASELINES)}
    with without_values():
        models = {name: make_model(config) for name, config in configs.items()}
    counts = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    millions = {name: round(count / 1e6) for name, count in counts.items()}
    assert millions == {"pixels": 93, "tokens_two_towers": 204, "tokens_one_tower": 119}


@pytest.mark.parametrize("text_input", BASELINES)
def test_a_checkpoint_holds_the_vocabulary(text_input: str, vocabulary: Vocabulary, tmp_path: Path):
    model = baseline(text_input, vocabulary).eval()
    save_checkpoint(tmp_path / "model", model)
    again = load_checkpoint(tmp_path / "model")
    assert isinstance(again, Baseline)
    assert again.config == model.config
    assert again.config.vocabulary_sha256 == vocabulary.sha256
    assert model_identity(again) == model_identity(model)
    np.testing.assert_array_equal(again.encode_texts(CORPUS), model.encode_texts(CORPUS))
    with pytest.raises(CheckpointError, match="no place for a baseline"):
        write_big_vision(tmp_path / "b.npz", model.state_dict())

    other = train_vocabulary(["something else"] * 9, size=300)
    for content, message in (
        (other, "not the vocabulary that config.json names"),
        (b"nonsense", "missing or damaged"),
    ):
        (tmp_path / "model" / "vocabulary.model").write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(tmp_path / "model")


def test_bytes_and_broken_strings_are_read_as_the_renderer_reads_them(vocabulary: Vocabulary):
    texts = ["Gr\u00f6\u00dfe".encode(), "Gr\u00f6\u00dfe", b"a\xff", "a\ufffd", "\ud800"]
    one, same, broken, replaced, _ = vocabulary.encode(texts, max_tokens=16).ids
    np.testing.assert_array_equal(one, same)
    np.testing.assert_array_equal(broken, replaced)


def test_models_and_texts_of_different_kinds_are_told_apart(vocabulary: Vocabulary):
    config = config_of("tokens_one_tower")
    clippo = make_model(config_of("pixels"))
    tokens = vocabulary.encode(["a"], max_tokens=16)
    rasters = clippo.prepare_texts(["a"])
    with pytest.raises(RenderError, match="are tokens"):
        clippo.embed_texts(tokens)
    with pytest.raises(ConfigError, match="are rendered"):
        baseline("tokens_one_tower", vocabulary).embed_texts(rasters)
    with pytest.raises(ConfigError, match="cannot form one batch"):
        concatenate_texts([tokens, rasters])
    with pytest.raises(ConfigError, match="use make_model"):
        Clippo(config)
    with pytest.raises(ConfigError, match="use make_model"):
        Baseline(config_of("pixels"), vocabulary)
    with pytest.raises(ConfigError, match="without a vocabulary"):
        make_model(config).encode_texts(["a"])
    with pytest.raises(ConfigError, match="made with vocabulary"):
        make_model(dataclasses.replace(config, vocabulary_sha256="0" * 64), vocabulary=vocabulary)


@pytest.mark.parametrize("text_input", BASELINES)
def test_every_parameter_has_a_gradient_where_no_picture_is(
    text_input: str, vocabulary: Vocabulary
):
    """Ranks that exchange gradients need them all; those of the pictures' side are 0."""
    model = baseline(text_input, vocabulary)
    none = torch.empty(0, 64, 64, 3, dtype=torch.uint8)
    texts = vocabulary.encode(CORPUS, max_tokens=16)
    left, right, scale = model(none, texts, texts)
    torch.testing.assert_close(left, right)
    contrastive_loss(left, right, scale).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not model.encoder.patch_embedding.kernel.grad.any()  # pyright: ignore
    with torch.no_grad():
        torch.testing.assert_close(model(none, texts, texts)[0], left)


@pytest.mark.parametrize("text_input", BASELINES)
def test_cached_embeddings_give_the_gradients_of_the_whole_batch(
    text_input: str, vocabulary: Vocabulary
):
    batch = PairBatch(
        torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8),
        vocabulary.encode(CORPUS, max_tokens=16),
        vocabulary.encode(CORPUS[:2], max_tokens=16),
    )
    gradients = []
    for memory in (StepMemory(), StepMemory(micro_batch_size=2, logit_rows=3)):
        model = baseline(text_input, vocabulary)
        for tower in model.towers:
            tower.recomputes_activations = memory.micro_batch_size is not None
        accumulate_gradients(model, batch, StepOptions(memory=memory))
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert len(model.towers) == 1 + (text_input == "tokens_two_towers")
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_its_tokens_can_be_held_against_patches(vocabulary: Vocabulary):
    found = sequence_lengths({"en": CORPUS}, TextRenderer(), {"ours": vocabulary.count_tokens})
    expected = np.mean([vocabulary.count_tokens(text) for text in CORPUS])
    assert found["en"].mean["ours"] == expected
