"""Optimizers, schedules, weight decay of chosen parameters, and gradient clipping."""

# torch's optimizers are made of these functions, and no public name calls them.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clippo_core.config import OptimConfig
from clippo_core.optim.adafactor import Adafactor
from clippo_core.optim.schedules import schedule_multiplier

__all__ = ["Adafactor", "clip_gradients", "make_optimizer", "schedule_multiplier", "set_multiplier"]


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Make the optimizer that `config` names, with weight decay on kernels only.

    The groups hold the peak values; `set_multiplier` sets those of a step.
    """
    named = list(model.named_parameters())
    kernels = [p for name, p in named if name.endswith("kernel")]
    others = [p for name, p in named if not name.endswith("kernel")]
    groups = [
        {"params": kernels, "peak_weight_decay": config.weight_decay},
        {"params": others, "peak_weight_decay": 0.0},
    ]
    if config.name == "adafactor":
        dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[config.momentum_dtype]
        return Adafactor(groups, lr=config.learning_rate, beta1=config.beta1, momentum_dtype=dtype)
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=betas, weight_decay=0.0, fused=True
    )


def set_multiplier(
    optimizer: torch.optim.Optimizer, config: OptimConfig, multiplier: float
) -> None:
    """Set learning rate and weight decay of the next update to their peaks times `multiplier`."""
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * multiplier
        decay = group["peak_weight_decay"]
        # AdamW multiplies its weight decay by the learning rate, which the division undoes.
        is_adamw = isinstance(optimizer, torch.optim.AdamW)
        group["weight_decay"] = decay / config.learning_rate if is_adamw else decay * multiplier


@torch.no_grad()
def clip_gradients(params: Iterable[nn.Parameter], max_norm: float | None) -> Float[Tensor, ""]:
    """Scale all gradients down to a global norm of `max_norm`; return the norm before that.

    Differs from `torch.nn.utils.clip_grad_norm_` in that nothing is added to the norm, as in optax.
    """
    gradients = [p.grad for p in params if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm is not None:
        scale = torch.where(norm < max_norm, 1.0, max_norm / norm)
        # Always, since to ask whether it is 1 would wait for the device.
        torch._foreach_mul_(gradients, scale)
    return norm
