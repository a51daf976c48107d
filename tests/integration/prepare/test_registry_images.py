"""Image sets out of package registries, on tiny trees."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from clippo_core.errors import Rejected, SampleError
from pipelines.datasets.manifest import REJECTS_FILE, RawSample
from pipelines.datasets.prepare.registry import clipart, emoji, flags, gcompris, icons, tuxpaint
from pipelines.datasets.prepare.rows import is_held_out
from pipelines.datasets.sources import open_source
from pipelines.runtime.storage import Location


def picture(name: str, *, side: int = 8, kind: str = "PNG") -> bytes:
    """A picture of its own for each name."""
    colour = tuple(hashlib.sha256(name.encode()).digest()[:3])
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, kind, lossless=True)
    return buffer.getvalue()


def write(file: Path, content: bytes | str | dict | list) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, (dict, list)):
        content = json.dumps(content)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


def samples(folder: Location) -> dict[str, RawSample]:
    return {sample.key: sample for sample in open_source(folder.uri)}


def captions(sample: RawSample) -> list[tuple[str, str]]:
    return list(zip(sample.languages or (), map(str, sample.captions or ()), strict=True))


def rejects(folder: Location) -> dict[str, str]:
    place = folder / REJECTS_FILE
    lines = place.read_bytes().decode().splitlines() if place.exists() else []
    return {row["key"]: row["reason"] for row in map(json.loads, lines)}


# Tux Paint


@pytest.fixture
def stamps(tmp_path: Path) -> Path:
    folder = tmp_path / "stamps"
    lines = ["A dog. ", "", "de.utf8=Ein Hund.", "pt_BR.utf8=Um  cão.", "sr@latin.utf8=Pas."]
    write(folder / "animals/dog.txt", "\n".join([*lines, "ca@valencia.utf8=Un gos.", "fr.utf8= "]))
    write(folder / "animals/dog.png", picture("dog"))
    write(folder / "animals/dog_mirror.png", picture("dog, the other way round"))
    for name, text in (("gift", "A gift."), ("sun", "A sun."), ("odd", "Odd.\nde=x"), ("no", "\n")):
        write(folder / f"{name}.txt", text)
    write(folder / "sun.svg", "<svg/>")
    write(folder / "odd.png", picture("odd"))
    write(folder / "no.png", picture("no"))
    write(folder / "bad.txt", "Bad.")
    write(folder / "bad.png", b"no picture")
    return folder


def test_a_stamp_has_a_sentence_in_each_language_and_is_for_evaluation(stamps, tmp_path):
    folder = tuxpaint.write_tuxpaint(stamps, Location.of(tmp_path / "out"))
    found = samples(folder)
    assert list(found) == ["animals/dog"]
    assert captions(found["animals/dog"]) == [
        ("en", "A dog."),
        ("de", "Ein Hund."),
        ("pt-BR", "Um cão."),
        ("sr-Latn", "Pas."),
        ("ca-valencia", "Un gos."),
    ]
    assert found["animals/dog"].image == picture("dog")
    manifest = open_source(folder.uri).manifest
    assert manifest.evaluation_only and manifest.name == "tuxpaint"


def test_stamps_that_cannot_be_used_are_listed_with_their_reason(stamps, tmp_path):
    folder = tuxpaint.write_tuxpaint(stamps, Location.of(tmp_path / "out"))
    assert rejects(folder) == {
        "gift": "missing_image",
        "sun": "unknown_image_format",
        "odd": "invalid_text",
        "no": "missing_caption",
        "bad": "unknown_image_format",
    }


def test_fewer_stamps_than_known_are_an_error_and_more_are_welcome(stamps, tmp_path, monkeypatch):
    (stamps / "odd.txt").unlink()
    root = tmp_path / "root"
    (root / "usr/share/tuxpaint").mkdir(parents=True)
    stamps.rename(root / tuxpaint._STAMPS)
    monkeypatch.setattr(tuxpaint, "unpack_debian_package", lambda name, scratch: root)
    with pytest.raises(SampleError, match="stamps with a picture: 3, expected 951"):
        tuxpaint.TUXPAINT.prepare(Location.of(tmp_path / "out"))
    known = replace(tuxpaint.TUXPAINT, expected={"sentences": 2})
    (folder,) = known.prepare(Location.of(tmp_path / "out"))
    before = (Path(folder.uri) / "manifest.json").stat().st_mtime_ns
    known.prepare(Location.of(tmp_path / "out"))
    assert (Path(folder.uri) / "manifest.json").stat().st_mtime_ns == before


# Emoji

HAND, TONES = "1f44d", ("1f3fb", "1f3ff")
COUPLE, COUPLE_OF_TWO = "1f46b", "1f469-1f3fb-200d-1f91d-200d-1f468-1f3ff"
RUNNER, RUNNER_RIGHT = "1f3c3", "1f3c3-1f3fb-200d-27a1-fe0f"


def annotation_file(top: str, locale: str, entries: dict) -> dict:
    return {top: {"identity": {"language": locale}, "annotations": entries}}


@pytest.fixture
def cldr(tmp_path: Path) -> dict[str, Path]:
    """Names in two locales, for many emoji."""
    packages = {top: tmp_path / name for top, (name, _) in emoji._CAPTION_PACKAGES.items()}
    one, derived = packages
    names = {chr(0x1F300 + n): {"tts": [f"emoji {n}"], "default": []} for n in range(0x300)}
    names["👍"] = {"tts": ["thumbs up"], "default": ["hand", "thumbs up", "yes"]}
    names["☺"] = {"tts": ["smiling", "really"], "default": ["face"]}
    names["©"] = {"tts": ["copyright"]}
    write(packages[one] / one / "en/annotations.json", annotation_file(one, "en", names))
    german = {
        "👍": {"tts": ["Daumen hoch"], "default": ["Daumen hoch"]},
        "☺️": {"default": ["Mund"]},
    }
    write(packages[one] / one / "de/annotations.json", annotation_file(one, "de", german))
    write(packages[one] / one / "und/annotations.json", {one: {"identity": {}}})
    more = {"👍🏻": {"tts": ["thumbs up: light"]}, "👍🏿": {"tts": ["thumbs up: dark"]}}
    for code in (COUPLE_OF_TWO, RUNNER_RIGHT):
        more[emoji.character_of(code)] = {"tts": [code]}
    write(packages[derived] / derived / "en/annotations.json", annotation_file(derived, "en", more))
    return packages


def emoji_names() -> list[str]:
    variants = [HAND, *(f"{HAND}-{tone}" for tone in TONES), COUPLE, COUPLE_OF_TWO, RUNNER]
    return [*variants, RUNNER_RIGHT, "263a-fe0f", *(f"{0x1F400 + n:x}" for n in range(64))]


@pytest.fixture
def vendors(tmp_path: Path) -> dict[str, Path]:
    packages = {vendor.name: tmp_path / vendor.name for vendor in emoji.VENDORS}
    for vendor in emoji.VENDORS:
        for name in dict.fromkeys(emoji_names()):
            kind = vendor.pictures.rpartition(".")[2]
            content = picture(f"{vendor.name} {name}", kind=kind.upper())
            write(packages[vendor.name] / vendor.pictures.replace("*", name), content)
    variants = {"1F3FB-1F3FF": {"unified": COUPLE_OF_TWO.upper()}}
    rows = [{"unified": COUPLE.upper(), "skin_variations": variants}, {"unified": "1F600"}]
    write(packages["google"] / "emoji.json", rows)
    return packages


def write_emoji(vendors: dict[str, Path], cldr: dict[str, Path], out: Path) -> list[Location]:
    return emoji.write_emoji(emoji.read_emoji(vendors, cldr), Location.of(out))


def test_an_emoji_has_its_names_and_then_its_other_keywords_in_each_locale(cldr):
    known = emoji.read_captions(cldr)
    assert known.of(emoji.character_of("1f44d")) == [
        ("de", "Daumen hoch"),
        ("en", "thumbs up"),
        ("en", "hand, yes"),
    ]
    assert known.of(emoji.character_of("263a-fe0f")) == [
        ("en", "smiling, really"),
        ("de", "Mund"),
        ("en", "face"),
    ]


def test_no_held_out_emoji_is_in_training_and_variants_stay_together(cldr, vendors, tmp_path):
    folders = write_emoji(vendors, cldr, tmp_path / "out")
    bases = emoji.read_bases(vendors["google"])
    split_of: dict[str, set[str]] = {}
    total = 0
    for folder in folders:
        for key in samples(folder):
            total += 1
            base = emoji.base_of(key.partition("/")[2], bases)
            split_of.setdefault(base, set()).add("test" if folder.name == "test" else "known")
    assert all(len(splits) == 1 for splits in split_of.values())
    assert {"test", "known"} == set().union(*split_of.values())
    assert total == 3 * len(dict.fromkeys(emoji_names()))
    for code, base in (
        (f"{HAND}-1f3ff", HAND),
        (COUPLE_OF_TWO, COUPLE),
        (RUNNER_RIGHT, RUNNER),
        ("263a-fe0f", "263a"),
    ):
        assert emoji.base_of(code, bases) == base


def test_the_held_out_vendor_and_all_test_emoji_are_for_evaluation_only(cldr, vendors, tmp_path):
    out = tmp_path / "out"
    folders = write_emoji(vendors, cldr, out)
    evaluated = {f.uri: open_source(f.uri).manifest.evaluation_only for f in folders}
    assert evaluated == {
        f"{out}/google/train": False,
        f"{out}/google/test": True,
        f"{out}/fluent/train": False,
        f"{out}/fluent/test": True,
        f"{out}/twitter/heldout_vendor": True,
        f"{out}/twitter/test": True,
    }
    known, unknown_hand = (
        {key.partition("/")[2] for key in samples(Location.of(out / name))}
        for name in ("google/train", "twitter/heldout_vendor")
    )
    assert known == unknown_hand


def test_a_held_out_emoji_with_the_picture_of_a_known_one_is_rejected(cldr, vendors, tmp_path):
    codes = [f"{0x1F400 + n:x}" for n in range(64)]
    known, test = (
        next(code for code in codes if is_held_out(code, emoji.TEST_SHARE) is is_test)
        for is_test in (False, True)
    )
    place = vendors["google"] / "img/google/64"
    write(place / f"{test}.png", (place / f"{known}.png").read_bytes())
    write(place / f"{codes[-1]}.png", b"no picture")
    write_emoji(vendors, cldr, tmp_path / "out")
    out = Location.of(tmp_path / "out" / "google")
    assert rejects(out / "test") | rejects(out / "train") == {
        f"google/{test}": "same_as_known_emoji",
        f"google/{codes[-1]}": "unknown_image_format",
    }


@pytest.mark.parametrize(
    ("name", "code_points"),
    [
        ("1F44D-1F3FD", "1f44d-1f3fd"),
        ("23-fe0f-20e3", "0023-fe0f-20e3"),
        ("1f3f4-e0067_e0062_e0065_e006e_e0067", "1f3f4-e0067-e0062-e0065-e006e-e0067-e007f"),
        ("1f3f4-e0067-e007f", "1f3f4-e0067-e007f"),
    ],
)
def test_pictures_are_named_by_code_points_in_one_way(name: str, code_points: str):
    assert emoji.code_points_of(name) == code_points


def test_an_emojis_second_picture_and_files_that_are_no_emoji_are_rejected(cldr, vendors, tmp_path):
    place = vendors["fluent"] / "assets"
    for name in ("00a9-fe0f", "a9-fe0f", "readme", "1f9ff-200d-1f9ff"):
        write(place / f"{name}.webp", picture(name, kind="WEBP"))
    write_emoji(vendors, cldr, tmp_path / "out")
    out = Location.of(tmp_path / "out" / "fluent")
    assert rejects(out / "test") | rejects(out / "train") == {
        "fluent/a9-fe0f": "duplicate_key",
        "fluent/readme": "missing_caption",
        "fluent/1f9ff-200d-1f9ff": "missing_caption",
    }
    assert "fluent/00a9-fe0f" in samples(out / "train") | samples(out / "test")


def test_fewer_emoji_than_known_are_an_error_that_says_what_differs(
    cldr, vendors, tmp_path, monkeypatch
):
    tops = {name: cldr[top] for top, (name, _) in emoji._CAPTION_PACKAGES.items()}
    known = {v.package[0]: vendors[v.name] for v in emoji.VENDORS} | tops
    monkeypatch.setattr(emoji, "unpack_npm_package", lambda name, version, scratch: known[name])
    with pytest.raises(SampleError, match=r"google pictures: 72, expected 3786; .*locales: 2, "):
        emoji.EMOJI.prepare(Location.of(tmp_path / "out"))


def test_captions_laid_out_otherwise_are_an_error_that_names_the_file(cldr):
    write(cldr["annotations"] / "annotations/fr/annotations.json", {"other": {}})
    with pytest.raises(SampleError, match=r"annotations/fr/annotations.json.*KeyError"):
        emoji.read_captions(cldr)


# Flags

CODES = [f"{first}{second}" for first in "abcdef" for second in "abcdefghijklmnopqrst"]


@pytest.fixture
def country_names(tmp_path: Path) -> Path:
    codes = [code.upper() for code in CODES]
    for locale, word in (("en", "country"), ("de-CH", "Land"), ("aa", "")):
        names = {code: f"{word} {code}" if word else "" for code in codes}
        content = {"main": {locale: {"localeDisplayNames": {"territories": names}}}}
        write(tmp_path / f"names/main/{locale}/territories.json", content)
    (tmp_path / "names/main/xx").mkdir()
    return tmp_path / "names"


def test_a_flag_has_its_countrys_name_in_each_locale(country_names, tmp_path):
    files = {code: picture(code) for code in CODES}
    names = flags.read_names(country_names)
    files |= {"_wales": picture("wales"), "ab": b"no picture"}
    train, test = flags.write_flags(files, names, Location.of(tmp_path / "out"))
    both = samples(train) | samples(test)
    assert captions(both["aa"]) == [("de-CH", "Land AA"), ("en", "country AA")]
    assert set(samples(test)) == {code for code in both if is_held_out(code, flags.TEST_SHARE)}
    assert rejects(train) | rejects(test) == {
        "_wales": "missing_caption",
        "ab": "unknown_image_format",
    }
    assert open_source(test.uri).manifest.evaluation_only
    assert not open_source(train.uri).manifest.evaluation_only


def test_countries_that_share_a_flag_are_in_the_same_split(country_names, tmp_path):
    flag_of = {code: (number + 1) // 2 for number, code in enumerate(CODES)}
    files = {code: picture(str(flag)) for code, flag in flag_of.items()}
    names = flags.read_names(country_names)
    train, test = flags.write_flags(files, names, Location.of(tmp_path / "out"))
    trained, tested = ({flag_of[key] for key in samples(folder)} for folder in (train, test))
    assert trained and tested and not trained & tested


def test_names_laid_out_otherwise_are_an_error_that_names_the_file(country_names):
    write(country_names / "main/fr/territories.json", {"main": {}})
    with pytest.raises(SampleError, match=r"main/fr/territories\.json"):
        flags.read_names(country_names)


def test_fewer_flags_than_known_are_an_error(country_names, tmp_path, monkeypatch):
    write(tmp_path / "root/usr/share/iso-flags-png-320x240/aa.png", picture("aa"))
    monkeypatch.setattr(flags, "unpack_debian_package", lambda name, scratch: tmp_path / "root")
    monkeypatch.setattr(flags, "unpack_npm_package", lambda name, version, scratch: country_names)
    with pytest.raises(SampleError, match="flags: 1, expected 262"):
        flags.FLAGS.prepare(Location.of(tmp_path / "out"))


# Clip art

SVG = """<svg xmlns="http://www.w3.org/2000/svg"><metadata>
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns="http://web.resource.org/cc/"
 xmlns:dc="http://purl.org/dc/elements/1.1/"><Work><dc:title>{title}</dc:title>
