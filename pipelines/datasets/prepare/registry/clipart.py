"""Open Clip Art: drawings with an English title and keywords.

Pictures from Debian's package `openclipart-png`, titles and keywords from the drawings themselves
in `openclipart-svg`. Some titles are those of a collection, or were left over from the drawing
before; there the words of the file's name serve.
"""

from __future__ import annotations

import html
import io
import re
import tempfile
import warnings
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from clippo_core.config import ImageConfig
from clippo_core.errors import Rejected, SampleError
from pipelines.datasets.manifest import RawSample, ShardWriter, is_prepared
from pipelines.datasets.prepare.pictures import check_picture
from pipelines.datasets.prepare.registry.packages import check_counts, unpack_debian_package
from pipelines.datasets.prepare.splits import SPLITS, SplitWriter
from pipelines.datasets.prepare.texts import tidy
from pipelines.runtime.progress import progress
from pipelines.runtime.storage import Location

TEST_SHARE = 0.05
#: Larger pictures are shrunk: some are posters of hundreds of millions of pixels.
MAX_SIDE_PX = 256
_PACKAGES = {"png": "openclipart-png", "svg": "openclipart-svg"}
#: Icon themes and hundreds of stars, which say nothing.
_LEFT_OUT = ("computer/icons/", "shapes/stars/")
_EXPECTED = {"PNG files": 8_121, "pictures without links and left-out folders": 4_067}
#: So many different pictures have a title in common only if it is a collection's.
_COLLECTION_SIZE = 3
_LEFT_OVER_TITLE = re.compile(r"clip ?art by ", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+")
#: Left by the program that made the library, or names of folders that say nothing.
_NO_KEYWORD = re.compile(r"hash\b.*|unsorted|special|")
_MAX_PIXELS = ImageConfig().max_pixels


@dataclass(frozen=True)
class Drawing:
    """A picture and what is said of it.

    Attributes:
        key: path without the ending.
        file: PNG.
        title: of the drawing, or of a collection; may be blank.
        keywords: lower-case.
        author_words: of the author's name, which are in the file's name as well; lower-case.
    """

    key: str
    file: Path
    title: str = ""
    keywords: tuple[str, ...] = ()
    author_words: frozenset[str] = frozenset()

    @property
    def name_words(self) -> list[str]:
        """Of the file's name, without numbers and the author; empty if no real word is left."""
        words = _WORD.findall(PurePosixPath(self.key).name)
        kept = [word for word in words if word.lower() not in self.author_words]
        return kept if any(len(word) > 2 for word in kept) else []

    @property
    def is_named_by_title(self) -> bool:
        """Whether the file's name starts as the title does; names are cut at some length."""
        title = "".join(_WORD.findall(self.title.lower()))
        name = "".join(_WORD.findall(PurePosixPath(self.key).name.lower()))
        return bool(title) and (name.startswith(title[:12]))


def prepare_clipart(out: Location) -> list[Location]:
    """Write the sets `out/train` and `out/test`; what is there and whole is kept.

    Returns:
        The folders of both.

    Raises:
        SampleError: if a package cannot be fetched, or is not the known one.
    """
    folders = [out / split for split in SPLITS]
    if all(is_prepared(folder) for folder in folders):
        return folders
    with tempfile.TemporaryDirectory(prefix="clippo-") as scratch:
        pictures, vectors = (
            unpack_debian_package(package, Path(scratch)) / "usr/share/openclipart" / kind
            for kind, package in _PACKAGES.items()
        )
        drawings = read_drawings(pictures, vectors)
        found = {
            "PNG files": sum(1 for _ in pictures.rglob("*.png")),
            "pictures without links and left-out folders": len(drawings),
        }
        check_counts("clipart", found, _EXPECTED)
        return write_clipart(drawings, out)


def read_drawings(pictures: Path, vectors: Path) -> list[Drawing]:
    """The drawings of two unpacked folders, less the left-out ones.

    Many pictures are in several folders by links; each is taken once.

    Args:
        pictures: holds `NAME.png` at any depth.
        vectors: holds `NAME.svg` at the same paths.

    Raises:
        SampleError: if there is no picture.
    """
    paths = sorted(file.relative_to(pictures).as_posix() for file in pictures.rglob("*.png"))
    chosen: dict[Path, str] = {}
    for path in paths:
        if not path.startswith(_LEFT_OUT):
            chosen.setdefault((pictures / path).resolve(), path)
    if not chosen:
        raise SampleError(f"{pictures} holds no pictures; expected the package {_PACKAGES['png']}")
    return [_read_drawing(pictures, vectors, path) for path in chosen.values()]


def titles_of(drawings: Sequence[Drawing]) -> list[str]:
    """A title for each drawing: its own, else the words of its file's name, else its folder's."""
    shared = Counter(drawing.title.lower() for drawing in drawings)
    return [_title_of(drawing, shared) for drawing in drawings]


def write_clipart(drawings: Sequence[Drawing], out: Location) -> list[Location]:
    """Write drawings as two sets, split by their title in lower case; returns their folders.

    Raises:
        SampleError: if a set would be empty.
    """
    writers = SplitWriter.of_pictures(
        out,
        name="clipart",
        test_share=TEST_SHARE,
        licence="public domain (Open Clip Art Library)",
        origin="Open Clip Art Library 0.18, Debian packages " + ", ".join(_PACKAGES.values()),
    )
    pairs = zip(drawings, titles_of(drawings), strict=True)
    for drawing, title in progress("clipart", unit="image", total=len(drawings), iterable=pairs):
        _add_drawing(writers.of(title.lower()), drawing, title)
    return writers.close()


def shrink_picture(content: bytes) -> bytes | Rejected:
    """A picture no longer or higher than `MAX_SIDE_PX`, as PNG; smaller ones as they are."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of what is rejected here.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content))
    except Image.DecompressionBombError as error:
        return Rejected("too_many_pixels", str(error))
    except OSError:
        return Rejected("unknown_image_format", f"starts with {content[:8]!r}")
    if image.width * image.height > _MAX_PIXELS:
        return Rejected("too_many_pixels", f"{image.width}x{image.height}")
    if max(image.size) <= MAX_SIDE_PX:
        return check_picture(content) or content
    try:
        # Of a palette's numbers no mean can be taken.
        smaller = image.convert("RGBA" if image.has_transparency_data else "RGB")
    except (OSError, ValueError, SyntaxError) as error:
        return Rejected("corrupt_image", f"{type(error).__name__}: {error}")
    smaller.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    smaller.save(buffer, "PNG")
    return buffer.getvalue()


def _read_drawing(pictures: Path, vectors: Path, path: str) -> Drawing:
    key = path.removesuffix(".png")
    file = pictures / path
    try:
        root = ET.parse(vectors / f"{key}.svg").getroot()
    except (OSError, ET.ParseError):
        # Its name is left.
        return Drawing(key, file)
    words = [
        tidy(html.unescape(item.text or "")).lower().replace("_", " ")
        for item in root.iterfind(".//{*}subject//{*}li")
    ]
    author = " ".join(_texts(root, ".//{*}creator//{*}title"))
    return Drawing(
        key,
        file,
        tidy(next(_texts(root, ".//{*}Work/{*}title"), "").replace("_", " ")),
        tuple(dict.fromkeys(word for word in words if not _NO_KEYWORD.fullmatch(word))),
        frozenset(word.lower() for word in _WORD.findall(author)),
    )


def _texts(root: ET.Element, path: str) -> Iterator[str]:
    texts = (tidy(html.unescape(found.text or "")) for found in root.iterfind(path))
    return filter(None, texts)


def _title_of(drawing: Drawing, shared: Mapping[str, int]) -> str:
    is_collection = shared[drawing.title.lower()] >= _COLLECTION_SIZE
    is_own = not _LEFT_OVER_TITLE.match(drawing.title) and (
        not is_collection or drawing.is_named_by_title
    )
    if is_own and len(drawing.title) > 1:
        return drawing.title
    if drawing.name_words:
        return " ".join(drawing.name_words)
    if drawing.title and not _LEFT_OVER_TITLE.match(drawing.title):
        return drawing.title
    return PurePosixPath(drawing.key).parent.name.replace("_", " ")


def _add_drawing(writer: ShardWriter, drawing: Drawing, title: str) -> None:
    content = shrink_picture(drawing.file.read_bytes())
    if isinstance(content, Rejected):
        writer.reject(drawing.key, content.reason, content.detail)
        return
    if not title:
        writer.reject(drawing.key, "missing_caption")
        return
    keywords = [word for word in drawing.keywords if word != title.lower()]
    captions = [title, *([", ".join([title, *keywords])] if keywords else [])]
    writer.add(RawSample(drawing.key, content, captions, languages=["en"] * len(captions)))
