"""The way from a `RunConfig` to all that follows from it, checked before machines are taken."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clippo_core.checkpoints import load_checkpoint, read_classifier
from clippo_core.checkpoints.native import FONT_FILE, VOCABULARY_FILE
from clippo_core.config import (
    ClassifierConfig,
    ClippoConfig,
    from_json,
)
from clippo_core.errors import CheckpointError, ConfigError, Rejected, SampleError
from clippo_core.rendering import TextRenderer
from clippo_core.sample_plan import SamplePlan
from pipelines.config.settings import RunConfig
from pipelines.datasets.labels import find_labels, label_spec, require_task_kind
from pipelines.datasets.manifest import TRAINABLE_KINDS
from pipelines.datasets.sources import Source, locate_source, open_source
from pipelines.evaluation.tasks import check_benchmark, parse_benchmark
from pipelines.reporting.reports import Benchmark
from pipelines.runtime.run_checkpoints import fetched, find_checkpoint, whole_checkpoints
from pipelines.runtime.storage import Location
from pipelines.stream.batch import (
    SourceReference,
    StreamSpec,
    Visit,
    VocabularyReference,
    open_renderer,
    prepare_samples,
)

#: Name of the file in a run's folder that holds its config.
RUN_FILE = "run.json"
#: Number of samples of each source that are checked before a run; more than half must be usable.
VALIDATED_SAMPLES = 64


@dataclass(frozen=True)
class ResolvedRun:
    """A run that is ready to begin.

    Attributes:
        config: settings with the font's hash, the weights of the sources, and the run's name filled
            in.
        sources: open data sets.
        renderer: renderer of the captions.
        classifier: head of fine-tuning; None where pairs are trained on.
    """

    config: RunConfig
    sources: tuple[Source, ...]
    renderer: TextRenderer
    classifier: ClassifierConfig | None = None

    @property
    def run(self) -> Location:
        """Folder of the run."""
        assert self.config.storage.run is not None
        return Location.of(self.config.storage.root) / self.config.storage.run

    @property
    def stream(self) -> StreamSpec:
        """Specification of the stream, which render workers are given."""
        data, train = self.config.data, self.config.train
        is_text = [int(source.manifest.kind != "image-text") for source in self.sources]
        plan = SamplePlan(
            seed=train.seed,
            batch_size=train.global_batch_size,
            num_rows=tuple(source.num_rows for source in self.sources),
            weights=data.weights,
            run_length=data.run_length,
            groups=tuple(is_text),
        )
        references = tuple(
            SourceReference(s.folder.uri, s.manifest.digest, s.manifest.kind) for s in self.sources
        )
        model = self.config.model
        vocabulary = None
        if model.reads_tokens and model.vocabulary_sha256 is not None:
            place = self.run / VOCABULARY_FILE
            vocabulary = VocabularyReference(place.uri, model.vocabulary_sha256, model.max_tokens)
        labels = None if self.classifier is None else label_spec(self.classifier)
        render, font = self.renderer.config, model.render.font
        return StreamSpec(
            plan, references, render, model.image, font, vocabulary=vocabulary, labels=labels
        )

    @property
    def benchmarks(self) -> list[Benchmark]:
        """Benchmarks that every checkpoint is evaluated on."""
        return [parse_benchmark(text) for text in self.config.evaluation.tasks]


def resolve(config: RunConfig) -> ResolvedRun:
    """Return a run with its data sets opened, its font loaded, and derived settings filled in.

    Raises:
        ConfigError: if settings contradict each other.
        SampleError: if a data set is not there.
    """
    if not config.data.sources:
        raise ConfigError(
            "data.sources is empty; name prepared data sets (--data.sources FOLDER …), and make "
            "them with python -m pipelines prepare"
        )
    for text in config.evaluation.tasks:
        parse_benchmark(text)
    sources, weights = _weighted_sources(config)
    renderer = open_renderer(config.model.render, config.model.render.font)
    run = config.storage.run or f"{config.preset}-{time.strftime('%Y%m%d-%H%M%S')}"
    root = Location.of(config.storage.root)
    # The run keeps a font of its own, since the file may be on this machine alone.
    own_font = None if renderer.font.is_bundled else (root / run / FONT_FILE).uri
    render = dataclasses.replace(renderer.config, font=own_font)
    model = dataclasses.replace(config.model, render=render)
    if config.finetune.task is None:
        model = dataclasses.replace(model, has_logit_bias=config.train.loss == "sigmoid")
    uris = tuple(source.folder.uri for source in sources)
    resolved = dataclasses.replace(
        config,
        model=model,
        # The weights contain the share now; a run that is resumed divides nothing again.
        data=dataclasses.replace(config.data, sources=uris, weights=weights, text_share=None),
        storage=dataclasses.replace(config.storage, run=run, root=root.uri),
        tracking=dataclasses.replace(config.tracking, uri=tracking_uri(config)),
    )
    classifier = None
    if config.finetune.task is not None:
        classifier = find_labels(config.finetune.task, sources, config.finetune.hidden_dim)
    return ResolvedRun(resolved, sources, renderer, classifier)


def check_benchmarks(resolved: ResolvedRun) -> None:
    """Make sure that the data of each evaluation is there, and can feed it.

    Raises:
        ConfigError: if an evaluation is for models that are trained on something else.
        SampleError: if a data set is missing, or of another kind.
    """
    for benchmark in resolved.benchmarks:
        check_benchmark(benchmark, resolved.config.finetune.task)


def _weighted_sources(config: RunConfig) -> tuple[tuple[Source, ...], tuple[float, ...]]:
    """Return the sources that take part, and the share of each in a batch.

    Raises:
        ConfigError: if a set is for evaluation only, or a share has no set.
    """
    data = config.data
    sources = [open_source(locate_source(name).uri) for name in data.sources]
    for source in sources:
        manifest, task = source.manifest, config.finetune.task
        if task is not None:
            require_task_kind(source, task)
        if manifest.evaluation_only or (task is None and manifest.kind not in TRAINABLE_KINDS):
            raise ConfigError(
                f"{source.name} ({manifest.kind}) is for evaluation only; take it out of "
                "data.sources, and name it in evaluation.tasks"
            )
    weights = list(data.weights or (float(source.num_rows) for source in sources))
    if data.text_share is None:
        return tuple(sources), tuple(weights)
    is_text = [source.manifest.kind != "image-text" for source in sources]
    wanted = {True: data.text_share, False: 1 - data.text_share}
    for text, share in wanted.items():
        if share and text not in is_text:
            raise ConfigError(
                f"data.text_share={data.text_share} asks for {'texts' if text else 'pictures'}, "
                f"but data.sources has none: {[f'{s.name} ({s.manifest.kind})' for s in sources]}"
            )
    totals = {
        text: sum(w for w, t in zip(weights, is_text, strict=True) if t is text) for text in wanted
    }
    shares = [wanted[t] * w / totals[t] for w, t in zip(weights, is_text, strict=True)]
    taken = [number for number, share in enumerate(shares) if share]
    return tuple(sources[n] for n in taken), tuple(shares[n] for n in taken)


def read_run_config(run: Location) -> RunConfig:
    """Return the config that a run was started with.

    Raises:
        ConfigError: if the folder is not a run's.
    """
    try:
        content = (run / RUN_FILE).read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            f"{run.uri} is no run: it has no {RUN_FILE}; expected a folder that train made"
        ) from None
    return from_json(RunConfig, content, where=f"{run.uri}/{RUN_FILE}")


def tracking_uri(config: RunConfig) -> str:
    """Return MLflow's place for a run: configured, from the environment, or beside the runs."""
    uri = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return uri
    root = Location.of(config.storage.root)
    return f"sqlite:///{root.uri if root.is_local else Location.of('runs').uri}/mlflow.db"


