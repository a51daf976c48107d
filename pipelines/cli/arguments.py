"""Run configs from the command line: a preset or an earlier run's .json, then overrides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import tyro

from clippo_core.config import from_json
from clippo_core.errors import ConfigError
from pipelines.config.presets import PRESETS, find_preset
from pipelines.config.settings import RunConfig
from pipelines.runtime.storage import Location

T = TypeVar("T")


def load_base(name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the config that overrides start from: a preset's, or a .json file's.

    Args:
        name: name of a preset, or path of a file.
        overrides: the words that follow. Where they name other sources, those of the config take
            their weights with them.

    Raises:
        ConfigError: if there is no such preset or file.
    """
    if not name.endswith(".json"):
        config = find_preset(name)
    else:
        try:
            text = Path(name).read_text()
        except OSError as error:
            raise ConfigError(f"{name} cannot be read: {error}") from None
        config = from_json(RunConfig, text, where=name)
    named = {word.partition("=")[0].replace("_", "-") for word in overrides}
    if "--data.sources" in named and "--data.weights" not in named:
        config = replace(config, data=replace(config.data, weights=()))
    return config


@dataclass(frozen=True)
class Subject:
    """The thing that a command works on, which is named beside its flags.

    Attributes:
        what: what it is, for people.
        is_one: tells it from the values of flags that stand before it.
        in_help: one whose settings `--help` shows where none is named.
    """

    what: str
    is_one: Callable[[str], bool]
    in_help: str = ""


def _is_checkpoint(word: str) -> bool:
    """Return True for a checkpoint or a run, and not for data, which flags name by paths, too."""
    if word.startswith("models:/") or word.endswith(".npz"):
        return True
    place = Location.of(word)
    return any((place / name).exists() for name in ("config.json", "run.json", "sweep.json"))


CHECKPOINT = Subject(
    "a checkpoint, a run (its newest checkpoint), a registered model or a big_vision .npz",
    _is_checkpoint,
)
RUN = Subject(
    "a run's folder or URI", lambda word: (Location.of(word) / "run.json").exists(), in_help="demo"
)
PRESET_OR_FILE = Subject(
    "a preset or a .json file", lambda word: word in PRESETS or word.endswith(".json"), "demo"
)


def take_subject(argv: Sequence[str], *, command: str, subject: Subject) -> tuple[str, list[str]]:
    """Split off what a command works on: the first word, or one among the flags.

    Raises:
        ConfigError: if there is none.
    """
    words = list(argv)
    if words and not words[0].startswith("-"):
        return words[0], words[1:]
    for number, word in enumerate(words):
        if not word.startswith("-") and subject.is_one(word):
            return word, words[:number] + words[number + 1 :]
    if asks_for_help(words):
        return subject.in_help, words
    presets = f"\npresets: {', '.join(PRESETS)}" if subject is PRESET_OR_FILE else ""
    raise ConfigError(
        f"{command} takes {subject.what}: python -m pipelines {command} NAME …{presets}"
    )


def take_checkpoint(argv: Sequence[str], *, command: str) -> tuple[str, list[str]]:
    """Split off the checkpoint that a command works on; none means the newest run, which it says.

    Raises:
        ConfigError: if there is no run either.
    """
    words = list(argv)
    begins_with_it = bool(words) and not words[0].startswith("-")
    named = (word for word in words if not word.startswith("-"))
    if not (begins_with_it or asks_for_help(words) or any(map(CHECKPOINT.is_one, named))):
        # Imported here: it takes longer than a wrong word may.
        from pipelines.config.resolution import newest_run

        name = newest_run().uri
        print(f"of the newest run, {name}")
        return name, words
    return take_subject(words, command=command, subject=CHECKPOINT)


def asks_for_help(words: Sequence[str]) -> bool:
    """Return True if the arguments ask for help instead of work."""
    return "-h" in words or "--help" in words


def parse(
    kind: type[T],
    argv: Sequence[str],
    *,
    command: str,
    default: Any = None,
    subject: Subject | None = None,
) -> T:
    """Parse arguments into a dataclass; usage errors exit with code 2, in tyro's words.

    Args:
        kind: the dataclass.
        argv: the arguments, without the subject.
        command: name of the command.
        default: the values from which they start.
        subject: what the command works on, for its help.
    """
    options: dict[str, Any] = {} if default is None else {"default": default}
    if subject is not None:
        about = (kind.__doc__ or "").splitlines()[0]
        options["description"] = f"{about} NAME, before or behind the flags, is {subject.what}."
    name = " NAME" if subject is not None and asks_for_help(argv) else ""
    return tyro.cli(kind, args=list(argv), prog=f"python -m pipelines {command}{name}", **options)
