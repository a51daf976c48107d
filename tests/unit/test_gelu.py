from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clippo_core.modeling import gelu as module
from clippo_core.modeling.gelu import gelu
from clippo_core.threads import MIN_PART


def every_bfloat16() -> torch.Tensor:
    return torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)


def slopes_of(function, x: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    function(x).backward(upstream)
    assert x.grad is not None
    return x.grad


def torch_gelu(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


def test_every_bfloat16_has_the_gelu_and_gradient_that_torch_computes(monkeypatch):
    x = every_bfloat16()
    # Numbers of every size, and what is none.
    upstream = x[torch.randperm(2**16, generator=torch.Generator().manual_seed(0))]
    expected = torch_gelu(x), slopes_of(torch_gelu, x, upstream)
    gelu(x)  # makes the tables
    monkeypatch.setattr(module.F, "gelu", None)
    for mine, theirs in zip((gelu(x), slopes_of(gelu, x, upstream)), expected, strict=True):
        is_number = ~theirs.isnan()
        assert torch.equal(mine.isnan(), theirs.isnan())
        bits = [values[is_number].view(torch.uint16) for values in (mine, theirs)]
        assert torch.equal(*bits)


@pytest.mark.parametrize("size", [2 * MIN_PART, 3 * MIN_PART + 2049])
def test_parts_on_several_threads_are_the_whole(size: int):
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    x, upstream = torch.randn(2, size, generator=torch.Generator().manual_seed(0)).bfloat16()
    try:
        mine = gelu(x), slopes_of(gelu, x, upstream)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(mine[0], torch_gelu(x))
    assert torch.equal(mine[1], slopes_of(torch_gelu, x, upstream))


def test_shapes_and_layouts_are_kept():
    x = torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    for values in (x, x.transpose(0, 1), x[:, 1:3], x[:0], x[0, 0, 0]):
        upstream = torch.ones_like(values).expand(values.shape)
        torch.testing.assert_close(gelu(values), torch_gelu(values), rtol=0, atol=0)
        mine, theirs = (slopes_of(function, values, upstream) for function in (gelu, torch_gelu))
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_other_types_are_torchs(monkeypatch):
    monkeypatch.setattr(module, "_LookedUp", None)
    x = torch.randn(8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(gelu(x), torch_gelu(x))


def test_second_derivatives_are_refused():
    x = torch.ones(8, dtype=torch.bfloat16, requires_grad=True)
    (slope,) = torch.autograd.grad(gelu(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        slope.sum().backward()
