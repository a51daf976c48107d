"""Evaluations of pictures: questions on them, words on them, the gap, the first layer's filters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from clippo_core.config import ImageConfig, RenderConfig
from clippo_core.errors import ConfigError
from clippo_core.evaluation.representation import modality_gap, patch_filters
from clippo_core.evaluation.typographic import draw_words, typographic_attack
from clippo_core.evaluation.vqa import (
    answer_targets,
    draw_questions,
    exact_matches,
    most_frequent_answers,
    normalize_answer,
    share_cut,
    vqa_accuracies,
)
from clippo_core.evaluation.zero_shot import class_embeddings
from clippo_core.modeling import Clippo
from clippo_core.rendering import TextRenderer

RENDERER = TextRenderer(RenderConfig(image_size_px=96))


def agreement_slowly(prediction: str, said: list[str]) -> float:
    """As the official code has it: leave each person out, count the others that agree."""
    accuracies = []
    for left_out in range(len(said)):
        others = said[:left_out] + said[left_out + 1 :]
        accuracies.append(min(sum(other == prediction for other in others) / 3, 1))
    return float(np.mean(accuracies))


def test_vqa_accuracy_is_the_mean_over_leaving_each_person_out():
    for agreeing in range(11):
        said = ["cat"] * agreeing + ["dog"] * (10 - agreeing)
        expected = agreement_slowly("cat", said)
        assert vqa_accuracies(["cat"], [said]).item() == pytest.approx(expected)
    assert vqa_accuracies(["cat"], [["cat"] * 3 + ["dog"] * 7]).item() == pytest.approx(0.9)


def test_spelling_counts_only_where_people_agree():
    said = [["two"] * 9 + ["2"], ["two"] * 10]
    assert vqa_accuracies(["The 2.", "2"], said).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A Cat", "cat"),
        ("two", "2"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("lets go", "lets go"),
        ("it's", "it's"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("1,000", "1000"),
        ("3.5 feet.", "3.5 feet"),
        ("yes\n", "yes"),
        ("none", "0"),
        ("t-shirt", "t shirt"),
    ],
)
def test_answers_are_normalised_as_the_official_code_does(text: str, expected: str):
    assert normalize_answer(text) == expected


def test_a_single_answer_has_no_vqa_accuracy_but_may_match():
    with pytest.raises(ConfigError, match="exact_matches"):
        vqa_accuracies(["red"], [["red"]])
    found = exact_matches(["red", "a circle"], [["blue"], ["circle", "box", "circle"]])
    assert found.tolist() == [False, True]


def test_targets_are_the_scores_that_answers_would_get():
    said = [["cat"] * 5 + ["dog"] * 2 + ["emu"] * 3, ["dog"]]
    targets = answer_targets(said, ["dog", "cat"])
    assert targets[0].tolist() == pytest.approx(
        [agreement_slowly("dog", said[0]), agreement_slowly("cat", said[0])]
    )
    assert targets[1].tolist() == [1, 0]


def test_the_floor_knows_the_question_but_not_the_picture():
    questions, answers = ["colour?", "shape?", "colour?", "colour?"], ["red", "box", "blue", "blue"]
    found = most_frequent_answers(questions, answers, ["shape?", "colour?", "size?"])
    assert found == ["box", "blue", "blue"]


def test_the_question_is_at_the_top_and_the_picture_below():
    picture = np.zeros((50, 70, 3), np.uint8)
    picture[40:] = (0, 200, 0)
    questions = ["what is it?", "", "what colour is the shape in this picture?"]
    drawn = draw_questions([picture] * 3, questions, RENDERER, ImageConfig())
    rows = RENDERER.render_batch(questions).occupied_rows
    assert rows.tolist() == [1, 0, 3]
    for canvas, question, num_rows in zip(drawn, questions, rows, strict=True):
        np.testing.assert_array_equal(
            canvas[: num_rows * 16], RENDERER.render(question)[: num_rows * 16]
        )
        below = canvas[num_rows * 16 :]
        green = (below[..., 1] > 100).mean()
        # A fifth of the picture is green, and is all there.
        assert green == pytest.approx(0.2, abs=0.03)


def test_a_question_never_takes_more_than_half_and_the_rest_is_counted():
    questions = ["short", "a question that goes on and on " * 9]
    drawn = draw_questions([None, Image.new("L", (9, 9), 250)], questions, RENDERER, ImageConfig())
    assert (drawn[1, 48:] == 250).all()
    assert (drawn[1, :48] != 250).all()
    assert (drawn[0, 16:] == RENDERER.config.background).all()
    assert share_cut(questions, RENDERER) == 0.5
    with pytest.raises(ConfigError, match="1 questions for 2"):
        draw_questions([None, None], ["a"], RENDERER, ImageConfig())


def test_a_word_is_drawn_where_nothing_else_changes():
    pictures = np.full((2, 96, 96, 3), 200, np.uint8)
    words, blank = (
        draw_words(pictures, ["cat", "an elephant seal"], RENDERER, is_blank=is_blank)
        for is_blank in (False, True)
    )
    glyphs = RENDERER.render("cat")[:16, :, 0] == RENDERER.config.ink
    assert (words[0] == RENDERER.config.ink).all(axis=2).sum() == 4 * glyphs.sum()
    np.testing.assert_array_equal((words == 200).all(axis=3), (blank == 200).all(axis=3))
    assert (words[:, :40] == 200).all()
    assert set(np.unique(blank)) == {RENDERER.config.background, 200}
    with pytest.raises(ConfigError, match="96x96"):
        draw_words(pictures[:, :90], ["a", "b"], RENDERER)


def test_a_model_that_reads_labels_is_fooled_by_them(tiny_model: Clippo):
    names = ["boot", "coat", "shirt"]
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (40, 64, 64, 3), np.uint8)
    # These classes look like pictures with the word on them.
    prototypes = [
        tiny_model.encode_images(draw_words(images, [name] * 40, tiny_model.renderer))
        for name in names
    ]
    classes = class_embeddings(np.concatenate(prototypes), num_classes=3)
    embeddings = tiny_model.encode_images(images)
    labels = (embeddings @ classes.T).argmax(axis=1)
    found = typographic_attack(tiny_model, images, labels, classes, class_names=names)
    assert (found.written != labels).all()
    assert found.attacked_accuracy < found.blank_accuracy < found.accuracy == 1
    assert found.flip_rate > found.blank_flip_rate
    assert found.flip_interval[0] < found.flip_rate < found.flip_interval[1]
    assert found.attacked.shape == images.shape
    with pytest.raises(ConfigError, match="one class"):
        typographic_attack(tiny_model, images, labels * 0, classes[:1], class_names=names[:1])


def test_the_gap_is_the_distance_of_the_centroids():
    generator = np.random.default_rng(0)
    around = generator.normal(size=(200, 8)) * 0.1

    def unit(vectors: np.ndarray) -> np.ndarray:
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    images, texts = unit(around + np.eye(8)[0]), unit(around + np.eye(8)[1])
    apart, same = modality_gap(images, texts), modality_gap(images, images)
    assert apart.gap == pytest.approx(2**0.5, abs=0.1)
    assert same.gap == 0
    assert same.pair_similarity == pytest.approx(1)
    assert 0 < apart.floor < 0.1 < apart.gap
    # The first axis of the projection is the one that tells them apart.
    assert (apart.images_2d[:, 0] > 0).all() != (apart.texts_2d[:, 0] > 0).all()
    with pytest.raises(ConfigError, match="two or more"):
        modality_gap(images[:1], texts[:1])


def test_filters_of_two_patterns_have_these_as_their_components(tiny_model: Clippo):
    grey = np.tile(np.linspace(-1, 1, 16)[:, None, None], (1, 16, 3))
    red = np.zeros((16, 16, 3))
    red[..., 0] = np.tile(np.linspace(-1, 1, 16), (16, 1))
    weights = np.random.default_rng(0).normal(size=(2, 32)) * [[3], [1]]
    kernel = np.einsum("kyxc,kw->yxcw", np.stack([grey, red]), weights)
    parameter = tiny_model.encoder.patch_embedding.kernel
    before = parameter.detach().clone()
    try:
        parameter.data = torch.from_numpy(kernel).float()
        found = patch_filters(tiny_model, num_filters=3)
    finally:
        parameter.data = before
    assert found.pictures.shape == (3, 16, 16, 3)
    assert found.explained[:2].sum() == pytest.approx(1)
    assert found.colour_share[:2].tolist() == pytest.approx([0, 2 / 3], abs=0.05)
    top, bottom = found.pictures[0, 0, 0], found.pictures[0, -1, 0]
    assert sorted([int(top.max()), int(bottom.max())]) == pytest.approx([0, 254], abs=10)