<dc:subject><rdf:Bag>{keywords}</rdf:Bag></dc:subject>
<dc:creator><Agent><dc:title>Jane Doe</dc:title></Agent></dc:creator></Work></rdf:RDF>
</metadata></svg>"""


def add_drawing(root: Path, path: str, title: str | None, *keywords: str) -> None:
    write(root / f"png/{path}.png", picture(path))
    if title is not None:
        items = "".join(f"<rdf:li>{keyword}</rdf:li>" for keyword in keywords)
        write(root / f"svg/{path}.svg", SVG.format(title=title, keywords=items))


def titles(root: Path) -> dict[str, str]:
    drawings = clipart.read_drawings(root / "png", root / "svg")
    return {
        drawing.key: title
        for drawing, title in zip(drawings, clipart.titles_of(drawings), strict=True)
    }


def test_a_drawing_has_its_title_and_its_title_with_keywords(tmp_path):
    keywords = ("", "hash", "HASH(0x12)", "Big_Cat", "lion", "animal", "animal", "unsorted")
    add_drawing(tmp_path, "animals/lion_jane_doe_01", "Lion", *keywords)
    for number in range(60):
        add_drawing(tmp_path, f"things/thing{number}", f"Thing {number}")
    drawings = clipart.read_drawings(tmp_path / "png", tmp_path / "svg")
    train, test = clipart.write_clipart(drawings, Location.of(tmp_path / "out"))
    both = samples(train) | samples(test)
    assert captions(both["animals/lion_jane_doe_01"]) == [
        ("en", "Lion"),
        ("en", "Lion, big cat, animal"),
    ]
    assert captions(both["things/thing7"]) == [("en", "Thing 7")]
    assert len(both) == 61
    assert open_source(test.uri).manifest.evaluation_only


def test_pictures_with_the_same_title_are_in_the_same_split(tmp_path):
    for number in range(120):
        title = f"thing {'abcdefghijklmnopqrstuvwxyzäöüß'[number % 30]}"
        title = title if number % 2 else title.upper()
        add_drawing(tmp_path, f"{number}/{title.replace(' ', '_')}", title)
    drawings = clipart.read_drawings(tmp_path / "png", tmp_path / "svg")
    folders = clipart.write_clipart(drawings, Location.of(tmp_path / "out"))
    trained, tested = (
        {str((sample.captions or [""])[0]).lower() for sample in samples(folder).values()}
        for folder in folders
    )
    assert trained and tested and not trained & tested


def test_titles_of_collections_and_blank_ones_give_way_to_the_files_name(tmp_path):
    for name in ("ant", "bee_jane_doe", "wasp_02"):
        add_drawing(tmp_path, f"bugs/{name}", "Insects")
    for number in range(3):
        add_drawing(tmp_path, f"sky/lightning_jane_doe_{number}", "Lightning")
    add_drawing(tmp_path, "sky/moon01_2", "")
    add_drawing(tmp_path, "food/honey", "Clipart by Jane Doe - bee")
    add_drawing(tmp_path, "flow_charts/fc15", "Clipart by Jane Doe - fc23")
    add_drawing(tmp_path, "no/metadata", None)
    add_drawing(tmp_path, "old/chest", "Cassa d&amp;#39;epoca_2")
    write(tmp_path / "png/no/xml.png", picture("xml"))
    write(tmp_path / "svg/no/xml.svg", "<svg>")
    assert titles(tmp_path) == {
        "bugs/ant": "ant",
        "bugs/bee_jane_doe": "bee",
        "bugs/wasp_02": "wasp",
        "flow_charts/fc15": "flow charts",
        "food/honey": "honey",
        "no/metadata": "metadata",
        "no/xml": "xml",
        "old/chest": "Cassa d'epoca 2",
        "sky/lightning_jane_doe_0": "Lightning",
        "sky/lightning_jane_doe_1": "Lightning",
        "sky/lightning_jane_doe_2": "Lightning",
        "sky/moon01_2": "moon",
    }


def test_icons_and_stars_are_left_out_and_linked_pictures_taken_once(tmp_path):
    add_drawing(tmp_path, "animals/cat", "Cat")
    add_drawing(tmp_path, "computer/icons/cd", "CD")
    add_drawing(tmp_path, "shapes/stars/star1", "Star")
    (tmp_path / "png/mammals").mkdir()
    (tmp_path / "png/mammals/cat.png").symlink_to("../animals/cat.png")
    assert titles(tmp_path) == {"animals/cat": "Cat"}


def test_large_pictures_are_shrunk_and_keep_their_shape_and_transparency():
    buffer = io.BytesIO()
    pixels = np.zeros((1500, 3000, 4), np.uint8)
    pixels[:, 1500:] = (255, 0, 0, 255)
    Image.fromarray(pixels).save(buffer, "PNG")
    small = clipart.shrink_picture(buffer.getvalue())
    assert isinstance(small, bytes)
    image = Image.open(io.BytesIO(small))
    assert (image.size, image.mode, image.format) == ((256, 128), "RGBA", "PNG")
    assert image.getpixel((10, 10)) == (0, 0, 0, 0)
    assert image.getpixel((250, 10)) == (255, 0, 0, 255)


def test_transparent_palettes_are_shrunk_in_colour():
    image = Image.new("P", (600, 600), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0)
    small = clipart.shrink_picture(buffer.getvalue())
    assert isinstance(small, bytes)
    assert Image.open(io.BytesIO(small)).getpixel((5, 5)) == (10, 20, 30, 255)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no picture", "unknown_image_format"),
        (picture("x")[:45], "corrupt_image"),
        (picture("x", side=600)[:60], "corrupt_image"),
    ],
)
def test_broken_pictures_are_values(content: bytes, reason: str):
    found = clipart.shrink_picture(content)
    assert isinstance(found, Rejected) and found.reason == reason


@pytest.mark.parametrize("limit", [50, 1_000])
def test_posters_are_rejected_before_they_are_decoded(limit: int, monkeypatch):
    monkeypatch.setattr(clipart, "_MAX_PIXELS", 200)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    found = clipart.shrink_picture(picture("poster", side=20))
    assert isinstance(found, Rejected) and found.reason == "too_many_pixels"


def test_an_empty_library_is_an_error(tmp_path):
    with pytest.raises(SampleError, match="holds no pictures"):
        clipart.read_drawings(tmp_path, tmp_path)


# GCompris

PLAIN: Callable[[bytes], tuple[int, bytes]] = lambda content: (0, content)  # noqa: E731


def deflated(content: bytes) -> tuple[int, bytes]:
    return 1, struct.pack(">I", len(content)) + zlib.compress(content)


def zstandard(content: bytes) -> tuple[int, bytes]:
    packed = pa.Codec("zstd").compress(content, asbytes=True)
    return 4, packed


def qt_resources(
    files: dict[str, bytes],
    version: int = 2,
    pack: Callable[[bytes], tuple[int, bytes]] = PLAIN,
) -> bytes:
    """A resource file as Qt's `rcc --binary` writes it: tree breadth first, then data and names."""
    header = 20 if version < 3 else 24
    tree, data, names = b"", b"", b""
    queue: list[tuple[str, dict[str, bytes]]] = [("", files)]
    number_of_nodes = 1
    stamp = struct.pack(">Q", 7) if version >= 2 else b""
    while queue:
        name, content = queue.pop(0)
        name_at = len(names) if name else 0
        if name:
            names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        if isinstance(content, bytes):
            flags_, packed = pack(content)
            tree += struct.pack(">IHHHI", name_at, flags_, 0, 0, len(data)) + stamp
            data += struct.pack(">I", len(packed)) + packed
            continue
        children: dict = {}
        for path, value in content.items():
            first, _, rest = path.partition("/")
            if rest:
                children.setdefault(first, {})[rest] = value
            else:
                children[first] = value
        tree += struct.pack(">IHII", name_at, 2, len(children), number_of_nodes) + stamp
        number_of_nodes += len(children)
        queue += children.items()
    offsets = (header, header + len(tree), header + len(tree) + len(data))
    start = struct.pack(">4sIIII", b"qres", version, *offsets)
    return start + (struct.pack(">I", 0) if version >= 3 else b"") + tree + data + names


