"""What a render worker makes of single samples, good and bad."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clippo_core.config import ImageConfig
from clippo_core.errors import Rejected, SampleError
from pipelines.config.resolution import resolve
from pipelines.datasets.manifest import RawSample
from pipelines.datasets.sources import open_source
from pipelines.stream.batch import (
    UsableSample,
    Visit,
    open_renderer,
    prepare_batch,
    prepare_samples,
)
from pipelines.stream.wire import from_block, to_block
from tests.integration.colours import colour_samples, encoded_picture, write_samples

PICTURE = encoded_picture((9, 99, 200), 0)


@pytest.fixture
def prepare(make_config):
    spec = resolve(make_config()).stream
    renderer = open_renderer(spec.render, spec.font_uri)

    def run(sample: RawSample, draw: int = 0) -> UsableSample | Rejected:
        return prepare_samples(spec, renderer, [Visit(sample, "image-text", draw)])[0]

    return run


@pytest.mark.parametrize(
    ("captions", "reason"),
    [
        (None, "missing_caption"),
        ([], "missing_caption"),
        ([None], "missing_caption"),
        ([""], "blank_caption"),
        ([" \u3000 "], "blank_caption"),
        (["\ue2c0\U00020000"], "blank_caption"),  # the font lacks both
    ],
)
def test_a_caption_with_nothing_to_see_is_rejected(prepare, captions, reason: str):
    outcome = prepare(RawSample("k", PICTURE, captions, None))
    assert isinstance(outcome, Rejected)
    assert outcome.reason == reason


@pytest.mark.parametrize(
    "caption",
    ["x" * 100_000, "שלום עולם", "العربية", "caf\ufffd", "👩‍👩‍👧‍👦", "\t"],
)
def test_any_caption_with_something_to_see_is_used(prepare, caption: str):
    outcome = prepare(RawSample("k", PICTURE, [caption], None))
    assert isinstance(outcome, UsableSample)
    assert outcome.caption == caption


def test_half_of_a_surrogate_pair_is_rejected(prepare):
    outcome = prepare(RawSample("k", PICTURE, ["\ud83d half a pair"], None))
    assert outcome == Rejected("invalid_unicode", "\ufffd half a pair")


@pytest.mark.parametrize(
    ("image", "reason"),
    [(None, "missing_image"), (b"", "missing_image"), (b"?", "unknown_image_format")],
)
def test_a_picture_that_cannot_be_decoded_is_rejected(prepare, image, reason: str):
    outcome = prepare(RawSample("k", image, ["fine"], None))
    assert isinstance(outcome, Rejected)
    assert outcome.reason == reason


def test_the_visits_random_number_chooses_the_caption(prepare):
    sample = RawSample("k", PICTURE, ["a", "b", "c"], None)
    assert [prepare(sample, draw).caption for draw in (0, 1, 5)] == ["a", "b", "c"]


@pytest.mark.parametrize("resize", ["bilinear", "bilinear_antialias", "scaled_decode"])
def test_a_block_can_be_made_of_pictures_resized_either_way(make_config, resize):
    model = dataclasses.replace(make_config().model, image=ImageConfig(resize=resize))
    config = dataclasses.replace(make_config(), model=model)
    spec = resolve(config).stream
    batch = prepare_batch(spec, spec.plan.batch(0), step=0)
    again = from_block(to_block(batch), spec.render)
    np.testing.assert_array_equal(again.images, batch.images)


def test_rows_are_read_in_any_order_across_shards(colours):
    source = open_source(str(colours))
    rows = [119, 0, 49, 50, 7, 7, 100]
    assert [sample.key for sample in source.read(rows)] == [f"s{row:04d}" for row in rows]
    assert [sample.key for sample in source] == [f"s{row:04d}" for row in range(120)]


def test_a_shard_with_other_columns_is_named_with_those_it_has(tmp_path):
    folder = write_samples(tmp_path / "set", colour_samples(10))
    pq.write_table(pa.table({"picture": [b""], "text": ["a"]}), folder / "shard-00000.parquet")
    with pytest.raises(SampleError, match=r"has the columns \['picture', 'text'\]; expected"):
        open_source(str(folder)).read([0])


def test_a_shard_with_fewer_rows_than_the_manifest_says_is_refused(tmp_path):
    folder = write_samples(tmp_path / "set", colour_samples(40))
    short = write_samples(tmp_path / "short", colour_samples(8))
    (short / "shard-00000.parquet").replace(folder / "shard-00000.parquet")
    with pytest.raises(SampleError, match="is not what the manifest says"):
        open_source(str(folder)).read([39])
    with pytest.raises(SampleError, match="is not what the manifest says"):
        list(open_source(str(folder)))