def validate(resolved: ResolvedRun) -> dict[str, int]:
    """Check for what would fail in mid-run: unusable data, or weights that do not fit.

    Returns:
        Number of rejected samples among the first of each source.

    Raises:
        SampleError: if more than half of a source's first samples cannot be used.
        CheckpointError: if `train.init_from` is missing, or of another architecture.
    """
    init_from, wanted = resolved.config.train.init_from, architecture(resolved.config.model)
    if init_from is not None:
        with fetched(find_checkpoint(init_from)) as path:
            found = architecture(load_checkpoint(path).config)
        if found != wanted:
            raise CheckpointError(
                f"train.init_from={init_from} is another architecture:\n  {found}\n  {wanted}"
            )
    check_labels(resolved)
    return validate_samples(resolved)


def architecture(config: ClippoConfig) -> tuple[Any, ...]:
    """Return the settings that weights must agree with; positions of patches are resized."""
    tokens = (config.vocabulary_size, config.max_tokens) if config.reads_tokens else ()
    return (config.vit, config.text_input, *tokens)


def validate_samples(resolved: ResolvedRun) -> dict[str, int]:
    """Decode and render the first samples of every source, before a trainer is started.

    Returns:
        Number of them that were rejected, per source.

    Raises:
        SampleError: if more than half of a source's samples cannot be used.
    """
    spec, rejected = resolved.stream, {}
    for source in resolved.sources:
        samples = source.read(range(min(VALIDATED_SAMPLES, source.num_rows)))
        kind = source.manifest.kind
        number = resolved.sources.index(source)
        visits = [Visit(sample, kind, 0, number) for sample in samples]
        outcomes = prepare_samples(spec, resolved.renderer, visits)
        paired = zip(samples, outcomes, strict=True)
        bad = [(sample.key, o) for sample, o in paired if isinstance(o, Rejected)]
        if 2 * len(bad) > len(samples):
            reasons = "; ".join(f"{key}: {o.reason} ({o.detail})" for key, o in bad[:3])
            raise SampleError(
                f"{source.folder.uri}: {len(bad)} of the first {len(samples)} samples cannot be "
                f"used: {reasons}"
            )
        rejected[source.name] = len(bad)
    return rejected


