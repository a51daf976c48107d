"""The authors' checkpoint: same outputs, same gradients, and the same file again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from clippo_core.checkpoints import load_checkpoint, save_checkpoint, write_big_vision
from clippo_core.checkpoints.big_vision import flax_arrays
from clippo_core.contrastive import contrastive_loss
from clippo_core.modeling import Clippo
from clippo_core.modeling.pair_model import normalize

REFERENCE = Path(__file__).parent / "reference"
CHECKPOINT = REFERENCE / "big_vision_checkpoint.npz"
#: Softmax does not feel the bias of keys, so their gradients are rounding noise around 1e-8.
ROUNDING_NOISE = 1e-7


@pytest.fixture(scope="module")
def model() -> Clippo:
    return load_checkpoint(CHECKPOINT)


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(REFERENCE / "big_vision_checkpoint_expected.npz") as file:
        return dict(file)


def embed(model: Clippo, expected: dict[str, np.ndarray], name: str) -> torch.Tensor:
    return normalize(model.encoder(torch.from_numpy(expected[name])))


def test_architecture_is_inferred(model: Clippo):
    vit = model.config.vit
    assert (vit.width, vit.depth, vit.num_heads, vit.mlp_dim) == (64, 2, 4, 128)
    assert (vit.patch_size_px, vit.embed_dim) == (16, 32)
    assert model.config.render.image_size_px == 64
    assert model.config.image.resize == "bilinear"
    assert model.config.text_patches == "all"


@pytest.mark.parametrize(("pixels", "embeddings"), [("image", "zimg"), ("text", "ztxt")])
def test_embeddings_agree_to_1e_5(model, expected, pixels, embeddings):
    with torch.no_grad():
        ours = embed(model, expected, pixels).numpy()
    assert np.abs(ours - expected[embeddings]).max() < 1e-5


def test_grey_text_equals_three_equal_channels(model, expected):
    text = torch.from_numpy(expected["text"])
    with torch.no_grad():
        difference = model.encoder(text) - model.encoder(text.expand(-1, -1, -1, 3).contiguous())
    assert difference.abs().max() < 1e-5


def test_tokens_and_pooled_features_agree_to_1e_4(model, expected):
    with torch.no_grad():
        tokens = model.encoder.encode(torch.from_numpy(expected["image"]))
        pooled = model.encoder.pool(tokens)
    assert np.abs(tokens.numpy() - expected["encoded_img"]).max() < 1e-4
    assert np.abs(pooled.numpy() - expected["pre_logits_img"]).max() < 1e-4


def test_loss_and_every_gradient_norm_agree(model, expected):
    model.zero_grad()
    images, texts = (embed(model, expected, name) for name in ("image", "text"))
    loss = contrastive_loss(images, texts, model.logit_scale)
    assert abs(loss.item() - float(expected["loss"])) < 1e-5
    assert abs(model.logit_scale.item() - float(expected["temperature"][0])) < 1e-5
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norms = {k: float(np.linalg.norm(g)) for k, g in flax_arrays(gradients).items()}
    reference = {k.removeprefix("grad_norm/"): float(v) for k, v in expected.items() if "grad" in k}
    assert norms.keys() == reference.keys()
    for key, norm in reference.items():
        assert abs(norms[key] - norm) <= max(1e-3 * norm, ROUNDING_NOISE), key


def test_written_back_it_is_the_same_file(model, tmp_path):
    write_big_vision(tmp_path / "again.npz", model.state_dict())
    assert (tmp_path / "again.npz").read_bytes() == CHECKPOINT.read_bytes()


def test_through_the_native_format_it_is_the_same_file(model, tmp_path):
    save_checkpoint(tmp_path / "native", model)
    again = load_checkpoint(tmp_path / "native")
    write_big_vision(tmp_path / "again.npz", again.state_dict())
    assert (tmp_path / "again.npz").read_bytes() == CHECKPOINT.read_bytes()


def test_keys_without_prefix_and_optimizer_state_are_understood(model, tmp_path):
    with np.load(CHECKPOINT) as file:
        arrays = {key.removeprefix("params/"): array for key, array in file.items()}
    np.savez(tmp_path / "other.npz", **arrays, **{"opt/0/count": np.array(5)})
    other = load_checkpoint(tmp_path / "other.npz")
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_bfloat16_arrays_are_understood(model, tmp_path):
    with np.load(CHECKPOINT) as file:
        halves = {
            k: (a.view(np.uint32) >> 16).astype(np.uint16).view("V2") for k, a in file.items()
        }
    np.savez(tmp_path / "halves.npz", **halves)
    other = load_checkpoint(tmp_path / "halves.npz")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=2**-7, atol=0)
