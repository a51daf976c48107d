"""`inspect` shows the pairs that a preset would train on, or the samples that a run rejected."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image

from clippo_core.errors import SampleError
from pipelines.cli.arguments import PRESET_OR_FILE, load_base, parse, take_subject
from pipelines.config.resolution import read_run_config, resolve
from pipelines.config.settings import RunConfig
from pipelines.datasets.manifest import RawSample
from pipelines.datasets.prepare.registry import prepare_missing
from pipelines.datasets.sources import open_source
from pipelines.figures.sheets import grey_to_rgb, pair_sheet
from pipelines.runtime.storage import Location, read_json_lines
from pipelines.stream.batch import RejectedRow, as_drawn, drawing, prepare_batch

#: Samples in which rejects are counted; the sheet shows some of them.
INSPECTED_SAMPLES = 1024


@dataclass(frozen=True)
class InspectArguments:
    """Draw real training pairs, as the model sees them, and count what is rejected.

    With --rejects and a run's folder in the preset's place: open what that run rejected.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    """The preset with these overrides."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 16
    """Number of pairs to draw."""
    out: Path = Path("inspect.png")
    """The picture to write."""


@dataclass(frozen=True)
class RejectArguments:
    """Open what a run rejected: counts, and the stored samples with what is wrong with each."""

    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 20
    """Number of rejected samples to open."""
    source: str | None = None
    """Open only samples of the data set of this name."""
    reason: str | None = None
    """Open only samples that were rejected for this reason."""
    out: Path | None = None
    """Folder for the stored pictures as they are, broken or not; None: they are not written."""


def run(argv: list[str]) -> None:
    """Write the contact sheet, or show a run's rejects."""
    name, rest = take_subject(argv, command="inspect", subject=PRESET_OR_FILE)
    if "--rejects" in rest:
        rest.remove("--rejects")
        arguments = parse(RejectArguments, rest, command="inspect RUN --rejects")
        show_rejects(Location.of(name), arguments)
        return
    default = InspectArguments(load_base(name, rest))
    arguments = parse(
        InspectArguments, rest, command="inspect", default=default, subject=PRESET_OR_FILE
    )
    show_pairs(arguments)


def show_pairs(arguments: InspectArguments) -> None:
    """Write the contact sheet; print the rejects by source and reason."""
    prepare_missing(arguments.config.data.sources)
    resolved = resolve(arguments.config)
    spec = drawing(resolved.stream)
    plan = dataclasses.replace(spec.plan, batch_size=max(arguments.n, INSPECTED_SAMPLES))
    batch = prepare_batch(dataclasses.replace(spec, plan=plan), plan.batch(0), step=0)
    # Spread evenly over the batch, in which pictures come before pairs of texts.
    shown = np.linspace(0, len(batch.keys) - 1, arguments.n).round().astype(int)
    left_texts = grey_to_rgb(as_drawn(batch.left_texts).to_pixels())
    left = np.concatenate([batch.images, left_texts])
    keys = [batch.keys[number] for number in shown]
    sheet = pair_sheet(left[shown], as_drawn(batch.texts).take(shown).to_pixels(), keys)
    Image.fromarray(sheet).save(arguments.out)
    print(f"{len(batch.keys)} samples looked at, {len(batch.rejected)} rejected and replaced")
    _print_counts(batch.rejected)
    print(arguments.out)


def show_rejects(run_folder: Location, arguments: RejectArguments) -> None:
    """Print a run's rejects, read again from where they are stored.

    Raises:
        ConfigError: if the folder is no run.
        SampleError: if a data set is not there any more.
    """
    sources = {
        source.name: source for source in map(open_source, read_run_config(run_folder).data.sources)
    }
    rows = {
        (row["source"], row["row"]): RejectedRow(**row)
        for row in read_json_lines(run_folder / "rejects")
    }
    chosen = [
        row
        for row in rows.values()
        if arguments.source in (None, row.source) and arguments.reason in (None, row.reason)
    ]
    print(f"{len(rows)} samples rejected, {len(chosen)} of them as asked for")
    _print_counts(chosen)
    for row in chosen[: arguments.n]:
        if row.source not in sources:
            raise SampleError(f"{row.source} is none of the run's data sets: {sorted(sources)}")
        (sample,) = sources[row.source].read([row.row])
        print(f"\n{row.source} row {row.row}  {row.key}  (step {row.step})")
        print(f"  {row.reason}: {row.detail}")
        print(f"  captions: {str(sample.captions)[:300]}")
        print(f"  picture: {_describe(sample)}")
        if arguments.out is not None and sample.image is not None:
            arguments.out.mkdir(parents=True, exist_ok=True)
            place = arguments.out / f"{row.source}-{row.row}.bin"
            place.write_bytes(sample.image)
            print(f"  written to {place}")
    print(f"\n{(run_folder / 'rejects' if rows else run_folder).uri}")


def _describe(sample: RawSample) -> str:
    where = f", at {tuple(sample.image_at)}" if sample.image_at is not None else ""
    if sample.image is None:
        return f"none{where}"
    return f"{len(sample.image)} bytes, beginning with {sample.image[:16]!r}{where}"


def _print_counts(rejected: Sequence[RejectedRow]) -> None:
    for (source, reason), count in Counter((r.source, r.reason) for r in rejected).most_common():
        first = next(r for r in rejected if (r.source, r.reason) == (source, reason))
        print(f"  {count:>5}  {source}  {reason}  e.g. {first.key}: {first.detail[:60]}")