def check_labels(resolved: ResolvedRun) -> None:
    """Make sure that a resumed run still has the labels that its checkpoints were made with.

    Raises:
        ConfigError: naming what changed.
    """
    whole = whole_checkpoints(resolved.run)
    if resolved.classifier is None or not whole:
        return
    with fetched(whole[-1][1]) as path:
        stored = read_classifier(path)
    if stored != resolved.classifier:
        before, after = (found.labels if found else () for found in (stored, resolved.classifier))
        gone, new = sorted(set(before) - set(after)), sorted(set(after) - set(before))
        raise ConfigError(
            f"{resolved.run.uri} was trained with {len(before)} labels, and its data has "
            f"{len(after)} now (gone: {gone[:5]}, new: {new[:5]}), or they have another order, or "
            "scores another mean; put the old data back, or start a new run with finetune"
        )


def newest_run() -> Location:
    """Return the run in `runs/` that was begun, or gone on with, last; its name is printed.

    Raises:
        ConfigError: if there is none.
    """
    place = Location.of("runs")
    found = [place / name for name in place.names() if (place / name / RUN_FILE).exists()]
    if not found:
        raise ConfigError(f"{place.uri} holds no run; name a checkpoint or a run")
    return max(found, key=lambda run: Path(f"{run.uri}/{RUN_FILE}").stat().st_mtime)


def run_of(checkpoint: Location) -> Location | None:
    """Return the run that a checkpoint belongs to, if it is in one."""
    run_folder = checkpoint.parent.parent
    is_in_run = checkpoint.parent.name == "checkpoints" and (run_folder / RUN_FILE).exists()
    return run_folder if is_in_run else None
