"""A person's own texts: documents cut into sentences, and texts that say the same.

Files are read as a stream, from a disk or a bucket, so that a corpus may be larger than the memory.
"""

from __future__ import annotations

import csv
import io
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import sentencex

from clippo_core.errors import ConfigError, SampleError
from pipelines.datasets.files import python_values
from pipelines.datasets.manifest import Manifest, RawSample
from pipelines.datasets.prepare.rows import (
    RejectedRow,
    Row,
    is_held_out,
    new_splits,
    tidy,
    write_divided,
)
from pipelines.datasets.prepare.tables import (
    DamagedRow,
    csv_rows,
    json_objects,
    require_columns,
)
from pipelines.runtime.storage import Location, storage_errors

#: Most sentences of a row, so that reading one stays cheap; longer documents go on in further rows.
MAX_SENTENCES = 64
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_LINE_SUFFIXES = (".jsonl", ".json")
#: Most characters of a line that are read at a time: a damaged file may have no line end.
_MAX_LINE_CHARS = 64 * 2**20
#: Length at which a text file without blank lines is cut.
_MAX_DOCUMENT_CHARS = 2**20
_PARQUET_ROWS = 256
_INVALID_UNICODE = DamagedRow("invalid_unicode", "")

#: Values by column.
Values = Mapping[str, Any] | DamagedRow


@dataclass(frozen=True)
class TextFile:
    """A file of texts.

    Attributes:
        place: place of the file.
        key: beginning of its rows' keys.
        suffix: ending that tells the format.
        compression: `gzip`, `zstd`, or None.
    """

    place: Location
    key: str
    suffix: str
    compression: str | None


def prepare_texts(
    files: Location,
    out: Location,
    *,
    text_column: str = "text",
    language: str = "en",
    test_share: float = 0.0,
) -> list[Location]:
    """Write documents as a data set in which a sentence and the next one are a pair.

    The formats are text (`.txt`; blank lines between documents), JSON lines (`.jsonl`, `.json`),
    and Parquet; each may be compressed (`.gz`, `.zst`). C4's files are read as they are.

    Args:
        files: a file, or a folder with files at any depth.
        out: folder of the data set.
        text_column: column of the documents, in JSON and Parquet.
        language: language of the documents (BCP 47), which decides how they are cut into sentences.
        test_share: share of the documents to set aside as `out/test`, chosen by file and number.
    """
    splits = new_splits(out, test_share)
    about = Manifest(name=_stem(files.name), kind="next-sentence", origin=files.name)
    rows = (
        (is_held_out(key, test_share), row)
        for file in find_text_files(files, (".txt", *_LINE_SUFFIXES, ".parquet"))
        for key, values in read_rows(file, [text_column])
        for row in _rows_of_text(key, values, text_column, language)
    )
    return write_divided(out, about, rows, splits=splits)


def _rows_of_text(key: str, values: Values, column: str, language: str) -> Iterator[Row]:
    if not isinstance(values, Mapping):
        yield RejectedRow(key, *values)
    elif not isinstance(text := values.get(column), str) or not text.strip():
        yield RejectedRow(key, "missing_text")
    else:
        yield from document_rows(key, split_sentences(text, language), language)


def prepare_parallel(
    table: Location, out: Location, *, columns: Sequence[str], test_share: float = 0.0
) -> list[Location]:
    """Write texts that say the same, such as translations or paraphrases, as a data set.

    Args:
        table: a CSV, TSV, JSON lines or Parquet file, may be compressed (`.gz`, `.zst`). Quotes
            mean nothing in a TSV file, where sentences often start with one.
        out: folder of the data set.
        columns: columns of the texts; their names become the languages.
        test_share: share of the rows to set aside as `out/test`, chosen by their numbers.
    """
    if len(set(columns)) < 2 or len(set(columns)) < len(columns):
        raise ConfigError(f"columns={list(columns)}; expected two or more different names")
    splits = new_splits(out, test_share)
    about = Manifest(name=_stem(table.name), kind="parallel-texts", origin=table.name)
    (file,) = find_text_files(table, (".csv", ".tsv", *_LINE_SUFFIXES, ".parquet"), is_one=True)
    rows = (
        (is_held_out(key, test_share), _parallel_row(key, values, columns))
        for key, values in read_rows(file, columns)
    )
    return write_divided(out, about, rows, splits=splits)


def _parallel_row(key: str, values: Values, columns: Sequence[str]) -> Row:
    if not isinstance(values, Mapping):
        return RejectedRow(key, *values)
    texts = {name: tidy(values[name]) for name in columns if isinstance(values.get(name), str)}
    texts = {name: text for name, text in texts.items() if text}
    if len(texts) < 2:
        return RejectedRow(key, "single_text", f"only {list(texts) or 'blank ones'}")
    return RawSample(key, None, list(texts.values()), languages=list(texts))


def split_sentences(text: str, language: str) -> list[str]:
    """Return the sentences of a text, each on one line; no blank ones."""
    sentences = map(tidy, sentencex.segment(language, text))  # pyright: ignore[reportAttributeAccessIssue]
    return [sentence for sentence in sentences if sentence]


