"""Fashion-MNIST: 70,000 product photos of 28x28 px in ten classes (arXiv:1708.07747).

The files of Debian's package `dataset-fashion-mnist` are taken from its place if it is installed,
else by `apt-get download`; else from torchvision's mirror.
"""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clippo_core.errors import SampleError
from pipelines.datasets.manifest import Manifest, RawSample
from pipelines.datasets.prepare.registry.fashion_names import (
    EMOJI_OF_CLASS,
    HELD_OUT_LOCALES,
    class_names_by_locale,
)
from pipelines.datasets.prepare.registry.packages import RegistrySet, unpack_debian_package
from pipelines.datasets.prepare.rows import SPLITS, write_splits
from pipelines.runtime.storage import Location

CLASS_NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
#: Templates that are short enough for the longest class name to fit on a canvas of 64 px.
CAPTION_TEMPLATES = (
    "{}",
    "{a}",
    "the {}",
    "one {}",
    "a photo of {a}",
    "a picture of {a}",
    "photo of the {}",
    "this is {a}",
)
_PACKAGE = "dataset-fashion-mnist"
_INSTALLED = Path("/usr/share/datasets/fashion-mnist")
#: Digests of the decompressed files, so that a mirror may compress them otherwise.
_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_PREFIXES = {"train": "train", "test": "t10k"}


def captions_of(class_id: int) -> list[str]:
    """Return every caption of a class; training draws one at each visit."""
    name = CLASS_NAMES[class_id]
    with_article = f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    return [t.replace("{a}", with_article).replace("{}", name) for t in CAPTION_TEMPLATES]


def write_fashion_mnist(files: Mapping[str, np.ndarray[Any, Any]], out: Location) -> list[Location]:
    """Write the sets out of the bytes of the four files; return their folders.

    `train` has English captions; `names/train` has the photos of the classes that CLDR names, with
    their names in many locales. `test` has the names in some more locales.
    """
    about = Manifest(
        name="fashion_mnist",
        class_names=CLASS_NAMES,
        licence="MIT (Zalando SE)",
        origin="Fashion-MNIST, arXiv:1708.07747",
    )
    captions = {
        locale: tuple(names.get(name, "") for name in CLASS_NAMES)
        for locale, names in class_names_by_locale().items()
    }
    trained_on = {c: names for c, names in captions.items() if c not in HELD_OUT_LOCALES}
    licence = f"{about.licence}; names Unicode-3.0 (CLDR)"
    named = replace(about, name="fashion_mnist-names", licence=licence, class_captions=trained_on)
    tested = replace(
        about, licence=licence, class_captions=captions, held_out_languages=HELD_OUT_LOCALES
    )
    photos = (
        row._replace(captions=None)
        for row in _rows("train", files)
        if CLASS_NAMES[row.class_id or 0] in EMOJI_OF_CLASS
    )
    return [
        *write_splits(out, about, {"train": _rows("train", files)}),
        *write_splits(out, tested, {"test": _rows("test", files)}),
        *write_splits(out / "names", named, {"train": photos}),
    ]


def _rows(split: str, files: Mapping[str, np.ndarray[Any, Any]]) -> Iterator[RawSample]:
    images = files[f"{_PREFIXES[split]}-images-idx3-ubyte"][16:].reshape(-1, 28, 28)
    labels = files[f"{_PREFIXES[split]}-labels-idx1-ubyte"][8:].tolist()
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        yield RawSample(f"{split}-{number:05d}", buffer.getvalue(), captions_of(label), label)


def _read(scratch: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the bytes of the four files, checked to be the published ones."""
    folder, files = _find_files(scratch), {}
    for name, sha256 in _SHA256.items():
        content = gzip.decompress((folder / f"{name}.gz").read_bytes())
        if hashlib.sha256(content).hexdigest() != sha256:
            raise SampleError(f"{folder}/{name}.gz is not the Fashion-MNIST that is expected here")
        files[name] = np.frombuffer(content, np.uint8)
    return files


def _find_files(scratch: Path) -> Path:
    """Return the folder with the four files, which are fetched if need be."""
    if _INSTALLED.is_dir():
        return _INSTALLED
    problems = []
    for fetch in (_fetch_from_debian, _fetch_by_torchvision):
        try:
            return fetch(scratch)
        except (OSError, RuntimeError, SampleError) as error:
            problems.append(f"{fetch.__name__.removeprefix('_fetch_')}: {error}")
    raise SampleError(
        "Fashion-MNIST cannot be fetched:\n  "
        + "\n  ".join(problems)
        + f"\nwith Debian or Ubuntu: apt-get install {_PACKAGE}"
    )


def _fetch_from_debian(scratch: Path) -> Path:
    return unpack_debian_package(_PACKAGE, scratch) / _INSTALLED.relative_to("/")


def _fetch_by_torchvision(scratch: Path) -> Path:
    from torchvision.datasets import FashionMNIST

    return Path(FashionMNIST(str(scratch), download=True).raw_folder)


FASHION_MNIST = RegistrySet(
    name="fashion_mnist",
    what="60,000 + 10,000 product photos in ten classes, 8 of them named in 118 locales",
    folders=(*SPLITS, "names/train"),
    read=_read,
    write=write_fashion_mnist,
)
