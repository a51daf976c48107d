"""`python -m cluster.job COMMAND …`: a command of `pipelines`, as the driver of a Ray job.

Three things differ from typing the command on the head: sealed secrets are opened, files that were
packed with the code are found, and `train` and `finetune` go on with a run that an earlier job
began, since a job may be tried more than once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from clippo_core.errors import ClippoError
from cluster.package import FILES_FOLDER
from cluster.sealing import open_sealed
from pipelines.cli import exit_code_of
from pipelines.cli import main as run_command
from pipelines.cli.arguments import load_base, parse
from pipelines.cli.finetune import option, read_arguments, with_own_start
from pipelines.cli.resume import check_overrides
from pipelines.cli.train import TrainArguments
from pipelines.config.resolution import RUN_FILE, read_run_config, resolve
from pipelines.config.settings import RunConfig
from pipelines.datasets.prepare.registry import prepare_missing
from pipelines.runtime.storage import Location

#: Beginning of a word that names a packed file.
PACKED_PREFIX = "packed:"


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m cluster.job", description=__doc__)
    parser.add_argument("--folder", help="to work in; for clusters of one machine")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="a command of python -m pipelines")
    options = parser.parse_args(argv)
    if code := exit_code_of(open_sealed):
        return code
    if options.folder is not None:
        os.chdir(options.folder)
    words = [_unpacked(word) for word in options.words]
    try:
        begun = _begun_run(words)
    except ClippoError:
        begun = None  # the command will meet it too, and say so
    return run_command(words) if begun is None else exit_code_of(lambda: go_on(begun))


def go_on(config: RunConfig) -> None:
    """Train on if the run that has begun under this name is the requested one.

    Raises:
        ConfigError: if the run has other settings.
    """
    from pipelines.cli.output import print_summary
    from pipelines.training.run import train

    prepare_missing([*config.data.sources, *(t.partition(":")[2] for t in config.evaluation.tasks)])
    resolved = resolve(config)
    check_overrides(read_run_config(resolved.run), resolved.config)
    print(f"{resolved.run.uri} has begun; going on with it")
    print_summary(train(resolved, is_resumed=True))


def _begun_run(words: list[str]) -> RunConfig | None:
    """Return the config of a `train` or `finetune` whose run is there already, else None."""
    if words[:1] == ["finetune"] and option(words, "--storage.run") is not None:
        tuning, config = read_arguments(words[1:])
        # A sweep goes on by itself.
        is_run = not (tuning.dry_run or tuning.sweep.learning_rates)
        if not (is_run and _has_begun(config)):
            return None
        return with_own_start(config, str(tuning.checkpoint))
    if words[:1] != ["train"] or len(words) < 2:
        return None
    default = TrainArguments(load_base(words[1], words[2:]))
    arguments = parse(TrainArguments, words[2:], command="train", default=default)
    is_begun = not arguments.dry_run and _has_begun(arguments.config)
    return arguments.config if is_begun else None


def _has_begun(config: RunConfig) -> bool:
    root, run = config.storage.root, config.storage.run
    return run is not None and (Location.of(root) / run / RUN_FILE).exists()


def _unpacked(word: str) -> str:
    if not word.startswith(PACKED_PREFIX):
        return word
    return str(Path(__file__).parents[1] / FILES_FOLDER / word.removeprefix(PACKED_PREFIX))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
