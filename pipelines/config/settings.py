"""Everything that defines a run: `RunConfig` and its parts.

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

#: Part of a visual question that an evaluation may leave out.
Blank = Literal["picture", "question"]


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """The data that a run is trained on, and its order."""

    sources: tuple[str, ...] = ()
    """Prepared data sets: folders or URIs with a manifest.json, or names in the data cache."""
    weights: tuple[float, ...] = ()
    """Share of each source in every batch, relative to their sum; empty takes shares in proportion
    to rows."""
    text_share: float | None = None
    """Share of the pairs in every batch that are text-text; the weights then hold among the sources
    of pictures and among those of texts. None keeps the shares that the weights give."""
    run_length: int = 64
    """Consecutive rows drawn together: long runs are cheap to read, short ones mix more."""
    steps_per_task: int | None = None
    """Steps whose part of a rank's batch one render task makes; more of them cost less per sample.
    None takes two seconds of its work, and 256 MiB at most."""
    max_reject_ratio: float = 0.05
    """Largest share of samples that cannot be used; above it the run aborts."""
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
    """The length of a run and its batches."""

    steps: int = 100_000
    """Number of updates."""
    global_batch_size: int = 10_240
    """Pairs in a batch, over all ranks; each is contrasted with all others in it."""
    seed: int = 0
    """Seed of the fresh weights and of the sample plan."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """Contrastive loss: "softmax" is CLIP's, and the paper's; "sigmoid" is SigLIP's
    (arXiv:2303.15343), which judges each pairing by itself."""
    positives: Literal["pair", "equal"] = "pair"
    """Positives of a pair: "pair" is the pair alone, the paper's way; "equal" adds the pairs of the
    batch that mean the same: of the same class where the set has classes, else with captions that
    look the same as drawn (UniCL, arXiv:2204.03610)."""
    precision: PrecisionSetting = "auto"
    """Precision of the matrix products; weights, moments and the loss are float32. "auto" is
    bfloat16 where each rank has a GPU that supports it, else float32."""
    micro_batch_size: int | Literal["auto"] | None = "auto"
    """Pairs that a rank encodes at a time, each twice: less memory for a big batch, a third more
    time, and the same update. "auto" takes as many as fit on the GPU by an estimate, and all on a
    CPU; None takes all."""
    logit_rows: int | None = None
    """Rows of the batch's logits that exist at a time on a rank; None takes all of its rows."""
    image_patch_drop: float = 0.0
    """Share of the patches of each picture that a step leaves out (FLIP, arXiv:2212.00794)."""
    unmasked_steps: int = 0
    """Number of last steps in which no patches are dropped, as FLIP tunes at the end."""
    activation_checkpointing: bool = False
    """Compute activations of the blocks again in the backward pass instead of keeping them."""
    compile: bool = False
    """Compile the encoder's blocks with torch.compile, which needs a C++ compiler on the
    machine."""
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
        """Return the share of image patches that the update after `step` others leaves out."""
        return self.image_patch_drop if step < self.steps - self.unmasked_steps else 0.0

    def is_logged(self, step: int) -> bool:
        """Return True if the update that ends at `step` is a point in the charts."""
        return step % self.log_every == 0 or step == self.steps


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Config):
    """Settings of fine-tuning on labels, filled in by `python -m pipelines finetune`."""

    task: FineTuningTask | None = None
    """Task to learn from labelled samples, from the weights of train.init_from; None trains on
    pairs."""
    hidden_dim: int | None = None
    """Hidden features of the head on the pooled features, if it is an MLP; None is a linear
    head."""

    def __post_init__(self) -> None:
        hidden = self.hidden_dim
        require(
            hidden is None or hidden >= 1, f"finetune.hidden_dim={hidden}; expected None or >= 1"
        )


@dataclass(frozen=True, kw_only=True)
class ScalingConfig(Config):
    """The division of work over machines."""

    num_ranks: int = 1
    """Number of training processes. The batch is divided over them; which samples are seen does not
    depend on it."""
    min_ranks: int | None = None
    """Fewest ranks to train with where nodes are missing; up to num_ranks are used as nodes come,
    and numbers that do not divide the batch are skipped. None always takes num_ranks."""
    use_gpu: bool = False
    """Give each rank a GPU (nccl) instead of CPUs (gloo)."""
    shard_weights: bool = False
    """Divide weights, gradients and moments over the ranks (FSDP2) instead of copying them."""
    cpus_per_rank: float = 1
    """CPUs that Ray sets aside for a rank."""
    device_memory_gb: float | None = None
    """Memory of each rank's GPU in GB, by which a run is checked before it starts and
    train.micro_batch_size=auto chosen; None asks the cluster's GPU."""
    renderer_cpus: float = 1
    """CPUs that Ray sets aside for one render task; fractions let several share a core."""
    min_renderers: int = 1
    """Number of parallel render tasks that training waits for before it starts, and that the
    autoscaler is asked for until then."""
    max_renderers: int | None = None
    """Largest number of parallel render tasks; None takes as many as there are free CPUs."""
    start_timeout_s: float = 600
    """Seconds to wait for the nodes of a cluster before giving up; Ray on one machine does not
    wait."""
    max_failures: int = 3
    """Number of restarts of the training workers after failures, each from the last checkpoint."""

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

    @property
    def device_bytes(self) -> float | None:
        """Return `device_memory_gb` in bytes; None where it is left to the cluster."""
        return None if self.device_memory_gb is None else self.device_memory_gb * 1e9


