from __future__ import annotations

import dataclasses

import pytest

from clippo_core.config import (
    SIZES,
    ClippoConfig,
    OptimConfig,
    RenderConfig,
    ScheduleConfig,
    VitConfig,
    from_json,
    to_json,
    vit_config,
)
from clippo_core.errors import ConfigError


def test_json_holds_everything_and_reads_back_equal():
    config = ClippoConfig(
        vit=vit_config("S/16"),
        render=RenderConfig(monospace=True, max_chars=None),
        text_patches="occupied",
    )
    assert from_json(ClippoConfig, to_json(config), where="here") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"vit": {"widht": 5}}', r"vit\.widht"),
        ('{"render": {"max_chars": "7"}}', r"render\.max_chars"),
        ('{"vit": {"width": 1.5}}', r"vit\.width"),
        ('{"text_patches": "some"}', "text_patches"),
        ('{"vit": {"width": 7, "num_heads": 2}}', "does not divide"),
        ("[1]", "the file"),
        ("{", "the file"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        from_json(ClippoConfig, text, where="some.json")


def test_a_patch_that_does_not_divide_the_canvas_names_canvases_that_fit():
    with pytest.raises(ConfigError, match="nearest canvases are 224 and 240"):
        ClippoConfig(render=RenderConfig(image_size_px=230))


@pytest.mark.parametrize("kind", [OptimConfig, ScheduleConfig, VitConfig])
def test_settings_are_frozen(kind):
    config = kind()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(kind)[0].name, None)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (OptimConfig, {"learning_rate": 0.0}),
        (OptimConfig, {"weight_decay": -1.0}),
        (OptimConfig, {"beta1": 1.0}),
        (OptimConfig, {"gradient_clip_norm": 0.0}),
        (ScheduleConfig, {"warmup_steps": -1}),
        (ScheduleConfig, {"timescale": 0}),
        (VitConfig, {"depth": 0}),
    ],
)
def test_impossible_numbers_are_refused_by_name(kind, wrong: dict):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        kind(**wrong)


def test_the_sizes_are_the_papers():
    assert SIZES["B"] == (768, 12, 3072, 12)
    assert SIZES["So400m"] == (1152, 27, 4304, 16)
    assert vit_config("L/14").patch_size_px == 14
    for wrong in ("XL/16", "B", "B/x"):
        with pytest.raises(ConfigError, match="no ViT is called"):
            vit_config(wrong)
