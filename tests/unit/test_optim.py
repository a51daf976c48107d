from __future__ import annotations

import subprocess
import sys

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


def test_an_optimizer_is_made_and_used_without_torchs_compiler():
    """Its import takes seconds of every start."""
    code = """
import sys, torch
from clippo_core.config import OptimConfig
from clippo_core.optim import make_optimizer
model = torch.nn.Linear(2, 2)
optimizer = make_optimizer(model, OptimConfig())
model(torch.ones(1, 2)).sum().backward()
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
print(type(optimizer).__name__, "torch._dynamo" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True
    )
    assert done.stdout == "Adafactor False\n"


@pytest.mark.parametrize(
    "shape", [(96, 40), (40, 96), (1, 50, 64), (5, 40, 48), (64, 3, 2, 48), (40, 64, 3), (70,)]
)
def test_compiled_loops_give_the_update_of_torchs_operations(shape, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    compiled = nn.Parameter(torch.randn(shape, generator=generator))
    plain = nn.Parameter(compiled.data.clone())
    optimizers = [Adafactor([param], lr=0.1, weight_decay=0.01) for param in (compiled, plain)]
    for _ in range(3):
        compiled.grad = torch.randn(shape, generator=generator)
        plain.grad = compiled.grad.clone()
        optimizers[0].step()
        with monkeypatch.context() as patched:
            patched.setattr(adafactor, "_is_compiled", lambda _: False)
            optimizers[1].step()
        for name, expected in optimizers[1].state[plain].items():
            # A momentum in bfloat16 may be rounded to the other side.
            rtol, atol = (2**-7, 1e-3) if name == "momentum" else (1e-5, 1e-7)
            found = optimizers[0].state[compiled][name]
            torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
    torch.testing.assert_close(compiled.data, plain.data, rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", [(96, 40), (5, 40, 48), (64, 3, 2, 48), (40, 64, 3), (70,)])
def test_kernels_of_the_models_layouts_are_updated_by_compiled_loops(shape, monkeypatch):
    looked_at = list[int]()
    monkeypatch.setattr(adafactor, "_apply_compiled", lambda update: looked_at.append(1))
    param = nn.Parameter(torch.zeros(shape))
    param.grad = torch.ones(shape)
    Adafactor([param], lr=0.1).step()
    # Loops run along the last dimension, which has to be a factored one.
    assert bool(looked_at) == (shape[-1] >= 32 and len(shape) > 1)


def test_states_of_another_layout_are_updated_all_the_same():
    # Dimensions that the loops see as one, and that this layout keeps apart.
    shape = (64, 3, 2, 40)
    params = [nn.Parameter(torch.ones(shape)) for _ in range(2)]
    optimizers = [Adafactor([param], lr=0.1) for param in params]
    for step in range(2):
        for param, optimizer in zip(params, optimizers, strict=True):
            param.grad = torch.randn(shape, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        state = optimizers[0].state[params[0]]
        state["momentum"] = state["momentum"].transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(params[0].data, params[1].data, rtol=0, atol=1e-3)
    momenta = [o.state[p]["momentum"] for p, o in zip(params, optimizers, strict=True)]
    torch.testing.assert_close(*momenta, rtol=2**-7, atol=1e-3)


def test_a_gradient_that_is_no_number_is_seen_in_parameter_and_momentum():
    param = nn.Parameter(torch.ones(64, 64))
    param.grad = torch.ones(64, 64)
    param.grad[3, 5] = torch.nan
    optimizer = Adafactor([param], lr=0.1)
    optimizer.step()
    assert param.data[3, 5].isnan()
    assert optimizer.state[param]["momentum"][3, 5].isnan()
