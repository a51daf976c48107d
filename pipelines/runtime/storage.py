"""Files of runs and data sets, on disks and in buckets, through fsspec (s3fs for `s3://`)."""

from __future__ import annotations

import functools
import json
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pyarrow import ArrowInvalid
from pyarrow.fs import FSSpecHandler, PyFileSystem

from clippo_core.errors import SampleError, StorageError

OWNER_FILE = "owner.json"
#: Attempts per request; with s3fs' waits of 0.1 s * 1.7 ** attempt they take about 50 s.
_S3_ATTEMPTS = 12
_STORAGE_FAILURES = (OSError, ValueError, ImportError)


@dataclass(frozen=True)
class Location:
    """A folder or file on a disk or in a bucket."""

    uri: str

    @staticmethod
    def of(uri: str | Path) -> Location:
        """Return the location at an absolute path or URI, without a trailing slash."""
        text = str(uri).removeprefix("file://")
        return Location(
            text.rstrip("/") if "://" in text else str(Path(text).expanduser().absolute())
        )

    def __truediv__(self, name: str) -> Location:
        return Location(f"{self.uri}/{name}")

    def inside(self, path: str) -> Location:
        """Return the place that a path names in this folder: relative, or absolute within it.

        Raises:
            SampleError: if the path leads out; it may come from a file that somebody else made.
        """
        within = path.removeprefix(f"{self.uri}/")
        if within.startswith(("/", "~")) or "://" in within or ".." in within.split("/"):
            raise SampleError(f"the path {path!r} leads out of {self.uri}")
        return self / within

    @property
    def is_local(self) -> bool:
        """True if it is on a disk of this machine, or on one that is mounted."""
        return "://" not in self.uri

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.uri.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """Ending of the file name in lower case, with its dot."""
        return PurePosixPath(self.name).suffix.lower()

    @property
    def parent(self) -> Location:
        """Folder that holds this file or folder."""
        return Location(self.uri.rpartition("/")[0])

    def open_fs(self) -> tuple[Any, str]:
        """Return the file system of fsspec, and the path on it.

        Raises:
            StorageError: if the protocol is unknown or its package is missing.
        """
        try:
            if self.uri.startswith(("s3://", "s3a://")):
                _make_s3_patient()
            return fsspec.core.url_to_fs(self.uri)
        except (ValueError, ImportError) as error:
            raise StorageError(f"{self.uri} cannot be opened: {error}") from None

    def arrow_path(self) -> tuple[str, Any]:
        """Return the path for Ray and pyarrow, and its file system; None for local disks."""
        if self.is_local:
            return self.uri, None
        fs, path = self.open_fs()
        return path, PyFileSystem(FSSpecHandler(fs))

    def exists(self) -> bool:
        """Return True if there is such a file or folder.

        Raises:
            StorageError: if the storage does not answer.
        """
        fs, path = self.open_fs()
        with storage_errors(self):
            return fs.exists(path)

    def is_folder(self) -> bool:
        """Return True if it is a folder that exists.

        Raises:
            StorageError: if the storage does not answer.
        """
        fs, path = self.open_fs()
        with storage_errors(self):
            return fs.isdir(path)

    def is_regular_file(self) -> bool:
        """Return True if there is a file on a disk that can be read to its end.

        Pipes and devices are none, and no file has a name that a disk does not take.
        """
        try:
            return stat.S_ISREG(Path(self.uri).stat().st_mode)
        except (OSError, ValueError):
            return False

    def read_bytes(self) -> bytes:
        """Return the content of the file.

        Raises:
            StorageError: if it cannot be read.
            FileNotFoundError: if it does not exist.
        """
        fs, path = self.open_fs()
        with storage_errors(self):
            return fs.cat_file(path)

    def write_bytes(self, content: bytes) -> None:
        """Write a whole file; on a disk, atomically."""
        fs, path = self.open_fs()
        with storage_errors(self):
            if not isinstance(fs, LocalFileSystem):
                fs.pipe_file(path, content)
                return
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            aside = Path(f"{path}.{uuid.uuid4().hex[:8]}.tmp")
            aside.write_bytes(content)
            aside.replace(path)

    def write_json(self, value: Any) -> None:
        """Write a value as a JSON file."""
        self.write_bytes((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def read_json(self) -> Any:
        """Return the value in a JSON file.

        Raises:
            StorageError: if it is not valid JSON.
        """
        try:
            return json.loads(self.read_bytes())
        except (ValueError, RecursionError) as error:
            raise StorageError(f"{self.uri} is not valid JSON: {error}") from None

    def names(self) -> list[str]:
        """Return the sorted names of the folder's entries; none if there is no such folder."""
        fs, path = self.open_fs()
        with storage_errors(self):
            fs.invalidate_cache()
            if not fs.isdir(path):
                return []
            return sorted(
                entry.rstrip("/").rpartition("/")[2] for entry in fs.ls(path, detail=False)
            )

    def files(self) -> list[str]:
        """Return the sorted relative paths of all files in the folder and below.

        On a disk, links are followed, except for those that lead back to a folder around them;
        pipes and devices are left out.
        """
        fs, path = self.open_fs()
        with storage_errors(self):
            if self.is_local:
                # fsspec does not follow links, which class folders often are.
                root = Path(path)
                return sorted(_walk(root, "", frozenset())) if root.is_dir() else []
            fs.invalidate_cache()
            if not fs.isdir(path):
                return []
            root = path.rstrip("/")
            files = (str(file) for file in fs.find(path))
            # Buckets may have an empty object that stands for the folder itself.
            return sorted(f.removeprefix(f"{root}/") for f in files if f.rstrip("/") != root)

    def remove_file(self) -> None:
        """Remove the file if it exists."""
        fs, path = self.open_fs()
        with suppress(FileNotFoundError), storage_errors(self):
            fs.rm_file(path)

    def remove(self) -> None:
        """Remove the folder and its content."""
        fs, path = self.open_fs()
        with storage_errors(self):
            fs.rm(path, recursive=True)


def _walk(folder: Path, prefix: str, around: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Yield the paths of regular files below a folder, given the folders around it by inode."""
    status = folder.stat()
    if (inode := (status.st_dev, status.st_ino)) in around:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", around | {inode})
            elif entry.is_file():
                yield f"{prefix}{entry.name}"


@functools.cache
def _make_s3_patient() -> None:
    """Make s3fs retry for about a minute, in growing intervals, on any error of a busy store.

    By itself it gives up after two seconds, and at once where nobody listens.
    """
    import s3fs.core
    from botocore.exceptions import ClientError
    from botocore.exceptions import ConnectionError as NoConnectionError

    def is_passing(error: BaseException) -> bool:
        if not isinstance(error, ClientError):
            return False
        return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) >= 500

    s3fs.core.S3FileSystem.retries = _S3_ATTEMPTS
    s3fs.core.add_retryable_error(NoConnectionError)
    s3fs.core.set_custom_error_handler(is_passing)


@contextmanager
def storage_errors(location: Location) -> Iterator[None]:
    """Turn errors of a file system into a `StorageError` that names the place.

    Raises:
        StorageError: if the storage does not answer as it should.
        ArrowInvalid: if it does, and Arrow cannot read what the file holds.
        FileNotFoundError: if there is no such file.
    """
    try:
        yield
    except (FileNotFoundError, ArrowInvalid, UnicodeDecodeError):
        # The storage works: what it holds is the problem.
        raise
    except Exception as error:
        if type(error) is OSError and error.errno is None:
            # So Arrow calls damage that it finds while it unpacks.
            raise ArrowInvalid(str(error).strip()) from None
        # Compared by name: botocore takes long to import, and most runs have no bucket.
        is_botos = any(kind.__module__.startswith("botocore.") for kind in type(error).__mro__)
        if not is_botos and not isinstance(error, _STORAGE_FAILURES):
            raise
        raise StorageError(
            f"{location.uri} does not answer as expected: {type(error).__name__}: {error}; check "
            "the path, the permissions, and for buckets AWS_ENDPOINT_URL and the credentials"
        ) from error


class SupersededError(StorageError):
    """Raised when another attempt has taken over the run, so that this one must not write to it."""


def take_over(run: Location, attempt: str) -> None:
    """Make `attempt` the only one that may write to the run."""
    (run / OWNER_FILE).write_json({"attempt": attempt})


def check_owner(run: Location, attempt: str) -> None:
    """Make sure that no later attempt has taken over.

    Raises:
        SupersededError: if one has taken over.
    """
    owner = (run / OWNER_FILE).read_json()["attempt"]
    if owner != attempt:
        raise SupersededError(f"{run.uri} was taken over by {owner}; {attempt} stops here")


class JsonLines:
    """A table of JSON rows that gather in memory and are written in parts, one file each."""

    def __init__(self, folder: Location, prefix: str) -> None:
        """Prepare an empty table; nothing is written before `flush`."""
        self._folder, self._prefix = folder, prefix
        self._rows: list[Any] = []

    def add(self, row: Any) -> None:
        """Add one row."""
        self._rows.append(row)

    def flush(self, step: int) -> None:
        """Write the gathered rows as the part that ends at `step`."""
        if self._rows:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self._rows)
            (self._folder / f"{self._prefix}-{step:08d}.jsonl").write_bytes(lines.encode())
            self._rows.clear()


def read_json_lines(folder: Location) -> Iterator[Any]:
    """Yield the rows of all parts in a folder, in the order of their names.

    Other files, such as what a full disk left half-written, are passed over.
    """
    for name in filter(lambda name: name.endswith(".jsonl"), folder.names()):
        for line in (folder / name).read_bytes().decode().splitlines():
            yield json.loads(line)
