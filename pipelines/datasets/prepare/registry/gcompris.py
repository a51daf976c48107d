"""GCompris: drawings of things with their words in many languages, and photographs of monuments.

They come from Debian's package `gcompris-qt-data`, whose files are Qt resources, an archive format
(https://doc.qt.io/qt-6/resources.html) that Qt's `qresource.cpp` and `rcc.cpp` define.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from clippo_core.errors import SampleError
from pipelines.datasets.manifest import Manifest
from pipelines.datasets.prepare.pictures import picture_row
from pipelines.datasets.prepare.registry.packages import RegistrySet, reading, unpack_debian_package
from pipelines.datasets.prepare.registry.tuxpaint import language_tag
from pipelines.datasets.prepare.rows import Row, is_held_out, tidy, write_divided, write_rows
from pipelines.runtime.storage import Location

TEST_SHARE = 0.1
_PACKAGE = "gcompris-qt-data"
_RESOURCES = "usr/share/gcompris-qt/rcc/lang.rcc"
_MONUMENTS = "usr/share/gcompris-qt/rcc/explore_monuments.rcc"
_FOLDER = "gcompris/src/activities/lang/resource"
_ORIGIN = f"GCompris, Debian package {_PACKAGE}"
#: An item of a board has its description, its picture, its name, in this order.
_STRING = r'"((?:[^"\\]|\\.)*)"'
_ITEM = re.compile(
    rf'"text": qsTr\({_STRING}\),\s*"image2": "qrc:/([^"]*)",\s*"text2": qsTr\({_STRING}\)'
)

_MAGIC = b"qres"
_HEADER = struct.Struct(">4sIIII")
#: Size of a node by version; since 2 it ends in its time of modification.
_NODE_SIZE = {1: 14, 2: 22, 3: 22}
_IS_COMPRESSED, _IS_FOLDER, _IS_ZSTD = 1, 2, 4
#: Deepest tree that is read, since a damaged one may contain itself.
_MAX_DEPTH = 32


@dataclass(frozen=True)
class Word:
    """A picture with its word in several languages.

    Attributes:
        key: word that its file is named by.
        picture: encoded picture.
        texts: pairs of a language and a text.
    """

    key: str
    picture: bytes | None
    texts: list[tuple[str, str]]


def read_qt_resources(content: bytes) -> dict[str, bytes]:
    """Return the files of a binary Qt resource file, by path.

    Args:
        content: bytes of a `.rcc` file of version 1 to 3; its entries may be compressed (zlib,
            zstd).

    Raises:
        SampleError: if the content is damaged, or no such file.
    """
    if content[:4] != _MAGIC:
        raise SampleError(f"not a Qt resource file: it starts with {content[:4]!r}")
    try:
        _, version, tree, data, names = _HEADER.unpack_from(content)
        if version not in _NODE_SIZE:
            raise SampleError(
                f"Qt resource file of version {version}; expected one of {list(_NODE_SIZE)}"
            )
        return dict(_Reader(content, tree, data, names, _NODE_SIZE[version]).walk())
    except (struct.error, zlib.error, UnicodeDecodeError, pa.ArrowException, OSError) as error:
        raise SampleError(f"damaged Qt resource file: {error}") from None


def read_words(files: Mapping[str, bytes]) -> list[Word]:
    """Return the drawings and their words, out of the files of `lang.rcc`.

    `words_sample.json` lists drawings with the sound file of each word, by which
    `content-LOCALE.json` names the word.
    """
    with reading(f"the words in {_RESOURCES}"):
        lessons = json.loads(files[f"{_FOLDER}/words_sample.json"])
        texts = {
            language_tag(path.partition("/content-")[2].removesuffix(".json")): json.loads(content)
            for path, content in sorted(files.items())
            if path.startswith(f"{_FOLDER}/content-")
        }
        return [_word(item["image"], item["voice"], files, texts) for item in _items_of(lessons)]


def read_monuments(files: Mapping[str, bytes]) -> list[Word]:
    """Return photographs with English names and descriptions out of `explore_monuments.rcc`.

    A monument may stand on several boards, such as the world's and its country's; the first counts.
    """
    found: dict[str, Word] = {}
    boards = [content.decode() for path, content in sorted(files.items()) if path.endswith(".qml")]
    for text, picture, name in (match.groups() for b in boards for match in _ITEM.finditer(b)):
        key = picture.rpartition("/")[2].partition(".")[0]
        texts = [("en", tidy(json.loads(f'"{caption}"'))) for caption in (name, text)]
        found.setdefault(key, Word(key, files.get(picture), texts))
    return list(found.values())


def write_gcompris(words: Sequence[Word], out: Location) -> list[Location]:
    """Write drawings as two sets, split by the word's key; return their folders."""
    about = Manifest(
        name="gcompris",
        licence="CC-BY-SA-3.0 (drawings, Art4Apps), GPL-3 or later (words, GCompris)",
        origin=_ORIGIN,
    )
    rows = ((is_held_out(word.key, TEST_SHARE), _row(word)) for word in words)
    return write_divided(out, about, rows, shuffle=True)


def write_monuments(monuments: Sequence[Word], folder: Location) -> Location:
    """Write photographs as a set for evaluation; return its folder."""
    about = Manifest(
        name="gcompris-monuments",
        evaluation_only=True,
        licence="free, per file: see GCompris' explore_monuments (photographs), GPL-3 (texts)",
        origin=_ORIGIN,
    )
    return write_rows(folder, about, map(_row, monuments))


@dataclass(frozen=True)
class _Reader:
    """A reader of a resource file's tree; the fields are the offsets of its header."""

    content: bytes
    tree: int
    data: int
    names: int
    node_size: int

    def walk(self, node: int = 0, folder: str = "", depth: int = 0) -> Iterator[tuple[str, bytes]]:
        """Yield the paths and contents of the files below a node."""
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
        # Length, hash, and UTF-16.
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


def _row(word: Word) -> Row:
    return picture_row(word.key, word.picture or b"", word.texts)


def _items_of(node: Any) -> Iterator[dict[str, str]]:
    """Yield the items of lessons, which are grouped in chapters."""
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


def _read(scratch: Path) -> tuple[list[Word], list[Word]]:
    root = unpack_debian_package(_PACKAGE, scratch)
    for path in (_RESOURCES, _MONUMENTS):
        if not (root / path).is_file():
            raise SampleError(f"the package {_PACKAGE} has no {path}")
    words = read_words(read_qt_resources((root / _RESOURCES).read_bytes()))
    return words, read_monuments(read_qt_resources((root / _MONUMENTS).read_bytes()))


def _count(content: tuple[list[Word], list[Word]]) -> dict[str, int]:
    words, monuments = content
    return {
        "drawings": sum(word.picture is not None for word in words),
        "words": sum(len(word.texts) for word in words),
        "languages": len({language for word in words for language, _ in word.texts}),
        "monuments": len(monuments),
    }


def _write(content: tuple[list[Word], list[Word]], out: Location) -> None:
    write_gcompris(content[0], out)
    write_monuments(content[1], out / "monuments")


GCOMPRIS = RegistrySet(
    name="gcompris",
    what="drawings with words in 50 languages; 49 photos of monuments",
    folders=("train", "test", "monuments"),
    read=_read,
    count=_count,
    expected={"drawings": 116, "words": 5_686, "languages": 50, "monuments": 49},
    or_more=True,
    write=_write,
)
