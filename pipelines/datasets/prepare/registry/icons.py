"""Icons of some two hundred sets, with the names that CLDR has for what they show.

An icon is joined to a concept by its name: `arrow-left-outline` is CLDR's "left arrow". Whole sets
are held out. Concepts that few sets draw are left out, and so are those that only held-out sets
draw. The data come in two sizes: `small` has
the 64 most drawn concepts in 48 languages, `full` all concepts in all languages.

Licences are those of the icon sets, named in the keys of the rows; sets whose licence forbids
commercial use, and sets of logos, flags or file types are left out.
"""

from __future__ import annotations

import functools
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32
from PIL import Image

from pipelines.datasets.manifest import Manifest, RawSample
from pipelines.datasets.prepare.registry.emoji import CLDR_ANNOTATIONS, Captions, read_captions
from pipelines.datasets.prepare.registry.fashion_names import HELD_OUT_LOCALES
from pipelines.datasets.prepare.registry.packages import RegistrySet, reading, unpack_npm_package
from pipelines.datasets.prepare.rows import RejectedRow, Row, write_splits
from pipelines.runtime.progress import progress
from pipelines.runtime.storage import Location

_PACKAGE = ("@iconify/json", "2.2.535")
_NAMES = Path(__file__).with_name("icon_names.json")
#: Beginnings of the names of sets that are not trained on: families of their own style.
HELD_OUT_SETS = ("tabler", "solar", "hugeicons", "iconoir", "carbon", "twemoji", "streamline")
#: Least number of sets that draw a concept, and most drawings of it that are taken from one set.
MIN_SETS, MAX_PER_SET = 20, 6
#: Least share of the concepts that a language names.
MIN_NAMED = 0.9
#: Number of concepts of the small sets, and their languages: widely read ones, in 22 scripts.
SMALL_CONCEPTS = 64
SMALL_LANGUAGES = (
    *("en", "de", "fr", "es", "pt", "it", "nl", "pl", "cs", "ro", "hu", "tr", "vi", "id", "fi"),
    *("da", "no", "sw", "ru", "bg", "sr", "kk", "mn", "el", "ar", "fa", "ur", "he", "hi", "mr"),
    *("bn", "ta", "te", "kn", "ml", "gu", "pa", "si", "th", "lo", "my", "km", "ka", "hy", "am"),
    *("zh", "ja", "ko"),
)
#: Side of a drawing, and of its copy by which drawings are compared.
_SIDE_PX, _COMPARED_PX = 128, 32
#: Correlation of two drawings from which on one counts as borrowed from the other.
NEAR_DUPLICATE = 0.8
SPLITS = ("train", "heldout", "novel")
_SIZES = ("small", "full")


class Icon(NamedTuple):
    """An icon before it is drawn: its set and name there, what it shows, and its drawing."""

    set: str
    name: str
    concept: str
    svg: str

    @property
    def key(self) -> str:
        """Name as icon libraries write it."""
        return f"{self.set}:{self.name}"

    @property
    def is_held_out(self) -> bool:
        """True if its set is not trained on."""
        return self.set.startswith(HELD_OUT_SETS)


@dataclass(frozen=True)
class Concepts:
    """The concepts of a data set and their names.

    Attributes:
        names: CLDR's English name of each concept.
        captions: name of each concept in each language; "" where it has none.
    """

    names: tuple[str, ...]
    captions: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Drawn:
    """A drawing as a PNG file, and a small copy of it with mean 0 and length 1."""

    png: bytes
    compared: Float32[np.ndarray, " pixel"]


@dataclass(frozen=True)
class Content:
    """Icons of the concepts that enough sets draw, and what CLDR calls the concepts."""

    icons: Sequence[Icon]
    captions: Captions
    character_of: Mapping[str, str]