FILES = {"a/b/one.txt": b"one" * 100, "a/zwei-ü.bin": bytes(range(256)), "three": b""}


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("pack", [PLAIN, deflated, zstandard])
def test_qt_resources_of_every_version_and_compression_are_read(version, pack):
    assert gcompris.read_qt_resources(qt_resources(FILES, version, pack)) == FILES


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"PK\x03\x04", "not a Qt resource file"),
        (b"qres", "damaged"),
        (qt_resources(FILES).replace(b"\0\0\0\2", b"\0\0\0\x09", 1), "version 9"),
        (qt_resources(FILES)[:90], "damaged"),
        (qt_resources(FILES, 2, lambda content: (1, b"\0\0\0\1no zlib")), "damaged"),
        (qt_resources(FILES, 2, lambda content: (4, b"no zstd")), "damaged"),
        # The root's first child is the root.
        (qt_resources(FILES)[:30] + bytes(4) + qt_resources(FILES)[34:], "contain themselves"),
    ],
)
def test_other_and_damaged_files_are_an_error(content: bytes, problem: str):
    with pytest.raises(SampleError, match=problem):
        gcompris.read_qt_resources(content)


def words_file() -> dict[str, bytes]:
    names = ["dog", "nine", *(f"thing{number}" for number in range(40))]
    items = [
        {"image": f"{name}.webp", "voice": f"voices-$CA/$LOCALE/words/{name}.$CA"} for name in names
    ]
    items[1]["voice"] = "voices-$CA/$LOCALE/alphabet/U0039.$CA"
    lessons = [{"name": "all", "content": [{"name": "some", "content": items}]}]
    folder = gcompris._FOLDER
    files = {f"{folder}/words_sample/{n}.webp": picture(n, kind="WEBP") for n in names[:-1]}
    english = {f"{name}.ogg": name for name in names if name != "thing0"} | {"U0039.ogg": "nine"}
    german = {"dog.ogg": "der  Hund", "U0039.ogg": "neun", "thing1.ogg": " "}
    return files | {
        f"{folder}/words_sample.json": json.dumps(lessons).encode(),
        f"{folder}/content-en.json": json.dumps(english).encode(),
        f"{folder}/content-de_CH.json": json.dumps(german).encode(),
    }


