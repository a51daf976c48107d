"""Recipes: each preset is a function that returns a `RunConfig`.

The first line of its docstring is what `python -m pipelines presets` prints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from clippo_core.config import (
    ClippoConfig,
    ImageConfig,
    OptimConfig,
    RenderConfig,
    ScheduleConfig,
    VitConfig,
)
from clippo_core.errors import ConfigError
from clippo_core.modeling.sizes import vit_config
from pipelines.schema import (
    DataConfig,
    EvaluationConfig,
    RunConfig,
    ScalingConfig,
    TrainConfig,
)


def demo() -> RunConfig:
    """2.4 M parameters on Fashion-MNIST: about 3 minutes on two cores, 80 % zero-shot accuracy."""
    vit = VitConfig(width=192, depth=4, mlp_dim=768, num_heads=3, patch_size_px=16, embed_dim=128)
    schedule = ScheduleConfig(decay="rsqrt", warmup_steps=None, cooldown_steps=None)
    return RunConfig(
        preset="demo",
        model=ClippoConfig(vit=vit, render=RenderConfig(image_size_px=64), text_patches="occupied"),
        optim=OptimConfig(name="adafactor", learning_rate=1e-3, schedule=schedule),
        data=DataConfig(sources=("fashion_mnist/train",), run_length=16),
        train=TrainConfig(steps=400, global_batch_size=128, checkpoint_every=200),
        # Two cores: one is declared to be the trainer's, the rest is shared by the light work.
        scaling=ScalingConfig(renderer_cpus=0.25, max_renderers=2),
        evaluation=EvaluationConfig(
            tasks=("zero_shot:fashion_mnist/test",),
            # Several: a single prompt is up to 9 points worse, see EXPERIMENTS.md.
            templates=("{}", "the {}", "one {}", "photo of the {}", "a photo of a {}"),
            cpus=0.5,
        ),
    )


def own_data_s16() -> RunConfig:
    """ViT-S/16 at 224 px on your own pairs: --data.sources FOLDER, --scaling.use-gpu."""
    paper = paper_b16()
    return dataclasses.replace(
        paper,
        preset="own_data_s16",
        model=dataclasses.replace(
            paper.model,
            vit=vit_config("S/16", embed_dim=384),
            image=ImageConfig(),
            text_patches="occupied",
        ),
        optim=dataclasses.replace(
            paper.optim, schedule=ScheduleConfig(warmup_steps=None, cooldown_steps=None)
        ),
        train=TrainConfig(steps=10_000, global_batch_size=1024),
        scaling=ScalingConfig(),
    )


def paper_b16() -> RunConfig:
    """ViT-B/16, batch 10,240, 100k steps, 8 GPUs; in the paper 53.6 % ImageNet on LAION-400M."""
    return RunConfig(
        preset="paper_b16",
        model=ClippoConfig(vit=vit_config("B/16"), image=ImageConfig(resize="bilinear")),
        optim=OptimConfig(),
        train=TrainConfig(steps=100_000, global_batch_size=10_240, checkpoint_every=1_000),
        scaling=ScalingConfig(num_ranks=8, use_gpu=True, cpus_per_rank=2),
    )


def paper_l16() -> RunConfig:
    """ViT-L/16, otherwise as paper_b16, 250k steps: the paper's largest."""
    paper = paper_b16()
    return dataclasses.replace(
        paper,
        preset="paper_l16",
        model=dataclasses.replace(paper.model, vit=vit_config("L/16")),
        train=dataclasses.replace(paper.train, steps=250_000),
    )


PRESETS: dict[str, Callable[[], RunConfig]] = {
    preset.__name__: preset for preset in (demo, own_data_s16, paper_b16, paper_l16)
}


def find_preset(name: str) -> RunConfig:
    """The config of a preset.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name not in PRESETS:
        raise ConfigError(
            f"no preset is called {name!r}; there are {', '.join(PRESETS)}, and any run.json works"
        )
    return PRESETS[name]()
