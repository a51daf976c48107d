"""Every format of a source, on a disk and in a bucket, gives the same samples and rejects."""

from __future__ import annotations

import gzip
import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clippo_core.errors import ConfigError, SampleError
from pipelines.datasets.manifest import REJECTS_FILE, read_manifest
from pipelines.datasets.prepare.index import IndexColumns, prepare_index
from pipelines.datasets.prepare.pictures import prepare_csv, prepare_folder
from pipelines.datasets.prepare.texts import prepare_parallel, prepare_texts
from pipelines.datasets.sources import Source, open_source
from pipelines.runtime.storage import Location
from tests.integration.colours import COLOURS, encoded_picture

PICTURES = [encoded_picture(colour, n) for n, colour in enumerate(COLOURS.values())]
CAPTIONS = [f"a {name} patch" for name in COLOURS]


def index(place: Location, out: Location, **columns) -> Source:
    prepare_index(place, out, columns=IndexColumns(**columns))
    return open_source(out.uri)


def rejects(source: Source) -> dict[str, str]:
    if not source.manifest.num_rejected:
        return {}
    lines = (source.folder / REJECTS_FILE).read_bytes().decode().splitlines()
    return {row["key"]: row["reason"] for row in map(json.loads, lines)}


def assert_holds_the_pictures(source: Source, *, captions: list[list[str]] | None = None) -> None:
    """The four pictures with their captions, however they are read."""
    expected = captions or [[caption] for caption in CAPTIONS]
    assert source.num_rows == 4
    for samples in (list(source), source.read([3, 1, 0, 2])):
        by_picture = {sample.image: sample for sample in samples}
        assert [by_picture[picture].captions for picture in PICTURES] == expected
    (again,) = source.read([2])
    assert again.key == list(source)[2].key
    assert len({sample.key for sample in source}) == 4


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def parquet_of(table: pa.Table, **options) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def test_webdataset(place: Location):
    def files(numbers: range) -> dict[str, bytes]:
        found = {}
        for n in numbers:
            found |= {f"{n:05d}.png": PICTURES[n], f"{n:05d}.txt": CAPTIONS[n].encode()}
            found[f"{n:05d}.json"] = json.dumps({"caption": "of the json", "tags": ["x"]}).encode()
        return found

    bad = {"9.jpg": b"?", "9.json": b"{"} | {"8.txt": b"no picture"} | {"7.jpg": b"", "7.txt": b" "}
    (place / "00000.tar").write_bytes(tar_of(files(range(3)) | bad))
    (place / "part/00001.tar").write_bytes(tar_of(files(range(3, 4))))
    (place / "00002.tar").write_bytes(tar_of({"../escape.jpg": b"x", "../escape.txt": b"x"}))
    source = index(place, place / "index")
    assert_holds_the_pictures(source)
    assert rejects(source) == {
        "00000.tar/9": "invalid_json",
        "00000.tar/8": "missing_image",
        "00000.tar/7": "missing_caption",
        "00002.tar/../escape": "unsafe_member_name",
    }


def test_webdataset_captions_of_json_fields(place: Location):
    details = {"title": "t", "description": "", "tags": ["one", "two"]}
    content = {"a.b.png": PICTURES[0], "a.json": json.dumps(details).encode(), "a.cls": b"3"}
    (place / "x.tar").write_bytes(tar_of(content))
    source = index(place, place / "index", captions=("title", "description", "tags"))
    (sample,) = source
    assert (sample.captions, sample.class_id) == (["t", "one", "two"], 3)
    assert source.manifest.class_names == ("0", "1", "2", "3")


def test_a_truncated_tar_is_used_up_to_the_damage(place: Location):
    files = {}
    for n in range(4):
        files |= {f"{n}.txt": CAPTIONS[n].encode(), f"{n}.png": PICTURES[n]}
    whole = tar_of(files)
    (place / "x.tar").write_bytes(whole[: whole.index(PICTURES[3]) + 10])
    source = index(place, place / "index")
    assert [sample.image for sample in source] == PICTURES[:3]
    assert rejects(source)["x.tar/3"] == "missing_image"
    assert sorted(rejects(source).values()) == ["damaged_tar", "missing_image"]


