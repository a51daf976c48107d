"""The plan of a submitted command's job, as far as it is known before the cluster is asked."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clippo_core.errors import CheckpointError, ConfigError, SampleError, StorageError
from cluster.job import PACKED_PREFIX
from pipelines.cli import COMMANDS
from pipelines.cli.arguments import load_base, parse
from pipelines.cli.finetune import option
from pipelines.cli.resume import check_overrides
from pipelines.cli.train import TrainArguments
from pipelines.config.derived import check_memory, text_lengths
from pipelines.config.resolution import read_run_config, resolve, validate
from pipelines.config.settings import RunConfig, StorageConfig
from pipelines.datasets.sources import locate_source
from pipelines.runtime.storage import Location

_DIGEST_CHARS = 8


@dataclass(frozen=True)
class JobPlan:
    """A job plan for a command that can be submitted.

    Attributes:
        words: words of the command; a packed file's begins with "packed:".
        folder: working folder; None is the one that the code is unpacked to.
        files: files of this machine to pack, by their names in the package.
        run: folder of the run; None where the command makes none, or its name is open.
        stem: beginning of the submission id; None while the name is open.
        tracking: place where MLflow keeps the run, if that is known.
        notes: notes for the person, on what could not be checked here.
    """

    words: tuple[str, ...]
    folder: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    run: Location | None = None
    stem: str | None = None
    tracking: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata that Ray keeps with the job."""
        command = {"clippo.command": self.words[0]}
        return command if self.run is None else command | {"clippo.run": self.run.uri}


def plan_job(words: Sequence[str], *, is_here: bool) -> JobPlan:
    """Return the plan of the job that runs a command, checked as far as possible from here.

    Args:
        words: words of the command.
        is_here: True if the job will run on this machine, so that paths mean the same there.

    Raises:
        ConfigError: if the command cannot run.
        SampleError: if data that can be seen from here cannot be used.
    """
    if words[0] not in COMMANDS:
        raise ConfigError(f"no command is called {words[0]!r}; there are {', '.join(COMMANDS)}")
    if not is_here:
        _check_paths(words)
    planners = {"train": _plan_train, "finetune": _plan_finetune, "resume": _plan_resume}
    is_planned = words[0] in planners and len(words) > 1
    plan = planners[words[0]](words, is_here) if is_planned else JobPlan(tuple(words))
    return dataclasses.replace(plan, folder=str(Path.cwd()) if is_here else None)


def name_job(plan: JobPlan, package_digest: str) -> JobPlan:
    """Return the plan with its open names fixed: the same command with the same code is one job."""
    if plan.stem is not None:
        return plan
    content = "\0".join((package_digest, plan.folder or "", *plan.words))
    digest = hashlib.sha256(content.encode()).hexdigest()[:_DIGEST_CHARS]
    if plan.run is None:
        return dataclasses.replace(plan, stem=f"{plan.words[0]}-{digest}")
    name = f"{plan.run.name}-{digest}"
    words = (*plan.words, "--storage.run", name)
    return dataclasses.replace(plan, words=words, run=plan.run.parent / name, stem=name)


def _plan_train(words: Sequence[str], is_here: bool) -> JobPlan:
    base, files = words[1], dict[str, Path]()
    default = TrainArguments(load_base(base, words[2:]))
    arguments = parse(TrainArguments, words[2:], command="train", default=default)
    config, packed = arguments.config, list(words)
    if base.endswith(".json"):
        files[Path(base).name] = Path(base).absolute()
        packed[1] = f"{PACKED_PREFIX}{Path(base).name}"
    font = config.model.render.font
    if font is not None and Path(font).is_file():
        files[Path(font).name] = Path(font).absolute()
        packed += ["--model.render.font", f"{PACKED_PREFIX}{Path(font).name}"]
    plan = JobPlan(
        tuple(packed),
        files=files,
        tracking=config.tracking.uri,
        notes=(
            *([] if is_here else _check_places(config.storage.root, config.tracking.uri)),
            *_check_data(config, is_here=is_here),
        ),
    )
    return plan if arguments.dry_run else _with_run(plan, config.storage, config.preset)