def read_icons(package: Path, annotations: Path) -> Content:
    """Return the content of the unpacked npm packages of icons and of CLDR's annotations."""
    captions = read_captions({"annotations": annotations})
    character_of = {
        names["en"]: character for character, names in captions.names.items() if "en" in names
    }
    with reading(f"the package {_PACKAGE[0]}"):
        collections = json.loads((package / "collections.json").read_text(encoding="utf-8"))
        found: list[Icon] = []
        for name, about in sorted(collections.items()):
            if _is_taken(name, about):
                content = json.loads((package / "json" / f"{name}.json").read_text("utf-8"))
                found += _icons_of(name, content, character_of)
    sets = defaultdict[str, set[str]](set)
    for icon in found:
        sets[icon.concept].add(icon.set)
    trained = {icon.concept for icon in found if not icon.is_held_out}
    drawn_enough = {concept for concept, by in sets.items() if len(by) >= MIN_SETS}
    kept = [icon for icon in found if icon.concept in trained & drawn_enough]
    return Content(kept, captions, character_of)


def _is_taken(name: str, about: Mapping[str, Any]) -> bool:
    is_free = "NC" not in about["license"].get("spdx", "NC").split("-")
    return is_free and name not in _name_rules()["sets_left_out"]


def _icons_of(name: str, content: Mapping[str, Any], concepts: Iterable[str]) -> Iterator[Icon]:
    """Yield the icons of a set that show a concept, at most `MAX_PER_SET` of each."""
    counts = Counter[str]()
    for icon, drawing in content["icons"].items():
        concept = concept_of(icon, concepts)
        if concept is None or counts[concept] == MAX_PER_SET:
            continue
        counts[concept] += 1
        yield Icon(name, icon, concept, _svg(drawing, content))


