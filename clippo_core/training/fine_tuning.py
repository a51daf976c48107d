"""Labelled samples for fine-tuning, their loss, and one training step."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from clippo_core.config import ClassifierConfig, OptimConfig
from clippo_core.modeling.classifier import Classifier
from clippo_core.modeling.pair_model import DeviceTexts
from clippo_core.training.precision import autocast
from clippo_core.training.state import TrainState
from clippo_core.training.step import StepOptions, apply_gradients, part_of_texts
from clippo_core.vocabulary import PreparedTexts


@dataclass(frozen=True)
class LabelledBatch:
    """Samples, each a picture or each a text, with the outputs that the head should give.

    Attributes:
        images: pictures on the canvas, questions drawn on them; empty where the samples are texts.
        texts: prepared texts, which are ignored where there are pictures.
        targets: probability of each class, score of each answer (0 to 1), or one normalised score.
    """

    images: UInt8[Tensor, "image height_px width_px 3"]
    texts: PreparedTexts | DeviceTexts
    targets: Float[Tensor, "sample output"]

    def __len__(self) -> int:
        return len(self.targets)

    def part(self, start: int, stop: int) -> LabelledBatch:
        """Return the samples from `start` to before `stop`."""
        texts = self.texts if len(self.images) else part_of_texts(self.texts, start, stop)
        return LabelledBatch(self.images[start:stop], texts, self.targets[start:stop])


def classification_loss(
    outputs: Float[Tensor, "sample output"],
    targets: Float[Tensor, "sample output"],
    config: ClassifierConfig,
) -> Float[Tensor, ""]:
    """Return the mean over samples, in float32, of the loss that belongs to the task.

    Classes have the cross-entropy of the softmax, scores the squared error. Answers to questions
    have the binary cross-entropy of each answer's sigmoid with its VQA accuracy, summed over
    answers (arXiv:1708.02711, section 3.3): several answers may be right, each in part, or none.
    The paper's own choice is not printed.
    """
    outputs, targets = outputs.float(), targets.float()
    if config.is_regression:
        return F.mse_loss(outputs, targets)
    if config.task == "vqa":
        losses = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        return losses.sum(1).mean()
    return F.cross_entropy(outputs, targets)


def loss_at_chance(config: ClassifierConfig) -> float:
    """Return the loss of a fresh head if all labels are as frequent.

    This is `ln K` for `K` classes and 1 for normalised scores; for answers it is the binary
    cross-entropy of the probability `1 / K` for each, where one is right.
    """
    if config.is_regression:
        return 1.0
    count = config.num_outputs
    if config.task == "vqa":
        return math.log(count) - (count - 1) * math.log(1 - 1 / count)
    return math.log(count)


def fine_tuning_step(
    state: TrainState,
    batch: LabelledBatch,
    config: OptimConfig,
    *,
    total_steps: int,
    options: StepOptions | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Make one update of `state`, whose model is a `Classifier`, in place.

    Args:
        state: model, optimizer and progress.
        batch: the shard's samples.
        config: settings of the optimizer; the schedule is evaluated at `state.step`.
        total_steps: length of the run.
        options: how the step is made; `logit_rows` is of no concern here. None makes it in
            float32, of the whole batch at once.

    Returns:
        Parts of the shard, which add up over all shards to the global batch's: `loss`, and
        `accuracy` (the target of the largest output) unless scores are learned. Of the update:
        `gradient_norm` before clipping. All stay on the device.
    """
    model = state.model
    assert isinstance(model, Classifier)
    options = options or StepOptions()
    shard, forward, device = options.shard, options.forward or model, model.device
    state.optimizer.zero_grad(set_to_none=True)
    size = options.memory.micro_batch_size or len(batch)
    totals = {"loss": torch.zeros((), device=device), "accuracy": torch.zeros((), device=device)}
    for start in range(0, len(batch), size):
        part = batch.part(start, min(start + size, len(batch)))
        share = len(part) / len(batch)
        is_last = start + size >= len(batch)
        targets = part.targets.to(device)
        with nullcontext() if is_last else shard.without_exchange():
            with autocast(device, options.precision):
                outputs = forward(part.images.to(device), part.texts)
            loss = classification_loss(outputs, targets, model.classifier_config) * share
            # Wrappers average gradients over shards, as the loss is a mean over them.
            loss.backward()
        totals["loss"] += loss.detach() / shard.count
        chosen = outputs.detach().argmax(1, keepdim=True)
        totals["accuracy"] += targets.gather(1, chosen).mean() * share / shard.count
    if model.classifier_config.is_regression:
        del totals["accuracy"]
    update = apply_gradients(state, config, total_steps=total_steps)
    state.samples_seen += len(batch) * shard.count
    return totals | update
