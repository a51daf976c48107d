"""`resume` goes on with a run."""

from __future__ import annotations

from clippo_core.errors import ConfigError
from clippo_core.optim import schedule_multiplier
from pipelines.cli.arguments import RUN, asks_for_help, parse, take_subject
from pipelines.config.derived import flatten
from pipelines.config.presets import find_preset
from pipelines.config.resolution import ResolvedRun, read_run_config, resolve
from pipelines.config.settings import RunConfig
from pipelines.runtime.run_checkpoints import first_step, set_damaged_aside, whole_checkpoints
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
    "train.steps",
    "train.micro_batch_size",
    "train.logit_rows",
)


def run(argv: list[str]) -> None:
    """Train on from the newest whole checkpoint; the last line is the checkpoint."""
    from pipelines.cli.output import print_summary
    from pipelines.training.run import train

    name, rest = take_subject(argv, command="resume", subject=RUN)
    base = find_preset(name) if asks_for_help(rest) else read_run_config(Location.of(name))
    config = parse(RunConfig, rest, command="resume", default=base, subject=RUN)
    check_overrides(base, config)
    resolved = resolve(config)
    complete = _complete(resolved)
    # Looked at here only before a run is called complete: `train` looks, too.
    damaged = [] if complete is None else set_damaged_aside(resolved.run)
    changes = _what_length_changes(base, resolved)
    if complete is not None and not damaged:
        print(
            f"{resolved.run.uri} is complete: {config.train.steps} steps, and evaluated. "
            f"To train longer, name more: --train.steps {2 * config.train.steps}"
        )
        print(complete.uri)
        return
    for line in [*damaged, *changes]:
        print(line)
    print_summary(train(resolved, is_resumed=True))


def _complete(resolved: ResolvedRun) -> Location | None:
    """Return the last checkpoint of a run of which nothing is left to do."""
    whole = whole_checkpoints(resolved.run)
    if not whole or whole[-1][0] < resolved.config.train.steps:
        return None
    checkpoint = whole[-1][1]
    evaluated = (resolved.run / "evaluations" / checkpoint.name).names()
    return checkpoint if evaluated or not resolved.benchmarks else None


def _what_length_changes(base: RunConfig, resolved: ResolvedRun) -> list[str]:
    """Return what a longer run has otherwise than the one that was begun.

    Raises:
        ConfigError: if it would end before its newest checkpoint.
    """
    before, after = base.train.steps, resolved.config.train.steps
    if before == after:
        return []
    step = first_step(resolved.run)
    if after < step:
        raise ConfigError(f"train.steps={after}, but {resolved.run.uri} has made {step} already")
    then, now = (
        schedule_multiplier(base.optim.schedule, step, total_steps=steps)
        for steps in (before, after)
    )
    return [
        f"{after} steps instead of {before}: the learning rate of step {step} is {now:.3g} times "
        f"its peak now, where it was {then:.3g}; samples and moments go on as they were"
    ]


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
