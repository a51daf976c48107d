"""Optimizers, schedules, weight decay of chosen parameters, and gradient clipping."""

# torch's optimizers are made of these functions, and no public name calls them.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clippo_core.config import OptimConfig, ScheduleConfig
from clippo_core.optim.adafactor import Adafactor

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


def schedule_multiplier(config: ScheduleConfig, step: int, *, total_steps: int) -> float:
    """Return the factor on learning rate and weight decay in the update number `step`.

    Warm-up, decay and cool-down multiply. Progress `p` is the share of the steps after the
    warm-up: linear is `1 - p`, cosine `(1 + cos(pi p)) / 2`; rsqrt is
    `1 / sqrt(1 + (step - warmup) / timescale)`, 1 during warm-up.

    Args:
        config: the schedule.
        step: updates made so far; the first update, step 0, is multiplied by 0 under warm-up.
        total_steps: length of the run.

    Source: big_vision `utils.create_learning_rate_schedule` at 0127fb6; equality shown in
    tests/parity/test_schedules.py.
    """
    tenth = total_steps // 10
    warmup_steps = tenth if config.warmup_steps is None else config.warmup_steps
    cooldown_steps = tenth if config.cooldown_steps is None else config.cooldown_steps
    since_warmup = step - warmup_steps
    progress = min(max(since_warmup / max(total_steps - warmup_steps, 1), 0.0), 1.0)
    decays = {
        "rsqrt": 1 / math.sqrt(1 + max(since_warmup, 0) / config.timescale),
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "constant": 1.0,
    }
    multiplier = decays[config.decay]
    if warmup_steps:
        multiplier *= min(1.0, step / warmup_steps)
    if cooldown_steps:
        multiplier *= min(1.0, (total_steps - step) / cooldown_steps)
    return multiplier


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
        # Multiplied also by 1: to compare the scale would wait for the device.
        torch._foreach_mul_(gradients, scale)
    return norm
