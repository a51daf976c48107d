"""Files out of Debian packages, without installing them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from clippo_core.errors import SampleError

_TIMEOUT_S = 600


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
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise SampleError("this machine has no apt-get and dpkg-deb")
    try:
        _run("apt-get", "download", name, folder=scratch)
    except SampleError:
        # A fresh image has no package lists yet.
        _run("apt-get", "update", folder=scratch)
        _run("apt-get", "download", name, folder=scratch)
    (package,) = scratch.glob(f"{name}_*.deb")
    _run("dpkg-deb", "-x", package.name, name, folder=scratch)
    return scratch / name


def _run(*command: str, folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise SampleError(f"{' '.join(command)} did not end within {_TIMEOUT_S} s") from None
    if done.returncode:
        raise SampleError(f"{' '.join(command)}: {done.stderr.strip()[-300:]}")
