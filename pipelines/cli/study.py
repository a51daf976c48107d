"""`study` makes the runs that test the paper's claims in miniature, and writes what came out."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from clippo_core.errors import ConfigError, did_you_mean
from pipelines.cli.arguments import parse
from pipelines.runtime.storage import Location


@dataclass(frozen=True)
class StudyArguments:
    """Test claims of the paper by small runs."""

    claims: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names of claims; --list prints them."""
    all: bool = False
    """Test all claims: hours on a laptop, and 40 minutes with --quick."""
    list: bool = False
    """Print the claims and their runs, and stop."""
    quick: bool = False
    """Make one short run of each kind: minutes each, for a first look."""
    seeds: int | None = None
    """Number of runs of each kind, except for those that take half an hour and longer, of which one
    is made; None makes 3, and 1 where --quick."""
    concurrent: int = 1
    """Number of parallel runs, on a cluster that has room for them."""
    root: str = "runs/study"
    """Folder of the runs; those that are there already are not made again. A quick study has its
    own, with -quick behind the name."""
    out: str = "docs/results.md"
    """The page to write."""


def run(argv: list[str]) -> None:
    """Make the study; the last lines are the page and its charts."""
    arguments = parse(StudyArguments, argv, command="study")
    from pipelines.studies.claims import ARMS, CLAIMS

    unknown = [name for name in arguments.claims if name not in CLAIMS]
    if unknown:
        raise ConfigError(
            f"no claim is called {unknown[0]!r}; there are {', '.join(CLAIMS)}"
            f"{did_you_mean(unknown[0], CLAIMS)}"
        )
    if not (arguments.claims or arguments.all or arguments.list):
        raise ConfigError(
            f"name the claims to test, or --all of them; there are {', '.join(CLAIMS)}, and --list "
            "prints what they say and which runs they need"
        )
    seeds = arguments.seeds or (1 if arguments.quick else 3)
    claims = [CLAIMS[name] for name in arguments.claims or CLAIMS]
    if arguments.list:
        for claim in claims:
            print(f"{claim.name}: {claim.says}")
            for arm in (ARMS[name] for name in claim.arms):
                steps = arm.quick_steps if arguments.quick else arm.config.train.steps
                runs = arm.num_seeds(seeds)
                print(
                    f"  {arm.name}: {steps:,} steps of {arm.config.train.global_batch_size}, "
                    f"{runs} run{'s' if runs > 1 else ''}"
                )
        return
    # Imported here, since Ray and torch take seconds and a wrong name should be told of at once.
    from pipelines.studies.page import write_page
    from pipelines.studies.study import StudySettings, study

    root = f"{arguments.root}-quick" if arguments.quick else arguments.root
    findings = study(claims, StudySettings(root, seeds, arguments.quick, arguments.concurrent))
    for finding in findings:
        print(f"{finding.verdict:<13} {finding.claim.name}: {finding.claim.says}")
        for name, why in finding.missing.items():
            print(f"  missing: {name}: {why}")
    named = [*(arguments.claims or ["--all"]), *(["--quick"] if arguments.quick else [])]
    length = "short runs" if arguments.quick else "runs"
    files = write_page(
        findings,
        Location.of(arguments.out),
        command=" ".join(["python -m pipelines study", *named]),
        about=f"{seeds} {length} of each kind, which differ in their seed; one of those that take "
        "half an hour and longer."
        if seeds > 1
        else f"One of the {length} of each kind.",
    )
    print("\n".join(reversed(files)))
