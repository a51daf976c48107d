"""Numbers that follow from a run's config: for `show`, for MLflow, for the micro-batch size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from clippo_core.config import (
    ClassifierConfig,
    ClippoConfig,
    Precision,
    RenderConfig,
    TextInput,
    to_dict,
)
from clippo_core.errors import ConfigError
from clippo_core.modeling import make_model, without_values
from clippo_core.modeling.flops import encoded_patches
from clippo_core.training.fine_tuning import loss_at_chance
from clippo_core.training.memory import (
    USABLE_SHARE,
    StepLoad,
    fitting_micro_batch,
    training_bytes,
    typical_text_patches,
)
from clippo_core.training.step import StepMemory
from pipelines.config.resolution import VALIDATED_SAMPLES, ResolvedRun
from pipelines.config.settings import RunConfig
from pipelines.datasets.sources import Source

#: Rows of a set whose captions are counted.
_COUNTED_ROWS = 50_000
#: Visits of a text form below which a run is warned of: few forms of many were learned with less.
ENOUGH_VISITS = 50


class TextLengths(NamedTuple):
    """Numbers of patches, or tokens, that are encoded of a run's texts."""

    mean: int
    longest: int


def derive(resolved: ResolvedRun) -> dict[str, Any]:
    """Return the numbers that follow from a run's config and its data, by name."""
    config, rows = resolved.config, [source.num_rows for source in resolved.sources]
    drawn = resolved.stream.plan.rows_drawn(config.train.steps)
    passes = [round(d / r, 2) for d, r in zip(drawn, rows, strict=True)]
    names = [source.name for source in resolved.sources]
    return {
        **derive_without_data(config, text_lengths(resolved)),
        "rows_per_source": dict(zip(names, rows, strict=True)),
        "passes_per_source": dict(zip(names, passes, strict=True)),
        "passes_per_step": {
            name: round(drawn_rows / config.train.steps / num_rows, 4)
            for name, drawn_rows, num_rows in zip(names, drawn, rows, strict=True)
        },
        "visits_per_text_form": {
            source.name: round(rows_drawn / text_forms(source), 1)
            for source, rows_drawn in zip(resolved.sources, drawn, strict=True)
            if source.manifest.kind == "image-text" and resolved.classifier is None
        },
        "loss_at_chance": round(chance_of(resolved.classifier, config), 4),
        "data_digests": {s.name: s.manifest.digest for s in resolved.sources},
    }


def derive_without_data(config: RunConfig, lengths: TextLengths | None = None) -> dict[str, Any]:
    """Return the numbers that need no data; without lengths, texts have 50 characters."""
    micro_batch = micro_batch_size(config, lengths, device_bytes=config.scaling.device_bytes)
    load = step_load(config, lengths, micro_batch_size=micro_batch)
    return {
        "parameters": load.num_parameters,
        "batch_size_per_rank": config.batch_size_per_rank,
        "samples_total": config.train.steps * config.train.global_batch_size,
        "patches_per_canvas": config.model.grid_size**2,
        "precision": expected_precision(config),
        "micro_batch_size": micro_batch or config.batch_size_per_rank,
        "memory_estimate_bytes_per_rank": training_bytes(config.model, config.optim, load),
    }


def chance_of(classifier: ClassifierConfig | None, config: RunConfig) -> float:
    """Return the loss of a model that knows nothing."""
    if classifier is not None:
        return loss_at_chance(classifier)
    pairs = config.train.global_batch_size
    if config.train.loss == "sigmoid" and pairs > 1:
        # Each pairing is right with probability 1 / pairs, for all that such a model can tell.
        return math.log(pairs) - (pairs - 1) * math.log1p(-1 / pairs)
    return math.log(pairs)


def count_parameters(config: ClippoConfig) -> int:
    """Return the number of the model's weights, without spending memory on them."""
    # The weights do not depend on the font, whose file may be elsewhere.
    render = RenderConfig(image_size_px=config.render.image_size_px)
    with without_values():
        model = make_model(dataclasses.replace(config, render=render))
    return sum(parameter.numel() for parameter in model.parameters())


def parameters_side_by_side(config: ClippoConfig) -> dict[str, int]:
    """Return the numbers of weights of CLIPPO and of the baselines of the same size."""
    names: dict[str, TextInput] = {
        "CLIPPO": "pixels",
        "1T-CLIP": "tokens_one_tower",
        "CLIP*": "tokens_two_towers",
    }
    return {
        name: count_parameters(dataclasses.replace(config, text_input=text_input))
        for name, text_input in names.items()
    }


def expected_precision(config: RunConfig) -> Precision:
    """Return the precision of the ranks' matrix products, supposing that GPUs have bfloat16."""
    if config.train.precision != "auto":
        return config.train.precision
    return "bfloat16" if config.scaling.use_gpu else "float32"


def text_lengths(resolved: ResolvedRun) -> TextLengths:
    """Measure the patches, or tokens, of each source's first captions, weighted as in a batch.

    Where a source has no captions, such as questions, a caption of 50 characters stands for them.

    Raises:
        SampleError: if a shard is missing or not what the manifest says.
    """
    model, means, longest = resolved.config.model, list[float](), 1
    for source in resolved.sources:
        samples = source.read_texts(range(min(VALIDATED_SAMPLES, source.num_rows)))
        texts = [text for sample in samples for text in sample.captions or () if text]
        if model.reads_tokens or not texts:
            patches = np.array([typical_text_patches(model)])
        else:
            patches = encoded_patches(model, resolved.renderer.render_batch(texts))
        means.append(float(patches.mean()))
        longest = max(longest, int(patches.max()))
    mean = round(float(np.average(means, weights=resolved.config.data.weights)))
    return TextLengths(max(mean, 1), longest)


