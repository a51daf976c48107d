"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): 60,000 pictures of 32x32 px in their binary version.

    SOURCE/cifar-10-batches-bin/{data_batch_1..5,test_batch}.bin, batches.meta.txt
    SOURCE/cifar-100-binary/{train,test}.bin, fine_label_names.txt

SOURCE may also be one of these folders, or cifar-10-binary.tar.gz or cifar-100-binary.tar.gz. The
python version is refused, since it is made of pickles, which run whatever code is in them.
"""

from __future__ import annotations

import io
import itertools
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from clippo_core.errors import SampleError
from pipelines.datasets.manifest import Manifest, RawSample, refuse_prepared
from pipelines.datasets.prepare.pictures import class_captions
from pipelines.datasets.prepare.public.published import wrong_layout
from pipelines.datasets.prepare.rows import SPLITS, RejectedRow, Row, write_splits
from pipelines.runtime.storage import Location

_SIDE_PX = 32
_PICTURE_BYTES = 3 * _SIDE_PX * _SIDE_PX
Records = UInt8[np.ndarray, "picture byte"]
#: Functions that read the files, by the files' names.
Files = Mapping[str, Callable[[], bytes]]


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """The files of one of the two sets.

    Attributes:
        name: name of the set.
        folder: folder of the files; in an archive `archive`.
        batches: files with pictures, by split.
        class_names: name of the file with the classes' names.
        label_bytes: number of labels before each picture, a byte each.
    """

    name: str
    folder: str
    archive: str
    batches: dict[str, list[str]]
    class_names: str
    label_bytes: int

    @property
    def files(self) -> set[str]:
        """Names of all files that are read."""
        return {self.class_names, *itertools.chain(*self.batches.values())}


_LAYOUTS = (
    _Layout(
        name="cifar10",
        folder="cifar-10-batches-bin",
        archive="cifar-10-binary.tar.gz",
        batches={"train": [f"data_batch_{n}.bin" for n in range(1, 6)], "test": ["test_batch.bin"]},
        class_names="batches.meta.txt",
        label_bytes=1,
    ),
    _Layout(
        name="cifar100",
        folder="cifar-100-binary",
        archive="cifar-100-binary.tar.gz",
        batches={"train": ["train.bin"], "test": ["test.bin"]},
        class_names="fine_label_names.txt",
        label_bytes=2,
    ),
)
#: Names of the python version's files and folders.
_PICKLES = {"batches.meta", "meta"} | {
    f"{name}{suffix}"
    for name in ("cifar-10-batches-py", "cifar-10-python", "cifar-100-python")
    for suffix in ("", ".tar.gz")
}


def prepare_cifar(source: Location, out: Location) -> list[Location]:
    """Write CIFAR-10 or CIFAR-100: `out/train` and `out/test`, which is for evaluation only.

    Pictures become PNG files in the shards; CIFAR-100's classes are the hundred fine ones.

    Args:
        source: a folder or an archive of the binary version.
        out: folder of the sets.
    """
    layout, files = _find(source)
    refuse_prepared(out / split for split in SPLITS)
    lines = files[layout.class_names]().decode("utf-8", errors="replace").splitlines()
    class_names = [line.strip().replace("_", " ") for line in lines if line.strip()]
    batches = {
        split: {name: _records(source, name, files[name](), layout) for name in of_split}
        for split, of_split in layout.batches.items()
    }
    about = Manifest(
        name=layout.name,
        class_names=tuple(class_names),
        licence="not stated by its authors",
        origin=f"{source.uri}, CIFAR (Krizhevsky, 2009)",
    )
    rows = {split: _rows(of_split, class_names) for split, of_split in batches.items()}
    return write_splits(out, about, rows)


def _rows(batches: Mapping[str, Records], class_names: Sequence[str]) -> Iterator[Row]:
    captions = [class_captions(name) for name in class_names]
    for file, records in batches.items():
        for number, record in enumerate(records):
            # CIFAR-100 has two labels before a picture, of which the second is the fine one.
            key, class_id = f"{file}:{number}", int(record[-_PICTURE_BYTES - 1])
            if class_id >= len(class_names):
                yield RejectedRow(key, "unknown_class", str(class_id))
                continue
            planes = record[-_PICTURE_BYTES:].reshape(3, _SIDE_PX, _SIDE_PX)
            buffer = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0))).save(buffer, "PNG")
            yield RawSample(key, buffer.getvalue(), captions[class_id], class_id)


def _find(source: Location) -> tuple[_Layout, Files]:
    """Return the layout of the set in a folder or an archive, and functions that read its files."""
    if source.name.endswith((".tar.gz", ".tgz")):
        files, names = _read_archive(source)
        inside = []
    else:
        names = source.names()
        files = {name: (source / name).read_bytes for name in names}
        places = [(lay, name) for lay in _LAYOUTS for name in (lay.folder, lay.archive)]
        inside = [(layout, source / name) for layout, name in places if name in names]
    for layout in _LAYOUTS:
        if layout.files <= files.keys():
            return layout, files
    if len({layout.name for layout, _ in inside}) > 1:
        raise SampleError(
            f"{source.uri} holds both CIFAR-10 and CIFAR-100; name one of "
            + " and ".join(place.uri for _, place in inside)
        )
    if inside:
        return _find(inside[0][1])
    raise _not_binary(source, names)


def _read_archive(source: Location) -> tuple[Files, set[str]]:
    """Return an archive's files, in memory (less than 200 MB), and the names that are in it."""
    wanted = {file for layout in _LAYOUTS for file in layout.files}
    files: dict[str, Callable[[], bytes]] = {}
    names: set[str] = set()
    try:
        with tarfile.open(fileobj=io.BytesIO(source.read_bytes()), mode="r:gz") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                names.update(path.parts)
                is_wanted = member.isfile() and path.name in wanted
                if is_wanted and (content := archive.extractfile(member)):
                    files[path.name] = io.BytesIO(content.read()).getvalue
    except FileNotFoundError:
        raise wrong_layout(source.parent, source.name) from None
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise SampleError(f"{source.uri} is no whole .tar.gz archive: {error}") from None
    return files, names


def _not_binary(source: Location, names: Collection[str]) -> SampleError:
    if pickles := sorted(_PICKLES & set(names)):
        return SampleError(
            f"{source.uri} holds {pickles[0]}, of the python version of CIFAR. That is made of "
            "pickles, and nothing is unpickled here, since a pickle runs whatever code is in it: "
            "take the binary version of the same page, "
            + " or ".join(layout.archive for layout in _LAYOUTS)
        )
    for layout in _LAYOUTS:
        if (layout.files - {layout.class_names}) & set(names):
            missing = sorted(layout.files - set(names))
            return SampleError(f"{source.uri} lacks {', '.join(missing)} of {layout.folder}")
    if source.name.endswith("gz"):
        looked_for = " nor of ".join(layout.folder for layout in _LAYOUTS)
        return SampleError(f"{source.uri} holds no files of {looked_for}: {sorted(names)[:12]}")
    return wrong_layout(source, *(f"{lay.folder}/ or {lay.archive}" for lay in _LAYOUTS))


def _records(source: Location, file: str, content: bytes, layout: _Layout) -> Records:
    """Return the bytes of labels and pixels of each picture."""
    size = layout.label_bytes + _PICTURE_BYTES
    if not content or len(content) % size:
        raise SampleError(
            f"{file} of {source.uri} has {len(content)} bytes; expected a multiple of {size}, "
            "which is one picture: fetch it again"
        )
    return np.frombuffer(content, np.uint8).reshape(-1, size)