def document_rows(key: str, sentences: Sequence[str], language: str) -> Iterator[Row]:
    """Yield a document as a row; a long one in rows of about the same length."""
    if len(sentences) < 2:
        yield RejectedRow(key, "single_sentence", sentences[0][:80] if sentences else "")
        return
    num_parts = -(-len(sentences) // MAX_SENTENCES)
    for part in range(num_parts):
        start, stop = (len(sentences) * (part + more) // num_parts for more in (0, 1))
        part_key = f"{key}#{part}" if num_parts > 1 else key
        languages = [language] * (stop - start)
        yield RawSample(part_key, None, sentences[start:stop], languages=languages)


def find_text_files(
    place: Location, suffixes: Sequence[str], *, is_one: bool = False
) -> list[TextFile]:
    """Return the sorted files of some formats in a folder, at any depth, or the one file.

    Raises:
        SampleError: if there is none, or a folder is given where only one file will do.
    """
    names = [] if is_one else place.files()
    candidates = [(place / name, name) for name in names] or [(place, place.name)]
    found = [
        TextFile(at, key, suffix, compression)
        for at, key in candidates
        for suffix, compression in (_format(at.name),)
        if suffix in suffixes
    ]
    if not found or not found[0].place.exists():
        raise SampleError(
            f"{place.uri} is no {'' if is_one else 'folder with or '}file of texts; expected one "
            f"of {', '.join(suffixes)}, may be compressed (.gz, .zst)"
        )
    return found


def read_rows(file: TextFile, columns: Sequence[str]) -> Iterator[tuple[str, Values]]:
    """Yield key and values of each row of a file, by columns that must be there.

    Raises:
        SampleError: if the file is damaged or lacks a column.
        StorageError: if the file cannot be read.
    """
    reader = _READERS[file.suffix]
    try:
        with storage_errors(file.place), _open(file) as stream:
            for number, row in enumerate(reader(file, stream, columns)):
                yield f"{file.key}:{number}", row if _is_unicode(row) else _INVALID_UNICODE
    except pa.ArrowException as error:
        raise SampleError(f"{file.place.uri} is damaged: {error}") from None


def _read_documents(
    _file: TextFile, stream: BinaryIO, columns: Sequence[str]
) -> Iterator[dict[str, str]]:
    document: list[str] = []
    size = 0
    for line in _lines(stream):
        is_blank = not line.strip()
        if not is_blank:
            document.append(line)
            size += len(line)
        if document and (is_blank or size > _MAX_DOCUMENT_CHARS):
            yield {columns[0]: "".join(document)}
            document, size = [], 0
    if document:
        yield {columns[0]: "".join(document)}


def _read_json_lines(file: TextFile, stream: BinaryIO, columns: Sequence[str]) -> Iterator[Values]:
    for _, row in json_objects(_lines(stream), file.place, columns):
        if isinstance(row, DamagedRow):
            yield row
        else:
            yield {name: row[name] for name in columns if name in row}


def _read_table(file: TextFile, stream: BinaryIO, columns: Sequence[str]) -> Iterator[Values]:
    is_tsv = file.suffix == ".tsv"
    with _decoded(stream, newline="") as text:
        rows = csv_rows(
            iter(lambda: text.readline(_MAX_LINE_CHARS), ""),
            file.place,
            columns,
            delimiter="\t" if is_tsv else ",",
            quoting=csv.QUOTE_NONE if is_tsv else csv.QUOTE_MINIMAL,
        )
        for _, row in rows:
            if isinstance(row, DamagedRow):
                yield row
            else:
                yield {name: row[name] for name in columns}


def _read_parquet(
    file: TextFile, stream: BinaryIO, columns: Sequence[str]
) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryFile() as whole:
        if file.compression is not None:
            # A Parquet file's footer comes last, so it has to be there as a whole.
            shutil.copyfileobj(stream, whole)
            stream = whole
        with pq.ParquetFile(stream) as parquet:
            require_columns(file.place, columns, parquet.schema_arrow.names)
            for batch in parquet.iter_batches(_PARQUET_ROWS, columns=list(columns)):
                values = [python_values(pa.chunked_array([column])) for column in batch.columns]
                yield from (
                    dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)
                )


#: Functions that yield the rows of an open file, by its format.
_READERS: dict[str, Callable[[TextFile, BinaryIO, Sequence[str]], Iterable[Values]]] = {
    ".txt": _read_documents,
    ".jsonl": _read_json_lines,
    ".json": _read_json_lines,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".parquet": _read_parquet,
}


@contextmanager
def _open(file: TextFile) -> Iterator[Any]:
    """Yield a file's content as a stream, decompressed."""
    fs, path = file.place.open_fs()
    with fs.open(path, "rb") as raw:
        if file.compression is None:
            yield raw
        else:
            with pa.input_stream(raw, compression=file.compression) as stream:
                yield stream


def _decoded(stream: BinaryIO, *, newline: str | None = None) -> io.TextIOWrapper:
    # Bytes that are not UTF-8 are smuggled through, to be found and rejected row by row.
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def _lines(stream: BinaryIO) -> Iterator[str]:
    with _decoded(stream) as text:
        yield from iter(lambda: text.readline(_MAX_LINE_CHARS), "")


def _is_unicode(row: Values) -> bool:
    """Return True if all texts can be encoded; surrogates cannot."""
    values = row.values() if isinstance(row, Mapping) else ()
    try:
        "".join(value for value in values if isinstance(value, str)).encode()
    except UnicodeEncodeError:
        return False
    return True


def _format(name: str) -> tuple[str, str | None]:
    """Return format and compression by a file's name: `.json` and `gzip` of `x.json.gz`."""
    parts = name.lower().split(".")
    compression = _COMPRESSIONS.get(f".{parts[-1]}")
    if compression is not None:
        parts.pop()
    return (f".{parts[-1]}" if len(parts) > 1 else ""), compression


def _stem(name: str) -> str:
    """Return a file's name without the endings of format and compression."""
    suffix, compression = _format(name)
    return name.rsplit(".", (compression is not None) + (suffix in _READERS))[0]