@dataclass(frozen=True, kw_only=True)
class StorageConfig(Config):
    """The place of a run."""

    root: str = "runs"
    """Folder or URI of all runs; with several machines, one that all of them reach."""
    run: str | None = None
    """Name of the run; None builds one of the preset's name and the time."""
    keep_checkpoints: int = 3
    """Number of newest checkpoints to keep."""

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
    """The record of a run in MLflow."""

    uri: str | None = None
    """Tracking server or sqlite:/// file; None takes MLFLOW_TRACKING_URI where that is set, else a
    SQLite file beside the runs."""
    experiment: str = "clippo"
    """Name of the MLflow experiment."""
    pictures: bool = True
    """Draw texts, pairs and similarities of a batch, at the start and at checkpoints, one batch at
    a time: out of idle CPU time, though each takes a process's start."""
    registered_model: str | None = None
    """Name in MLflow's registry; each checkpoint becomes a version of it. None logs checkpoints as
    models of the run, without registering them."""
    champion_metric: str | None = None
    """Metric (TASK/SOURCE/METRIC) that moves the alias "champion" of the registered model whenever
    a checkpoint beats the one that has it; None takes the first metric of the first evaluation."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Config):
    """The evaluations of every checkpoint, which run beside training as Ray tasks."""

    tasks: tuple[str, ...] = ()
    """TASK:SOURCE pairs, e.g. "zero_shot:fashion_mnist/test" or "retrieval:DATA_FOLDER"; TASK alone
    where it needs no data. docs/evaluations.md lists them."""
    templates: tuple[str, ...] = ("a photo of a {}",)
    """Prompts for the classes of pictures; {} is the class name. Their embeddings are averaged per
    class. Names of sets work too: name, photo, clip7, clip80."""
    text_templates: tuple[str, ...] = ("{}",)
    """Prompts for the classes of texts, in the same form; the set sentiment5 is for positive and
    negative."""
    limit: int | None = None
    """Number of first samples to evaluate on; None takes all."""
    cpus: float = 1
    """CPUs that Ray sets aside for one evaluation."""
    gpus: float = 0
    """GPUs that Ray sets aside for one evaluation, which encodes there; below 1 it shares one."""
    timeout_s: float = 3600
    """Seconds after which an evaluation is stopped, and counts as failed."""

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
    """The settings that a single evaluation gets.

    Attributes:
        templates: prompts for the classes of pictures; {} is the class name.
        text_templates: prompts for the classes of texts, or names of sets of `zero_shot.TEMPLATES`.
        limit: number of first samples to take; None takes all.
        blank: part of a visual question that is left out.
    """

    templates: tuple[str, ...] = ("a photo of a {}",)
    text_templates: tuple[str, ...] = ("{}",)
    limit: int | None = None
    blank: Blank | None = None

    @staticmethod
    def of(config: EvaluationConfig, *, blank: Blank | None = None) -> EvaluationOptions:
        """Return the options that a run's config and `blank` give."""
        return EvaluationOptions(config.templates, config.text_templates, config.limit, blank)


@dataclass(frozen=True, kw_only=True)
class RunConfig(Config):
    """The settings of a training run; `python -m pipelines show PRESET` prints them."""

    preset: str = "custom"
    """Name of the preset that the settings come from."""
    model: ClippoConfig = field(default_factory=ClippoConfig)
    """The model that the checkpoint holds."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizer and its schedule."""
    data: DataConfig = field(default_factory=DataConfig)
    """The data to train on."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The length of the run and its batches."""
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    """The task, where labels are learned instead of pairs."""
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    """The division of work over machines."""
    storage: StorageConfig = field(default_factory=StorageConfig)
    """The place of the run."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """The record in MLflow."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """The evaluations of every checkpoint."""

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
    """The learning rates to compare, and the data to compare them on."""

    learning_rates: tuple[float, ...] = ()
    """Learning rates to train one run with each, of which the best is kept; empty trains one run
    with optim.learning-rate."""
    held_out_share: float = 0.1
    """Share of the training set that the runs are compared on instead of trained on; the test set
    is left alone until the best is chosen."""
    concurrent: int = 1
    """Number of parallel runs; each takes the CPUs of its own ranks, render tasks and
    evaluation."""

    def check(self) -> None:
        """Refuse settings that cannot be compared.

        Raises:
            ConfigError: if a setting is not valid; names it.
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
