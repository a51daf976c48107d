"""What a run names and the registry knows is prepared before it, once."""

from __future__ import annotations

from pipelines.cli.prepare import DATASETS
from pipelines.config.presets import PRESETS
from pipelines.datasets.prepare import registry
from pipelines.datasets.prepare.registry import REGISTRY, prepare_missing
from pipelines.datasets.sources import data_cache
from pipelines.runtime.storage import Location
from tests.integration.colours import colour_samples, write_samples


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
