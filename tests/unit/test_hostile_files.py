"""Files that say what cannot be: each is refused by name, or counted, before it costs anything."""

from __future__ import annotations

import io
import json
import lzma
import os
import random
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch

from clippo_core.checkpoints import load_checkpoint
from clippo_core.errors import CheckpointError, ConfigError, RenderError, SampleError
from clippo_core.rendering.unifont import load_font
from pipelines.datasets.manifest import REJECTS_FILE
from pipelines.datasets.prepare.index import prepare_index
from pipelines.datasets.prepare.pictures import IndexColumns, prepare_folder
from pipelines.datasets.sources import open_source
from pipelines.runtime.storage import Location, read_json_lines
from pipelines.stream.batch import Visit, draw_pair
from tests import fuzzing


@pytest.fixture
def native(tmp_path: Path) -> Path:
    """The folder of a tiny checkpoint."""
    for name, content in fuzzing.checkpoint().items():
        if name != "x.npz":
            (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("vit", "width", 3_000_000_000),
        ("vit", "depth", 1_000_000),
        ("vit", "patch_size_px", 1),
        ("render", "image_size_px", 1_000_000),
    ],
)
def test_a_config_that_asks_for_more_than_any_machine_has(native: Path, group, name, value):
    config = json.loads((native / "config.json").read_text())
    config["clippo"][group][name] = value
    if name == "patch_size_px":
        config["clippo"]["render"]["image_size_px"] = 4096
    (native / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"{name}={value}"):
        load_checkpoint(native)


def test_positions_of_a_grid_that_is_not_square(native: Path):
    weights = safetensors.torch.load_file(native / "model.safetensors")
    weights["encoder.position_embedding"] = weights["encoder.position_embedding"][:, :3].clone()
    safetensors.torch.save_file(weights, native / "model.safetensors")
    config = json.loads((native / "config.json").read_text())
    del config["sha256"]
    (native / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"shape \(1, 3, 8\); expected .* square grid"):
        load_checkpoint(native)


def npy(shape: tuple[int, ...], content: bytes) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue() + content


