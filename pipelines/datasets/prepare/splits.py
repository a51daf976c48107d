"""Training and test data, told apart by the samples' keys alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from clippo_core.errors import ConfigError
from pipelines.datasets.manifest import SampleKind, ShardWriter, refuse_prepared
from pipelines.runtime.storage import Location

SPLITS = ("train", "test")


@dataclass(frozen=True)
class SplitWriter:
    """Writes a data set whole, or some of it as a test set of its own.

    Attributes:
        train: writes what is no test data.
        test: writes the test data, where there is some.
        test_share: share of the keys that are test data.
    """

    train: ShardWriter
    test: ShardWriter | None
    test_share: float

    @staticmethod
    def create(
        out: Location, *, name: str, kind: SampleKind, test_share: float, origin: str
    ) -> SplitWriter:
        """Writers of a person's own data: of `out`, or of `out/train` and `out/test`.

        Raises:
            ConfigError: if `test_share` is no share, or a data set is there already.
        """
        folders = split_folders(out, test_share)
        names = [f"{name}-{folder.name}" for folder in folders] if test_share else [name]
        writers = [
            ShardWriter(folder, name=title, kind=kind, origin=origin, evaluation_only=number == 1)
            for number, (folder, title) in enumerate(zip(folders, names, strict=True))
        ]
        return SplitWriter(writers[0], writers[1] if test_share else None, test_share)

    @staticmethod
    def of_pictures(
        out: Location, *, name: str, test_share: float, licence: str, origin: str
    ) -> SplitWriter:
        """Writers of a fetched set of pictures in no order: of `out/train` and `out/test`."""
        train, test = (
            ShardWriter(
                out / split,
                name=f"{name}-{split}",
                licence=licence,
                origin=origin,
                evaluation_only=split == "test",
                shuffle=True,
            )
            for split in SPLITS
        )
        return SplitWriter(train, test, test_share)

    def of(self, key: str) -> ShardWriter:
        """The writer that a row belongs to, by its key alone."""
        is_test = self.test is not None and is_held_out(key, self.test_share)
        return self.test if self.test is not None and is_test else self.train

    def close(self) -> list[Location]:
        """Write the manifests; returns the folders.

        Raises:
            SampleError: if a set is empty.
        """
        writers = [self.train, *([self.test] if self.test else [])]
        for writer in writers:
            writer.close()
        return [writer.folder for writer in writers]


def split_folders(out: Location, test_share: float) -> list[Location]:
    """The folders that data is written to: `out`, or `out/train` and `out/test`.

    Raises:
        ConfigError: if `test_share` is no share, or a data set is there already.
    """
    if not 0 <= test_share < 1:
        raise ConfigError(f"test_share={test_share}; expected a share of at least 0 and below 1")
    folders = [out / split for split in SPLITS] if test_share else [out]
    refuse_prepared(folders)
    return folders


def is_held_out(key: str, share: float) -> bool:
    """Whether a key is among the share that is test data; depends on the key alone."""
    return int(hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:8], 16) < (
        share * 2**32
    )
