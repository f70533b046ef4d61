"""Attention of Step-3.5: norms of every head, rotation, grouped queries, a gate per head."""

from __future__ import annotations

import torch

from npudiff.reference.decoder_layer.inputs import DecoderLayerInputs, GroupedQueryWeights
from npudiff.reference.decoder_layer.turning import turned
from npudiff.reference.inexact import Inexact, sigmoid
from npudiff.reference.inexact_attention import projected_attention
from npudiff.reference.linear import product
from npudiff.reference.spread import EVEN, Spread, linear, normed, rounding_scale


class GroupedQueryAttention:
    """Queries, keys, values and gates of all tokens; and the attention of some.

    Parameters
    ----------
    inputs : DecoderLayerInputs
        The layer.
    weights : GroupedQueryWeights
        Its attention.
    states : Spread
        ``[tokens, hidden_size]``: normalised hidden states.

    Attributes
    ----------
    keys, values : Spread
        ``[tokens, kv_heads, head_dim]``: what is cached.
    """

    def __init__(self, inputs: DecoderLayerInputs, weights: GroupedQueryWeights, states: Spread) -> None:
        self._inputs, self._weights, self._dtype = inputs, weights, inputs.hidden.dtype
        heads = linear(states, weights.qkv.to(torch.float64), self._dtype).heads(weights.heads + 2 * weights.kv_heads)
        first, last = weights.heads, weights.heads + weights.kv_heads
        self._query = self._ready(_some(heads, slice(0, first)), weights.query_norm)
        self.keys = self._ready(_some(heads, slice(first, last)), weights.key_norm)
        self.values = _some(heads, slice(last, None))
        gates = linear(states, weights.gate.to(torch.float64), self._dtype)
        self._gate = sigmoid(Inexact(gates.value, gates.scale)).rounded(self._dtype)

    def _ready(self, heads: Spread, norm: torch.Tensor) -> Spread:
        """Normalised and rotated heads ``[tokens, heads, head_dim]``."""
        rows = normed(heads, norm, "gemma", self._inputs.epsilon, self._dtype)
        return turned(rows, self._inputs, "half")

    def rows(self, queries: torch.Tensor, keys: torch.Tensor, seen: torch.Tensor) -> Spread:
        """Return the projected attention of some tokens of one request, ``[len(queries), hidden_size]``."""
        heads, rounding = self._weights.heads, rounding_scale(self._dtype)
        wide = self._weights.output.to(torch.float64)
        matrix = wide.view(heads, self._weights.head_dim, -1)
        result = projected_attention(
            self._query.rows(queries),
            self.keys.rows(keys),
            self.values.rows(keys),
            seen,
            self._inputs.scale,
            matrix,
            self._dtype,
        )
        gate, gate_error = (part[queries].T.unsqueeze(-1) for part in (self._gate.value, self._gate.error))
        stored = result.output * gate
        squares = (gate * result.scale).square() + (gate_error * result.value).square()
        squares = squares + (rounding * stored).square() @ matrix.square()
        exact = product(stored.transpose(0, 1).flatten(1), wide, self._dtype)
        return Spread.of(exact.value, torch.hypot(squares.sum(dim=0).sqrt(), exact.independent * EVEN))


def _some(heads: Spread, which: slice) -> Spread:
    return Spread(heads.value[:, which], heads.independent[:, which], heads.common[:, which])
