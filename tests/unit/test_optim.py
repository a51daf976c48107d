from __future__ import annotations

import pytest
import torch
from torch import nn

from clippo_core.config import ClippoConfig, OptimConfig, RenderConfig, ScheduleConfig, VitConfig
from clippo_core.modeling import Clippo
from clippo_core.optim import (
    Adafactor,
    adafactor,
    clip_gradients,
    make_optimizer,
    schedule_multiplier,
    set_multiplier,
)
from clippo_core.optim.adafactor import factored_dims


def test_weight_decay_falls_on_kernels_only():
    vit = VitConfig(width=32, depth=1, mlp_dim=64, num_heads=2, embed_dim=16)
    model = Clippo(ClippoConfig(vit=vit, render=RenderConfig(image_size_px=64)))
    config = OptimConfig(weight_decay=0.5, schedule=ScheduleConfig(warmup_steps=0))
    optimizer = make_optimizer(model, config)
    set_multiplier(optimizer, config, 0.5)
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, param in model.named_parameters():
        assert decays[id(param)] == (0.25 if name.endswith("kernel") else 0), name


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_weight_decay_is_decoupled_from_the_learning_rate(name):
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = nn.Parameter(torch.ones(4, 4))

    for learning_rate in (1e-3, 1e-2):
        model = One()
        config = OptimConfig(name=name, learning_rate=learning_rate, weight_decay=0.1)
        optimizer = make_optimizer(model, config)
        set_multiplier(optimizer, config, 0.5)
        model.kernel.grad = torch.zeros(4, 4)
        optimizer.step()
        torch.testing.assert_close(model.kernel.data, torch.full((4, 4), 0.95))


def test_stacked_queries_keys_and_values_are_factored_as_if_apart():
    generator = torch.Generator().manual_seed(0)
    stacked = nn.Parameter(torch.randn(64, 3, 2, 48, generator=generator))
    apart = [nn.Parameter(stacked.data[:, part].clone()) for part in range(3)]
    optimizers = [Adafactor(params, lr=0.1) for params in ([stacked], apart)]
    for _ in range(3):
        stacked.grad = torch.randn(64, 3, 2, 48, generator=generator)
        for part, param in enumerate(apart):
            param.grad = stacked.grad[:, part].clone()
        for optimizer in optimizers:
            optimizer.step()
    for part, param in enumerate(apart):
        torch.testing.assert_close(stacked.data[:, part], param.data)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((768, 12, 64), (2, 0)),
        ((64, 32), (1, 0)),
        ((64, 31), None),
        ((64,), None),
        ((16, 16, 3, 768), None),
        ((1, 196, 768), (1, 2)),
    ],
)
def test_the_two_largest_dimensions_are_factored(shape, expected):
    assert factored_dims(shape) == expected


def test_factored_moments_take_little_memory():
    param = nn.Parameter(torch.zeros(256, 512))
    param.grad = torch.ones(256, 512)
    optimizer = Adafactor([param], lr=0.1)
    optimizer.step()
    moments = {k: v.numel() for k, v in optimizer.state[param].items() if "moment_" not in k}
    assert moments["row_moment"] + moments["column_moment"] == 256 + 512


def test_gradients_are_scaled_to_the_norm_and_not_beyond():
    params = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(1))]
    for scale, expected in ((1.0, 1.0), (0.01, 0.05)):
        params[0].grad = torch.tensor([0.0, 3.0, 0.0]) * scale
        params[1].grad = torch.tensor([4.0]) * scale
        norm = clip_gradients(params, 1.0)
        assert norm.item() == pytest.approx(5 * scale)
        clipped = torch.cat([p.grad for p in params if p.grad is not None]).norm()
        assert clipped.item() == pytest.approx(expected)


def test_left_open_ramps_are_a_tenth_of_the_run():
    config = ScheduleConfig(decay="constant", warmup_steps=None, cooldown_steps=None)
    multipliers = [schedule_multiplier(config, step, total_steps=50) for step in range(51)]
    assert multipliers[:6] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert multipliers[45:] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0])
    assert set(multipliers[5:46]) == {1.0}


def test_parameters_of_one_shape_are_updated_as_if_each_were_alone():
    """Stacked or not, factored or not, in stacks that hold all of them or some."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(96, 40), (96, 40), (64, 3, 2, 48), (70,), (70,), (96, 40), (5, 40, 48)]
    together = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    alone = [nn.Parameter(param.data.clone()) for param in together]
    optimizers = [Adafactor(together, lr=0.1, weight_decay=0.01)]
    optimizers += [Adafactor([param], lr=0.1, weight_decay=0.01) for param in alone]
    for _ in range(3):
        for one, other in zip(together, alone, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(adafactor, "MAX_STACKED", 2 * 96 * 40)
            for optimizer in optimizers:
                optimizer.step()
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.data, other.data, rtol=0, atol=1e-6)


def test_a_parameter_without_a_gradient_stays_and_falls_behind_the_others():
    params = [nn.Parameter(torch.ones(64, 64)) for _ in range(2)]
    optimizer = Adafactor(params, lr=0.1)
    for step in range(2):
        params[0].grad = torch.ones(64, 64)
        params[1].grad = torch.ones(64, 64) if step else None
        optimizer.step()
        assert (params[1].data == 1).all() != bool(step)
    steps = [float(optimizer.state[param]["step"]) for param in params]
    assert steps == [2.0, 1.0]


def test_a_gradient_that_is_no_number_is_seen_in_parameter_and_momentum():
    param = nn.Parameter(torch.ones(64, 64))
    param.grad = torch.ones(64, 64)
    param.grad[3, 5] = torch.nan
    optimizer = Adafactor([param], lr=0.1)
    optimizer.step()
    assert param.data[3, 5].isnan()
    assert optimizer.state[param]["momentum"][3, 5].isnan()
