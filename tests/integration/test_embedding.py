"""`embed` through Ray Data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from clippo_core.checkpoints import load_checkpoint, model_identity, save_checkpoint
from clippo_core.config import ClippoConfig, Precision, RenderConfig, VitConfig
from clippo_core.errors import CheckpointError, ConfigError, SampleError
from clippo_core.modeling import Clippo
from pipelines.cli import main
from pipelines.embedding import EmbeddingJob, EmbeddingSummary, embed, input_kind
from pipelines.runtime.ray_session import check_resources
from tests.integration.colours import colour_samples

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vit = VitConfig(width=32, depth=1, mlp_dim=64, num_heads=2, patch_size_px=16, embed_dim=16)
    path = tmp_path_factory.mktemp("model") / "tiny"
    save_checkpoint(path, Clippo(ClippoConfig(vit=vit, render=RenderConfig(image_size_px=32))))
    return path


def run(
    checkpoint: Path, source: Path, out: Path, precision: Precision = "float32"
) -> EmbeddingSummary:
    kind, place = input_kind(str(source))
    job = EmbeddingJob(str(checkpoint), kind, place.uri, str(out), precision)
    return embed(job, cpus=1, max_tasks=2)


def test_a_data_set_becomes_vectors_of_unit_length_with_keys_and_identity(
    local_ray, checkpoint, colours, tmp_path
):
    summary = run(checkpoint, colours, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert summary.num_embeddings == len(rows) == 120 * 3
    model = load_checkpoint(checkpoint)
    assert {row["model"] for row in rows} == {model_identity(model)} == {summary.model}
    vectors = np.array([row["embedding"] for row in rows], np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    images = {row["key"] for row in rows if row["kind"] == "image"}
    assert images == {f"s{number:04d}" for number in range(120)}
    texts = [row for row in rows if row["kind"] == "text"]
    expected = model.encode_texts([row["text"] for row in texts])
    np.testing.assert_allclose([row["embedding"] for row in texts], expected, atol=1e-5)


def test_a_folder_of_pictures_is_embedded_and_bad_files_are_listed(local_ray, checkpoint, tmp_path):
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for number, sample in enumerate(colour_samples(4)):
        (folder / "deep" / f"{number}.png").write_bytes(sample.image or b"")
    (folder / "broken.jpg").write_bytes(b"no picture")
    summary = run(checkpoint, folder, tmp_path / "out")
    assert (summary.num_embeddings, summary.num_rejected) == (4, 1)
    rejects = (tmp_path / "out" / "_rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in rejects] == ["broken.jpg"]
    keys = pq.read_table(tmp_path / "out")["key"].to_pylist()
    assert keys == [f"deep/{number}.png" for number in range(4)]


def test_lines_of_text_are_embedded_in_any_script(local_ray, checkpoint, tmp_path):
    (tmp_path / "texts.txt").write_text("ein Haus\n\nдом\n家\n")
    summary = run(checkpoint, tmp_path / "texts.txt", tmp_path / "out")
    table = pq.read_table(tmp_path / "out")
    assert summary.num_embeddings == 3
    assert table["text"].to_pylist() == ["ein Haus", "дом", "家"]


def test_in_bfloat16_embeddings_are_nearly_the_same(local_ray, checkpoint, tmp_path):
    (tmp_path / "texts.txt").write_text("ein Haus\nдом\n家\n")
    run(checkpoint, tmp_path / "texts.txt", tmp_path / "out", "bfloat16")
    rows = pq.read_table(tmp_path / "out").to_pylist()
    expected = load_checkpoint(checkpoint).encode_texts([row["text"] for row in rows])
    embeddings = np.array([row["embedding"] for row in rows], np.float32)
    np.testing.assert_allclose(embeddings, expected, atol=0.02)
    assert not np.array_equal(embeddings, expected)


def test_a_damaged_checkpoint_is_told_of_in_its_own_words(local_ray, checkpoint, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(checkpoint, damaged)
    (weights,) = damaged.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    (tmp_path / "texts.txt").write_text("a\nb")
    with pytest.raises(CheckpointError, match=weights.name) as raised:
        run(damaged, tmp_path / "texts.txt", tmp_path / "out")
    assert "UDF" not in str(raised.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a GPU here")
def test_a_gpu_that_torch_cannot_use_is_no_reason_to_take_the_cpu(local_ray, checkpoint, tmp_path):
    (tmp_path / "texts.txt").write_text("a\nb")
    kind, place = input_kind(str(tmp_path / "texts.txt"))
    job = EmbeddingJob(str(checkpoint), kind, place.uri, str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"Ray has set a GPU aside, .* leave out --gpus"):
        embed(job, cpus=1, gpus=0.5, max_tasks=2)


def test_more_gpus_than_there_are_are_refused_at_once(local_ray, checkpoint, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("a\nb")
    where = ["--input", str(tmp_path / "texts.txt"), "--out", str(tmp_path / "out")]
    assert main(["embed", str(checkpoint), *where, "--gpus", "2"]) == 2
    assert "gpus=2.0; expected 0 to 1" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"the cluster has \d GPUs, but 8 are needed"):
        check_resources(cpus=1, gpus=8)


def test_nothing_is_written_over_and_nothing_is_embedded_from_nothing(
    local_ray, checkpoint, tmp_path
):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.parquet").write_bytes(b"")
    (tmp_path / "texts.txt").write_text("a\n")
    with pytest.raises(ConfigError, match="holds Parquet files already"):
        run(checkpoint, tmp_path / "texts.txt", tmp_path / "out")
    (tmp_path / "texts.txt").write_text("\n")
    with pytest.raises(SampleError, match="holds no texts"):
        run(checkpoint, tmp_path / "texts.txt", tmp_path / "other")
    with pytest.raises(SampleError, match="is no prepared data set, no folder"):
        input_kind(str(tmp_path / "none"))
