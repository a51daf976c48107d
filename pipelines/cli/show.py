"""`presets` lists the recipes; `show` prints one, what follows from it, or how two differ."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from clippo_core.errors import ConfigError, SampleError
from pipelines.cli.arguments import PRESET_OR_FILE, load_base, parse, take_subject
from pipelines.config.derived import (
    derive,
    derive_without_data,
    flatten,
    parameters_side_by_side,
    warnings_of,
)
from pipelines.config.presets import PRESETS
from pipelines.config.resolution import resolve
from pipelines.config.settings import RunConfig


@dataclass(frozen=True)
class ShowArguments:
    """Print a config, resolved, and the numbers that follow from it."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    """The preset with these overrides."""
    diff: str | None = None
    """Print only what differs from this preset or .json file."""
    device_memory_gb: float | None = None
    """Memory of each rank's GPU: print the micro-batch that fits, or what to change."""


def run(argv: list[str]) -> None:
    """Print the config."""
    name, rest = take_subject(argv, command="show", subject=PRESET_OR_FILE)
    default = ShowArguments(load_base(name, rest))
    arguments = parse(ShowArguments, rest, command="show", default=default, subject=PRESET_OR_FILE)
    if arguments.diff is not None:
        _print_difference(flatten(arguments.config), flatten(load_base(arguments.diff)))
        return
    config = arguments.config
    if arguments.device_memory_gb is not None:
        scaling = dataclasses.replace(config.scaling, device_memory_gb=arguments.device_memory_gb)
        config = dataclasses.replace(config, scaling=scaling)
    config, derived, missing = _resolved(config)
    derived["parameters_side_by_side"] = parameters_side_by_side(config.model)
    _print_table(flatten(config))
    print("\nderived")
    _print_table(derived)
    for line in warnings_of(derived):
        print(f"\nwarning: {line}")
    if missing:
        print(f"\nwithout the numbers that depend on the data: {missing}")


def _resolved(config: RunConfig) -> tuple[RunConfig, dict[str, Any], str]:
    """Resolve a config and derive its numbers; where data is missing, only those that need none."""
    try:
        resolved = resolve(config)
    except (ConfigError, SampleError) as error:
        return config, derive_without_data(config), str(error)
    return resolved.config, derive(resolved), ""


def _print_table(values: dict[str, Any]) -> None:
    width = max(map(len, values))
    for name, value in values.items():
        print(f"{name:<{width}}  {json.dumps(value, ensure_ascii=False)}")


def _print_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for name in ours:
        if ours[name] != theirs.get(name):
            print(f"{name}: {json.dumps(theirs.get(name))} -> {json.dumps(ours[name])}")


def run_presets(_argv: list[str]) -> None:
    """Print the presets."""
    width = max(map(len, PRESETS))
    for name, preset in PRESETS.items():
        print(f"{name:<{width}}  {(preset.__doc__ or '').splitlines()[0]}")
