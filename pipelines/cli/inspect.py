"""`inspect`: look at what would be trained on."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from PIL import Image

from pipelines.cli.configs import load_base, parse, take_first
from pipelines.ingest.stages import prepare_batch
from pipelines.resolve import resolve
from pipelines.schema import RunConfig
from pipelines.tracking.figures import pair_sheet

#: Samples that are looked at for rejects; the sheet shows the first of them.
INSPECTED_SAMPLES = 1024


@dataclass(frozen=True)
class InspectArguments:
    """Draw real training pairs, as the model sees them, and count what is rejected."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    """The preset with these overrides."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 16
    """Pairs to draw."""
    out: Path = Path("inspect.png")
    """The picture to write."""


def run(argv: list[str]) -> None:
    """Write the contact sheet; print the rejects by reason."""
    name, rest = take_first(argv, command="inspect", what="a preset or a .json file")
    default = InspectArguments(load_base(name))
    arguments = parse(InspectArguments, rest, command="inspect", default=default)
    resolved = resolve(arguments.config)
    spec = resolved.stream
    plan = dataclasses.replace(spec.plan, batch_size=max(arguments.n, INSPECTED_SAMPLES))
    batch = prepare_batch(dataclasses.replace(spec, plan=plan), plan.batch(0), step=0)
    shown = slice(arguments.n)
    texts = batch.texts.to_pixels()[shown]
    sheet = pair_sheet(batch.images[shown], texts, batch.keys[shown])
    Image.fromarray(sheet).save(arguments.out)
    print(f"{len(batch.keys)} samples looked at, {len(batch.rejected)} rejected and replaced")
    for (source, reason), count in Counter((r.source, r.reason) for r in batch.rejected).items():
        first = next(r for r in batch.rejected if (r.source, r.reason) == (source, reason))
        print(f"  {count:>5}  {source}  {reason}  e.g. {first.key}: {first.detail[:60]}")
    print(arguments.out)
