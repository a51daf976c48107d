"""The commands, a module for each, imported only when called: most need no Ray or torch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

from clippo_core.errors import ClippoError, StorageError, did_you_mean

#: The commands with a line about each, in the order in which a person meets them.
COMMANDS = {
    "presets": "list the recipes, with expected cost and result",
    "show": "print a resolved config and what follows from it",
    "prepare": "fetch or convert a data set into shards with a manifest",
    "inspect": "a contact sheet of real training pairs, and what is rejected",
    "render": "draw a text as the model sees it",
    "train": "train a preset or an earlier run's config",
    "resume": "go on with a run",
    "finetune": "learn labels of texts, or answers to questions, on top of a checkpoint",
    "evaluate": "evaluate a checkpoint, each benchmark a Ray task",
    "study": "test the paper's claims by small runs, and write what came out",
    "report": "results of checkpoints side by side, with the paper's numbers",
    "embed": "embed pictures and texts into Parquet",
    "convert": "convert a checkpoint between formats",
    "clean": "what lies where on this disk, and what of it is nobody's",
    "serve": "a page to search pictures with a model",
}
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its errors become a message and an exit code.

    Args:
        argv: the command and its arguments; those of this process where it is not given.

    Returns:
        The exit code: 0 done, 2 usage or config, 3 data, 4 cluster or storage, 5 training diverged,
        130 interrupted (a checkpoint is written).
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        near = did_you_mean(argv[0], COMMANDS)
        print(f"no command is called {argv[0]!r}{near}\n\n{_usage()}", file=sys.stderr)
        return 2
    # `presets` and `show` are in one module.
    name, function = ("show", "run_presets") if argv[0] == "presets" else (argv[0], "run")
    command = getattr(importlib.import_module(f"pipelines.cli.{name}"), function)
    return exit_code_of(lambda: command(list(argv[1:])))


def exit_code_of(work: Callable[[], None]) -> int:
    """Do what a command does; its errors become a message and the exit code that `main` names."""
    try:
        work()
        return 0
    except ClippoError as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return 0
    except OSError as error:
        # Such as a full disk, or a folder that nobody may write to.
        print(f"\nStorageError: {error}", file=sys.stderr)
        return StorageError.exit_code


def _usage() -> str:
    lines = [f"  {name:<9} {what}" for name, what in COMMANDS.items()]
    return "\n".join(["usage: python -m pipelines COMMAND [--help]", "", *lines])
