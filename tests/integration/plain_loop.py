"""Training without Ray: what one process learns from whole batches, to hold runs against."""

from __future__ import annotations

import torch

from clippo_core.modeling import make_model
from clippo_core.training.state import TrainState
from clippo_core.training.step import PairBatch, train_step
from pipelines.config.resolution import resolve
from pipelines.config.settings import RunConfig
from pipelines.stream.batch import open_vocabulary, prepare_batch
from pipelines.training.token_vocabulary import with_vocabulary


def losses_of_a_plain_loop(config: RunConfig) -> dict[int, float]:
    """By step: what one process learns from whole batches, without Ray."""
    resolved = with_vocabulary(resolve(config))
    spec, optim, length = resolved.stream, config.optim, config.train
    vocabulary = None if spec.vocabulary is None else open_vocabulary(spec.vocabulary)
    model = make_model(resolved.config.model, seed=length.seed, vocabulary=vocabulary)
    state = TrainState.create(model, optim)
    losses = {}
    for step in range(length.steps):
        batch = prepare_batch(spec, spec.plan.batch(step), step=step)
        pairs = PairBatch(torch.tensor(batch.images), batch.texts, batch.left_texts)
        found = train_step(state, pairs, optim, total_steps=length.steps)
        losses[step + 1] = float(found["loss"])
    return losses
