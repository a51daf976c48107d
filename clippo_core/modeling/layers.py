"""The layers of the ViT. Kernels keep Flax's layout, `[in, out]` or `[in, head, head_dim]`.

So a big_vision checkpoint converts by renaming alone, bit for bit, and Adafactor factors the very
dimensions that it factors in the paper (it never factors across heads).
"""

# torch and numba leave types unknown that these files use.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

LAYER_NORM_EPSILON = 1e-6
#: Up to so many tokens, in bfloat16 on a CPU, written-out attention is the faster one: torch's
#: fused kernel spends its backward pass on blocks that are mostly padding (EXPERIMENTS.md).
MAX_EXPLICIT_TOKENS = 64


def xavier_uniform_(kernel: Tensor, *, fan_in: int, fan_out: int) -> None:
    """Fill with U(-a, a), a = sqrt(6 / (fan_in + fan_out))."""
    bound = math.sqrt(6 / (fan_in + fan_out))
    nn.init.uniform_(kernel, -bound, bound)


def lecun_normal_(kernel: Tensor, *, fan_in: int) -> None:
    """Fill with a normal of variance 1 / fan_in, truncated at two deviations, as Flax does."""
    # The truncated normal has a smaller deviation than the normal it is cut from; 0.8796 undoes it.
    std = math.sqrt(1 / fan_in) / 0.87962566103423978
    nn.init.trunc_normal_(kernel, std=std, a=-2 * std, b=2 * std)


class Dense(nn.Module):
    """`x @ kernel + bias`, with a kernel [in, out]."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Float[Tensor, "... in_features"]) -> Float[Tensor, "... out_features"]:
        return F.linear(x, self.kernel.T, self.bias)


class Mlp(nn.Module):
    """Two dense layers around a GELU in its tanh form, Flax's default."""

    def __init__(self, width: int, mlp_dim: int):
        super().__init__()
        self.hidden = Dense(width, mlp_dim)
        self.output = Dense(mlp_dim, width)
        for dense in (self.hidden, self.output):
            xavier_uniform_(dense.kernel.data, fan_in=width, fan_out=mlp_dim)
            nn.init.normal_(dense.bias, std=1e-6)

    def forward(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        return self.output(F.gelu(self.hidden(x), approximate="tanh"))


class HeadProjection(nn.Module):
    """Project tokens to `num_parts` sets of heads at once; kernel [width, part, head, head_dim]."""

    def __init__(self, width: int, num_parts: int, num_heads: int):
        super().__init__()
        shape = (num_parts, num_heads, width // num_heads)
        self.kernel = nn.Parameter(torch.empty(width, *shape))
        self.bias = nn.Parameter(torch.zeros(shape))
        xavier_uniform_(self.kernel.data, fan_in=width, fan_out=width)

    def forward(
        self, x: Float[Tensor, "batch token width"]
    ) -> tuple[Float[Tensor, "batch head token head_dim"], ...]:
        flat = F.linear(x, self.kernel.flatten(1).T, self.bias.flatten())
        parts = flat.unflatten(-1, tuple(self.bias.shape)).permute(2, 0, 3, 1, 4)
        return parts.unbind(0)


class MergeHeads(nn.Module):
    """Back from heads to features; kernel [head, head_dim, width]."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(num_heads, width // num_heads, width))
        self.bias = nn.Parameter(torch.zeros(width))
        xavier_uniform_(self.kernel.data, fan_in=width, fan_out=width)

    def forward(
        self, x: Float[Tensor, "batch head token head_dim"]
    ) -> Float[Tensor, "batch token width"]:
        return F.linear(x.transpose(1, 2).flatten(2), self.kernel.flatten(0, 1).T, self.bias)


def attend(
    query: Float[Tensor, "batch head query head_dim"],
    key: Float[Tensor, "batch head token head_dim"],
    value: Float[Tensor, "batch head token head_dim"],
) -> Float[Tensor, "batch head query head_dim"]:
    """`softmax(Q K^T / sqrt(head_dim)) V`, the softmax in float32."""
    is_on_cpu = query.device.type == "cpu"
    if is_on_cpu and query.dtype == torch.bfloat16 and key.shape[-2] <= MAX_EXPLICIT_TOKENS:
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        return scores.float().softmax(-1).to(value.dtype) @ value
    return F.scaled_dot_product_attention(query, key, value)


class SelfAttention(nn.Module):
    """Multi-head attention of the tokens over themselves."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.query_key_value = HeadProjection(width, 3, num_heads)
        self.output = MergeHeads(width, num_heads)

    def forward(self, x: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        query, key, value = self.query_key_value(x)
        return self.output(attend(query, key, value))


class AttentionPooling(nn.Module):
    """One learned probe attends over the tokens, then an MLP with residual ("MAP head").

    Source: big_vision `models/vit.py` MAPHead at 0127fb6, after "Scaling Vision Transformers".
    """

    def __init__(self, width: int, mlp_dim: int, num_heads: int):
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, width))
        xavier_uniform_(self.probe.data, fan_in=1, fan_out=width)
        self.query = HeadProjection(width, 1, num_heads)
        self.key_value = HeadProjection(width, 2, num_heads)
        self.output = MergeHeads(width, num_heads)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.mlp = Mlp(width, mlp_dim)

    def forward(self, x: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch width"]:
        (query,) = self.query(self.probe)
        key, value = self.key_value(x)
        query = query.expand(len(x), -1, -1, -1)
        pooled = self.output(attend(query, key, value))
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]