def test_a_flipped_byte_of_a_tar_costs_one_sample(place: Location):
    files = {}
    for n in range(200):
        files |= {f"{n}.png": PICTURES[n % 4], f"{n}.txt": CAPTIONS[n % 4].encode()}
    tar = bytearray(tar_of(files))
    tar[tar.index(b"100.png") + 124] ^= 4
    (place / "x.tar").write_bytes(bytes(tar))
    source = index(place, place / "index")
    keys = {sample.key for sample in source}
    assert keys == {f"x.tar/{n}" for n in range(200) if n != 100}
    assert sorted(rejects(source).values()) == ["damaged_tar", "missing_image"]
    assert "x.tar/100" in rejects(source)


def test_a_compressed_tar_is_refused(place: Location):
    (place / "x.tar").write_bytes(gzip.compress(tar_of({"0.png": PICTURES[0], "0.txt": b"x"})))
    with pytest.raises(SampleError, match="1 rejected: compressed_tar"):
        index(place, place / "index")


@pytest.mark.parametrize("layout", ["bytes", "struct"])
def test_parquet_with_pictures(place: Location, layout: str):
    for number in (0, 1):
        chosen = slice(2 * number, 2 * number + 2)
        images = PICTURES[chosen]
        column = images if layout == "bytes" else [{"bytes": i, "path": "x"} for i in images]
        table = pa.table({"image": column, "text": CAPTIONS[chosen], "more": [1, 2]})
        (place / f"{number}.parquet").write_bytes(parquet_of(table, row_group_size=1))
    source = index(place, place / "index")
    assert_holds_the_pictures(source)
    assert [sample.key for sample in source][:2] == ["0.parquet:0", "0.parquet:1"]


def test_parquet_with_paths_several_captions_and_classes(place: Location):
    for number, picture in enumerate(PICTURES):
        (place / f"img/{number}[x].png").write_bytes(picture)
    table = pa.table(
        {
            "id": [10, 11, 12, 13, 14],
            "file_name": [f"img/{number}[x].png" for number in range(4)] + ["img/none.png"],
            "title": [*CAPTIONS, "x"],
            "tags": [["t", "u"], None, ["v"], [], []],
            "label": ["b", "a", "b", None, "a"],
        }
    )
    (place / "t.parquet").write_bytes(parquet_of(table))
    source = index(
        place, place / "index", image="file_name", captions=("title", "tags"), class_name="label"
    )
    samples = list(source)
    assert [sample.image for sample in samples] == [*PICTURES, None]
    assert samples[0].captions == [CAPTIONS[0], "t", "u"]
    assert [sample.key for sample in samples] == ["10", "11", "12", "13", "14"]
    assert source.manifest.class_names == ("a", "b")
    assert [sample.class_id for sample in samples] == [1, 0, 1, None, 0]


def test_parquet_without_known_columns_names_those_it_has(place: Location):
    (place / "t.parquet").write_bytes(parquet_of(pa.table({"foo": [1], "bar": ["x"]})))
    with pytest.raises(SampleError, match=r"\['foo', 'bar'\]; which of them"):
        index(place, place / "index")
    with pytest.raises(SampleError, match="no column 'baz'; it has"):
        index(place, place / "index", image="baz")
    (place / "t.parquet").write_bytes(b"no parquet")
    with pytest.raises(SampleError, match="is no Parquet file"):
        index(place, place / "index")


@pytest.mark.parametrize("copy", [True, False])
def test_a_folder_with_captions_beside_the_pictures(place: Location, copy: bool):
    for number, (picture, caption) in enumerate(zip(PICTURES, CAPTIONS, strict=True)):
        (place / f"in/{number}.png").write_bytes(picture)
        (place / f"in/{number}.txt").write_bytes(f"{caption}\n\nsecond\n".encode())
    (place / "in/bare.jpg").write_bytes(b"?")
    prepare_folder(place / "in", place / "out", copy=copy)
    source = open_source((place / "out").uri)
    assert_holds_the_pictures(source, captions=[[caption, "second"] for caption in CAPTIONS])
    assert rejects(source) == {"bare.jpg": "missing_caption"}


