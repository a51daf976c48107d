"""Figures show what they are given; captions in any script are drawn, not boxes."""

from __future__ import annotations

import numpy as np

from pipelines.figures.sheets import (
    MAX_CLASSES,
    captions,
    confusion_matrix,
    gallery,
    label_sheet,
    similarity_matrix,
)

GREEN, RED = (0, 120, 60), (190, 30, 30)


def pictures(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 16, 16, 3), np.uint8)


def has(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((picture == colour).all(-1).any())


def test_captions_of_every_script_are_different_pictures():
    texts = ["a red car", "写真", "красный", "صورة", "ภาพ", "사진"]
    drawn = captions(texts, width_px=120)
    assert drawn.shape == (6, 16, 120, 3)
    assert len({strip.tobytes() for strip in drawn}) == 6
    assert all((strip < 255).any() for strip in drawn)


def test_a_sheet_frames_right_ones_green_and_wrong_ones_red():
    assert has(label_sheet(pictures(1), [("a", True)]), GREEN)
    assert not has(label_sheet(pictures(1), [("a", True)]), RED)
    assert has(label_sheet(pictures(1), [("a", False)]), RED)
    assert label_sheet(pictures(0), []).shape[2] == 3


def test_a_gallery_has_a_row_for_each_query():
    one, three = (
        gallery(["q"] * n, pictures(n, 5), np.ones((n, 5), bool), np.ones((n, 5)), title="t")
        for n in (1, 3)
    )
    title_px = 32
    assert (three.shape[0] - title_px) == 3 * (one.shape[0] - title_px)


def test_the_darkest_cell_of_a_similarity_matrix_is_the_most_similar_pair():
    similarity = np.zeros((4, 4))
    similarity[1, 2] = 1
    texts = pictures(4)[..., 0]
    drawn = similarity_matrix(pictures(4), texts, similarity, title="t")
    rows, columns = np.nonzero((drawn == (8, 40, 90)).all(-1))
    assert 32 + 22 <= rows.min() <= rows.max() < 32 + 44
    assert 24 + 44 <= columns.min() <= columns.max() < 24 + 66


def test_a_confusion_matrix_of_many_classes_shows_those_with_the_most_mistakes():
    counts = np.eye(MAX_CLASSES + 20, dtype=int)
    counts[0, 1] = 5
    names = [str(number) for number in range(len(counts))]
    drawn = confusion_matrix(counts, names, title="t")
    assert drawn.shape[1] == 176 + 22 * MAX_CLASSES
    few = confusion_matrix(counts[:3, :3], names[:3], title="t")
    assert few.shape[1] >= 176 + 44 * 3
