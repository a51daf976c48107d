"""`clean` says what lies where on this disk, and removes what is nobody's."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.cli.arguments import parse
from pipelines.config.resolution import RUN_FILE
from pipelines.datasets.sources import data_cache
from pipelines.runtime.run_checkpoints import DAMAGED
from pipelines.runtime.scratch import left_over, remove_left_over

Removable = Literal["ray", "scratch", "damaged"]


@dataclass(frozen=True)
class CleanArguments:
    """Show what lies where, and remove what is nobody's any more."""

    remove: tuple[Removable, ...] = ()
    """Kinds to remove: "ray" (logs and sessions of Rays that have ended), "scratch" (files of
    commands that were killed), "damaged" (checkpoints that resume passed over). None is removed
    without being named; data sets and runs never are."""
    runs: str = "runs"
    """Folder of the runs."""


@dataclass(frozen=True)
class Place:
    """A row of the table."""

    what: str
    path: Path
    kind: Removable | None = None


def run(argv: list[str]) -> None:
    """Print the table; the last line is how much was removed, or could be."""
    arguments = parse(CleanArguments, argv, command="clean")
    places = [*_data(), *_runs(Path(arguments.runs)), *_of_ray(), *_scratch()]
    sizes = {place: _size(place.path) for place in places}
    for place in sorted(places, key=lambda place: -sizes[place]):
        removable = f"  (--remove {place.kind})" if place.kind else ""
        print(f"{sizes[place] / 1e6:>10,.1f} MB  {place.what:<28} {place.path}{removable}")
    chosen = [
        place for place in places if place.kind is not None and place.kind in arguments.remove
    ]
    for place in chosen:
        _REMOVERS[place.kind](place.path)  # pyright: ignore[reportArgumentType] - chosen by kind
    total = sum(sizes[place] for place in (chosen or [p for p in places if p.kind]))
    verb = "removed" if chosen else "nobody's, and can be removed"
    print(f"{total / 1e6:,.1f} MB {verb}")


def _data() -> Iterator[Place]:
    cache = data_cache()
    for name in cache.names() if cache.is_local else ():
        yield Place("data set", Path(cache.uri) / name)


def _runs(folder: Path) -> Iterator[Place]:
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if (path / RUN_FILE).exists():
            yield Place("run", path)
            for damaged in sorted((path / "checkpoints").glob(f"{DAMAGED}*")):
                yield Place("damaged checkpoint", damaged, "damaged")
        elif path.name == "mlartifacts":
            yield Place("models and pictures of MLflow", path)
        elif path.name.startswith("mlflow.db"):
            yield Place("charts of MLflow", path)


def _of_ray() -> Iterator[Place]:
    for session in sorted(Path(tempfile.gettempdir(), "ray").glob("session_*")):
        if session.is_dir() and not session.is_symlink():
            is_over = not _answers(session / "sockets" / "raylet")
            what = "Ray that has ended" if is_over else "Ray at work"
            yield Place(what, session, "ray" if is_over else None)


def _answers(place: Path) -> bool:
    """Return True if a process listens at a Unix socket, or if that cannot be told."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(place))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True
    return True


def _scratch() -> Iterator[Place]:
    for folder in left_over():
        yield Place("scratch of a killed command", folder, "scratch")


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    found = 0
    for folder, _, names in os.walk(path):
        for name in names:
            status = Path(folder, name).lstat()
            found += status.st_blocks * 512
    return found


_REMOVERS: dict[Removable, Callable[[Path], object]] = {
    "ray": lambda path: shutil.rmtree(path, ignore_errors=True),
    "scratch": lambda _: remove_left_over(),
    "damaged": shutil.rmtree,
}
