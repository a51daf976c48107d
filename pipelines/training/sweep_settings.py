"""What a sweep varies; apart from `sweep`, since Ray takes seconds to import."""

from __future__ import annotations

from dataclasses import dataclass

from clippo_core.errors import ConfigError


@dataclass(frozen=True)
class SweepSettings:
    """Which learning rates to compare, and on what."""

    learning_rates: tuple[float, ...] = ()
    """Train one run with each, and keep the best; empty: one run with optim.learning-rate."""
    held_out_share: float = 0.1
    """Share of the training set that the runs are compared on, and not trained on; the test set is
    not looked at until the best is chosen."""
    concurrent: int = 1
    """Runs at a time; each takes the CPUs of its own ranks, render tasks and evaluation."""

    def check(self) -> None:
        """Refuse what cannot be compared.

        Raises:
            ConfigError: naming the setting.
        """
        rates = self.learning_rates
        if len(set(rates)) < len(rates) or min(rates, default=1.0) <= 0:
            raise ConfigError(
                f"sweep.learning-rates={list(rates)}; expected different numbers above 0"
            )
        if not 0 < self.held_out_share < 1:
            raise ConfigError(
                f"sweep.held-out-share={self.held_out_share}; expected a share above 0 and below 1"
            )
        if self.concurrent < 1:
            raise ConfigError(f"sweep.concurrent={self.concurrent}; expected 1 or more")