@pytest.mark.parametrize("kind", ["declares 30 GB", "inflates to 1 GB"])
def test_arrays_larger_than_their_file_take_no_memory(tmp_path: Path, kind: str):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        if kind == "declares 30 GB":
            archive.writestr("params/t.npy", npy((30_000_000_000 // 4,), bytes(16)))
        else:
            with archive.open("params/t.npy", "w", force_zip64=True) as member:
                member.write(npy((2**28,), b""))
                for _ in range(64):
                    member.write(bytes(2**24))
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="bytes of arrays, which weights"):
        load_checkpoint(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24


@pytest.mark.parametrize(
    "content",
    [
        lzma.compress(npy((2**40,), b"")),
        lzma.compress(bytes(2**29), preset=0),
        lzma.compress(npy((1,), np.float32(np.nan).tobytes())),
    ],
)
def test_fonts_larger_than_any(tmp_path: Path, content: bytes):
    path = tmp_path / "x.glyphs.xz"
    path.write_bytes(content)
    with pytest.raises(RenderError, match=r"x.glyphs.xz is damaged or no font"):
        load_font(str(path))


def index(table: pa.Table, folder: Path, **columns) -> Location:
    pq.write_table(table, folder / "x.parquet")
    out = Location.of(folder / "out")
    prepare_index(Location.of(folder / "x.parquet"), out, columns=IndexColumns(**columns))
    return out


def test_a_column_of_identifiers_is_no_column_of_classes(tmp_path: Path):
    table = pa.table({"image": [b"x"], "caption": ["x"], "label": [999_999_999]})
    with pytest.raises(SampleError, match=r"goes up to 999999999.*is it an identifier"):
        index(table, tmp_path, class_name="label")


def test_parquet_files_that_are_none_of_the_expected_ones(tmp_path: Path):
    picture = fuzzing.pictures()[0]
    with pytest.raises(SampleError, match="all without rows"):
        index(pa.table({"image": pa.array([], pa.binary()), "caption": pa.array([], pa.string())}),
              tmp_path)  # fmt: skip
    nested = pa.table({"image": [picture], "words": [[["a", "b"]]]})
    with pytest.raises(SampleError, match=r"'words' of type list.*expected texts or lists"):
        index(nested, tmp_path, captions=("words",))
    doubled = pa.table([[picture], ["a"], ["b"]], names=["image", "caption", "caption"])
    with pytest.raises(SampleError, match="2 columns called 'caption'; rename all but one"):
        index(doubled, tmp_path)
    path = tmp_path / "x.parquet"
    content = bytearray(path.read_bytes())
    # The footer, whose length stands before the magic at the end.
    content[-200:-8] = random.Random(0).randbytes(192)
    path.write_bytes(bytes(content))
    with pytest.raises(SampleError, match="no Parquet file, or a damaged one") as caught:
        prepare_index(Location.of(path), Location.of(tmp_path / "out"), columns=IndexColumns())
    assert "AWS_ENDPOINT_URL" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_caption_that_is_not_utf_8_is_rejected_when_it_is_drawn(tmp_path: Path):
    picture, good = fuzzing.pictures()[0], "a cat"
    buffer = pa.py_buffer(b"a \xff cata cat")
    captions = pa.StringArray.from_buffers(2, pa.py_buffer(np.int32([0, 7, 12]).tobytes()), buffer)
    out = index(pa.table({"image": [picture] * 2, "caption": captions}), tmp_path)
    drawn = [draw_pair(Visit(sample, "image-text", 0)) for sample in open_source(out.uri)]
    assert drawn[1] == (good,)
    assert drawn[0].reason == "invalid_unicode"
    assert drawn[0].detail == "a \ufffd cat"


@pytest.mark.parametrize("text", ["\ud800", "a \udcff"])
def test_lone_surrogates_of_a_json_file_are_rejects(tmp_path: Path, text: str):
    (tmp_path / "0.png").write_bytes(fuzzing.pictures()[0])
    rows = [{"image": "0.png", "caption": caption} for caption in (text, "fine")]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = Location.of(tmp_path / "out")
    fuzzing.prepare_csv(Location.of(tmp_path / "x.jsonl"), out)
    (reject,) = map(json.loads, (out / REJECTS_FILE).read_bytes().splitlines())
    assert (reject["key"], reject["reason"]) == ("line 1", "invalid_unicode")
    assert [sample.captions for sample in open_source(out.uri)] == [["fine"]]


def test_a_file_name_that_is_not_utf_8_is_readable(tmp_path: Path):
    folder = tmp_path / "pictures"
    (folder / "cat").mkdir(parents=True)
    with open(os.fsencode(folder / "cat") + b"/\xff.png", "wb") as file:  # noqa: PTH123
        file.write(fuzzing.pictures()[0])
    out = Location.of(tmp_path / "out")
    prepare_folder(Location.of(folder), out)
    assert [sample.key for sample in open_source(out.uri)] == ["cat/\ufffd.png"]


def test_links_that_lead_back_are_not_followed_and_pipes_are_no_pictures(tmp_path: Path):
    folder, elsewhere = tmp_path / "pictures", tmp_path / "elsewhere"
    (folder / "cat").mkdir(parents=True)
    elsewhere.mkdir()
    for place in (folder / "cat/0.png", elsewhere / "1.png"):
        place.write_bytes(fuzzing.pictures()[0])
    (folder / "cat/back").symlink_to(folder)
    (folder / "again").symlink_to(folder)
    (folder / "dog").symlink_to(elsewhere)
    os.mkfifo(folder / "cat/pipe.png")
    (folder / "cat/zero.png").symlink_to("/dev/zero")
    (folder / "cat/broken.png").symlink_to("nowhere.png")
    assert Location.of(folder).files() == ["cat/0.png", "dog/1.png"]


def test_a_pipe_that_a_table_names_is_a_missing_picture(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "0.png").write_bytes(fuzzing.pictures()[0])
    (tmp_path / "x.csv").write_text("image,caption\npipe.png,a\n0.png,b\n.,c\n")
    out = Location.of(tmp_path / "out")
    fuzzing.prepare_csv(Location.of(tmp_path / "x.csv"), out)
    rejects = [json.loads(line) for line in (out / REJECTS_FILE).read_bytes().splitlines()]
    assert {row["key"]: row["reason"] for row in rejects} == dict.fromkeys(
        ("pipe.png", "."), "missing_image"
    )


def test_what_a_full_disk_left_is_no_data(tmp_path: Path):
    (tmp_path / "part-00000001.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "part-00000002.jsonl.1234abcd.tmp").write_text('{"a"')
    assert list(read_json_lines(Location.of(tmp_path))) == [{"a": 1}]


def test_a_manifest_that_is_nested_too_deep(tmp_path: Path):
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(SampleError, match=r"manifest.json is not a valid Manifest"):
        open_source(str(tmp_path))


def test_limits_are_said_where_a_person_sets_them():
    from clippo_core.config import VitConfig

    with pytest.raises(ConfigError, match="depth=5000; expected 1 to 1024"):
        VitConfig(depth=5000)


def test_damaged_files_of_all_readers():
    """A few hundred of them; test_damaged_files.py reads 10,000."""
    outcomes, failures = fuzzing.run(range(10 * len(fuzzing.READERS)), seed=1)
    assert not failures, failures[0]
    kinds = {outcome.partition(": ")[2] for outcome in outcomes}
    assert len(kinds) > 2
