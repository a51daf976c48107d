"""`resume` goes on with a run."""

from __future__ import annotations

from clippo_core.errors import ConfigError
from pipelines.cli.arguments import parse, take_first
from pipelines.config.derived import flatten
from pipelines.config.resolution import read_run_config, resolve
from pipelines.config.settings import RunConfig
from pipelines.runtime.storage import Location

#: Settings that may change in mid-run: they decide where and how, not what is computed.
CHANGEABLE = (
    "scaling.",
    "tracking.",
    "evaluation.",
    "storage.keep_checkpoints",
    "data.max_reject_ratio",
    "data.record_keys",
    "train.checkpoint_every",
    "train.log_every",
    "train.micro_batch_size",
    "train.logit_rows",
)


def run(argv: list[str]) -> None:
    """Train on from the newest whole checkpoint; the last line is the checkpoint."""
    from pipelines.cli.output import print_summary
    from pipelines.training.run import train

    name, rest = take_first(argv, command="resume", what="a run's folder or URI")
    base = read_run_config(Location.of(name))
    config = parse(RunConfig, rest, command="resume", default=base)
    check_overrides(base, config)
    print_summary(train(resolve(config), is_resumed=True))


def check_overrides(base: RunConfig, config: RunConfig) -> None:
    """Refuse overrides that would make it another run.

    Raises:
        ConfigError: naming them.
    """
    before, after = flatten(base), flatten(config)
    changed = [name for name in before if before[name] != after[name]]
    refused = [name for name in changed if not name.startswith(CHANGEABLE)]
    if refused:
        raise ConfigError(
            f"resume cannot change {', '.join(refused)}: the run would no longer be what it was. "
            "Start a new one with train, from these weights if you like (--train.init-from RUN)"
        )
