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
    vit_config,
)
from clippo_core.errors import ConfigError, did_you_mean
from pipelines.config.settings import (
    DataConfig,
    EvaluationConfig,
    RunConfig,
    ScalingConfig,
    TrackingConfig,
    TrainConfig,
)


def demo() -> RunConfig:
    """2.4 M parameters read the names of clothes in 108 languages: 3 minutes on two cores."""
    vit = VitConfig(width=192, depth=4, mlp_dim=768, num_heads=3, patch_size_px=16, embed_dim=128)
    schedule = ScheduleConfig(decay="linear", warmup_steps=None, cooldown_steps=0)
    return RunConfig(
        preset="demo",
        model=ClippoConfig(vit=vit, render=RenderConfig(image_size_px=64), text_patches="occupied"),
        optim=OptimConfig(name="adafactor", learning_rate=1e-3, schedule=schedule),
        data=DataConfig(
            sources=("fashion_mnist/train", "fashion_mnist/names/train"), run_length=16
        ),
        train=TrainConfig(
            steps=500,
            global_batch_size=128,
            # Batches are full of photos of one class, and of names that are drawn alike.
            positives="equal",
            checkpoint_every=250,
            log_every=10,
        ),
        # Two cores: one is declared to be the trainer's, the rest is shared by the light work.
        scaling=ScalingConfig(renderer_cpus=0.25, max_renderers=2),
        evaluation=EvaluationConfig(
            tasks=(
                "zero_shot:fashion_mnist/test",
                "multilingual_zero_shot:fashion_mnist/test",
            ),
            # A single prompt is up to 9 points worse than several, see EXPERIMENTS.md.
            templates=("{}", "the {}", "one {}", "photo of the {}", "a photo of a {}"),
            cpus=0.5,
        ),
        tracking=TrackingConfig(registered_model="clippo-demo"),
    )


def finetune_text(model: ClippoConfig) -> RunConfig:
    """Return settings for a thousand steps of 64 texts; the learning rate falls with the width."""
    # Inversely to the width: ViT-B/16 gets 7.5e-5, the demo's model 3e-4.
    learning_rate = 3e-4 * 192 / model.vit.width
    schedule = ScheduleConfig(decay="cosine", warmup_steps=None, cooldown_steps=0)
    return RunConfig(
        preset="finetune_text",
        model=model,
        optim=OptimConfig(name="adamw", learning_rate=learning_rate, schedule=schedule),
        data=DataConfig(run_length=16),
        train=TrainConfig(steps=1000, global_batch_size=64, checkpoint_every=500),
    )


def finetune_vqa(model: ClippoConfig) -> RunConfig:
    """Return the settings of `finetune_text` with twice as many steps, of questions on pictures."""
    texts = finetune_text(model)
    return dataclasses.replace(
        texts, preset="finetune_vqa", train=dataclasses.replace(texts.train, steps=2000)
    )


def icons_small() -> RunConfig:
    """2.4 M parameters on icons of 64 concepts in 48 languages, 6,000 steps of 128."""
    small = demo()
    return dataclasses.replace(
        small,
        preset="icons_small",
        data=DataConfig(
            sources=("icons/small/train", "fashion_mnist/names/train"),
            weights=(0.8, 0.2),
            run_length=8,
        ),
        train=TrainConfig(
            steps=6000,
            global_batch_size=128,
            positives="equal",
            checkpoint_every=2000,
        ),
        evaluation=EvaluationConfig(
            tasks=(
                "multilingual_zero_shot:icons/small/heldout",
                "multilingual_zero_shot:icons/small/novel",
                "multilingual_zero_shot:fashion_mnist/test",
            ),
        ),
        tracking=TrackingConfig(registered_model="clippo-icons-small"),
    )


def icons_full() -> RunConfig:
    """ViT-S/16 at 96 px on icons of 318 concepts in 97 languages: a first job for one GPU."""
    small = icons_small()
    return dataclasses.replace(
        small,
        preset="icons_full",
        model=ClippoConfig(
            vit=vit_config("S/16", embed_dim=384),
            render=RenderConfig(image_size_px=96),
            text_patches="occupied",
        ),
        data=dataclasses.replace(
            small.data, sources=("icons/full/train", "fashion_mnist/names/train")
        ),
        train=dataclasses.replace(
            small.train, steps=20_000, global_batch_size=1024, checkpoint_every=1000
        ),
        scaling=ScalingConfig(use_gpu=True, cpus_per_rank=2),
        evaluation=EvaluationConfig(
            tasks=(
                "multilingual_zero_shot:icons/full/heldout",
                "multilingual_zero_shot:icons/full/novel",
                "multilingual_zero_shot:fashion_mnist/test",
            ),
        ),
        tracking=TrackingConfig(registered_model="clippo-icons-full"),
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
        ),
        optim=dataclasses.replace(
            paper.optim, schedule=ScheduleConfig(warmup_steps=None, cooldown_steps=None)
        ),
        # Own captions repeat more often than those of the paper's billions of pairs.
        train=TrainConfig(steps=10_000, global_batch_size=1024, positives="equal"),
        scaling=ScalingConfig(),
    )


def paper_b16() -> RunConfig:
    """ViT-B/16, batch 10,240, 100k steps, 8 GPUs; in the paper 53.6 % ImageNet on LAION-400M."""
    return RunConfig(
        preset="paper_b16",
        # The paper encodes whole canvases ("all"), at twice the cost for the same accuracy.
        model=ClippoConfig(
            vit=vit_config("B/16"),
            image=ImageConfig(resize="bilinear"),
            text_patches="occupied",
        ),
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


def paper_b16_text25() -> RunConfig:
    """paper_b16 with 25 % text-text pairs: in the paper GLUE 69.7, ImageNet 44.8 % (YFCC-100M)."""
    return _with_texts(0.25)


def paper_b16_text50() -> RunConfig:
    """paper_b16 with 50 % text-text pairs: in the paper GLUE 75.2, ImageNet 42.0 % (YFCC-100M)."""
    return _with_texts(0.5)


def paper_b16_text75() -> RunConfig:
    """paper_b16 with 75 % text-text pairs: in the paper GLUE 77.6, ImageNet 33.4 % (YFCC-100M)."""
    return _with_texts(0.75)


def paper_b16_text100() -> RunConfig:
    """paper_b16 on text-text pairs alone: in the paper GLUE 78.4."""
    return _with_texts(1.0)


def _with_texts(share: float) -> RunConfig:
    paper = paper_b16()
    return dataclasses.replace(
        paper,
        preset=f"paper_b16_text{round(100 * share)}",
        data=dataclasses.replace(paper.data, text_share=share),
    )


PRESETS: dict[str, Callable[[], RunConfig]] = {
    preset.__name__: preset
    for preset in (
        demo,
        icons_small,
        icons_full,
        own_data_s16,
        paper_b16,
        paper_b16_text25,
        paper_b16_text50,
        paper_b16_text75,
        paper_b16_text100,
        paper_l16,
    )
}


def find_preset(name: str) -> RunConfig:
    """Return the config of a preset.

    Raises:
        ConfigError: if there is no preset of that name.
    """
    if name not in PRESETS:
        raise ConfigError(
            f"no preset is called {name!r}; there are {', '.join(PRESETS)}, and any run.json works"
            f"{did_you_mean(name, PRESETS)}"
        )
    return PRESETS[name]()
