"""The layers of the ViT. Kernels keep Flax's layout, `[in, out]` or `[in, head, head_dim]`.

So a big_vision checkpoint converts by renaming alone, bit for bit, and Adafactor factors the very
dimensions that it factors in the paper (it never factors across heads).
"""

# torch and numba leave types unknown that these files use.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from clippo_core.modeling.gelu import gelu

LAYER_NORM_EPSILON = 1e-6
#: Up to so many tokens, in bfloat16 on a CPU, written-out attention is the faster one: torch's
#: fused kernel reaches a third of the matrix-product rate there (EXPERIMENTS.md).
MAX_EXPLICIT_TOKENS = 256


class TokenGroup(NamedTuple):
    """Sets of equally many tokens, one set after the other; a token attends within its set only."""

    num_sets: int
    num_tokens: int
    """In each set, padding included."""
    is_token: Bool[Tensor, "set token"] | None = None
    """False where a set was padded; None where none of the group was."""
    size_varies: bool = False
    """Whether the next batch has other numbers: what is compiled for these would serve once."""

    @property
    def size(self) -> int:
        """Tokens of all sets together."""
        return self.num_sets * self.num_tokens


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
    """Project tokens to `num_parts` sets of heads at once; kernel [width, part, head, head_dim]."""

    def __init__(self, width: int, num_parts: int, num_heads: int):
        super().__init__()
        shape = (num_parts, num_heads, width // num_heads)
        self.kernel = nn.Parameter(torch.empty(width, *shape))
        self.bias = nn.Parameter(torch.zeros(shape))
        xavier_uniform_(self.kernel.data, fan_in=width, fan_out=width)

    def forward(
        self, x: Float[Tensor, "token width"]
    ) -> Float[Tensor, "token part_x_head_x_head_dim"]:
        return F.linear(x, self.kernel.flatten(1).T, self.bias.flatten())

    def split_heads(
        self, projected: Float[Tensor, "token part_x_head_x_head_dim"], group: TokenGroup
    ) -> tuple[Float[Tensor, "set head member head_dim"], ...]:
        """What `forward` gave for the tokens of a group, as one tensor for each part."""
        sets = projected.view(group.num_sets, group.num_tokens, *self.bias.shape)
        return sets.permute(2, 0, 3, 1, 4).unbind(0)


class MergeHeads(nn.Module):
    """Back from heads to features; kernel [head, head_dim, width]."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(num_heads, width // num_heads, width))
        self.bias = nn.Parameter(torch.zeros(width))
        xavier_uniform_(self.kernel.data, fan_in=width, fan_out=width)

    def forward(self, x: Float[Tensor, "token head_x_head_dim"]) -> Float[Tensor, "token width"]:
        return F.linear(x, self.kernel.flatten(0, 1).T, self.bias)


def attend(
    query: Float[Tensor, "set head query head_dim"],
    key: Float[Tensor, "set head token head_dim"],
    value: Float[Tensor, "set head token head_dim"],
    is_token: Bool[Tensor, "set token"] | None = None,
    *,
    size_varies: bool = False,
) -> Float[Tensor, "set_x_query head_x_head_dim"]:
    """`softmax(Q K^T / sqrt(head_dim)) V` over the tokens that are none of padding."""
    if size_varies and _is_compiled_by_size(query):
        with torch.autocast("cpu", enabled=False):
            attended = attend(query.float(), key.float(), value.float(), is_token)
        return attended.to(query.dtype)
    mask = None if is_token is None else is_token[:, None, None, :]
    if _is_compiled_by_size(query) and key.shape[-2] <= MAX_EXPLICIT_TOKENS:
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        # Under autocast a softmax is float32 in and out, which here costs more than both products;
        # the kernel computes in float32 whatever it reads and writes.
        with torch.autocast("cpu", enabled=False):
            attended = scores.softmax(-1) @ value
    else:
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attended.transpose(1, 2).flatten(2).flatten(0, 1)


def _is_compiled_by_size(x: Tensor) -> bool:
    """Whether torch compiles products of such tensors anew for every size, a millisecond each."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16


class SelfAttention(nn.Module):
    """Multi-head attention of tokens over those of their own set."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.query_key_value = HeadProjection(width, 3, num_heads)
        self.output = MergeHeads(width, num_heads)
        self._attend_within = _attend_within

    def forward(
        self, x: Float[Tensor, "token width"], groups: Sequence[TokenGroup]
    ) -> Float[Tensor, "token width"]:
        projected = self.query_key_value(x)
        return self.output(self._attend_within(self.query_key_value, projected, groups))

    def do_not_compile_attention(self) -> None:
        """How many groups there are changes from batch to batch: nothing to compile once."""
        # Not at import: naming the compiler loads it, which takes a second.
        disable: Callable[..., Any] = torch.compiler.disable  # untyped
        self._attend_within = disable(_attend_within)


def _attend_within(
    projection: HeadProjection,
    projected: Float[Tensor, "token part_x_head_x_head_dim"],
    groups: Sequence[TokenGroup],
) -> Float[Tensor, "token head_x_head_dim"]:
    """Attention of tokens over those of their own set, given queries, keys and values."""
    *parts, padding = split_groups(projected, groups)
    attended = []
    for part, group in zip(parts, groups, strict=True):
        query, key, value = projection.split_heads(part, group)
        attended.append(attend(query, key, value, group.is_token, size_varies=group.size_varies))
    if len(padding):
        attended.append(attended[0].new_zeros(len(padding), attended[0].shape[1]))
    return torch.cat(attended)


def split_groups(
    rows: Float[Tensor, "token feature"], groups: Sequence[TokenGroup]
) -> Sequence[Float[Tensor, "_ feature"]]:
    """The rows of each group's tokens, and last what is behind them: rows that pad a product."""
    sizes = [group.size for group in groups]
    # Split and not sliced: the gradient of a slice is as large as the whole.
    return rows.split([*sizes, len(rows) - sum(sizes)])


class AttentionPooling(nn.Module):
    """One learned probe attends over each set of tokens, then an MLP with residual ("MAP head").

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
        (query,) = self.query.split_heads(self.query(self.probe[0]), TokenGroup(1, 1))
        scaled = query[0].transpose(1, 2) * query.shape[-1] ** -0.5
        probe = (key_kernel.transpose(0, 1) @ scaled).squeeze(2)
        # Under autocast a product's type; else two products would convert the tokens twice.
        x = x.to(probe.dtype)
        *tokens, _ = split_groups(x, groups)
        *scores, _ = split_groups(x @ probe.T, groups)
        parts = zip(tokens, scores, groups, strict=True)
        means = torch.cat([_weighted_means(*part) for part in parts])
        values = (means.transpose(0, 1) @ value_kernel.transpose(0, 1)).transpose(0, 1)
        pooled = self.output((values + self.key_value.bias[1]).flatten(1))
        return pooled + self.mlp(self.norm(pooled))


def _weighted_means(
    tokens: Float[Tensor, "token width"], scores: Float[Tensor, "token head"], group: TokenGroup
) -> Float[Tensor, "set head width"]:
    """Means of the tokens of each set, weighted by the softmax of their scores."""
    if group.size_varies and _is_compiled_by_size(tokens):
        with torch.autocast("cpu", enabled=False):
            same = group._replace(size_varies=False)
            return _weighted_means(tokens.float(), scores.float(), same).to(tokens.dtype)
    shape = (group.num_sets, group.num_tokens)
    scores = scores.unflatten(0, shape)
    if group.is_token is not None:
        scores = scores.masked_fill(~group.is_token[:, :, None], -torch.inf)
    return scores.softmax(1).transpose(1, 2) @ tokens.unflatten(0, shape)
