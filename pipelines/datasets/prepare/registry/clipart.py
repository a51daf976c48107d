"""Open Clip Art: drawings with an English title and keywords.

The pictures come from Debian's package `openclipart-png`, titles and keywords from the drawings
themselves in `openclipart-svg`. Some titles name a collection, or were left over from the drawing
before; there the words of the file's name serve.
"""

from __future__ import annotations

import html
import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from clippo_core.config import ImageConfig
from clippo_core.errors import Rejected, SampleError
from pipelines.datasets.manifest import Manifest, RawSample
from pipelines.datasets.prepare.pictures import check_picture
from pipelines.datasets.prepare.registry.packages import RegistrySet, unpack_debian_package
from pipelines.datasets.prepare.rows import RejectedRow, Row, is_held_out, tidy, write_divided
from pipelines.runtime.storage import Location

TEST_SHARE = 0.05
#: Longest side of a picture; larger ones, some of them posters of hundreds of millions of pixels,
#: are shrunk.
MAX_SIDE_PX = 256
_PACKAGES = {"png": "openclipart-png", "svg": "openclipart-svg"}
#: Folders of icon themes and of hundreds of stars, which tell nothing.
_LEFT_OUT = ("computer/icons/", "shapes/stars/")
#: Number of different pictures that share a title only if it is a collection's.
_COLLECTION_SIZE = 3
_LEFT_OVER_TITLE = re.compile(r"clip ?art by ", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+")
#: Keywords left by the program that made the library, and names of folders that tell nothing.
_NO_KEYWORD = re.compile(r"hash\b.*|unsorted|special|")
_MAX_PIXELS = ImageConfig().max_pixels


@dataclass(frozen=True)
class Drawing:
    """A picture with its titles and keywords.

    Attributes:
        key: path without the ending.
        file: PNG file.
        title: title of the drawing, or of a collection; may be blank.
        keywords: keywords in lower case.
        author_words: words of the author's name in lower case, which are in the file's name too.
    """

    key: str
    file: Path
    title: str = ""
    keywords: tuple[str, ...] = ()
    author_words: frozenset[str] = frozenset()

    def best_title(self, shared: Mapping[str, int]) -> str:
        """Return its own title, else the words of its file's name, else its folder's name.

        Args:
            shared: number of drawings by their title in lower case.
        """
        is_left_over = _LEFT_OVER_TITLE.match(self.title) is not None
        name = PurePosixPath(self.key).name
        # Names of files are cut at some length.
        start = "".join(_WORD.findall(self.title.lower()))[:12]
        is_own = shared[self.title.lower()] < _COLLECTION_SIZE or (
            start != "" and "".join(_WORD.findall(name.lower())).startswith(start)
        )
        if is_own and not is_left_over and len(self.title) > 1:
            return self.title
        words = [word for word in _WORD.findall(name) if word.lower() not in self.author_words]
        if any(len(word) > 2 for word in words):
            return " ".join(words)
        if self.title and not is_left_over:
            return self.title
        return PurePosixPath(self.key).parent.name.replace("_", " ")


def read_drawings(pictures: Path, vectors: Path) -> list[Drawing]:
    """Return the drawings of two unpacked folders, less the left-out ones.

    Many pictures are in several folders by links; each is taken once.

    Args:
        pictures: folder with `NAME.png` at any depth.
        vectors: folder with `NAME.svg` at the same paths.

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
    """Return the best title for each drawing."""
    shared = Counter(drawing.title.lower() for drawing in drawings)
    return [drawing.best_title(shared) for drawing in drawings]


def write_clipart(drawings: Sequence[Drawing], out: Location) -> list[Location]:
    """Write drawings as two sets, split by their title in lower case; return their folders."""
    about = Manifest(
        name="clipart",
        licence="public domain (Open Clip Art Library)",
        origin="Open Clip Art Library 0.18, Debian packages " + ", ".join(_PACKAGES.values()),
    )
    pairs = zip(drawings, titles_of(drawings), strict=True)
    rows = ((is_held_out(title.lower(), TEST_SHARE), _row(d, title)) for d, title in pairs)
    return write_divided(out, about, rows, shuffle=True, total=len(drawings))


def shrink_picture(content: bytes) -> bytes | Rejected:
    """Return a picture no longer or higher than `MAX_SIDE_PX`, as PNG; smaller ones as they are."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of pictures that are rejected below.
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
        # The numbers of a palette have no mean.
        smaller = image.convert("RGBA" if image.has_transparency_data else "RGB")
    except (OSError, ValueError, SyntaxError) as error:
        return Rejected("corrupt_image", f"{type(error).__name__}: {error}")
    smaller.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    smaller.save(buffer, "PNG")
    return buffer.getvalue()


def _read_drawing(pictures: Path, vectors: Path, path: str) -> Drawing:
    key = path.removesuffix(".png")
    try:
        root = ET.parse(vectors / f"{key}.svg").getroot()
    except (OSError, ET.ParseError):
        # Only its name is known.
        return Drawing(key, pictures / path)
    title = next(filter(None, _texts(root, ".//{*}Work/{*}title")), "")
    words = [text.lower().replace("_", " ") for text in _texts(root, ".//{*}subject//{*}li")]
    author = " ".join(_texts(root, ".//{*}creator//{*}title"))
    return Drawing(
        key,
        pictures / path,
        tidy(title.replace("_", " ")),
        tuple(dict.fromkeys(word for word in words if not _NO_KEYWORD.fullmatch(word))),
        frozenset(word.lower() for word in _WORD.findall(author)),
    )


def _texts(root: ET.Element, path: str) -> Iterator[str]:
    return (tidy(html.unescape(found.text or "")) for found in root.iterfind(path))


def _row(drawing: Drawing, title: str) -> Row:
    content = shrink_picture(drawing.file.read_bytes())
    if isinstance(content, Rejected):
        return RejectedRow(drawing.key, content.reason, content.detail)
    if not title:
        return RejectedRow(drawing.key, "missing_caption")
    keywords = [word for word in drawing.keywords if word != title.lower()]
    captions = [title, *([", ".join([title, *keywords])] if keywords else [])]
    return RawSample(drawing.key, content, captions, languages=["en"] * len(captions))


def _read(scratch: Path) -> tuple[int, list[Drawing]]:
    """Return the number of pictures and the drawings."""
    pictures, vectors = (
        unpack_debian_package(package, scratch) / "usr/share/openclipart" / kind
        for kind, package in _PACKAGES.items()
    )
    return sum(1 for _ in pictures.rglob("*.png")), read_drawings(pictures, vectors)


CLIPART = RegistrySet(
    name="clipart",
    what="openclipart with English titles and keywords",
    read=_read,
    count=lambda content: {
        "PNG files": content[0],
        "pictures without links and left-out folders": len(content[1]),
    },
    expected={"PNG files": 8_121, "pictures without links and left-out folders": 4_067},
    write=lambda content, out: write_clipart(content[1], out),
)
