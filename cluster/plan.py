"""What a submitted command will do, as far as it can be known before the cluster is asked."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clippo_core.errors import CheckpointError, ConfigError, SampleError, StorageError
from cluster.dashboard import Place
from cluster.job import PACKED_PREFIX
from pipelines.cli import COMMANDS
from pipelines.cli.arguments import load_base, parse
from pipelines.cli.finetune import option
from pipelines.cli.resume import check_overrides
from pipelines.cli.train import TrainArguments
from pipelines.config.resolution import read_run_config, resolve, validate
from pipelines.config.settings import RunConfig, StorageConfig, TrackingConfig
from pipelines.datasets.sources import locate_source
from pipelines.runtime.storage import Location

_DIGEST_CHARS = 8


@dataclass(frozen=True)
class JobPlan:
    """A command that could be submitted.

    Attributes:
        words: of the command; a packed file's begins with "packed:".
        folder: to work in; None: the one that the code is unpacked to.
        files: name in the package -> file of this machine.
        run: the run's folder; None where the command makes none, or is not named yet.
        stem: of the submission id; None: not named yet.
        tracking: where MLflow keeps the run, if that is known.
        notes: for the person, on what could not be checked here.
    """

    words: tuple[str, ...]
    folder: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    run: Location | None = None
    stem: str | None = None
    tracking: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_resume(self) -> bool:
        """Whether it goes on with a run: each attempt is a job of its own."""
        return self.words[0] == "resume"

    @property
    def metadata(self) -> dict[str, str]:
        """What Ray keeps with the job."""
        command = {"clippo.command": self.words[0]}
        return command if self.run is None else command | {"clippo.run": self.run.uri}


def plan_job(words: Sequence[str], place: Place) -> JobPlan:
    """Check a command as far as that is possible from here.

    Raises:
        ConfigError: if it cannot run.
        SampleError: if data that can be seen from here cannot be used.
    """
    if words[0] not in COMMANDS:
        raise ConfigError(f"no command is called {words[0]!r}; there are {', '.join(COMMANDS)}")
    folder = str(Path.cwd()) if place.is_here else None
    plan = JobPlan(tuple(words), folder)
    if not place.is_here:
        _check_paths(words)
    if words[0] == "train" and len(words) > 1:
        return _plan_train(plan, place)
    if words[0] == "finetune" and len(words) > 1:
        return _plan_finetune(plan, place)
    if words[0] == "resume" and len(words) > 1:
        return _plan_resume(plan, place)
    return plan


def name_job(plan: JobPlan, package_digest: str) -> JobPlan:
    """Fix the names that are left open, so that the same command with the same code is one job."""
    content = "\0".join((package_digest, plan.folder or "", *plan.words))
    digest = hashlib.sha256(content.encode()).hexdigest()[:_DIGEST_CHARS]
    if plan.stem is not None:
        return plan
    if plan.run is None:
        return dataclasses.replace(plan, stem=f"{plan.words[0]}-{digest}")
    name = f"{plan.run.name}-{digest}"
    words = (*plan.words, "--storage.run", name)
    return dataclasses.replace(plan, words=words, run=plan.run.parent / name, stem=name)


def submission_stem(name: str) -> str:
    """A run's name as a submission id, which is a part of an address."""
    return re.sub(r"[^\w.-]", "-", name, flags=re.ASCII)


def _plan_train(plan: JobPlan, place: Place) -> JobPlan:
    plan = _with_packed_config(plan)
    default = TrainArguments(load_base(str(_original(plan, plan.words[1]))))
    arguments = parse(TrainArguments, plan.words[2:], command="train", default=default)
    config = arguments.config
    notes = [] if place.is_here else _check_places(config)
    notes += _check_data(config, place)
    plan = _with_packed_font(plan, config)
    plan = dataclasses.replace(plan, tracking=config.tracking.uri, notes=(*plan.notes, *notes))
    if arguments.dry_run:
        return plan
    name = config.storage.run
    run = Location.of(config.storage.root) / (name or config.preset)
    return dataclasses.replace(plan, run=run, stem=name and submission_stem(name))


def _plan_finetune(plan: JobPlan, place: Place) -> JobPlan:
    """Name the run. The checkpoint says what else the config is, and the job reads that."""
    words = plan.words
    if not option(words, "--checkpoint"):
        raise ConfigError("finetune needs --checkpoint: a checkpoint or a run, s3://… from afar")
    root = option(words, "--storage.root") or StorageConfig().root
    tracking = option(words, "--tracking.uri")
    if not place.is_here:
        config = RunConfig(storage=StorageConfig(root=root), tracking=TrackingConfig(uri=tracking))
        plan = dataclasses.replace(plan, notes=tuple(_check_places(config)))
    plan = dataclasses.replace(plan, tracking=tracking)
    if "--dry-run" in words:
        return plan
    name = option(words, "--storage.run")
    run = Location.of(root) / (name or f"finetune_{words[1]}")
    return dataclasses.replace(plan, run=run, stem=name and submission_stem(name))


def _with_packed_config(plan: JobPlan) -> JobPlan:
    base = plan.words[1]
    if not base.endswith(".json") or "://" in base:
        return plan
    words = ("train", f"{PACKED_PREFIX}{Path(base).name}", *plan.words[2:])
    return dataclasses.replace(plan, words=words, files={Path(base).name: Path(base).absolute()})


def _original(plan: JobPlan, word: str) -> str | Path:
    return plan.files.get(word.removeprefix(PACKED_PREFIX), word)


def _with_packed_font(plan: JobPlan, config: RunConfig) -> JobPlan:
    font = config.model.render.font
    if font is None or not Path(font).is_file():
        return plan
    name = Path(font).name
    words = (*plan.words, "--model.render.font", f"{PACKED_PREFIX}{name}")
    return dataclasses.replace(plan, words=words, files={**plan.files, name: Path(font).absolute()})


def _check_paths(words: Sequence[str]) -> None:
    """Refuse relative paths: the cluster's machines have other folders.

    Raises:
        ConfigError: naming the word.
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


def _check_places(config: RunConfig) -> list[str]:
    """What a run on other machines needs: a shared root, a shared MLflow.

    Raises:
        ConfigError: if it has a place on one machine alone.
    """
    root, tracking = config.storage.root, config.tracking.uri
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


def _check_data(config: RunConfig, place: Place) -> list[str]:
    """Open the data and validate it, where it can be seen from here.

    Returns:
        What only the job can check.
    """
    try:
        resolved = resolve(config)
    except (SampleError, StorageError) as error:
        return [f"data is left for the job to check: {str(error).splitlines()[0]}"]
    try:
        validate(resolved)
    except CheckpointError as error:
        if place.is_here or "://" in str(config.train.init_from):
            raise
        return [f"train.init_from is left for the job to check: {error}"]
    seen = ", ".join(locate_source(name).uri for name in config.data.sources)
    return [] if place.is_here else [f"data was checked as it is here: {seen}"]


def _plan_resume(plan: JobPlan, place: Place) -> JobPlan:
    run, overrides = Location.of(plan.words[1]), plan.words[2:]
    plan = dataclasses.replace(plan, run=run, stem=f"{submission_stem(run.name)}-resume")
    if run.is_local and not place.is_here:
        return dataclasses.replace(plan, notes=(f"{run.uri} is left for the job to check",))
    base = read_run_config(run)
    config = parse(RunConfig, overrides, command="resume", default=base)
    check_overrides(base, config)
    return dataclasses.replace(plan, tracking=config.tracking.uri)