@pytest.mark.parametrize("copy", [True, False])
def test_class_folders(place: Location, copy: bool):
    for number, name in enumerate(COLOURS):
        (place / f"in/{name}/x.png").write_bytes(PICTURES[number])
    prepare_folder(place / "in", place / "out", copy=copy)
    source = open_source((place / "out").uri)
    names = source.manifest.class_names
    assert names == tuple(sorted(COLOURS))
    found = {names[sample.class_id or 0]: sample for sample in source}
    assert [found[name].image for name in COLOURS] == PICTURES
    assert found["red"].captions == ["red", "a photo of a red", "a picture of a red"]


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_tables(place: Location, suffix: str, copy: bool):
    rows = [(f"img/{n}.png", caption) for n, caption in enumerate(CAPTIONS)]
    rows.append(("img/0.png", 'with, "quotes"'))
    for number, picture in enumerate(PICTURES):
        (place / f"img/{number}.png").write_bytes(picture)
    if suffix == "jsonl":
        lines = [json.dumps({"image": path, "caption": text}) for path, text in rows]
        lines[1:1] = ["{broken", "[]", "", json.dumps({"image": "img/5.png"})]
        text = "\n".join(lines)
    else:
        import csv

        buffer = io.StringIO()
        writer = csv.writer(buffer, delimiter="," if suffix == "csv" else "\t")
        writer.writerows([("image", "caption"), *rows])
        text = buffer.getvalue()
    (place / f"t.{suffix}").write_bytes(text.encode())
    prepare_csv(place / f"t.{suffix}", place / "out", copy=copy)
    source = open_source((place / "out").uri)
    expected = [[caption] for caption in CAPTIONS]
    expected[0].append('with, "quotes"')
    assert_holds_the_pictures(source, captions=expected)
    bad = {"line 2": "invalid_json", "line 3": "invalid_json", "img/5.png": "missing_caption"}
    assert rejects(source) == (bad if suffix == "jsonl" else {})


@pytest.mark.parametrize("packed", ["txt", "jsonl.gz", "parquet"])
def test_texts(place: Location, packed: str):
    documents = ["One here. Two there! Three?", "Alone.", "Vier hier. Fünf dort."]
    contents = {
        "txt": "\n\n".join(documents).encode(),
        "jsonl.gz": gzip.compress("\n".join(json.dumps({"text": d}) for d in documents).encode()),
        "parquet": parquet_of(pa.table({"text": documents})),
    }
    (place / f"in/corpus.{packed}").write_bytes(contents[packed])
    prepare_texts(place / "in", place / "out")
    source = open_source((place / "out").uri)
    assert source.manifest.kind == "next-sentence"
    assert [sample.captions for sample in source] == [
        ["One here.", "Two there!", "Three?"],
        ["Vier hier.", "Fünf dort."],
    ]
    assert list(rejects(source).values()) == ["single_sentence"]


def test_parallel_texts(place: Location):
    (place / "t.tsv").write_bytes(b"en\tde\nhello\thallo\nalone\t\n")
    prepare_parallel(place / "t.tsv", place / "out", columns=("en", "de"))
    source = open_source((place / "out").uri)
    (sample,) = source
    assert (sample.captions, sample.languages) == (["hello", "hallo"], ["en", "de"])
    assert source.manifest.kind == "parallel-texts"
    assert list(rejects(source).values()) == ["single_text"]


def test_what_is_there_is_not_written_over_and_what_is_not_is_named(place: Location):
    with pytest.raises(SampleError, match="does not exist"):
        index(place / "nothing", place / "index")
    (place / "in/notes.pdf").write_bytes(b"x")
    with pytest.raises(SampleError, match="holds 1 files, none of them"):
        index(place / "in", place / "index")
    (place / "tars/x.tar").write_bytes(tar_of({"a.png": PICTURES[0], "a.txt": b"a"}))
    index(place / "tars", place / "index")
    assert read_manifest(place / "index").origin == (place / "tars").uri
    with pytest.raises(ConfigError, match="is a data set already"):
        index(place / "tars", place / "index")