def test_a_drawing_has_its_word_in_each_language(tmp_path):
    words = gcompris.read_words(words_file())
    train, test = gcompris.write_gcompris(words, Location.of(tmp_path / "out"))
    both = samples(train) | samples(test)
    assert captions(both["dog"]) == [("de-CH", "der Hund"), ("en", "dog")]
    assert captions(both["nine"]) == [("de-CH", "neun"), ("en", "nine")]
    assert captions(both["thing1"]) == [("en", "thing1")]
    assert set(samples(test)) == {key for key in both if is_held_out(key, gcompris.TEST_SHARE)}
    assert rejects(train) | rejects(test) == {
        "thing0": "missing_caption",
        "thing39": "missing_image",
    }
    assert open_source(test.uri).manifest.evaluation_only


def test_words_laid_out_otherwise_are_an_error():
    with pytest.raises(SampleError, match=r"KeyError: .*words_sample\.json"):
        gcompris.read_words({})


def test_a_monument_has_its_name_and_its_description(tmp_path):
    item = (
        '{{"title": qsTr("-"), "text": qsTr("It \\"stands\\" here."),\n'
        '"image2": "qrc:/resource/{0}.webp",\n "text2": qsTr("The {0}")}}'
    )
    files = {f"resource/{name}.webp": picture(name, kind="WEBP") for name in ("tower", "gate")}
    boards = {"board1.qml": ["tower", "gate", "lost"], "board2.qml": ["tower"]}
    files |= {board: ",".join(map(item.format, n)).encode() for board, n in boards.items()}
    folder = gcompris.write_monuments(gcompris.read_monuments(files), Location.of(tmp_path))
    found = samples(folder)
    assert set(found) == {"tower", "gate"}
    assert captions(found["gate"]) == [("en", "The gate"), ("en", 'It "stands" here.')]
    assert rejects(folder) == {"lost": "missing_image"}
    assert open_source(folder.uri).manifest.evaluation_only