def text_forms(source: Source) -> int:
    """Return how many different captions a set has, letter case aside.

    In large sets the first `_COUNTED_ROWS` rows stand for all.

    Raises:
        SampleError: if a shard is missing or not what the manifest says.
    """
    manifest = source.manifest
    if manifest.class_captions:
        names = (name for row in manifest.class_captions.values() for name in row)
        return max(len({name.casefold() for name in names if name}), 1)
    rows = min(_COUNTED_ROWS, source.num_rows)
    samples = source.read_texts(range(rows))
    forms = {text.casefold() for sample in samples for text in sample.captions or () if text}
    return max(round(len(forms) * source.num_rows / rows), 1)


def warnings_of(derived: Mapping[str, Any]) -> list[str]:
    """Return warnings of sets that a run sees too seldom to learn, or many times in a step.

    Args:
        derived: the numbers of `derive`.
    """
    visited: Mapping[str, float] = derived.get("visits_per_text_form", {})
    passes: Mapping[str, float] = derived.get("passes_per_step", {})
    return [
        f"{name}: each step takes all of its rows {times:g} times; lower train.global_batch_size"
        for name, times in passes.items()
        if times > 1
    ] + [
        f"{name}: each caption will be seen {visits:g} times; below {ENOUGH_VISITS} a model may "
        "learn little of single words: train longer, or on fewer texts"
        for name, visits in visited.items()
        if visits < ENOUGH_VISITS
    ]


def step_load(
    config: RunConfig, lengths: TextLengths | None = None, *, micro_batch_size: int | None = None
) -> StepLoad:
    """Return the work of a rank in a step, for the estimate of its memory."""
    train, model = config.train, config.model
    divisor = config.scaling.num_ranks if config.scaling.shard_weights else 1
    kept = 1 - train.image_patch_drop if not train.unmasked_steps else 1
    typical = typical_text_patches(model)
    found = lengths or TextLengths(typical, typical)
    return StepLoad(
        num_parameters=count_parameters(model) // divisor,
        pairs=config.batch_size_per_rank,
        columns=train.global_batch_size,
        image_patches=max(round(kept * model.grid_size**2), 1),
        text_patches=found.mean,
        longest_text=found.longest,
        precision=expected_precision(config),
        memory=StepMemory(micro_batch_size=micro_batch_size, logit_rows=train.logit_rows),
        recomputes_activations=train.activation_checkpointing,
    )


def micro_batch_size(
    config: RunConfig, lengths: TextLengths | None = None, *, device_bytes: float | None
) -> int | None:
    """Return how many pairs a rank encodes at a time; None is all of its pairs.

    Args:
        config: the run, with as many ranks as there are.
        lengths: lengths of its texts; None takes captions of 50 characters.
        device_bytes: memory of each rank's device; None where it is unknown, or a CPU's.

    Raises:
        ConfigError: if the step does not fit on the device, with the setting to change.
    """
    wanted = config.train.micro_batch_size
    if wanted != "auto":
        _check_fit(config, step_load(config, lengths, micro_batch_size=wanted), device_bytes)
        return wanted
    if device_bytes is None:
        return None
    load = step_load(config, lengths)
    found = fitting_micro_batch(config.model, config.optim, load, device_bytes=device_bytes)
    if found is None:
        _check_fit(config, step_load(config, lengths, micro_batch_size=1), device_bytes)
    return None if found == load.pairs else found


def check_memory(
    config: RunConfig, lengths: TextLengths | None, device_bytes: float | None = None
) -> None:
    """Make sure that a step fits on the device, with the fewest ranks that the run may have.

    Args:
        config: the run.
        lengths: of its texts; None: captions of 50 characters.
        device_bytes: memory of each rank's device; None: `scaling.device_memory_gb`, if it is set.

    Raises:
        ConfigError: if it does not fit, with the setting to change.
    """
    if device_bytes is None:
        device_bytes = config.scaling.device_bytes
    fewest = config.scaling.min_ranks or config.scaling.num_ranks
    while config.train.global_batch_size % fewest:
        fewest += 1
    micro_batch_size(config.with_ranks(fewest), lengths, device_bytes=device_bytes)


def _check_fit(config: RunConfig, load: StepLoad, device_bytes: float | None) -> None:
    if device_bytes is None:
        return
    needed = training_bytes(config.model, config.optim, load)
    if needed > USABLE_SHARE * device_bytes:
        raise ConfigError(
            f"a step of {load.pairs} pairs per rank, {load.encoded} at a time, takes an estimated "
            f"{needed / 1e9:.1f} GB, and the device has {device_bytes / 1e9:.1f} GB, of which "
            f"{USABLE_SHARE:.0%} can be used; lower train.micro-batch-size (auto finds the largest "
            "that fits) or train.logit-rows, set train.activation-checkpointing or "
            "scaling.shard-weights, or use more ranks"
        )


def flatten(config: RunConfig) -> dict[str, Any]:
    """Return the settings by their dotted names, as on the command line and in MLflow's params."""

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {prefix: value}
        parts = [walk(f"{prefix}.{key}" if prefix else key, inner) for key, inner in value.items()]
        return {name: leaf for part in parts for name, leaf in part.items()}

    return walk("", to_dict(config))
