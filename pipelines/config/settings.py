"""`RunConfig`: everything that defines a run, and what is derived from it.

Presets (`pipelines.config.presets`) make one, the command line overrides fields, `resolve` derives
the rest. The resolved config is stored beside the checkpoints and as MLflow params.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from clippo_core.config import (
    ClippoConfig,
    Config,
    FineTuningTask,
    OptimConfig,
    PrecisionSetting,
    require,
)
from clippo_core.errors import ConfigError

#: What a visual question may be asked without.
Blank = Literal["picture", "question"]


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """What is trained on, and in which order."""

    sources: tuple[str, ...] = ()
    """Prepared data sets: folders or URIs with a manifest.json, or names in the data cache."""
    weights: tuple[float, ...] = ()
    """Share of each source in every batch, relative to their sum; empty: in proportion to rows."""
    text_share: float | None = None
    """Share of the pairs in every batch that are text-text; the weights then hold among the
    sources of pictures and among those of texts. None: as the weights say."""
    run_length: int = 64
    """Consecutive rows drawn together: long runs are cheap to read, short ones mix more."""
    steps_per_task: int | None = None
    """Steps whose part of a rank's batch one render task makes; None: two seconds of its work, and
    256 MiB at most. More of them cost less per sample."""
    max_reject_ratio: float = 0.05
    """Abort when more than this share of the samples could not be used."""
    record_keys: bool = False
    """Write the keys of every step's samples to RUN/samples/, to audit what was seen."""

    def __post_init__(self) -> None:
        require(self.run_length >= 1, f"data.run_length={self.run_length}; expected 1 or more")
        steps = self.steps_per_task
        require(
            steps is None or steps >= 1, f"data.steps_per_task={steps}; expected 1 or more, or None"
        )
        ratio = self.max_reject_ratio
        require(0 <= ratio <= 1, f"data.max_reject_ratio={ratio}; expected a share from 0 to 1")
        share = self.text_share
        require(
            share is None or 0 <= share <= 1,
            f"data.text_share={share}; expected a share from 0 to 1, or None",
        )
        weights, sources = len(self.weights), len(self.sources)
        require(
            weights in (0, sources),
            f"data.weights has {weights} numbers for {sources} sources; expected one for each",
        )
        require(min(self.weights, default=1) > 0, "data.weights holds numbers of 0 or below")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """How long and in which batches."""

    steps: int = 100_000
    """Updates to make."""
    global_batch_size: int = 10_240
    """Pairs in a batch, over all ranks; each is told from all others in it."""
    seed: int = 0
    """Of the fresh weights and of the sample plan."""
    precision: PrecisionSetting = "auto"
    """Precision of the matrix products; weights, moments and the loss are float32. "auto": bfloat16
    where each rank has a GPU that knows it, else float32."""
    micro_batch_size: int | Literal["auto"] | None = "auto"
    """Pairs that a rank encodes at a time, each twice: memory for a big batch, a third more time.
    "auto": as many as fit on the GPU by an estimate, all on a CPU. None: all. The update is the
    same."""
    logit_rows: int | None = None
    """Rows of the batch's logits that exist at a time on a rank; None: all of its rows."""
    image_patch_drop: float = 0.0
    """Share of the patches of each picture that a step leaves out (FLIP, arXiv:2212.00794)."""
    unmasked_steps: int = 0
    """Last steps, in which no patches are dropped; FLIP's tuning at the end."""
    activation_checkpointing: bool = False
    """Compute activations of the blocks again in the backward pass instead of keeping them."""
    compile: bool = False
    """Compile the encoder's blocks by torch.compile; needs a C++ compiler on the machine."""
    init_from: str | None = None
    """Checkpoint (folder, .npz, URI) whose weights to start from; positions are resized."""
    checkpoint_every: int = 1_000
    """Steps between checkpoints; there is one at the end in any case."""
    log_every: int = 50
    """Steps between points in MLflow's charts, each the mean over these steps."""

    def __post_init__(self) -> None:
        for name in ("steps", "global_batch_size", "checkpoint_every", "log_every"):
            value = getattr(self, name)
            require(value >= 1, f"train.{name}={value}; expected 1 or more")
        for name in ("micro_batch_size", "logit_rows"):
            value = getattr(self, name)
            is_wrong = isinstance(value, int) and value < 1
            require(not is_wrong, f"train.{name}={value}; expected 1 or more")
        drop, unmasked = self.image_patch_drop, self.unmasked_steps
        require(0 <= drop < 1, f"train.image_patch_drop={drop}; expected a share in [0, 1)")
        require(unmasked >= 0, f"train.unmasked_steps={unmasked}; expected 0 or more")

    def patch_drop_at(self, step: int) -> float:
        """The share of image patches that the update after `step` others leaves out."""
        return self.image_patch_drop if step < self.steps - self.unmasked_steps else 0.0

    def is_logged(self, step: int) -> bool:
        """Whether the update that ends at `step` is a point in the charts."""
        return step % self.log_every == 0 or step == self.steps


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Config):
    """Labels instead of pairs; `python -m pipelines finetune` fills this in."""

    task: FineTuningTask | None = None
    """What to learn from labelled samples, on top of the weights of train.init_from; None: train
    on pairs."""
    hidden_dim: int | None = None
    """Hidden features of the head on the pooled features, an MLP; None: a linear head."""

    def __post_init__(self) -> None:
        hidden = self.hidden_dim
        require(
            hidden is None or hidden >= 1, f"finetune.hidden_dim={hidden}; expected None or >= 1"
        )