def test_fewer_drawings_than_known_are_an_error(tmp_path, monkeypatch):
    write(tmp_path / "root" / gcompris._RESOURCES, qt_resources(words_file()))
    write(tmp_path / "root" / gcompris._MONUMENTS, qt_resources({"board1.qml": b""}))
    monkeypatch.setattr(gcompris, "unpack_debian_package", lambda name, scratch: tmp_path / "root")
    with pytest.raises(SampleError, match="drawings: 41, expected 116"):
        gcompris.GCOMPRIS.prepare(Location.of(tmp_path / "out"))


def test_a_package_without_the_resources_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(gcompris, "unpack_debian_package", lambda name, scratch: tmp_path)
    with pytest.raises(SampleError, match=r"lang\.rcc"):
        gcompris.GCOMPRIS.prepare(Location.of(tmp_path / "out"))


CIRCLE = '<circle cx="8" cy="8" r="{r}" fill="currentColor"/>'
SQUARE = '<rect x="{at}" y="2" width="8" height="8" fill="currentColor"/>'


class TestIcons:
    @pytest.fixture
    def packages(self, tmp_path: Path) -> tuple[Path, Path]:
        """Twenty sets that draw a bell, one that is held out, and sets that are left out."""
        names = {"🔔": {"en": "bell", "de": "Glocke", "sv": "klocka"}, "⭐": {"en": "star"}}
        for locale in ("en", "de", "sv"):
            found = {c: {"tts": [of[locale]]} for c, of in names.items() if locale in of}
            path = f"cldr/annotations/{locale}/annotations.json"
            write(tmp_path / path, {"annotations": {"annotations": found}})
        licences = {f"set{n:02d}": "MIT" for n in range(20)}
        licences |= {"tabler": "MIT", "logos": "MIT", "bought": "CC-BY-NC-4.0"}
        collections = {name: {"license": {"spdx": spdx}} for name, spdx in licences.items()}
        write(tmp_path / "icons/collections.json", collections)
        for number, name in enumerate(licences):
            bodies = {
                "bell-outline": CIRCLE.format(r=4 + number % 3),
                "filled-bell": SQUARE.format(at=2 + number % 5),
                "star": CIRCLE.format(r=2),
            }
            drawn = {icon: {"body": body} for icon, body in bodies.items()}
            if name == "set00":
                drawn["bell-bold"] = {"body": "<path d="}
                drawn["bell-thin"] = {"body": ""}
            elif name != "tabler":
                del drawn["star"]
            write(tmp_path / f"icons/json/{name}.json", {"icons": drawn, "height": 16})
        return tmp_path / "icons", tmp_path / "cldr"

    def test_names_without_words_for_style_are_concepts(self):
        concepts = {"bell", "left arrow", "bell with slash"}
        for icon, concept in (
            ("bell", "bell"),
            ("Bell_Outline", "bell"),
            ("bxs-bell-24", "bell"),
            ("arrow-left-bold", "left arrow"),
            ("bell-off", "bell with slash"),
            ("doorbell", None),
            ("outline", None),
        ):
            assert icons.concept_of(icon, concepts) == concept, icon

    def test_whole_sets_are_held_out_and_borrowed_drawings_are_not_novel(
        self, packages: tuple[Path, Path], tmp_path: Path
    ):
        out = Location.of(tmp_path / "out")
        content = icons.read_icons(*packages)
        # Too few sets draw stars; logos and what may not be used freely are left out.
        assert {icon.concept for icon in content.icons} == {"bell"}
        assert {icon.set for icon in content.icons} == {
            *(f"set{n:02d}" for n in range(20)),
            "tabler",
        }
        novel = packages[0] / "json/tabler.json"
        drawn = json.loads(novel.read_text())
        drawn["icons"]["bell-thin"] = {"body": '<path d="M2 14L14 2" stroke="#000"/>'}
        write(novel, drawn)
        content = icons.read_icons(*packages)
        folders = icons.write_icons(content, out)
        sources = {f.uri.removeprefix(f"{out.uri}/"): open_source(f.uri) for f in folders}
        sizes = ("small", "full")
        assert list(sources) == [f"{size}/{split}" for size in sizes for split in icons.SPLITS]
        for size in sizes:
            train, heldout, new = (sources[f"{size}/{split}"] for split in icons.SPLITS)
            assert train.num_rows == 40
            assert {sample.key for sample in heldout} == {
                f"tabler:{name}" for name in ("bell-outline", "filled-bell", "bell-thin")
            }
            assert [sample.key for sample in new] == ["tabler:bell-thin"]
            assert train.manifest.class_captions == {"de": ("Glocke",), "en": ("bell",)}
            assert heldout.manifest.class_captions["sv"] == ("klocka",)
            assert heldout.manifest.held_out_languages == ("sv",)
            assert heldout.manifest.evaluation_only
            assert f"only concepts that {size}/train draws" in heldout.manifest.origin
            rejects = (train.folder / REJECTS_FILE).read_bytes().decode().splitlines()
            found = {row["key"]: row["detail"] for row in map(json.loads, rejects)}
            assert found.keys() == {"set00:bell-bold", "set00:bell-thin"}
            assert found["set00:bell-thin"] == "the drawing is blank"
        sample = next(iter(sources["small/train"]))
        assert sample.captions == ["Glocke", "bell"]
        pixels = np.asarray(Image.open(io.BytesIO(sample.image or b"")).convert("L"))
        assert pixels.shape == (128, 128)
        assert pixels.min() == 0
        assert pixels[0, 0] == 255

    def test_at_most_six_drawings_of_a_concept_are_taken_from_a_set(
        self, packages: tuple[Path, Path]
    ):
        file = packages[0] / "json/set01.json"
        content = json.loads(file.read_text())
        styles = ("bold", "thin", "light", "duotone", "fill", "line", "round", "sharp")
        content["icons"] = {f"bell-{style}": {"body": CIRCLE.format(r=3)} for style in styles}
        write(file, content)
        found = icons.read_icons(*packages).icons
        assert sum(icon.set == "set01" for icon in found) == 6

    def test_another_layout_is_named(self, packages: tuple[Path, Path]):
        write(packages[0] / "json/set03.json", {"glyphs": {}})
        with pytest.raises(SampleError, match="package @iconify/json cannot be read"):
            icons.read_icons(*packages)
