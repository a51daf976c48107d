"""`render` draws a text as the model sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from PIL import Image

from clippo_core.checkpoints import load_checkpoint
from clippo_core.config import RenderConfig
from clippo_core.rendering import TextRenderer
from pipelines.cli.arguments import parse
from pipelines.runtime.run_checkpoints import fetched
from pipelines.tracking.models import find_model


@dataclass(frozen=True)
class RenderArguments:
    """Draw a text."""

    text: tyro.conf.Positional[str]
    """The text to draw, in any script."""
    out: Path = Path("text.png")
    """The picture to write."""
    checkpoint: str | None = None
    """Draw as this checkpoint was trained; the settings below are then not used."""
    render: Annotated[RenderConfig, tyro.conf.arg(name="")] = field(default_factory=RenderConfig)
    """The settings of the drawing."""


def run(argv: list[str]) -> None:
    """Draw the text; the last line is the picture's path."""
    arguments = parse(RenderArguments, argv, command="render")
    if arguments.checkpoint is None:
        renderer = TextRenderer(arguments.render)
    else:
        with fetched(find_model(arguments.checkpoint)) as path:
            renderer = load_checkpoint(path).renderer
    rasters = renderer.render_batch([arguments.text])
    Image.fromarray(renderer.render(arguments.text)).save(arguments.out)
    print(f"{rasters.occupied_rows[0]} text rows, {rasters.num_bytes} bytes")
    print(arguments.out)
