"""The checkpoints of a run, on a disk or in a bucket.

A checkpoint is whole if its config.json is there: that file is written last and removed first, and
on a disk the whole folder appears by one rename. docs/design.md says why Ray Train's own checkpoint
manager is not used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from clippo_core.checkpoints.native import CONFIG_FILE, verify_checkpoint
from clippo_core.errors import CheckpointError
from pipelines.runtime.scratch import scratch_folder
from pipelines.runtime.storage import Location, storage_errors

#: Name of the file in a sweep's folder with the results and the best of its runs.
SWEEP_FILE = "sweep.json"
#: Beginning of the name of a checkpoint that was found to be damaged.
DAMAGED = "damaged_"
_CHECKPOINT_NAME = re.compile(r"step_(\d{8})")


def checkpoint_name(step: int) -> str:
    """Return the name of the checkpoint folder of a step."""
    return f"step_{step:08d}"


def checkpoint_step(name: str) -> int | None:
    """Return the step that a checkpoint folder's name says; None for other names."""
    match = _CHECKPOINT_NAME.fullmatch(name)
    return int(match[1]) if match else None


def whole_checkpoints(run: Location) -> list[tuple[int, Location]]:
    """Return the whole checkpoints of a run, oldest first, with their steps."""
    folder = run / "checkpoints"
    found = [(checkpoint_step(name), folder / name) for name in folder.names()]
    steps = [(step, place) for step, place in found if step is not None]
    return [(step, place) for step, place in steps if (place / CONFIG_FILE).exists()]


def commit_checkpoint(write: Callable[[Path], None], target: Location) -> None:
    """Write a checkpoint to its place, whole or not at all.

    Args:
        write: function that writes the folder at the path it is given, atomically
            (`TrainState.save`).
        target: place of the checkpoint.
    """
    if target.is_local:
        with storage_errors(target):
            write(Path(target.uri))
        return
    fs, path = target.open_fs()
    with scratch_folder() as folder, storage_errors(target):
        local = folder / target.name
        write(local)
        for file in sorted(local.iterdir(), key=lambda file: file.name == CONFIG_FILE):
            fs.put_file(str(file), f"{path}/{file.name}")


def remove_checkpoint(place: Location) -> None:
    """Remove a checkpoint, which stops counting as whole at once."""
    fs, path = place.open_fs()
    with storage_errors(place):
        fs.rm_file(f"{path}/{CONFIG_FILE}")
    place.remove()


def remove_leftovers(run: Location) -> None:
    """Remove half-written checkpoints that a killed process left behind."""
    folder = run / "checkpoints"
    for name in folder.names():
        is_half = checkpoint_step(name) is not None and not (folder / name / CONFIG_FILE).exists()
        if name.startswith(".step_") or is_half:
            (folder / name).remove()


def set_damaged_aside(run: Location) -> list[str]:
    """Rename the newest checkpoints of a run that are damaged, up to the first that is sound.

    Returns:
        A line for each of them: its new name, and what is damaged.

    Raises:
        CheckpointError: if all of them are damaged.
    """
    lines: list[str] = []
    for _, place in reversed(whole_checkpoints(run)):
        try:
            with fetched(place) as path:
                verify_checkpoint(path)
            return lines
        except CheckpointError as error:
            lines.append(f"passed over {place.name}, now {DAMAGED}{place.name}: {error}")
            fs, old = place.open_fs()
            with storage_errors(place):
                fs.mv(old, f"{old.rpartition('/')[0]}/{DAMAGED}{place.name}", recursive=True)
    if lines:
        raise CheckpointError(
            "\n".join(
                [
                    f"no checkpoint of {run.uri} is sound, so that it cannot go on; train anew, or "
                    "put back a copy:",
                    *lines,
                ]
            )
        )
    return lines


def first_step(run: Location) -> int:
    """Return the step at which a run goes on: that of its newest whole checkpoint, or 0."""
    whole = whole_checkpoints(run)
    return whole[-1][0] if whole else 0


def find_checkpoint(reference: str) -> Location:
    """Return the checkpoint that a reference means: itself, or the newest of a run.

    Args:
        reference: path or URI of a checkpoint folder, a `.npz` file, a run's folder, or a sweep's,
            whose best run is meant.

    Raises:
        CheckpointError: if there is no checkpoint.
    """
    place = Location.of(reference)
    if not place.exists():
        raise CheckpointError(
            f"{reference} does not exist; expected a checkpoint or a run's folder"
        )
    if place.name.endswith(".npz") or (place / CONFIG_FILE).exists():
        return place
    if (place / SWEEP_FILE).exists():
        place = place / str((place / SWEEP_FILE).read_json()["best"])
    checkpoints = whole_checkpoints(place)
    if not checkpoints:
        raise CheckpointError(
            f"{reference} holds no whole checkpoint; expected a folder with {CONFIG_FILE}, a .npz "
            "file, or a run with checkpoints/"
        )
    return checkpoints[-1][1]


@contextmanager
def fetched(place: Location) -> Iterator[Path]:
    """Yield a checkpoint as a local path: itself where it is local, else a temporary copy."""
    if place.is_local:
        yield Path(place.uri)
        return
    with scratch_folder() as folder:
        local = folder / place.name
        fs, path = place.open_fs()
        with storage_errors(place):
            fs.get(path, str(local), recursive=fs.isdir(path))
        yield local
