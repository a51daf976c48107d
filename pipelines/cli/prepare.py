"""`prepare`: data sets into shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tyro

from clippo_core.errors import ConfigError
from pipelines.ingest.prepare.fashion_mnist import prepare_fashion_mnist
from pipelines.ingest.prepare.pictures import prepare_csv, prepare_folder, summarize
from pipelines.ingest.sources import data_cache
from pipelines.storage import Location


def fashion_mnist(out: str | None = None) -> list[Location]:
    """Fashion-MNIST: 60,000 + 10,000 product photos of 28x28 px in 10 classes (MIT).

    Args:
        out: folder or URI for `train` and `test`; None: fashion_mnist in the data cache.
    """
    return prepare_fashion_mnist(_out(out, "fashion_mnist"))


def folder(
    path: tyro.conf.Positional[Path], out: str | None = None, test_share: float = 0.0
) -> list[Location]:
    """A folder of your own pictures, with captions in text files beside them or in class folders.

    Args:
        path: the folder.
        out: folder or URI for the data set; None: the folder's name in the data cache.
        test_share: share of the pictures to set aside as a test set.
    """
    if not path.is_dir():
        raise ConfigError(f"{path} is no folder")
    return prepare_folder(path, _out(out, path.resolve().name), test_share=test_share)


def csv(
    path: tyro.conf.Positional[Path],
    out: str | None = None,
    image_column: str = "image",
    caption_column: str = "caption",
    class_column: str | None = None,
    test_share: float = 0.0,
) -> list[Location]:
    """A CSV or TSV file with a header, picture paths (relative to the file) and captions.

    Args:
        path: the file.
        out: folder or URI for the data set; None: the file's name in the data cache.
        image_column: column of the picture's path.
        caption_column: column of the caption; rows of the same picture are its several captions.
        class_column: column of the class name; None: no classes.
        test_share: share of the pictures to set aside as a test set.
    """
    return prepare_csv(
        path,
        _out(out, path.stem),
        image_column=image_column,
        caption_column=caption_column,
        class_column=class_column,
        test_share=test_share,
    )


DATASETS: dict[str, Callable[..., list[Location]]] = {
    "fashion_mnist": fashion_mnist,
    "folder": folder,
    "csv": csv,
}


def run(argv: list[str]) -> None:
    """Prepare a data set; the last lines are the folders that were made."""
    if not argv or argv[0] not in DATASETS:
        lines = [f"  {n:<14} {(f.__doc__ or '').splitlines()[0]}" for n, f in DATASETS.items()]
        usage = "python -m pipelines prepare DATASET [--help]\n" + "\n".join(lines)
        if argv and argv[0] in ("-h", "--help"):
            print(usage)
            return
        raise ConfigError(f"prepare takes one of its data sets first:\n{usage}")
    prog = f"python -m pipelines prepare {argv[0]}"
    folders = tyro.cli(DATASETS[argv[0]], args=argv[1:], prog=prog)
    print("\n".join([*summarize(folders), *(folder.uri for folder in folders)]))


def _out(out: str | None, name: str) -> Location:
    return Location.of(out) if out is not None else data_cache() / name
