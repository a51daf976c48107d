"""`presets`: one line each."""

from __future__ import annotations

from pipelines.presets import PRESETS


def run(_argv: list[str]) -> None:
    """Print the presets."""
    width = max(map(len, PRESETS))
    for name, preset in PRESETS.items():
        print(f"{name:<{width}}  {(preset.__doc__ or '').splitlines()[0]}")