def _plan_finetune(words: Sequence[str], is_here: bool) -> JobPlan:
    """Return a plan that names the run; the job reads the rest from the checkpoint."""
    if not option(words, "--checkpoint"):
        raise ConfigError("finetune needs --checkpoint: a checkpoint or a run, s3://… from afar")
    root = option(words, "--storage.root") or StorageConfig().root
    storage = StorageConfig(root=root, run=option(words, "--storage.run"))
    tracking = option(words, "--tracking.uri")
    notes = [] if is_here else _check_places(root, tracking)
    plan = JobPlan(tuple(words), tracking=tracking, notes=tuple(notes))
    return plan if "--dry-run" in words else _with_run(plan, storage, f"finetune_{words[1]}")


def _plan_resume(words: Sequence[str], is_here: bool) -> JobPlan:
    run = Location.of(words[1])
    plan = JobPlan(tuple(words), run=run, stem=f"{_as_submission_id(run.name)}-resume")
    if run.is_local and not is_here:
        return dataclasses.replace(plan, notes=(f"{run.uri} is left for the job to check",))
    base = read_run_config(run)
    config = parse(RunConfig, words[2:], command="resume", default=base)
    check_overrides(base, config)
    return dataclasses.replace(plan, tracking=config.tracking.uri)


def _with_run(plan: JobPlan, storage: StorageConfig, unnamed: str) -> JobPlan:
    """Return the plan with the run's folder; `unnamed` is its name until `name_job` fixes it."""
    run = Location.of(storage.root) / (storage.run or unnamed)
    return dataclasses.replace(plan, run=run, stem=storage.run and _as_submission_id(storage.run))


def _as_submission_id(name: str) -> str:
    """Replace the characters that an id, as a part of an address, cannot have."""
    return re.sub(r"[^\w.-]", "-", name, flags=re.ASCII)


def _check_paths(words: Sequence[str]) -> None:
    """Refuse relative paths: the cluster's machines have other folders.

    Raises:
        ConfigError: if a word is such a path; names the word.
    """
    for before, word in zip(("", *words), words, strict=False):
        is_place = before in ("--out", "--storage.root")
        is_relative = "://" not in word and not word.startswith(("/", "-"))
        is_packed = before == "train" or before == "--model.render.font"
        if is_relative and not is_packed and (is_place or Path(word).exists()):
            raise ConfigError(
                f"{word} is a path on this machine, and the cluster is elsewhere; put it into a "
                "bucket (s3://…) or a folder that all its machines share, and name that"
            )


def _check_places(root: str, tracking: str | None) -> list[str]:
    """Return notes on the places that a run on other machines must share with them.

    Raises:
        ConfigError: if a place is on one machine alone.
    """
    if "://" not in root and not root.startswith("/"):
        raise ConfigError(
            f"storage.root={root!r} would lie in the job's own folder, and vanish with it; name "
            "one that all machines reach: --storage.root s3://BUCKET/runs, or a shared folder"
        )
    if tracking is not None and tracking.startswith("sqlite:"):
        raise ConfigError(
            f"tracking.uri={tracking} is a file on one machine; name a server that all machines "
            "reach, or leave it to MLFLOW_TRACKING_URI in their environment"
        )
    if root.startswith("/"):
        return [f"{root} has to be shared by all machines of the cluster"]
    return []


def _check_data(config: RunConfig, *, is_here: bool) -> list[str]:
    """Validate the data where it can be seen from here, and the memory that a step takes.

    Returns:
        Notes on what is left for the job to check.

    Raises:
        ClippoError: if the run could not be made.
    """
    try:
        resolved = resolve(config)
    except (SampleError, StorageError) as error:
        check_memory(config, None)
        return [f"data is left for the job to check: {str(error).splitlines()[0]}"]
    try:
        validate(resolved)
    except CheckpointError as error:
        if is_here or "://" in str(config.train.init_from):
            raise
        return [f"train.init_from is left for the job to check: {error}"]
    check_memory(resolved.config, text_lengths(resolved))
    seen = ", ".join(locate_source(name).uri for name in config.data.sources)
    return [] if is_here else [f"data was checked as it is here: {seen}"]
