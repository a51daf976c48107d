"""The vocabulary of a baseline's run, trained by the driver on texts of the run's own data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from clippo_core.checkpoints import load_checkpoint
from clippo_core.checkpoints.native import VOCABULARY_FILE
from clippo_core.errors import ConfigError, Rejected
from clippo_core.vocabulary import Vocabulary, train_vocabulary
from pipelines.config.resolution import ResolvedRun
from pipelines.runtime.run_checkpoints import fetched, find_checkpoint
from pipelines.stream.batch import Visit, draw_pair, open_vocabulary

#: Pairs whose texts a vocabulary is trained on: the first ones of the plan.
VOCABULARY_PAIRS = 200_000
#: Pairs that are read at a time.
_PAIRS_AT_A_TIME = 4096


def with_vocabulary(resolved: ResolvedRun) -> ResolvedRun:
    """Put a vocabulary into the run's folder, and return the run with its digest in the config.

    A run that has one keeps it, and weights to start from bring theirs; else one is trained, the
    same one for the same data and seed. A run that reads pixels is returned as it is.

    Raises:
        ConfigError: if it is not the vocabulary that the config names.
        SampleError: if no vocabulary can be trained on the texts.
    """
    config = resolved.config
    named = config.model.vocabulary_sha256
    if not config.model.reads_tokens:
        return resolved
    place = resolved.run / VOCABULARY_FILE
    if named is not None and place.exists():
        assert resolved.stream.vocabulary is not None
        open_vocabulary(resolved.stream.vocabulary)
        return resolved
    vocabulary = _new_vocabulary(resolved)
    if named not in (None, vocabulary.sha256):
        raise ConfigError(
            f"model.vocabulary_sha256={named[:12]}…, but the vocabulary of these data is "
            f"{vocabulary.sha256[:12]}…; for one of its own start the run with "
            "--model.vocabulary-sha256 None"
        )
    place.write_bytes(vocabulary.model)
    tqdm.write(f"vocabulary of {vocabulary.size} tokens: {place.uri}")
    model = dataclasses.replace(config.model, vocabulary_sha256=vocabulary.sha256)
    return dataclasses.replace(resolved, config=dataclasses.replace(config, model=model))


def _new_vocabulary(resolved: ResolvedRun) -> Vocabulary:
    config = resolved.config
    if config.train.init_from is not None:
        with fetched(find_checkpoint(config.train.init_from)) as path:
            # That it is a baseline, too, was checked before.
            vocabulary = load_checkpoint(path).vocabulary
        assert vocabulary is not None
        return vocabulary
    return Vocabulary(
        train_vocabulary(
            planned_texts(resolved, VOCABULARY_PAIRS),
            size=config.model.vocabulary_size,
            seed=config.train.seed,
        )
    )


def planned_texts(resolved: ResolvedRun, num_pairs: int) -> Iterator[str]:
    """Yield the texts of the first pairs that the plan draws, each source in its share.

    Args:
        resolved: the run.
        num_pairs: how many pairs to draw; of smaller data about as many as there are rows.
    """
    wanted = min(num_pairs, sum(source.num_rows for source in resolved.sources))
    size = min(_PAIRS_AT_A_TIME, wanted)
    plan = dataclasses.replace(resolved.stream.plan, batch_size=size)
    for step in range(-(-wanted // size)):
        planned = plan.batch(step)
        for number in np.unique(planned.source).tolist():
            source, slots = resolved.sources[number], np.flatnonzero(planned.source == number)
            kind, draws = source.manifest.kind, planned.draw[slots].tolist()
            samples = source.read_texts(planned.row[slots])
            for sample, draw in zip(samples, draws, strict=True):
                pair = draw_pair(Visit(sample, kind, draw))
                if not isinstance(pair, Rejected):
                    yield from pair
