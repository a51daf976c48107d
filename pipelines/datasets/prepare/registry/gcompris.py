"""GCompris: drawings of things with their words in many languages, and photographs of monuments.

From Debian's package `gcompris-qt-data`, whose files are resources of Qt: an archive format of its
own. https://doc.qt.io/qt-6/resources.html says what they are for; the layout is that of Qt's source
(`qresource.cpp`, `rcc.cpp`).
"""

from __future__ import annotations

import json
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from clippo_core.errors import Rejected, SampleError
from pipelines.datasets.manifest import RawSample, ShardWriter, is_prepared
from pipelines.datasets.prepare.pictures import check_picture
from pipelines.datasets.prepare.registry.packages import check_counts, unpack_debian_package
from pipelines.datasets.prepare.registry.tuxpaint import language_tag
from pipelines.datasets.prepare.splits import SPLITS, SplitWriter
from pipelines.datasets.prepare.texts import tidy
from pipelines.runtime.progress import progress
from pipelines.runtime.storage import Location

TEST_SHARE = 0.1
_PACKAGE = "gcompris-qt-data"
_RESOURCES = "usr/share/gcompris-qt/rcc/lang.rcc"
_MONUMENTS = "usr/share/gcompris-qt/rcc/explore_monuments.rcc"
_FOLDER = "gcompris/src/activities/lang/resource"
_EXPECTED = {"drawings": 116, "words": 5_686, "languages": 50, "monuments": 49}
#: An item of a board: its description, its picture, its name, in this order.
_STRING = r'"((?:[^"\\]|\\.)*)"'
_ITEM = re.compile(
    rf'"text": qsTr\({_STRING}\),\s*"image2": "qrc:/([^"]*)",\s*"text2": qsTr\({_STRING}\)'
)

_MAGIC = b"qres"
_HEADER = struct.Struct(">4sIIII")
#: Since version 2 a node ends in its time of modification, since 3 flags follow the header.
_VERSIONS = (1, 2, 3)
_NODE_SIZE = {1: 14, 2: 22, 3: 22}
_IS_COMPRESSED, _IS_FOLDER, _IS_ZSTD = 1, 2, 4
#: A damaged tree may contain itself.
_MAX_DEPTH = 32


@dataclass(frozen=True)
class Word:
    """A picture and what it shows.

    Attributes:
        key: the word that its file is named by.
        picture: encoded.
        texts: with their languages.
    """

    key: str
    picture: bytes | None
    texts: list[tuple[str, str]]


def prepare_gcompris(out: Location) -> list[Location]:
    """Write the sets `out/train`, `out/test` and `out/monuments`; what is whole is kept.

    Returns:
        The folders of all three.

    Raises:
        SampleError: if the package cannot be fetched, or holds less than is known of it.
    """
    folders = [out / name for name in (*SPLITS, "monuments")]
    if all(is_prepared(folder) for folder in folders):
        return folders
    with tempfile.TemporaryDirectory(prefix="clippo-") as scratch:
        root = unpack_debian_package(_PACKAGE, Path(scratch))
        words = read_words(_read_resources(root, _RESOURCES))
        monuments = read_monuments(_read_resources(root, _MONUMENTS))
    found = {
        "drawings": sum(word.picture is not None for word in words),
        "words": sum(len(word.texts) for word in words),
        "languages": len({language for word in words for language, _ in word.texts}),
        "monuments": len(monuments),
    }
    check_counts("gcompris", found, _EXPECTED, or_more=True)
    return [*write_gcompris(words, out), write_monuments(monuments, folders[-1])]


def _read_resources(root: Path, path: str) -> dict[str, bytes]:
    if not (root / path).is_file():
        raise SampleError(f"the package {_PACKAGE} has no {path}")
    return read_qt_resources((root / path).read_bytes())


def read_qt_resources(content: bytes) -> dict[str, bytes]:
    """The files of a binary Qt resource file, by path.

    Args:
        content: of a `.rcc` file of version 1 to 3; its entries may be compressed (zlib, zstd).

    Raises:
        SampleError: if it is no such file, or damaged.
    """
    if content[:4] != _MAGIC:
        raise SampleError(f"not a Qt resource file: it starts with {content[:4]!r}")
    try:
        _, version, tree, data, names = _HEADER.unpack_from(content)
        if version not in _VERSIONS:
            raise SampleError(f"Qt resource file of version {version}; expected one of {_VERSIONS}")
        reader = _Reader(content, tree, data, names, _NODE_SIZE[version])
        return dict(reader.walk(0, "", 0))
    except (struct.error, zlib.error, UnicodeDecodeError, pa.ArrowException, OSError) as error:
        raise SampleError(f"damaged Qt resource file: {error}") from None


