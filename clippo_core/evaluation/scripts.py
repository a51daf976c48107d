"""The scripts that texts are written in."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from fontTools import unicodedata

#: Scripts of characters that go with any script: punctuation, digits, combining marks.
_ANY = {"Zyyy", "Zinh", "Zzzz"}


def script_of(text: str) -> str:
    """Return the English name of the script of most letters of a text; "" if it has no letter.

    Source: Unicode Standard Annex 24, as fontTools has its data.
    """
    counts = Counter(unicodedata.script(character) for character in text)
    codes = [code for code, _ in counts.most_common() if code not in _ANY]
    return unicodedata.script_name(codes[0]) if codes else ""


def languages_by_script(texts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the languages of each script, the script with the most languages first.

    Args:
        texts: texts of each language, whose letters decide.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for language, of_language in texts.items():
        found[script_of("".join(of_language)) or "no script"].append(language)
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))
