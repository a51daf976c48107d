"""The sample plan: which samples form the batch of a step, as a pure function of (seed, step).

Nothing is listed and nothing is remembered: a plan over a billion samples costs no more memory
than one over a thousand, and any step can be asked for first. So a run resumes in mid-stream with
the very samples that it would have seen, for any number of renderer workers or ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Int32, Int64, UInt64

from clippo_core.errors import ConfigError
from clippo_core.hashing import hash_values, mix

_ROUNDS = 6


@dataclass(frozen=True, eq=False)
class PlannedSamples:
    """The samples that form a batch, in its order.

    Attributes:
        source: number of the source that each sample comes from.
        row: row of each sample in its source.
        draw: random number of each visit, for choices such as one of several captions.
        position: place of each sample in the stream of its source, which names its reserve.
    """

    source: Int32[np.ndarray, " sample"]
    row: Int64[np.ndarray, " sample"]
    draw: UInt64[np.ndarray, " sample"]
    position: Int64[np.ndarray, " sample"]

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, chosen: slice | Int64[np.ndarray, " chosen"]) -> PlannedSamples:
        fields = (self.source, self.row, self.draw, self.position)
        return PlannedSamples(*(field[chosen] for field in fields))


@dataclass(frozen=True)
class SamplePlan:
    """Draws batches from several sources in exact ratios, in runs of consecutive rows.

    Each source is an endless stream of its runs: a seeded permutation, another one in every pass,
    visits each run once before any is visited again. Runs are what makes reading cheap: a bucket
    sees a few ranged reads, and a batch still mixes many places of a source. The last run of a
    source overlaps the one before, so that all have the same length and every row is reached.

    Attributes:
        seed: seed of all draws.
        batch_size: samples in a global batch.
        num_rows: number of rows of each source.
        weights: share of each source in a batch, relative to the sum.
        run_length: consecutive rows that are drawn together.
        groups: number of the group of each source; the ratio of the groups is exact in itself, not
            just as a sum of rounded parts. Empty where all sources form one group.
    """

    seed: int
    batch_size: int
    num_rows: tuple[int, ...]
    weights: tuple[float, ...]
    run_length: int
    groups: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.groups) not in (0, len(self.num_rows)):
            raise ConfigError(f"{len(self.groups)} groups for {len(self.num_rows)} sources")
        if len(self.num_rows) != len(self.weights) or not self.num_rows:
            raise ConfigError(
                f"{len(self.num_rows)} sources and {len(self.weights)} weights; expected as many "
                "of one as of the other, and at least one"
            )
        if min(self.weights) <= 0:
            raise ConfigError(f"weights={self.weights}; expected numbers above 0")
        if min(self.num_rows) < 1:
            raise ConfigError(f"source {self.num_rows.index(min(self.num_rows))} has no rows")
        if self.batch_size < 1 or self.run_length < 1:
            raise ConfigError(
                f"batch_size={self.batch_size}, run_length={self.run_length}; expected 1 or more"
            )

    def batch(self, step: int) -> PlannedSamples:
        """Return the samples of the global batch of `step`, the first step being 0.

        The sources alternate in proportion, so that any part of the batch holds the same mixture,
        give or take a sample, and every rank does the same work.
        """
        starts, ends = self.rows_drawn(step), self.rows_drawn(step + 1)
        parts = [
            self._samples(k, lo, hi) for k, (lo, hi) in enumerate(zip(starts, ends, strict=True))
        ]
        places = [(np.arange(len(part)) + 0.5) / max(len(part), 1) for part in parts]
        order = np.argsort(np.concatenate(places), kind="stable")
        fields = ("source", "row", "draw", "position")
        joined = {name: np.concatenate([getattr(p, name) for p in parts])[order] for name in fields}
        return PlannedSamples(**joined)

    def rows_drawn(self, step: int) -> list[int]:
        """Return how many rows of each source are drawn before `step`, rounded where not whole.

        The sources are halved again and again, and each half takes its rounded share of the rows;
        since that is monotone in the number of rows, so is every source's count. A count is off by
        at most half a row for each halving.
        """
        shares, drawn = [Fraction(str(weight)) for weight in self.weights], [0] * len(self.weights)
        groups = [
            [k for k, group in enumerate(self.groups or [0] * len(shares)) if group == number]
            for number in sorted(set(self.groups or [0]))
        ]
        totals = [sum((shares[k] for k in members), Fraction(0)) for members in groups]
        of_groups = _split_rows(step * self.batch_size, totals)
        for members, rows in zip(groups, of_groups, strict=True):
            split = _split_rows(rows, [shares[k] for k in members])
            for k, count in zip(members, split, strict=True):
                drawn[k] = count
        return drawn

    def reserve(self, samples: PlannedSamples, attempt: int) -> PlannedSamples:
        """Return the samples that take the place of rejected ones.

        A run's reserve is the run half a pass away in the permutation, so that no sample of the
        batch is doubled.

        Args:
            samples: the rejected ones, as planned.
            attempt: 1 for the first replacement, up to `run_length`.
        """
        row = np.empty_like(samples.row)
        for source in np.unique(samples.source).tolist():
            chosen = samples.source == source
            half = self._num_runs(source) // 2
            position = samples.position[chosen]
            row[chosen] = self._rows(source, position, run_shift=half, row_shift=attempt)
        draw = samples.draw + np.uint64(attempt)
        return PlannedSamples(samples.source, row, draw, samples.position)

    def _samples(self, source: int, start: int, end: int) -> PlannedSamples:
        """Return the samples of a source's stream from `start` to before `end`."""
        position = np.arange(start, end, dtype=np.int64)
        draw = hash_values(position.astype(np.uint64), key=mix(self.seed, source, 0))
        row = self._rows(source, position)
        return PlannedSamples(np.full(len(row), source, np.int32), row, draw, position)

    def _rows(
        self,
        source: int,
        position: Int64[np.ndarray, " sample"],
        *,
        run_shift: int = 0,
        row_shift: int = 0,
    ) -> Int64[np.ndarray, " sample"]:
        num_rows, num_runs = self.num_rows[source], self._num_runs(source)
        visit, within = np.divmod(position, self.run_length)
        passes, ordinal = np.divmod(visit, num_runs)
        ordinal = (ordinal + run_shift) % num_runs
        runs = np.empty_like(ordinal)
        for number in np.unique(passes):
            chosen = passes == number
            key = mix(self.seed, source, int(number) + 1)
            runs[chosen] = permute(ordinal[chosen], size=num_runs, key=key)
        first = np.minimum(runs * self.run_length, max(num_rows - self.run_length, 0))
        return (first + (within + row_shift) % self.run_length) % num_rows

    def _num_runs(self, source: int) -> int:
        return -(-self.num_rows[source] // self.run_length)


def _split_rows(rows: int, shares: Sequence[Fraction]) -> list[int]:
    if len(shares) == 1:
        return [rows]
    half = len(shares) // 2
    left = math.floor(rows * sum(shares[:half]) / sum(shares) + Fraction(1, 2))
    return _split_rows(left, shares[:half]) + _split_rows(rows - left, shares[half:])


def permute(
    values: Int64[np.ndarray, " value"], *, size: int, key: int
) -> Int64[np.ndarray, " value"]:
    """Return where a keyed permutation of `range(size)` takes the given values.

    A Feistel network over the least rectangle of numbers that holds the range, walked on until the
    result lies in it; since hardly more than a side of the rectangle lies outside, that is rare.
    """
    rows = math.isqrt(size - 1) + 1
    sides = np.uint64(rows), np.uint64(-(-size // rows))
    keys = hash_values(np.arange(_ROUNDS, dtype=np.uint64), key=key).tolist()
    result = _feistel(values.astype(np.uint64), sides, keys)
    while (outside := result >= size).any():
        result[outside] = _feistel(result[outside], sides, keys)
    return result.astype(np.int64)


def _feistel(
    values: UInt64[np.ndarray, " value"], sides: tuple[np.uint64, np.uint64], keys: Sequence[int]
) -> UInt64[np.ndarray, " value"]:
    halves = list(np.divmod(values, sides[1]))
    for number, key in enumerate(keys):
        this, other = number % 2, 1 - number % 2
        shift = hash_values(halves[other], key=key) % sides[this]
        halves[this] = (halves[this] + shift) % sides[this]
    return halves[0] * sides[1] + halves[1]
