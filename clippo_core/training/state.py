"""The state that training changes, in one place: `TrainState`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clippo_core.checkpoints import (
    SavedState,
    load_checkpoint,
    load_weights,
    read_state,
    save_checkpoint,
)
from clippo_core.config import OptimConfig
from clippo_core.errors import CheckpointError
from clippo_core.modeling import PairModel, make_model, without_values
from clippo_core.modeling.classifier import HEAD_PREFIX, Classifier
from clippo_core.optim import make_optimizer

#: Name of the parameter that models trained with the sigmoid loss have.
BIAS = "logit_bias"
Whole = Callable[[Tensor], Tensor]
Divide = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Snapshot:
    """A copy of what a checkpoint holds, taken while training goes on."""

    model: PairModel
    saved: SavedState

    def save(self, path: str | Path) -> None:
        """Write a native checkpoint folder, atomically."""
        save_checkpoint(path, self.model, state=self.saved)


@dataclass
class TrainState:
    """The weights and moments of a run, and how far training has come.

    There are no random states: every draw of a run is a function of its seed and the step.
    """

    model: PairModel
    optimizer: torch.optim.Optimizer
    step: int = 0
    samples_seen: int = 0

    @staticmethod
    def create(
        model: PairModel,
        optim_config: OptimConfig,
        *,
        device: torch.device | str = "cpu",
        init_from: str | Path | None = None,
    ) -> TrainState:
        """Return a state at step 0.

        Args:
            model: model with fresh weights.
            optim_config: settings of the optimizer.
            device: device to train on.
            init_from: checkpoint whose weights to start from; its position grid is resized. A head
                that is fine-tuned stays fresh, whatever `init_from` was trained for, and so does a
                logit bias that it lacks.

        Raises:
            CheckpointError: if the checkpoint `init_from` does not fit the architecture.
        """
        if init_from is not None:
            weights, fresh = load_checkpoint(init_from).state_dict(), model.state_dict()
            if isinstance(model, Classifier):
                weights = {n: w for n, w in weights.items() if not n.startswith(HEAD_PREFIX)}
                weights |= {n: fresh[n] for n in fresh if n.startswith(HEAD_PREFIX)}
            # It belongs to the loss, which may be another one than the checkpoint's.
            bias = weights.pop(BIAS, fresh.get(BIAS))
            weights |= {BIAS: bias} if BIAS in fresh else {}
            load_weights(model, weights, where=init_from)
        model = model.to(device)
        return TrainState(model=model, optimizer=make_optimizer(model, optim_config))

    def save(self, path: str | Path, *, extra: Mapping[str, Any] | None = None) -> None:
        """Write a native checkpoint that training can go on from; see `snapshot`."""
        self.snapshot(extra=extra).save(path)

    def snapshot(
        self, *, extra: Mapping[str, Any] | None = None, whole: Whole = lambda tensor: tensor
    ) -> Snapshot:
        """Return a copy on the CPU, to be written while training goes on.

        Args:
            extra: JSON values of the caller.
            whole: function that makes whole tensors of those that are divided over ranks.
        """

        def copied(tensor: Tensor) -> Tensor:
            return whole(tensor.detach()).to("cpu", copy=True)

        progress = {"step": self.step, "samples_seen": self.samples_seen}
        weights = {name: copied(tensor) for name, tensor in self.model.state_dict().items()}
        moments = {name: copied(tensor) for name, tensor in self._moments().items()}
        original = self.model
        is_classifier = isinstance(original, Classifier)
        with without_values():
            model = make_model(
                original.config,
                font=original.renderer.font,
                vocabulary=original.vocabulary,
                classifier=original.classifier_config if is_classifier else None,
            )
        model.load_state_dict(weights, assign=True)
        return Snapshot(model, SavedState(tensors=moments, values={**progress, **(extra or {})}))

    def divide(
        self, config: OptimConfig, divide_weights: Callable[[PairModel], None], divided_like: Divide
    ) -> None:
        """Divide weights and moments over ranks, each of which holds the whole state so far.

        Args:
            config: settings of the optimizer, which is made anew for the divided weights.
            divide_weights: function that puts divided parameters in the place of the model's.
            divided_like: function that returns a tensor, divided as another one is.
        """
        moments = self._moments()
        divide_weights(self.model)
        self.optimizer = make_optimizer(self.model, config)
        params = dict(self.model.named_parameters())
        for key, tensor in moments.items():
            name, _, moment = key.rpartition("/")
            is_count = tensor.ndim == 0
            divided = tensor if is_count else divided_like(tensor, params[name])
            self.optimizer.state[params[name]][moment] = divided

    def restore(self, path: str | Path) -> Mapping[str, Any]:
        """Take over weights, moments and progress of a checkpoint; return all its stored values.

        Raises:
            CheckpointError: if it does not fit the model or the optimizer.
        """
        saved = read_state(path)
        if missing := [n for n in ("step", "samples_seen") if type(saved.values.get(n)) is not int]:
            raise CheckpointError(f"{path} has no number {missing[0]!r} in its train_state.json")
        load_weights(self.model, load_checkpoint(path).state_dict(), where=path)
        self._set_moments(saved.tensors, where=path)
        self.step = int(saved.values["step"])
        self.samples_seen = int(saved.values["samples_seen"])
        return saved.values

    def _moments(self) -> dict[str, Tensor]:
        named = dict(self.model.named_parameters())
        states = {name: self.optimizer.state.get(param, {}) for name, param in named.items()}
        return {f"{name}/{key}": value for name, s in states.items() for key, value in s.items()}

    def _set_moments(self, tensors: Mapping[str, Tensor], *, where: str | Path) -> None:
        params = dict(self.model.named_parameters())
        for key, tensor in tensors.items():
            name, _, moment = key.rpartition("/")
            if name not in params:
                raise CheckpointError(f"{where} holds moments of {name}, which the model lacks")
            # A fused optimizer keeps its step counts where the parameters are, others on the CPU.
            is_elsewhere = moment == "step" and not self.optimizer.defaults.get("fused", False)
            device = "cpu" if is_elsewhere else params[name].device
            self.optimizer.state[params[name]][moment] = tensor.to(device)
