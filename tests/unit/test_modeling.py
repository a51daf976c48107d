from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from clippo_core.config import SIZES, ClippoConfig, RenderConfig, VitConfig, vit_config
from clippo_core.errors import ConfigError, RenderError
from clippo_core.modeling import Clippo, token_groups, without_values
from clippo_core.modeling.layers import AttentionPooling
from clippo_core.modeling.pair_model import normalize
from clippo_core.modeling.patch_sets import PatchSets
from clippo_core.modeling.token_groups import attend, even_sets, sets_of
from clippo_core.rendering import TextRenderer

TINY = VitConfig(width=32, depth=2, mlp_dim=64, num_heads=2, patch_size_px=16, embed_dim=16)
TEXTS = ["a red car", "", "x", "a longer caption that needs several rows", "   ", "ünïcode 日本"]


def tiny(**changes) -> Clippo:
    torch.manual_seed(0)
    return Clippo(ClippoConfig(vit=TINY, render=RenderConfig(image_size_px=64), **changes)).eval()


def test_embeddings_have_unit_length_and_float32():
    model = tiny()
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    for embeddings in (model.encode_images(images), model.encode_texts(TEXTS)):
        assert embeddings.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)


def test_batch_size_does_not_change_embeddings():
    model = tiny(text_patches="occupied")
    np.testing.assert_allclose(
        model.encode_texts(TEXTS, batch_size=2), model.encode_texts(TEXTS), atol=1e-6
    )
    assert model.encode_texts([]).shape == (0, 16)


def test_pictures_and_arrays_of_any_size_are_brought_onto_the_canvas():
    model = tiny()
    array = np.random.default_rng(0).integers(0, 256, (100, 30, 3), np.uint8)
    as_array = model.encode_images(array[None])
    as_picture = model.encode_images([Image.fromarray(array)])
    np.testing.assert_allclose(as_array, as_picture, atol=1e-6)


@pytest.mark.parametrize("patch_size_px", [8, 16, 32])
def test_occupied_equals_encoding_the_patches_with_ink_alone(patch_size_px: int):
    vit = VitConfig(**{**vars(TINY), "patch_size_px": patch_size_px})
    torch.manual_seed(0)
    model = Clippo(
        ClippoConfig(vit=vit, render=RenderConfig(image_size_px=64), text_patches="occupied")
    )
    for text, embedding in zip(TEXTS, model.encode_texts(TEXTS), strict=True):
        canvas = model.renderer.render(text)[:, :, :1]
        patches, positions = [], []
        for position in range(model.config.grid_size**2):
            row, column = (side * patch_size_px for side in divmod(position, 64 // patch_size_px))
            patch = canvas[row : row + patch_size_px, column : column + patch_size_px]
            if (patch != 127).any() or (position == 0 and (canvas == 127).all()):
                patches.append(patch.reshape(-1))
                positions.append(position)
        lengths = np.array([len(positions)])
        sets = PatchSets(torch.from_numpy(np.stack(patches)), torch.tensor(positions), lengths)
        with torch.no_grad():
            alone = model.encoder.embed(sets)[0]
        np.testing.assert_allclose(embedding, (alone / alone.norm()).numpy(), atol=1e-5)


def test_a_part_of_texts_on_the_device_is_what_it_is_in_the_whole():
    model = tiny(text_patches="occupied")
    whole = model.on_device(model.renderer.render_batch(TEXTS))
    with torch.no_grad():
        expected = model.encoder.embed(whole)[2:5]
        found = model.encoder.embed(whole.part(2, 5))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_encoded_together_pictures_and_texts_are_what_each_is_alone():
    model = tiny(text_patches="occupied")
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8))
    left_texts, texts = (model.renderer.render_batch(t) for t in (["p", "q r s"], TEXTS[:4]))
    with torch.no_grad():
        left, right, _ = model(images, texts, left_texts)
        alone = [normalize(model.encoder(images)), model.embed_texts(left_texts)]
    torch.testing.assert_close(left, torch.cat(alone), rtol=0, atol=1e-5)
    torch.testing.assert_close(right, model.embed_texts(texts), rtol=0, atol=1e-5)


def test_full_canvases_are_the_same_under_both_ways():
    full = ["word " * 30]
    whole, occupied = tiny(), tiny(text_patches="occupied")
    assert whole.renderer.render_batch(full).occupied_rows[0] == 4
    np.testing.assert_allclose(whole.encode_texts(full), occupied.encode_texts(full), atol=1e-6)


def test_texts_rendered_otherwise_are_refused():
    other = TextRenderer(RenderConfig(image_size_px=64, monospace=True)).render_batch(["a"])
    with pytest.raises(RenderError, match="rendered otherwise"):
        tiny().encode_texts(other)


def test_pixels_of_another_size_are_refused():
    with pytest.raises(ConfigError, match="do not fit the model's canvas of 64x64"):
        tiny().encoder(torch.zeros(1, 64, 96, 3, dtype=torch.uint8))


def test_b16_has_about_93_million_parameters():
    with without_values():
        model = Clippo(ClippoConfig())
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(93e6, rel=0.01)


def test_weights_without_values_have_the_shapes_of_others():
    with without_values():
        empty = tiny()
    shapes = {name: p.shape for name, p in tiny().named_parameters()}
    assert {name: p.shape for name, p in empty.named_parameters()} == shapes
    assert {p.device.type for p in empty.parameters()} == {"meta"}


