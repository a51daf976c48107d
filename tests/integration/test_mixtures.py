"""Pictures and texts in one batch and one loss."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from clippo_core.errors import ConfigError, Rejected
from clippo_core.training.memory import training_bytes
from pipelines.config.derived import TextLengths, derive, step_load
from pipelines.config.resolution import read_run_config, resolve
from pipelines.datasets.manifest import RawSample, SampleKind, ShardWriter
from pipelines.runtime.storage import Location, read_json_lines
from pipelines.stream.batch import (
    UsableSample,
    Visit,
    draw_texts,
    open_renderer,
    prepare_batch,
    prepare_samples,
)
from pipelines.stream.wire import from_block, to_block
from pipelines.training.run import train

SENTENCES = [[f"document {n}.", f"it goes on {n}.", f"the end of {n}."] for n in range(40)]


def write_texts(
    folder: Path, texts: list, kind: SampleKind, *, evaluation_only: bool = False
) -> str:
    writer = ShardWriter(
        Location.of(folder), name=folder.name, kind=kind, evaluation_only=evaluation_only
    )
    for number, captions in enumerate(texts):
        writer.add(RawSample(f"{folder.name}{number:03d}", None, captions))
    writer.close()
    return str(folder)


@pytest.fixture
def documents(tmp_path: Path) -> str:
    return write_texts(tmp_path / "documents", SENTENCES, "next-sentence")


@pytest.fixture
def verses(tmp_path: Path) -> str:
    texts = [[f"verse {n}", f"vers {n}", f"verset {n}"] for n in range(30)]
    return write_texts(tmp_path / "verses", texts, "parallel-texts")


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_the_share_of_texts_is_exact_in_every_batch(
    make_config, colours, documents, verses, share: float
):
    config = make_config(
        data={"sources": (documents, str(colours), verses), "text_share": share},
        train={"global_batch_size": 32},
    )
    resolved = resolve(config)
    is_text = np.array([source.manifest.kind != "image-text" for source in resolved.sources])
    plan = resolved.stream.plan
    for step in range(10_000):
        counts = np.diff([plan.rows_drawn(step), plan.rows_drawn(step + 1)], axis=0)[0]
        assert counts[is_text].sum() == 32 * share
        assert counts.sum() == 32
    batch = prepare_batch(resolved.stream, plan.batch(0), step=0)
    assert len(batch.left_texts) == 32 * share
    assert len(batch.images) == 32 - 32 * share
    assert len(batch.texts) == len(batch.keys) == 32


def test_the_memory_estimate_counts_the_texts_that_there_are(make_config, tmp_path):
    """Letters of one source, texts that fill the canvas of another, by their weights."""
    letters = write_texts(tmp_path / "letters", [["i", "l"]] * 4, "parallel-texts")
    essays = write_texts(tmp_path / "essays", [["word " * 50] * 2] * 4, "parallel-texts")

    def derived(weights: tuple[float, float]) -> int:
        data = {"sources": (letters, essays), "weights": weights}
        return derive(resolve(make_config(data=data)))["memory_estimate_bytes_per_rank"]

    config = make_config()
    size, patch = config.model.render.image_size_px, config.model.vit.patch_size_px
    whole = (size // patch) ** 2
    assert whole > 1

    def estimated(mean: int) -> int:
        load = step_load(config, TextLengths(mean, longest=whole))
        return training_bytes(config.model, config.optim, load)

    assert derived((1e-9, 1.0)) == estimated(whole)
    assert derived((1.0, 1e-9)) == estimated(1)
    assert derived((1.0, 1e-9)) < derived((1.0, 1.0)) < derived((1e-9, 1.0))


def test_every_part_of_a_batch_holds_the_mixture(make_config, colours, documents):
    config = make_config(
        data={"sources": (str(colours), documents), "weights": (3.0, 1.0)},
        train={"global_batch_size": 64},
    )
    source = resolve(config).stream.plan.batch(5).source
    for part in np.split(source, 4):
        assert Counter(part.tolist()) == {0: 12, 1: 4}


def test_pairs_are_what_their_kind_says(make_config, colours, documents, verses):
    config = make_config(
        data={"sources": (str(colours), documents, verses), "text_share": 0.5},
        train={"global_batch_size": 32},
    )
    spec = resolve(config).stream
    renderer = open_renderer(spec.render, None)
    sample = RawSample("k", None, ["a", "", None, "b", "c"])
    pairs = {
        kind: {
            (outcome.left, outcome.caption)
            for outcome in prepare_samples(
                spec, renderer, [Visit(sample, kind, draw) for draw in range(60)]
            )
            if isinstance(outcome, UsableSample)
        }
        for kind in ("next-sentence", "parallel-texts")
    }
    assert pairs["next-sentence"] == {("a", "b"), ("b", "c")}
    expected = {(x, y) for x in "abc" for y in "abc" if x != y}
    assert pairs["parallel-texts"] == expected
    visit = Visit(RawSample("k", None, ["one"]), "next-sentence", 0)
    (lonely,) = prepare_samples(spec, renderer, [visit])
    assert isinstance(lonely, Rejected)
    assert (lonely.reason, lonely.detail) == ("missing_caption", "1 texts, expected 2 or more")


@pytest.mark.parametrize("count", [2, 3, 7])
def test_every_pair_of_parallel_texts_is_as_likely(count: int):
    pairs = Counter(
        draw_texts("parallel-texts", count, draw) for draw in range(count * (count - 1))
    )
    assert pairs == {(x, y): 1 for x in range(count) for y in range(count) if x != y}


def test_a_mixed_batch_survives_its_block_and_its_slices(make_config, colours, documents):
    config = make_config(data={"sources": (str(colours), documents), "text_share": 0.25})
    spec = resolve(config).stream
    batch = prepare_batch(spec, spec.plan.batch(1), step=1)
    again = from_block(to_block(batch), spec.render)
    assert again.keys == batch.keys
    np.testing.assert_array_equal(again.images, batch.images)
    for name in ("left_texts", "texts"):
        found, expected = getattr(again, name), getattr(batch, name)
        np.testing.assert_array_equal(found.to_pixels(), expected.to_pixels())


@pytest.mark.ray
@pytest.mark.slow
def test_two_ranks_see_the_mixture_that_is_planned(
    local_ray, make_config, colours, documents, verses
):
    config = make_config(
        data={"sources": (str(colours), documents, verses), "text_share": 0.5},
        train={"steps": 6},
        scaling={"num_ranks": 2},
    )
    spec = resolve(config).stream
    planned = {s: sorted(prepare_batch(spec, spec.plan.batch(s), step=s).keys) for s in range(6)}
    summary = train(resolve(config))
    seen: dict[int, list[str]] = {}
    for row in read_json_lines(summary.run / "samples"):
        seen.setdefault(row["step"], []).extend(row["keys"])
    assert {step: sorted(keys) for step, keys in seen.items()} == planned
    kinds = [Counter(key[0] for key in keys) for keys in seen.values()]
    assert all(count["s"] == 8 and count["d"] + count["v"] == 8 for count in kinds)
    assert sum(read_run_config(summary.run).data.weights) == pytest.approx(1.0)


def test_a_share_that_no_source_can_give_is_refused(make_config, colours, documents):
    with pytest.raises(ConfigError, match="asks for texts, but"):
        resolve(make_config(data={"sources": (str(colours),), "text_share": 0.5}))
    with pytest.raises(ConfigError, match="asks for pictures, but"):
        resolve(make_config(data={"sources": (documents,), "text_share": 0.5}))
    with pytest.raises(ConfigError, match="expected a share from 0 to 1"):
        make_config(data={"text_share": 1.5})


def test_what_is_for_evaluation_is_not_trained_on(make_config, tmp_path):
    held_out = write_texts(tmp_path / "held_out", SENTENCES, "next-sentence", evaluation_only=True)
    labelled = write_texts(tmp_path / "labelled", SENTENCES, "labelled-text")
    for source in (held_out, labelled):
        with pytest.raises(ConfigError, match="is for evaluation only"):
            resolve(make_config(data={"sources": (source,)}))