def read_words(files: Mapping[str, bytes]) -> list[Word]:
    """The drawings and their words, out of the files of `lang.rcc`.

    `words_sample.json` lists drawings with the sound file of each word, by which
    `content-LOCALE.json` names the word.

    Raises:
        SampleError: if a file is missing or laid out otherwise.
    """
    try:
        lessons = json.loads(files[f"{_FOLDER}/words_sample.json"])
        texts = {
            language_tag(path.partition("/content-")[2].removesuffix(".json")): json.loads(content)
            for path, content in sorted(files.items())
            if path.startswith(f"{_FOLDER}/content-")
        }
        return [_word(item["image"], item["voice"], files, texts) for item in _items_of(lessons)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SampleError(
            f"the words in {_RESOURCES} are laid out otherwise than expected "
            f"({type(error).__name__}: {error})"
        ) from None


def read_monuments(files: Mapping[str, bytes]) -> list[Word]:
    """The photographs with name and description in English, out of `explore_monuments.rcc`.

    A monument may stand on several boards, such as the world's and its country's; the first counts.
    """
    found: dict[str, Word] = {}
    boards = [content.decode() for path, content in sorted(files.items()) if path.endswith(".qml")]
    for text, picture, name in (match.groups() for b in boards for match in _ITEM.finditer(b)):
        key = picture.rpartition("/")[2].partition(".")[0]
        texts = [("en", tidy(json.loads(f'"{caption}"'))) for caption in (name, text)]
        found.setdefault(key, Word(key, files.get(picture), texts))
    return list(found.values())


def write_gcompris(words: list[Word], out: Location) -> list[Location]:
    """Write drawings as two sets, split by the word's key; returns their folders.

    Raises:
        SampleError: if a set would be empty.
    """
    writers = SplitWriter.of_pictures(
        out,
        name="gcompris",
        test_share=TEST_SHARE,
        licence="CC-BY-SA-3.0 (drawings, Art4Apps), GPL-3 or later (words, GCompris)",
        origin=f"GCompris, Debian package {_PACKAGE}",
    )
    for word in progress("gcompris", unit="image", total=len(words), iterable=words):
        _add_word(writers.of(word.key), word)
    return writers.close()


def write_monuments(monuments: list[Word], folder: Location) -> Location:
    """Write photographs as a set for evaluation; returns its folder.

    Raises:
        SampleError: if it would be empty.
    """
    writer = ShardWriter(
        folder,
        name="gcompris-monuments",
        evaluation_only=True,
        licence="free, per file: see GCompris' explore_monuments (photographs), GPL-3 (texts)",
        origin=f"GCompris, Debian package {_PACKAGE}",
    )
    for monument in monuments:
        _add_word(writer, monument)
    writer.close()
    return folder


@dataclass(frozen=True)
class _Reader:
    """Reads the tree of a resource file; the fields are the offsets of its header."""

    content: bytes
    tree: int
    data: int
    names: int
    node_size: int

    def walk(self, node: int, folder: str, depth: int) -> Iterator[tuple[str, bytes]]:
        """Paths and contents of the files below a node."""
        at = self.tree + node * self.node_size
        name_at, flags = struct.unpack_from(">IH", self.content, at)
        # The root has no name.
        path = f"{folder}{self._name(name_at)}" if depth else ""
        if not flags & _IS_FOLDER:
            (data_at,) = struct.unpack_from(">I", self.content, at + 10)
            yield path, self._file(data_at, flags)
            return
        if depth > _MAX_DEPTH:
            raise SampleError("damaged Qt resource file: its folders contain themselves")
        count, first = struct.unpack_from(">II", self.content, at + 6)
        for child in range(first, first + count):
            yield from self.walk(child, f"{path}/" if depth else "", depth + 1)

    def _name(self, at: int) -> str:
        """Length, hash, and UTF-16."""
        (length,) = struct.unpack_from(">H", self.content, self.names + at)
        start = self.names + at + 6
        return self.content[start : start + 2 * length].decode("utf-16-be")

    def _file(self, at: int, flags: int) -> bytes:
        (size,) = struct.unpack_from(">I", self.content, self.data + at)
        start = self.data + at + 4
        raw = self.content[start : start + size]
        if len(raw) < size:
            raise SampleError("damaged Qt resource file: it is cut short")
        if flags & _IS_COMPRESSED:
            # Qt puts the size before the stream.
            return zlib.decompress(raw[4:])
        if flags & _IS_ZSTD:
            with pa.input_stream(pa.BufferReader(raw), compression="zstd") as stream:
                return stream.read()
        return raw


def _items_of(node: Any) -> Iterator[dict[str, str]]:
    """Chapters contain lessons, which contain items."""
    for part in node:
        if "image" in part:
            yield part
        else:
            yield from _items_of(part["content"])


def _word(
    image: str, voice: str, files: Mapping[str, bytes], texts: Mapping[str, Mapping[str, str]]
) -> Word:
    key = voice.rpartition("/")[2].partition(".")[0]
    found = {language: tidy(known.get(f"{key}.ogg", "")) for language, known in texts.items()}
    return Word(
        image.rpartition(".")[0],
        files.get(f"{_FOLDER}/words_sample/{image}"),
        [(language, text) for language, text in found.items() if text],
    )


def _add_word(writer: ShardWriter, word: Word) -> None:
    if isinstance(problem := check_picture(word.picture or b""), Rejected):
        writer.reject(word.key, problem.reason, problem.detail)
    elif not word.texts:
        writer.reject(word.key, "missing_caption")
    else:
        languages, texts = zip(*word.texts, strict=True)
        writer.add(RawSample(word.key, word.picture, texts, languages=languages))
