"""Real data: what is installed here, or with CLIPPO_FETCH=1 what can be fetched."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from clippo_core.errors import SampleError
from pipelines.datasets.prepare.registry import fashion_mnist
from pipelines.datasets.prepare.registry.packages import unpack_debian_package
from pipelines.datasets.sources import open_source
from pipelines.runtime.storage import Location

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not fashion_mnist._INSTALLED.is_dir() and not may_fetch():
        pytest.skip(
            "the package dataset-fashion-mnist is not installed, and CLIPPO_FETCH is not set"
        )
    out = tmp_path_factory.mktemp("fashion")
    fashion_mnist.FASHION_MNIST.prepare(Location.of(out))
    return out


def may_fetch() -> bool:
    return os.environ.get("CLIPPO_FETCH") == "1"


def test_fashion_mnist_has_its_seventy_thousand_photos_in_ten_classes(prepared: Path):
    for split, count in (("train", 60_000), ("test", 10_000)):
        source = open_source(str(prepared / split))
        assert source.num_rows == count
        assert source.manifest.class_names == fashion_mnist.CLASS_NAMES
        assert source.manifest.licence.startswith("MIT")
        (sample,) = source.read([count - 1])
        assert sample.captions == fashion_mnist.captions_of(sample.class_id or 0)
    labels = [sample.class_id for sample in open_source(str(prepared / "test"))]
    assert [labels.count(class_id) for class_id in range(10)] == [1000] * 10


def test_what_is_prepared_is_not_prepared_again(prepared: Path):
    manifest = prepared / "train" / "manifest.json"
    before = (manifest.stat().st_mtime_ns, hashlib.sha256(manifest.read_bytes()).hexdigest())
    fashion_mnist.FASHION_MNIST.prepare(Location.of(prepared))
    after = (manifest.stat().st_mtime_ns, hashlib.sha256(manifest.read_bytes()).hexdigest())
    assert before == after


def test_where_nothing_can_be_fetched_every_way_is_named(tmp_path, monkeypatch):
    def fail(_scratch: Path) -> Path:
        raise SampleError("no network")

    monkeypatch.setattr(fashion_mnist, "_INSTALLED", tmp_path / "none")
    monkeypatch.setattr(fashion_mnist, "_fetch_from_debian", fail)
    monkeypatch.setattr(fashion_mnist, "_fetch_by_torchvision", fail)
    with pytest.raises(SampleError, match=r"cannot be fetched:\n.*no network\n.*no network"):
        fashion_mnist.FASHION_MNIST.prepare(Location.of(tmp_path / "out"))


def test_a_package_that_does_not_exist_is_named(tmp_path):
    if not may_fetch():
        pytest.skip("CLIPPO_FETCH is not set")
    with pytest.raises(SampleError):
        unpack_debian_package("no-such-package-anywhere", tmp_path)
