"""The multiplier on the learning rate over the steps of a run."""

from __future__ import annotations

import math

from clippo_core.config import ScheduleConfig


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
