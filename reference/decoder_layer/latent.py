"""Attention of DeepSeek: latents are cached, and heads come from them before attention or after it."""

from __future__ import annotations

import torch

from npudiff.reference.decoder_layer.inputs import DecoderLayerInputs, LatentWeights
from npudiff.reference.decoder_layer.turning import turned
from npudiff.reference.inexact_attention import projected_attention
from npudiff.reference.linear import product
from npudiff.reference.mla_preprocess import ROPE_STYLE
from npudiff.reference.spread import EVEN, Spread, linear, normed


class LatentAttention:
    """Queries, latents and rope keys of all tokens; and the attention of some.

    A device may expand latents to keys and values of every head, as backends do in prefill, or absorb these projections
    into queries and outputs, as they do in decode: one value, and roundings at other places. The larger error counts.

    Parameters
    ----------
    inputs : DecoderLayerInputs
        The layer.
    weights : LatentWeights
        Its attention.
    states : Spread
        ``[tokens, hidden_size]``: normalised hidden states.

    Attributes
    ----------
    keys, values : Spread
        ``[tokens, 1, latent_dim]`` and ``[tokens, 1, rope_dim]``: latents and rope keys, what is cached.
    """

    def __init__(self, inputs: DecoderLayerInputs, weights: LatentWeights, states: Spread) -> None:
        self._inputs, self._weights, self._dtype = inputs, weights, inputs.hidden.dtype
        dtype, epsilon, nope = self._dtype, inputs.epsilon, weights.nope_dim
        down = linear(states, weights.q_a.to(torch.float64), dtype)
        queries = normed(down, weights.q_a_norm, "plain", epsilon, dtype)
        heads = linear(queries, weights.q_b.to(torch.float64), dtype).heads(weights.heads)
        self._nope = heads.part(slice(0, nope))
        self._rope = turned(heads.part(slice(nope, None)), inputs, ROPE_STYLE)
        compressed = linear(states, weights.kv_a.to(torch.float64), dtype).heads(1)
        latent = slice(0, weights.latent_dim)
        self.keys = normed(compressed.part(latent), weights.kv_a_norm, "plain", epsilon, dtype)
        self.values = turned(compressed.part(slice(weights.latent_dim, None)), inputs, ROPE_STYLE)
        k_up, self._v_up = weights.k_up.to(torch.float64), weights.v_up.to(torch.float64)
        self._output = weights.output.to(torch.float64)
        self._matrix = self._output.view(weights.heads, -1, self._output.shape[1])
        self._through = self._v_up @ self._matrix
        ropes = Spread(*(_of_heads(part, weights.heads) for part in vars(self.values).values()))
        keys = _by_token(linear(_by_head(self.keys), k_up.transpose(-1, -2), dtype))
        self._head_queries, self._head_keys = _joined(self._nope, self._rope), _joined(keys, ropes)
        self._head_values = _by_token(linear(_by_head(self.keys), self._v_up, dtype))
        absorbed = _by_token(linear(_by_head(self._nope), k_up, dtype))
        self._latent_queries, self._latent_keys = _joined(absorbed, self._rope), _joined(self.keys, self.values)

    def rows(self, queries: torch.Tensor, keys: torch.Tensor, seen: torch.Tensor) -> Spread:
        """Return the projected attention of some tokens of one request, ``[len(queries), hidden_size]``."""
        expanded, absorbed = self._expanded(queries, keys, seen), self._absorbed(queries, keys, seen)
        return Spread.of(expanded.value, torch.maximum(expanded.independent, absorbed.independent))

    def _expanded(self, queries: torch.Tensor, keys: torch.Tensor, seen: torch.Tensor) -> Spread:
        result = projected_attention(
            self._head_queries.rows(queries),
            self._head_keys.rows(keys),
            self._head_values.rows(keys),
            seen,
            self._inputs.scale,
            self._matrix,
            self._dtype,
        )
        return self._projected(result.output, result.scale.square())

    def _absorbed(self, queries: torch.Tensor, keys: torch.Tensor, seen: torch.Tensor) -> Spread:
        result = projected_attention(
            self._latent_queries.rows(queries),
            self._latent_keys.rows(keys),
            self.keys.rows(keys),
            seen,
            self._inputs.scale,
            self._through,
            self._dtype,
        )
        output = product(result.output, self._v_up, self._dtype)
        return self._projected(
            output.value, result.scale.square() + (output.independent * EVEN).square() @ self._matrix.square()
        )

    def _projected(self, output: torch.Tensor, squares: torch.Tensor) -> Spread:
        """Sum over heads of ``[heads, rows, value_dim]``, with squares of scales ``[heads, rows, hidden_size]``."""
        exact = product(output.transpose(0, 1).flatten(1), self._output, self._dtype)
        return Spread.of(exact.value, torch.hypot(squares.sum(dim=0).sqrt(), exact.independent * EVEN))


def _of_heads(rows: torch.Tensor, heads: int) -> torch.Tensor:
    return rows.expand(-1, heads, -1)


def _joined(first: Spread, second: Spread) -> Spread:
    """Columns side by side; rows of different origin have nothing in common any more."""
    value, independent = (
        torch.cat([getattr(part, name) for part in (first, second)], dim=-1) for name in ("value", "scale")
    )
    return Spread.of(value, independent)


def _by_head(rows: Spread) -> Spread:
    """From ``[tokens, heads, dim]`` to ``[heads, tokens, dim]``; one head is broadcast by a product."""
    return Spread(*(part.transpose(0, 1) for part in (rows.value, rows.independent, rows.common)))


def _by_token(rows: Spread) -> Spread:
    heads = rows.value.shape[0]
    return Spread(*(part.expand(heads, -1, -1).transpose(0, 1) for part in (rows.value, rows.independent, rows.common)))
