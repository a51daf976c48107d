"""A bucket that is busy, slow, away for a while, away for good, or not ours."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pytest
import s3fs.core

from clippo_core.config import to_json
from clippo_core.errors import StorageError
from pipelines.config.resolution import resolve
from pipelines.config.settings import RunConfig
from pipelines.datasets.manifest import ShardWriter
from pipelines.datasets.prepare.index import IndexColumns, prepare_index
from pipelines.datasets.sources import _read_shards, open_source
from pipelines.runtime.run_checkpoints import whole_checkpoints
from pipelines.runtime.storage import Location, read_json_lines
from pipelines.stream.batch import _open_reference, prepare_batch
from tests.integration.colours import colour_samples
from tests.integration.processes import start_command, wait_for_checkpoint
from tests.integration.s3.server import S3Server
from tests.integration.s3.test_formats import tar_of

ROOT = Path(__file__).parents[3]


@pytest.fixture(params=["shards", "webdataset"])
def bucket_config(request: pytest.FixtureRequest, s3_folder: Location, make_config) -> RunConfig:
    """A run whose data lies in the bucket, in shards of ours or in tars."""
    samples, data = colour_samples(120), s3_folder / "data"
    if request.param == "shards":
        writer = ShardWriter(data, name="colours", rows_per_shard=50, row_group_rows=8)
        for sample in samples:
            writer.add(sample)
        writer.close()
    else:
        for start in range(0, 120, 40):
            files = {}
            for sample in samples[start : start + 40]:
                assert sample.image is not None
                caption = (sample.captions or [""])[0] or ""
                files |= {f"{sample.key}.png": sample.image, f"{sample.key}.txt": caption.encode()}
            (s3_folder / f"tars/{start:03d}.tar").write_bytes(tar_of(files))
        prepare_index(s3_folder / "tars", data, columns=IndexColumns())
    return make_config(data={"sources": (data.uri,)})


def batches(config: RunConfig, steps: int = 4) -> list[tuple[list[str], np.ndarray]]:
    """Keys and pictures of the first steps, with nothing remembered from before."""
    for cache in (_open_reference, _read_shards):
        cache.cache_clear()
    fsspec.filesystem("s3").invalidate_cache()
    spec = resolve(config).stream
    prepared = [prepare_batch(spec, spec.plan.batch(step), step=step) for step in range(steps)]
    return [(batch.keys, batch.images) for batch in prepared]


def assert_same(found, expected) -> None:
    for (keys, images), (expected_keys, expected_images) in zip(found, expected, strict=True):
        assert keys == expected_keys
        np.testing.assert_array_equal(images, expected_images)


def test_a_run_of_rows_is_few_requests(s3: S3Server, bucket_config: RunConfig):
    batches(bucket_config)
    s3.requests.clear()
    batches(bucket_config, steps=1)
    # 4 runs of 4 rows: of our shards a row group each, of a tar one range each (and the index).
    assert len([request for request in s3.requests if request[0] == "GET"]) <= 16


@pytest.mark.slow
@pytest.mark.parametrize("mood", ["busy", "slow"])
def test_a_busy_or_slow_bucket_gives_the_same_batches(s3: S3Server, bucket_config, mood):
    calm = batches(bucket_config)
    s3.mood = mood
    assert_same(batches(bucket_config), calm)


@pytest.mark.slow
def test_a_bucket_that_is_away_for_five_seconds_gives_the_same_batches(s3, bucket_config):
    calm = batches(bucket_config)
    revival = s3.die_for(5.0)
    started = time.monotonic()
    try:
        assert_same(batches(bucket_config), calm)
        assert time.monotonic() - started >= 4.0
    finally:
        revival.join()


@pytest.mark.slow
def test_a_bucket_that_stays_away_is_a_clear_error(s3, s3_folder, monkeypatch):
    (s3_folder / "x").write_bytes(b"x")
    monkeypatch.setattr(s3fs.core.S3FileSystem, "retries", 1)
    s3.stop()
    try:
        with pytest.raises(StorageError, match=r"does not answer as expected.*AWS_ENDPOINT_URL"):
            (s3_folder / "x").read_bytes()
    finally:
        s3.start()


def test_wrong_credentials_are_a_clear_error_at_once(s3, s3_folder, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    fsspec.filesystem("s3").clear_instance_cache()
    before = len(s3.requests)
    with pytest.raises(StorageError, match="PermissionError"):
        open_source(s3_folder.uri)
    asked = Counter(s3.requests[before:])
    assert asked, "the bucket was asked"
    assert max(asked.values()) == 1, "nothing is asked twice where the answer will not change"


def command(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-m", "pipelines", *words],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def test_commands_end_with_4_where_the_bucket_is_not_ours(s3, s3_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    done = command("prepare", "index", s3_folder.uri, "--out", str(tmp_path / "out"))
    assert done.returncode == 4
    assert "check the path, the permissions" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("bucket_config", ["webdataset"], indirect=True)
def test_a_run_lives_in_a_bucket_that_is_busy_and_then_away(s3, bucket_config, tmp_path):
    """Data, checkpoints and rejects are in the bucket; only MLflow's file is on this disk.

    The run is killed where the bucket is busy, and goes on where it is away during a checkpoint:
    that waits for the bucket and the ranks with it, since no restart is allowed.
    """
    steps = 60
    expected = dict(enumerate(keys for keys, _ in batches(bucket_config, steps=steps)))
    root = Location.of(bucket_config.data.sources[0]).parent
    config = dataclasses.replace(
        bucket_config,
        storage=dataclasses.replace(bucket_config.storage, root=(root / "runs").uri),
        tracking=dataclasses.replace(bucket_config.tracking, uri=f"sqlite:///{tmp_path}/mlflow.db"),
        train=dataclasses.replace(bucket_config.train, steps=steps, checkpoint_every=3),
        scaling=dataclasses.replace(bucket_config.scaling, max_failures=0),
    )
    (tmp_path / "run.json").write_text(to_json(config))
    run = root / "runs" / "run"
    s3.mood = "busy"
    process = start_command("train", str(tmp_path / "run.json"))
    wait_for_checkpoint(run, process)
    process.kill()
    process.communicate()
    s3.mood = "well"
    reached = newest(run)
    process = start_command("resume", run.uri)
    while newest(run) == reached:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    assert newest(run) < steps, "the bucket was to be away in mid-training"
    s3.die_for(5.0).join()
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    rows = list(read_json_lines(run / "samples"))
    assert {row["step"] for row in rows} == set(range(steps))
    assert all(row["keys"] == expected[row["step"]] for row in rows)
    # The second attempt began at the checkpoint, and made no step twice.
    assert max(Counter(row["step"] for row in rows).values()) <= 2
    assert [step for step, _ in whole_checkpoints(run)] == [54, 57, 60]


def newest(run: Location) -> int:
    return whole_checkpoints(run)[-1][0]
