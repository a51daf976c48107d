"""The names of Fashion-MNIST's classes in CLDR's locales, and the command that makes their table.

Eight of the ten classes are emoji, which CLDR names; pullovers and shirts are none. A locale is in
the table if it has eight different names. The table is kept with the code (`fashion_names.json`),
so that the demo needs no other download; `python -m` with this module's name makes it again out of
npm's `cldr-annotations-full`. Licence of the names: Unicode-3.0 (`fashion_names.LICENSE`).
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

from pipelines.datasets.prepare.registry.emoji import CLDR_ANNOTATIONS, read_captions
from pipelines.datasets.prepare.registry.packages import unpack_npm_package

#: Emoji of the classes, by the name of the class.
EMOJI_OF_CLASS = {
    "t-shirt": "👕",
    "trouser": "👖",
    "dress": "👗",
    "coat": "🧥",
    "sandal": "👡",
    "sneaker": "👟",
    "bag": "👜",
    "ankle boot": "👢",
}
#: Locales that are kept out of training: relatives of trained ones, and some in other scripts.
HELD_OUT_LOCALES = ("sv", "uk", "ca", "ne", "yue", "sr-Latn", "ms", "gl", "ky", "zu")
TABLE = Path(__file__).with_suffix(".json")


@functools.cache
def class_names_by_locale() -> dict[str, dict[str, str]]:
    """Return the table: by locale, the name of each class that has one."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


def make_table(annotations: Path) -> dict[str, dict[str, str]]:
    """Return the table that the unpacked npm package `cldr-annotations-full` gives."""
    names = read_captions({"annotations": annotations}).names
    found: dict[str, dict[str, str]] = {}
    for name, character in EMOJI_OF_CLASS.items():
        for locale, text in names[character].items():
            found.setdefault(locale, {})[name] = text
    return {
        locale: of_classes
        for locale, of_classes in sorted(found.items())
        if len({text.casefold() for text in of_classes.values()}) == len(EMOJI_OF_CLASS)
    }


def main() -> None:
    """Fetch CLDR's annotations, and write the table."""
    with tempfile.TemporaryDirectory(prefix="clippo-") as scratch:
        table = make_table(unpack_npm_package(*CLDR_ANNOTATIONS, Path(scratch)))
    rows = (f"{json.dumps(c)}: {json.dumps(n, ensure_ascii=False)}" for c, n in table.items())
    TABLE.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