@pytest.mark.parametrize("size", sorted(SIZES))
def test_every_size_encodes(size: str):
    vit = vit_config(f"{size}/32", embed_dim=8)
    shallow = VitConfig(**{**vars(vit), "depth": 1})
    model = Clippo(ClippoConfig(vit=shallow, render=RenderConfig(image_size_px=64)))
    assert model.encode_texts(["a"]).shape == (1, 8)


def test_a_new_model_has_the_papers_logit_scale():
    assert tiny().logit_scale.item() == pytest.approx(10)


def attention_set_by_set(projected: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """The slow, obvious way: each set by itself."""
    attended = []
    for part in projected.split(lengths):
        query, key, value = (x.transpose(0, 1) for x in part.unbind(1))
        scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
        attended.append((scores.softmax(-1) @ value).transpose(0, 1))
    return torch.cat(attended)


@pytest.mark.parametrize("lengths", [[3, 3, 3], [5, 1, 7, 2], [1], [4, 4, 1]])
def test_attention_is_that_of_each_set_by_itself(lengths: list[int]):
    generator = torch.Generator().manual_seed(0)
    shape = (sum(lengths), 3, 2, 8)
    projected = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    group = sets_of(np.array(lengths), torch.device("cpu"))
    found, expected = attend(projected, group), attention_set_by_set(projected, lengths)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad((x * weights).sum(), projected)[0] for x in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_the_kernel_of_packed_sequences_is_given_what_it_expects(monkeypatch):
    """It runs on CUDA alone; here a stand-in of its signature computes from its arguments."""
    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="since torch 2.10")
    signature = inspect.signature(varlen.varlen_attn)

    def stand_in(*args, **kwargs):
        given = list(signature.bind(*args, **kwargs).arguments.values())
        query, key, value, ends, of_keys, longest, longest_keys = given
        lengths = ends.diff().tolist()
        assert ends.dtype == torch.int32
        assert torch.equal(ends, of_keys)
        assert longest == longest_keys == max(lengths)
        return attention_set_by_set(torch.stack([query, key, value], 1), lengths)

    lengths = [5, 1, 7, 2]
    projected = torch.randn(15, 3, 2, 8, generator=torch.Generator().manual_seed(0))
    group = sets_of(np.array(lengths), torch.device("cpu"))
    padded = attend(projected, group)
    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    monkeypatch.setattr(token_groups, "_is_packed", lambda _: True)
    torch.testing.assert_close(attend(projected, group), padded)


class CountsOperations(TorchDispatchMode):
    """Counts what is dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **kwargs or {})


def test_a_pass_over_occupied_patches_dispatches_hardly_more_than_one_over_all():
    """Few, large kernels: no loop over the lengths of texts, however many there are."""
    images = torch.zeros(64, 64, 64, 3, dtype=torch.uint8)
    texts = [f"text {n} " * (n % 9) for n in range(64)]
    counts = {}
    for which in ("all", "occupied"):
        vit = VitConfig(**{**vars(TINY), "depth": 12})
        model = Clippo(
            ClippoConfig(vit=vit, render=RenderConfig(image_size_px=64), text_patches=which)
        )
        rasters = model.renderer.render_batch(texts)
        lengths = set(model.on_device(rasters).lengths.tolist())
        assert (len(lengths) > 5) == (which == "occupied")
        with CountsOperations() as operations:
            left, right, scale = model(images, rasters)
            (left * right * scale).sum().backward()
        counts[which] = operations.count
    assert counts["occupied"] <= 1.5 * counts["all"], counts


def test_pooling_is_attention_with_keys_and_values_for_each_token():
    """As big_vision writes it, token by token and head by head; biases are not 0 here."""
    generator = torch.Generator().manual_seed(0)
    pooling = AttentionPooling(width=8, mlp_dim=16, num_heads=2).double()
    for parameter in pooling.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    groups = [even_sets(1, 4), sets_of(np.array([2, 3]), torch.device("cpu"))]
    x = torch.randn(9, 8, generator=generator, dtype=torch.float64)
    sets = [x[:4], x[4:6], x[6:9]]
    query = torch.einsum("w,wphd->phd", pooling.probe[0, 0], pooling.query.kernel)[0]
    query = query + pooling.query.bias[0]
    pooled = []
    for tokens in sets:
        keys_values = torch.einsum("tw,wphd->tphd", tokens, pooling.key_value.kernel)
        keys, values = (keys_values + pooling.key_value.bias).unbind(1)
        weights = (torch.einsum("hd,thd->ht", query, keys) / 2).softmax(1)  # heads of 4
        heads = torch.einsum("ht,thd->hd", weights, values)
        pooled.append(torch.einsum("hd,hdw->w", heads, pooling.output.kernel))
    rows = torch.stack(pooled) + pooling.output.bias
    expected = rows + pooling.mlp(pooling.norm(rows))
    found = pooling(x, groups)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    names, parameters = zip(*pooling.named_parameters(), strict=True)
    of_found, of_expected = (
        torch.autograd.grad(result.square().sum(), parameters) for result in (found, expected)
    )
    for name, one, other in zip(names, of_found, of_expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8, msg=name)