def _svg(drawing: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    left, top, width, height = (
        drawing.get(side, content.get(side, default))
        for side, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{drawing["body"]}</svg>'
    )


@functools.cache
def _name_rules() -> dict[str, Any]:
    return json.loads(_NAMES.read_text(encoding="utf-8"))


def concept_of(icon: str, concepts: Iterable[str]) -> str | None:
    """Return the concept that an icon's name stands for, without words for its style.

    Args:
        icon: name of the icon in its set, such as "arrow-left-outline".
        concepts: CLDR's English names.
    """
    rules, words = _name_rules(), icon.lower().replace("_", "-").split("-")
    while len(words) > 1 and words[-1] in rules["words_at_the_end"]:
        words = words[:-1]
    while len(words) > 1 and words[0] in rules["words_at_the_start"]:
        words = words[1:]
    plain = " ".join(words)
    name = rules["aliases"].get(plain, plain)
    return name if name in concepts else None


def choose_concepts(content: Content, *, size: str) -> Concepts:
    """Return the concepts of the small or of the full sets, in the order of their names."""
    sets = defaultdict[str, set[str]](set)
    for icon in content.icons:
        sets[icon.concept].add(icon.set)
    names = sorted(sets, key=lambda concept: (-len(sets[concept]), concept))
    if size == "small":
        names = names[:SMALL_CONCEPTS]
    chosen = tuple(sorted(names))
    of_concept = [content.captions.names[content.character_of[name]] for name in chosen]
    languages = sorted({language for found in of_concept for language in found})
    captions = {c: tuple(found.get(c, "") for found in of_concept) for c in languages}
    least = MIN_NAMED * len(chosen)
    captions = {c: found for c, found in captions.items() if sum(map(bool, found)) >= least}
    if size == "small":
        kept = {*SMALL_LANGUAGES, *HELD_OUT_LOCALES}
        captions = {language: names for language, names in captions.items() if language in kept}
    return Concepts(chosen, captions)


def draw(svg: str) -> Drawn | str:
    """Draw an icon in black on white, or in its own colours; return the problem if it cannot be."""
    # Imported here: only this set needs it.
    import resvg_py

    try:
        png = resvg_py.svg_to_bytes(
            svg_string=svg, background="white", width=_SIDE_PX, height=_SIDE_PX
        )
    except ValueError as error:
        return str(error)
    with Image.open(io.BytesIO(png)) as picture:
        small = picture.convert("L").resize((_COMPARED_PX, _COMPARED_PX))
    values = np.asarray(small, np.float32).ravel()
    values = values - values.mean()
    length = float(np.linalg.norm(values))
    return Drawn(bytes(png), values / length) if length else "the drawing is blank"


def write_icons(content: Content, out: Location) -> list[Location]:
    """Write three sets of each size: for training, of held-out sets, and the novel ones of these.

    A held-out icon is novel if its drawing correlates by less than `NEAR_DUPLICATE` with each
    training drawing of its concept, since sets borrow drawings from each other.
    """
    drawn = {
        icon.key: draw(icon.svg)
        for icon in progress("icons", unit="icon", iterable=content.icons, total=len(content.icons))
    }
    nearest = _nearest_training_drawing(content.icons, drawn)
    folders: list[Location] = []
    for size in _SIZES:
        concepts = choose_concepts(content, size=size)
        number_of = {name: number for number, name in enumerate(concepts.names)}
        icons = [icon for icon in content.icons if icon.concept in number_of]
        of_split = {
            "train": [icon for icon in icons if not icon.is_held_out],
            "heldout": [icon for icon in icons if icon.is_held_out],
            "novel": [icon for icon in icons if nearest.get(icon.key, 1.0) < NEAR_DUPLICATE],
        }
        for split, found in of_split.items():
            held_out = () if split == "train" else HELD_OUT_LOCALES
            only = "" if split == "train" else f"; only concepts that {size}/train draws"
            about = Manifest(
                name=f"icons-{size}",
                class_names=concepts.names,
                class_captions={
                    language: names
                    for language, names in concepts.captions.items()
                    if language in held_out or language not in HELD_OUT_LOCALES
                },
                held_out_languages=tuple(c for c in held_out if c in concepts.captions),
                licence="of each icon set, see Iconify; names Unicode-3.0 (CLDR)",
                origin=f"npm {' '.join(_PACKAGE)}; CLDR {CLDR_ANNOTATIONS[1]}{only}",
            )
            rows = (_row(icon, drawn[icon.key], number_of[icon.concept]) for icon in found)
            folders += write_splits(out / size, about, {split: rows}, shuffle=True)
    return folders


def _row(icon: Icon, drawn: Drawn | str, class_id: int) -> Row:
    if isinstance(drawn, str):
        return RejectedRow(icon.key, "decode_error", drawn)
    return RawSample(icon.key, drawn.png, None, class_id)


def _nearest_training_drawing(
    icons: Sequence[Icon], drawn: Mapping[str, Drawn | str]
) -> dict[str, float]:
    """Return how much each held-out drawing correlates with the nearest one of its concept."""
    by_concept = defaultdict[str, list[tuple[Icon, Drawn]]](list)
    for icon in icons:
        found = drawn[icon.key]
        if isinstance(found, Drawn):
            by_concept[icon.concept].append((icon, found))
    nearest: dict[str, float] = {}
    for found in by_concept.values():
        trained = [drawing.compared for icon, drawing in found if not icon.is_held_out]
        if not trained:
            continue
        trained_on = np.stack(trained)
        for icon, drawing in found:
            if icon.is_held_out:
                nearest[icon.key] = float((trained_on @ drawing.compared).max())
    return nearest


def _count(content: Content) -> dict[str, int]:
    return {
        "concepts": len({icon.concept for icon in content.icons}),
        "icons": len(content.icons),
        "sets": len({icon.set for icon in content.icons}),
    }


ICONS = RegistrySet(
    name="icons",
    what="icons of many sets, whole sets held out, with their names in 107 locales",
    folders=tuple(f"{size}/{split}" for size in _SIZES for split in SPLITS),
    read=lambda scratch: read_icons(
        unpack_npm_package(*_PACKAGE, scratch), unpack_npm_package(*CLDR_ANNOTATIONS, scratch)
    ),
    count=_count,
    write=write_icons,
)
