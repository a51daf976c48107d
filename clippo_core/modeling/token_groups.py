"""Sets of tokens among the rows of a batch, and attention within each such set.

All tokens of a batch are rows of one matrix, which the dense layers see. A `TokenGroup` is a part
of these rows that attention treats alike: sets of one length (pictures), or of any lengths (texts
without their blank patches).
"""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor

from clippo_core.transfer import to_device

#: True where this torch has attention over packed sequences.
HAS_PACKED_ATTENTION = importlib.util.find_spec("torch.nn.attention.varlen") is not None


class RaggedSets(NamedTuple):
    """The places of tokens once sets of different lengths are padded to the longest."""

    rows: Int64[Tensor, "set longest"]
    """Row of each padded place; places of padding repeat the set's last row."""
    places: Int64[Tensor, " token"]
    """Padded place of each row, counted over all sets."""
    is_token: Bool[Tensor, "set longest"]
    """True for padded places that hold a token, False for padding, which takes no part."""
    offsets: Int32[Tensor, " set_and_1"]
    """First row of each set, and the end of the last set."""


class TokenGroup(NamedTuple):
    """Sets of tokens, one set after the other; a token attends within its set only."""

    num_sets: int
    longest: int
    """Number of tokens of the longest set."""
    num_tokens: int
    """Number of tokens of all sets together."""
    ragged: RaggedSets | None = None
    """Places of sets of different lengths; None where all are equally long."""

    def pad(self, x: Float[Tensor, "token *feature"]) -> Float[Tensor, "set longest *feature"]:
        """Return the rows set by set; places of padding hold copies, for the caller to mask."""
        if self.ragged is None:
            return x.unflatten(0, (self.num_sets, self.longest))
        rows = x.index_select(0, self.ragged.rows.flatten())
        return rows.unflatten(0, (self.num_sets, self.longest))

    def unpad(self, x: Float[Tensor, "set longest *feature"]) -> Float[Tensor, "token *feature"]:
        """Return one row for each token, in the order of the input of `pad`."""
        x = x.flatten(0, 1)
        return x if self.ragged is None else x.index_select(0, self.ragged.places)


def even_sets(num_sets: int, length: int) -> TokenGroup:
    """Return the group of `num_sets` sets of one length."""
    return TokenGroup(num_sets, length, num_sets * length)


def sets_of(lengths: Int64[np.ndarray, " set"], device: torch.device) -> TokenGroup:
    """Return the group of sets of these lengths (at least 1), without waiting for the device."""
    num_sets, longest, num_tokens = len(lengths), int(lengths.max(initial=0)), int(lengths.sum())
    if num_sets * longest == num_tokens:
        return even_sets(num_sets, longest)
    ends = to_device(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), device)
    starts, sizes = ends[:-1], ends.diff()
    column = torch.arange(longest, device=device)
    rows = starts[:, None] + torch.minimum(column, sizes[:, None] - 1)
    set_of_token = torch.repeat_interleave(
        torch.arange(num_sets, device=device), sizes, output_size=num_tokens
    )
    within = torch.arange(num_tokens, device=device) - starts[set_of_token]
    places = set_of_token * longest + within
    ragged = RaggedSets(rows, places, column < sizes[:, None], ends.to(torch.int32))
    return TokenGroup(num_sets, longest, num_tokens, ragged)


def attend(
    projected: Float[Tensor, "token 3 head head_dim"], group: TokenGroup
) -> Float[Tensor, "token head head_dim"]:
    """Return `softmax(Q K^T / sqrt(head_dim)) V` for each token, over the tokens of its set.

    Sets of different lengths are padded to the longest and masked, or, in bfloat16 on CUDA, left as
    they are for the kernel of packed sequences (`torch.nn.attention.varlen`).

    Args:
        projected: query, key and value of each token.
        group: sets that the tokens form.
    """
    if group.ragged is not None and _is_packed(projected):
        from torch.nn.attention.varlen import varlen_attn

        query, key, value = projected.unbind(1)
        ends, longest = group.ragged.offsets, group.longest
        packed = varlen_attn(query, key, value, ends, ends, longest, longest)
        assert isinstance(packed, Tensor)
        return packed
    query, key, value = group.pad(projected).permute(2, 0, 3, 1, 4).unbind(0)
    mask = None if group.ragged is None else group.ragged.is_token[:, None, None, :]
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return group.unpad(attended.transpose(1, 2))


def _is_packed(projected: Tensor) -> bool:
    """Return True where torch has a kernel for packed sequences of such tensors."""
    is_fast = projected.device.type == "cuda" and projected.dtype == torch.bfloat16
    return is_fast and HAS_PACKED_ATTENTION
