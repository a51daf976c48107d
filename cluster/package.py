"""The package of code that a job brings along: one zip, the same bytes for the same files."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from clippo_core.errors import ConfigError

ROOT = Path(__file__).parents[1]
CONTENT = ("clippo_core", "pipelines", "cluster", "requirements.txt")
#: Folder in the package for the files that the command names.
FILES_FOLDER = "job_files"
#: The largest package that Ray takes; it keeps packages in the head's memory.
MAX_PACKAGE_BYTES = 500 * 2**20
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class CodePackage:
    """A zip file of the project's code.

    Attributes:
        content: bytes of the zip.
        folder_bytes: packed bytes per folder.
    """

    content: bytes
    folder_bytes: dict[str, int]

    @property
    def digest(self) -> str:
        """SHA-256 of the content, in hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()

    def summary(self) -> str:
        """Return the size and the three largest folders, for a person."""
        largest = Counter(self.folder_bytes).most_common(3)
        folders = ", ".join(f"{name} {_size(count)}" for name, count in largest)
        return f"code: {_size(len(self.content))} packed; largest: {folders}"


def pack(root: Path = ROOT, files: Mapping[str, Path] | None = None) -> CodePackage:
    """Return a zip of the code and of the files that the command names.

    Args:
        root: folder of the project.
        files: files of this machine, by their names in the package's `job_files/`.

    Raises:
        ConfigError: if the zip is larger than Ray takes.
    """
    entries = [(path.relative_to(root).as_posix(), path) for path in _code_files(root)]
    entries += [(f"{FILES_FOLDER}/{name}", path) for name, path in (files or {}).items()]
    buffer, folder_bytes = io.BytesIO(), Counter()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in sorted(entries):
            # Always the same date: the same code is the same package, and is uploaded once.
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = 0o644 << 16
            archive.writestr(info, path.read_bytes(), zipfile.ZIP_DEFLATED)
            folder = name.rpartition("/")[0] or "."
            folder_bytes[folder] += archive.getinfo(name).compress_size
    package = CodePackage(buffer.getvalue(), dict(folder_bytes))
    if len(package.content) > MAX_PACKAGE_BYTES:
        raise ConfigError(
            f"{package.summary()}; Ray takes {_size(MAX_PACKAGE_BYTES)} at most. Move data out of "
            "these folders: to a bucket, or to a folder that all machines share"
        )
    return package


def _code_files(root: Path) -> Iterable[Path]:
    for name in CONTENT:
        place = root / name
        for path in [place, *place.rglob("*")]:
            # Caches of tools are hidden folders, or Python's own.
            parts = path.relative_to(root).parts
            is_cache = any(part.startswith((".", "__pycache__")) for part in parts)
            if path.is_file() and not is_cache:
                yield path


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"