@dataclass(frozen=True, kw_only=True)
class ScalingConfig(Config):
    """Which machines do what."""

    num_ranks: int = 1
    """Training processes. The batch is divided over them; what is seen does not depend on it."""
    min_ranks: int | None = None
    """Train with as few ranks as this where nodes are missing, and with up to num_ranks as they
    come; a number of them that does not divide the batch is not used. None: num_ranks, always."""
    use_gpu: bool = False
    """One GPU per rank (nccl) instead of CPUs (gloo)."""
    shard_weights: bool = False
    """Divide weights, gradients and moments over the ranks (FSDP2) instead of copying them."""
    cpus_per_rank: float = 1
    """CPUs that Ray sets aside for a rank."""
    device_memory_gb: float | None = None
    """Memory of each rank's GPU, by which a run is checked before it starts, and
    train.micro_batch_size=auto chosen; None: as the cluster's GPU says."""
    renderer_cpus: float = 1
    """CPUs that Ray sets aside for one render task; fractions let several share a core."""
    min_renderers: int = 1
    """Render tasks at a time that training waits for before it starts, and that the autoscaler is
    asked for until then."""
    max_renderers: int | None = None
    """At most so many render tasks at a time; None: as many as there are free CPUs."""
    start_timeout_s: float = 600
    """Seconds to wait for the nodes of a cluster before giving up; on one machine none can come."""
    max_failures: int = 3
    """Restarts of the training workers after a failure, each from the last checkpoint."""

    def __post_init__(self) -> None:
        require(self.num_ranks >= 1, f"scaling.num_ranks={self.num_ranks}; expected 1 or more")
        for name in ("cpus_per_rank", "renderer_cpus"):
            value = getattr(self, name)
            require(value > 0, f"scaling.{name}={value}; expected above 0")
        fewest = self.min_ranks
        require(
            fewest is None or 1 <= fewest <= self.num_ranks,
            f"scaling.min_ranks={fewest}; expected None, or 1 to num_ranks={self.num_ranks}",
        )
        lower, upper = self.min_renderers, self.max_renderers
        require(
            lower >= 1 and (upper is None or lower <= upper),
            f"scaling.min_renderers={lower}; expected 1 or more, and at most "
            f"scaling.max_renderers={upper}",
        )
        require(
            self.start_timeout_s >= 0,
            f"scaling.start_timeout_s={self.start_timeout_s}; expected 0 or more",
        )
        for name in ("device_memory_gb", "max_renderers"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"scaling.{name}={value}; expected 1 or more")
        require(self.max_failures >= 0, f"scaling.max_failures={self.max_failures}; expected >= 0")


@dataclass(frozen=True, kw_only=True)
class StorageConfig(Config):
    """Where a run lives."""

    root: str = "runs"
    """Folder or URI of all runs; on several machines, one that all of them reach."""
    run: str | None = None
    """Name of the run; None: the preset's name and the time."""
    keep_checkpoints: int = 3
    """The newest so many checkpoints stay."""

    def __post_init__(self) -> None:
        keep = self.keep_checkpoints
        require(keep >= 1, f"storage.keep_checkpoints={keep}; expected 1 or more")
        run = self.run
        require(
            run is None or (run not in ("", ".", "..") and "/" not in run),
            f"storage.run={run!r}; expected a name without slashes",
        )


