"""Run configs from the command line: a preset or an earlier run's .json, then overrides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import tyro

from clippo_core.config import from_json
from clippo_core.errors import ConfigError
from pipelines.config.presets import PRESETS, find_preset
from pipelines.config.settings import RunConfig

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


def take_first(argv: Sequence[str], *, command: str, what: str) -> tuple[str, list[str]]:
    """Split off the first argument, which says what a command works on.

    Raises:
        ConfigError: if there is none.
    """
    if not argv or argv[0].startswith("-"):
        raise ConfigError(
            f"{command} takes {what} first: python -m pipelines {command} …\n"
            f"presets: {', '.join(PRESETS)}"
        )
    return argv[0], list(argv[1:])


def parse(kind: type[T], argv: Sequence[str], *, command: str, default: Any = None) -> T:
    """Parse arguments into a dataclass; usage errors exit with code 2, in tyro's words."""
    prog = f"python -m pipelines {command}"
    if default is None:
        return tyro.cli(kind, args=list(argv), prog=prog)
    return tyro.cli(kind, args=list(argv), prog=prog, default=default)
