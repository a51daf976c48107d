from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from clippo_core.config import SIZES, ClippoConfig, RenderConfig, VitConfig, vit_config
from clippo_core.errors import ConfigError, RenderError
from clippo_core.modeling import Clippo, without_values
from clippo_core.modeling.layers import (
    MAX_EXPLICIT_TOKENS,
    AttentionPooling,
    TokenGroup,
    attend,
)
from clippo_core.modeling.pair_model import normalize
from clippo_core.modeling.patch_sets import PatchSets, text_patches
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
        sets = PatchSets(
            torch.from_numpy(np.stack(patches)),
            torch.tensor(positions),
            [TokenGroup(1, len(positions))],
        )
        with torch.no_grad():
            alone = model.encoder.embed(sets)[0][0]
        np.testing.assert_allclose(embedding, (alone / alone.norm()).numpy(), atol=1e-5)


def test_padding_of_sets_takes_no_part():
    model = tiny(text_patches="occupied")
    rasters = model.renderer.render_batch(TEXTS)
    tight, padded = (
        text_patches(
            rasters,
            "occupied",
            patch_size_px=16,
            device=torch.device("cpu"),
            set_multiple=multiple,
        )
        for multiple in (1, 8)
    )
    assert len(padded.groups) < len(tight.groups)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.02)):
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            ours, theirs = (normalize(model.encoder.embed(sets)[0]) for sets in (padded, tight))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def test_rows_that_pad_products_take_no_part(monkeypatch):
    model = tiny(text_patches="occupied")
    rasters = model.renderer.render_batch(TEXTS)
    sets = text_patches(rasters, "occupied", patch_size_px=16, device=torch.device("cpu"))
    num_tokens = sum(group.size for group in sets.groups)
    rows, embeddings, gradients = [], [], []
    model.encoder.norm.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    for sizes in (10**6, 1):
        monkeypatch.setattr("clippo_core.modeling.vit.PRODUCT_SIZES", sizes)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            embeddings.append(normalize(model.encoder.embed(sets)[0]))
        embeddings[-1][:, 0].sum().backward()
        kernel = model.encoder.blocks[0].mlp.hidden.kernel
        gradients.append(kernel.grad.clone())
    assert rows == [num_tokens, 1 << num_tokens.bit_length()]
    torch.testing.assert_close(*embeddings, rtol=0, atol=0.02)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients, rtol=0, atol=0.02 * float(gradients[0].abs().max()))
    model.encoder.embed(sets)
    assert rows[-1] == num_tokens, "in float32 nothing is compiled"


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


@pytest.mark.parametrize("tokens", [1, 7, MAX_EXPLICIT_TOKENS, MAX_EXPLICIT_TOKENS + 1])
def test_attention_in_bfloat16_agrees_with_float32(tokens: int):
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, tokens, 8, generator=generator)
    halves = attend(query.bfloat16(), key.bfloat16(), value.bfloat16())
    torch.testing.assert_close(halves.float(), attend(query, key, value), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("tokens", [1, 7, MAX_EXPLICIT_TOKENS + 1])
def test_attention_of_sets_whose_size_varies_is_that_of_float32(tokens: int):
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(3, 2, 2, tokens, 8, generator=generator).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(*parts, size_varies=True)
    assert torch.equal(found, attend(*parts.float()).bfloat16())


def test_products_of_sets_are_of_the_same_sizes_in_every_batch():
    """In bfloat16 torch compiles a CPU's products for each size; compiling takes longer."""
    model = tiny(text_patches="occupied")

    class BatchedProducts(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.shapes: set[tuple[torch.Size, ...]] = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket is torch.ops.aten.bmm and args[0].dtype == torch.bfloat16:
                self.shapes.add((args[0].shape, args[1].shape))
            return func(*args, **kwargs or {})

    def shapes(texts: list[str]) -> set[tuple[torch.Size, ...]]:
        rasters = model.renderer.render_batch(texts)
        with BatchedProducts() as products:
            with torch.autocast("cpu", torch.bfloat16):
                embeddings = model.embed_texts(rasters)
            embeddings[:, 0].sum().backward()
        return products.shapes

    others = ["x", "y", "a text of some words", "another one", "z", "a red car and a blue one"]
    found = shapes(TEXTS)
    assert found, "the values of all sets are projected at once"
    assert shapes(others) == found


def test_pooling_is_attention_with_keys_and_values_for_each_token():
    """As big_vision writes it, token by token and head by head; biases are not 0 here."""
    generator = torch.Generator().manual_seed(0)
    pooling = AttentionPooling(width=8, mlp_dim=16, num_heads=2).double()
    for parameter in pooling.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    is_token = torch.tensor([[True, True, False], [True, True, True]])
    groups = [TokenGroup(1, 4), TokenGroup(2, 3, is_token)]
    x = torch.randn(11, 8, generator=generator, dtype=torch.float64)  # one row pads a product
    sets = [x[:4], x[4:6], x[7:10]]
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