@dataclass(frozen=True, kw_only=True)
class TrackingConfig(Config):
    """Where MLflow keeps the run."""

    uri: str | None = None
    """Tracking server or sqlite:/// file; None: a SQLite file beside the runs, or
    MLFLOW_TRACKING_URI where that is set."""
    experiment: str = "clippo"
    """MLflow experiment."""
    pictures: bool = True
    """Draw texts, pairs and similarities of a batch, at the start and at checkpoints, one batch at
    a time: out of idle CPU time, though each takes a process's start."""
    registered_model: str | None = None
    """Name in MLflow's registry; each checkpoint becomes a version of it. None: checkpoints are
    logged as models of the run, and not registered."""
    champion_metric: str | None = None
    """TASK/SOURCE/METRIC that moves the alias "champion" of the registered model, whenever a
    checkpoint beats the one that has it; None: the first metric of the first evaluation."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Config):
    """What is evaluated at every checkpoint, beside training, as Ray tasks."""

    tasks: tuple[str, ...] = ()
    """TASK:SOURCE pairs, e.g. "zero_shot:fashion_mnist/test" or "retrieval:DATA_FOLDER"; TASK alone
    where it needs no data. docs/evaluations.md lists them."""
    templates: tuple[str, ...] = ("a photo of a {}",)
    """Prompts of pictures' classes; {} is the class name. Their embeddings are averaged per class.
    Names of sets work too: name, photo, clip7, clip80."""
    text_templates: tuple[str, ...] = ("{}",)
    """Prompts of texts' classes, likewise; for positive and negative there is sentiment5."""
    limit: int | None = None
    """Evaluate on the first so many samples; None: all."""
    cpus: float = 1
    """CPUs that Ray sets aside for one evaluation."""
    gpus: float = 0
    """GPUs that Ray sets aside for one evaluation, which encodes there; a part of one is shared."""
    timeout_s: float = 3600
    """An evaluation that takes longer is stopped, and counts as failed."""

    def __post_init__(self) -> None:
        for task in self.tasks:
            require(
                bool(task) and ":" not in (task[0], task[-1]),
                f"evaluation.tasks has {task!r}; expected TASK:SOURCE, e.g. zero_shot:DATA_FOLDER",
            )
        limit = self.limit
        require(limit is None or limit >= 1, f"evaluation.limit={limit}; expected None or >= 1")
        require(self.cpus > 0, f"evaluation.cpus={self.cpus}; expected above 0")
        require(0 <= self.gpus <= 1, f"evaluation.gpus={self.gpus}; expected 0 to 1")
        require(self.timeout_s > 0, f"evaluation.timeout_s={self.timeout_s}; expected above 0")


@dataclass(frozen=True)
class EvaluationOptions:
    """What an evaluation may be told.

    Attributes:
        templates: prompts of pictures' classes; {} is the class name.
        text_templates: prompts of texts' classes, or names of sets of `zero_shot.TEMPLATES`.
        limit: take the first so many samples; None: all.
        blank: side of visual questions that is left out.
    """

    templates: tuple[str, ...] = ("a photo of a {}",)
    text_templates: tuple[str, ...] = ("{}",)
    limit: int | None = None
    blank: Blank | None = None

    @staticmethod
    def of(config: EvaluationConfig, *, blank: Blank | None = None) -> EvaluationOptions:
        """What a run's config, or the command line, says."""
        return EvaluationOptions(config.templates, config.text_templates, config.limit, blank)


@dataclass(frozen=True, kw_only=True)
class RunConfig(Config):
    """A training run. `python -m pipelines show PRESET` prints one with what follows from it."""

    preset: str = "custom"
    """Name of the preset that it came from."""
    model: ClippoConfig = field(default_factory=ClippoConfig)
    """What the checkpoint computes."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizer and its schedule."""
    data: DataConfig = field(default_factory=DataConfig)
    """What is trained on."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How long and in which batches."""
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    """Whether labels are learned instead."""
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    """Which machines do what."""
    storage: StorageConfig = field(default_factory=StorageConfig)
    """Where the run lives."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where MLflow keeps it."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What is evaluated at every checkpoint."""

    def __post_init__(self) -> None:
        size, ranks = self.train.global_batch_size, self.scaling.num_ranks
        require(
            size % ranks == 0,
            f"train.global_batch_size={size} does not divide over {ranks} ranks; the largest below "
            f"it that does is {size // ranks * ranks}",
        )
        drop = self.train.image_patch_drop
        require(
            self.finetune.task is None or not drop,
            f"train.image_patch_drop={drop} is for pairs; set it to 0 where finetune.task is set",
        )
        metric = self.tracking.champion_metric
        tasks = [task.partition(":")[0] for task in self.evaluation.tasks]
        require(
            metric is None or (metric.count("/") >= 2 and metric.partition("/")[0] in tasks),
            f"tracking.champion_metric={metric!r}; expected TASK/SOURCE/METRIC of one of "
            f"evaluation.tasks, {list(self.evaluation.tasks)}, such as "
            "zero_shot/fashion_mnist-test/accuracy",
        )
        schedule, steps = self.optim.schedule, self.train.steps
        ramps = (schedule.warmup_steps or 0) + (schedule.cooldown_steps or 0)
        require(
            ramps <= steps,
            f"optim.schedule warms up and cools down over {ramps} steps, but train.steps={steps}; "
            "lower optim.schedule.warmup-steps and cooldown-steps, or set them to None (a tenth of "
            "the run each)",
        )

    @property
    def batch_size_per_rank(self) -> int:
        """Pairs that one rank encodes in a step."""
        return self.train.global_batch_size // self.scaling.num_ranks

    def with_ranks(self, num_ranks: int) -> RunConfig:
        """Return the same run on another number of ranks."""
        scaling = dataclasses.replace(self.scaling, num_ranks=num_ranks, min_ranks=None)
        return dataclasses.replace(self, scaling=scaling)


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
