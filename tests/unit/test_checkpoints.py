from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from clippo_core.checkpoints import (
    load_checkpoint,
    model_identity,
    read_state,
    save_checkpoint,
)
from clippo_core.config import ClippoConfig, ImageConfig, OptimConfig, RenderConfig, VitConfig
from clippo_core.errors import CheckpointError, ClippoError, RenderError
from clippo_core.modeling import Clippo, make_model
from clippo_core.training.state import TrainState

TINY = VitConfig(width=32, depth=1, mlp_dim=64, num_heads=2, patch_size_px=16, embed_dim=16)
CONFIG = ClippoConfig(
    vit=TINY,
    render=RenderConfig(image_size_px=64, lowercase=False),
    image=ImageConfig(resize="bilinear"),
    text_patches="occupied",
)
NPZ = Path(__file__).parents[1] / "parity" / "reference" / "big_vision_checkpoint.npz"
HEX = "0041:0000000018242442427E424242420000\n"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "model", Clippo(CONFIG))
    return tmp_path / "model"


def test_a_checkpoint_brings_everything_back(tmp_path: Path):
    model = Clippo(CONFIG)
    save_checkpoint(tmp_path / "model", model)
    again = load_checkpoint(tmp_path / "model")
    assert again.config == model.config
    assert model_identity(again) == model_identity(model)
    np.testing.assert_array_equal(again.encode_texts(["Aa"]), model.encode_texts(["Aa"]))


def test_a_checkpoint_carries_a_font_of_its_own(tmp_path: Path):
    font = tmp_path / "tiny.hex"
    font.write_text(HEX)
    render = RenderConfig(image_size_px=64, font=str(font), lowercase=False)
    model = Clippo(ClippoConfig(vit=TINY, render=render))
    save_checkpoint(tmp_path / "model", model)
    font.unlink()
    again = load_checkpoint(tmp_path / "model")
    np.testing.assert_array_equal(again.renderer.render("A"), model.renderer.render("A"))
    with pytest.raises(RenderError, match="was made with font"):
        font.write_text(HEX.replace("0041", "0042"))
        load_checkpoint(tmp_path / "model", font=str(font))


def test_another_canvas_resizes_the_positions(saved: Path):
    larger = load_checkpoint(saved, image_size_px=96)
    assert larger.config.render.image_size_px == 96
    assert larger.encoder.position_embedding.shape == (1, 36, 32)
    assert larger.encode_texts(["a"]).shape == (1, 16)


def test_a_checkpoint_is_replaced_whole(saved: Path):
    save_checkpoint(saved, Clippo(CONFIG))
    load_checkpoint(saved)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_what_is_no_checkpoint_is_not_replaced(tmp_path: Path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        save_checkpoint(tmp_path / "thesis", Clippo(CONFIG))
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "precious"


def test_training_state_comes_back_exactly(tmp_path: Path):
    names = ("adafactor", "adamw")
    states = [
        TrainState.create(make_model(CONFIG, seed=0), OptimConfig(name=name)) for name in names
    ]
    for number, state in enumerate(states):
        for param in state.model.parameters():
            param.grad = torch.full_like(param, 0.1)
        state.optimizer.step()
        state.step, state.samples_seen = 7, 70
        state.save(tmp_path / str(number), extra={"note": "kept"})
        again = TrainState.create(make_model(CONFIG, seed=1), OptimConfig(name=names[number]))
        assert again.restore(tmp_path / str(number))["note"] == "kept"
        assert (again.step, again.samples_seen) == (7, 70)
        for one, other in ((state, again), (again, state)):
            for param, twin in zip(one.model.parameters(), other.model.parameters(), strict=True):
                moments, twins = one.optimizer.state[param], other.optimizer.state[twin]
                assert moments.keys() == twins.keys()
                for name, moment in moments.items():
                    assert moment.dtype == twins[name].dtype
                    assert torch.equal(moment, twins[name]), name


def test_weights_alone_are_no_training_state(saved: Path):
    with pytest.raises(CheckpointError, match="weights only"):
        read_state(saved)


def replace_config(saved: Path, **changes) -> None:
    content = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "config.json").unlink(), "has no config.json"),
        (lambda path: (path / "config.json").write_text("{"), "cannot be read"),
        (lambda path: (path / "config.json").write_text("[]"), "expected a JSON object"),
        (lambda path: replace_config(path, format_version=99), "version 99"),
        (lambda path: replace_config(path, clippo={"vti": {}}), "vti"),
        (lambda path: (path / "model.safetensors").unlink(), "missing or damaged"),
        (lambda path: (path / "model.safetensors").write_bytes(b"x" * 99), "missing or damaged"),
        (
            lambda path: (path / "model.safetensors").write_bytes(
                (path / "model.safetensors").read_bytes()[:-10]
            ),
            "missing or damaged",
        ),
        (
            lambda path: replace_config(
                path, clippo={"vit": {**vars(TINY), "depth": 2}, "render": {"image_size_px": 64}}
            ),
            "do not fit the model",
        ),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_its_name(saved: Path, damage, message: str):
    damage(saved)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(saved)
    assert "model" in str(caught.value)


def npz(tmp_path: Path, change) -> Path:
    with np.load(NPZ) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(tmp_path / "foreign.npz", **arrays)
    return tmp_path / "foreign.npz"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(evil=np.array([{"a": 1}], object)), "pickled objects are never loaded"),
        (lambda a: a.pop("params/t"), "lacks the array t"),
        (lambda a: a.pop("params/img/pos_embedding"), "not a CLIPPO checkpoint"),
        (lambda a: a.update({"params/txt/x": np.zeros(1, np.float32)}), "no place for"),
        (lambda a: a.update({"params/t": np.array([1])}), "expected floating-point"),
        (
            lambda a: a.update({"params/img/head/bias": np.zeros(5, np.float32)}),
            "do not fit the model",
        ),
        (lambda a: a.clear(), "no parameters"),
    ],
)
def test_a_foreign_npz_is_refused_with_what_is_wrong(tmp_path: Path, change, message: str):
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(npz(tmp_path, change))


def test_an_npz_with_pickled_code_does_not_run_it(tmp_path: Path):
    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").write_text, ("yes",))

    path = npz(tmp_path, lambda arrays: arrays.update(evil=np.array([Evil()], object)))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"\x93NUMPY nonsense"])
def test_what_is_no_npz_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(ClippoError, match=r"bad\.npz"):
        load_checkpoint(tmp_path / "bad.npz")


def test_a_missing_checkpoint_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "none")
