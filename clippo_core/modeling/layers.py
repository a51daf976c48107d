"""The layers of the ViT. Kernels keep Flax's layout, `[in, out]` or `[in, head, head_dim]`.

A big_vision checkpoint therefore converts by renaming alone, bit for bit, and Adafactor factors the
very dimensions that it factors in the paper (it never factors across heads).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clippo_core.modeling.token_groups import TokenGroup, attend

LAYER_NORM_EPSILON = 1e-6


def xavier_uniform_(kernel: Tensor, *, fan_in: int, fan_out: int) -> None:
    """Fill a kernel with U(-a, a), a = sqrt(6 / (fan_in + fan_out))."""
    bound = math.sqrt(6 / (fan_in + fan_out))
    nn.init.uniform_(kernel, -bound, bound)


def lecun_normal_(kernel: Tensor, *, fan_in: int) -> None:
    """Fill a kernel with a normal of variance 1 / fan_in, truncated at two deviations, as Flax."""
    # The truncated normal has a smaller deviation than the normal it is cut from; 0.8796 undoes it.
    std = math.sqrt(1 / fan_in) / 0.87962566103423978
    nn.init.trunc_normal_(kernel, std=std, a=-2 * std, b=2 * std)


def gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return GELU in its tanh form, which is Flax's default."""
    return F.gelu(x, approximate="tanh")


class Dense(nn.Module):
    """The layer `x @ kernel + bias`, with a kernel [in, out]."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Float[Tensor, "... in_features"]) -> Float[Tensor, "... out_features"]:
        return F.linear(x, self.kernel.T, self.bias)


class Mlp(nn.Module):
    """Two dense layers around a GELU."""

    def __init__(self, width: int, mlp_dim: int):
        super().__init__()
        self.hidden = Dense(width, mlp_dim)
        self.output = Dense(mlp_dim, width)
        for dense in (self.hidden, self.output):
            xavier_uniform_(dense.kernel.data, fan_in=width, fan_out=mlp_dim)
            nn.init.normal_(dense.bias, std=1e-6)

    def forward(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        return self.output(gelu(self.hidden(x)))


class HeadProjection(nn.Module):
    """A projection of tokens to `num_parts` sets of heads; kernel [width, part, head, head_dim]."""

    def __init__(self, width: int, num_parts: int, num_heads: int):
        super().__init__()
        shape = (num_parts, num_heads, width // num_heads)
        self.kernel = nn.Parameter(torch.empty(width, *shape))
        self.bias = nn.Parameter(torch.zeros(shape))
        xavier_uniform_(self.kernel.data, fan_in=width, fan_out=width)

    def forward(self, x: Float[Tensor, "token width"]) -> Float[Tensor, "token part head head_dim"]:
        projected = F.linear(x, self.kernel.flatten(1).T, self.bias.flatten())
        return projected.unflatten(1, self.bias.shape)


class MergeHeads(nn.Module):
    """A projection from heads back to features; kernel [head, head_dim, width]."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(num_heads, width // num_heads, width))
        self.bias = nn.Parameter(torch.zeros(width))
        xavier_uniform_(self.kernel.data, fan_in=width, fan_out=width)

    def forward(self, x: Float[Tensor, "token head head_dim"]) -> Float[Tensor, "token width"]:
        return F.linear(x.flatten(1), self.kernel.flatten(0, 1).T, self.bias)


class SelfAttention(nn.Module):
    """Multi-head attention of tokens over those of their own set."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.query_key_value = HeadProjection(width, 3, num_heads)
        self.output = MergeHeads(width, num_heads)

    def forward(
        self, x: Float[Tensor, "token width"], groups: Sequence[TokenGroup]
    ) -> Float[Tensor, "token width"]:
        # Split and not sliced: the gradient of a slice is as large as the whole.
        parts = self.query_key_value(x).split([group.num_tokens for group in groups])
        attended = [attend(part, group) for part, group in zip(parts, groups, strict=True)]
        return self.output(torch.cat(attended) if len(attended) > 1 else attended[0])


class AttentionPooling(nn.Module):
    """Pooling by one learned probe that attends over a set of tokens, and an MLP ("MAP head").

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

    def forward(
        self, x: Float[Tensor, "token width"], groups: Sequence[TokenGroup]
    ) -> Float[Tensor, "set width"]:
        key_kernel, value_kernel = self.key_value.kernel.unbind(1)
        # `q (W x) = (q W) x`, and `sum a (W x) = W (sum a x)`: with one query no token needs a key
        # or a value of its own. What a key's bias adds to all scores of a head, softmax takes away.
        query = self.query(self.probe[0])[0, 0]
        scaled = query.unsqueeze(2) * query.shape[-1] ** -0.5
        probe = (key_kernel.transpose(0, 1) @ scaled).squeeze(2)
        # Converted once to the type that products have under autocast, not in each of two products.
        x = x.to(probe.dtype)
        sizes = [group.num_tokens for group in groups]
        parts = zip(x.split(sizes), (x @ probe.T).split(sizes), groups, strict=True)
        means = [_weighted_means(*part) for part in parts]
        joined = torch.cat(means) if len(means) > 1 else means[0]
        values = (joined.transpose(0, 1) @ value_kernel.transpose(0, 1)).transpose(0, 1)
        pooled = self.output(values + self.key_value.bias[1])
        return pooled + self.mlp(self.norm(pooled))


def _weighted_means(
    tokens: Float[Tensor, "token width"], scores: Float[Tensor, "token head"], group: TokenGroup
) -> Float[Tensor, "set head width"]:
    """Return the means of the tokens of each set, weighted by the softmax of their scores."""
    padded = group.pad(scores)
    if group.ragged is not None:
        padded = padded.masked_fill(~group.ragged.is_token[:, :, None], -torch.inf)
    return padded.softmax(1).transpose(1, 2) @ group.pad(tokens)
