"""The arithmetic of the gated delta rule: one token, and a chunk of tokens.

With a state S [Dv, Dk], decay e^g of the whole state and e^gk of its columns:

    S <- e^g S diag(e^gk);    S <- S + beta (v - S k) k^T;    o = S q

A chunk of C tokens does the same at once. With G the cumulative sum of g in it, and decay[i, j] = e^(G_i - G_j):

    A = strictly lower part of beta_i (k_i . k_j) decay[i, j]
    U = (1 + A)^-1 beta v,    W = (1 + A)^-1 beta e^G k,    v' = U - W S^T
    o_i = e^G_i S q_i + sum over j <= i of (q_i . k_j) decay[i, j] v'_j
    S <- e^G_C S + sum over j of e^(G_C - G_j) v'_j k_j^T
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 64
"""Tokens of a chunk."""

_HALF = 32
"""Rows of a triangle that is inverted by substitution; the kernel puts two of them together with products."""


def step(
    state: Tensor, query: Tensor, key: Tensor, value: Tensor, beta: Tensor, decay: Tensor | None, by_key: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return state and output after one token.

    Parameters
    ----------
    state : Tensor
        float32 [N, Dv, Dk].
    query, key : Tensor
        float32 [N, Dk], query scaled.
    value : Tensor
        float32 [N, Dv].
    beta : Tensor
        float32 [N].
    decay, by_key : Tensor, optional
        float32 [N] and [N, Dk]: factors of states and of their columns.

    Returns
    -------
    tuple of Tensor
        float32 [N, Dv, Dk] and [N, Dv].
    """
    if decay is not None:
        state = state * decay[:, None, None]
    if by_key is not None:
        state = state * by_key[:, None, :]
    delta = (value - (state * key[:, None, :]).sum(-1)) * beta[:, None]
    state = state + delta[:, :, None] * key[:, None, :]
    return state, (state * query[:, None, :]).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """How a calculation in chunks rounds and decays."""

    narrow: Callable[[Tensor], Tensor]
    """What products and states go through, float32 to float32."""
    quotient: bool
    """Whether the decay between tokens is a quotient of exponentials."""

    def decay(self, later: Tensor, earlier: Tensor) -> Tensor:
        """Return e^(later - earlier)."""
        return later.exp() / earlier.exp() if self.quotient else (later - earlier).exp()


def _inverse(lower: Tensor, narrow: Callable[[Tensor], Tensor]) -> Tensor:
    """Return (1 + A)^-1 of strictly lower parts A [N, C, C]: both halves on their own, and their corner from them."""
    if lower.shape[-1] <= _HALF:
        unit = torch.eye(lower.shape[-1])
        return narrow(torch.linalg.solve_triangular(lower + unit, unit, upper=False, unitriangular=True))
    first, second = (_inverse(lower[:, half, half], narrow) for half in (slice(_HALF), slice(_HALF, None)))
    corner = narrow(second @ narrow(narrow(-lower[:, _HALF:, :_HALF]) @ first))
    above = torch.nn.functional.pad(first, (0, second.shape[-1]))
    return torch.cat([above, torch.cat([corner, second], -1)], 1)


def chunk(
    state: Tensor, query: Tensor, key: Tensor, value: Tensor, beta: Tensor, gate: Tensor, scale: float, how: Rounding
) -> tuple[Tensor, Tensor]:
    """Return state and outputs after a chunk.

    Parameters
    ----------
    state : Tensor
        float32 [N, Dv, Dk].
    query, key : Tensor
        float32 [N, C, Dk].
    value : Tensor
        float32 [N, C, Dv].
    beta, gate : Tensor
        float32 [N, C]; gate is the logarithm of the decay.
    scale : float
        Of the query.
    how : Rounding
        Where it rounds.

    Returns
    -------
    tuple of Tensor
        float32 [N, Dv, Dk] and [N, C, Dv].
    """
    total = gate.cumsum(-1)
    grown, last = total.exp().unsqueeze(-1), total[:, -1:]
    # Above the diagonal gates grow; a mask, so that no infinity is multiplied by 0.
    lower = torch.ones(total.shape[1], total.shape[1], dtype=torch.bool).tril()
    decay = how.decay(total[:, :, None], total[:, None, :]).masked_fill(~lower, 0.0)
    narrow = how.narrow
    alike = narrow(key @ key.mT) * beta[:, :, None] * decay
    inverse = _inverse(alike.tril(-1), narrow)
    inner = narrow(inverse @ narrow(value * beta[:, :, None]))
    grown_keys = narrow(inverse @ narrow(key * beta[:, :, None] * grown))
    old = narrow(narrow(query * scale * grown) @ state.mT)
    new = narrow(inner - narrow(grown_keys @ state.mT))
    scores = narrow((narrow(query @ key.mT) * scale * decay).masked_fill(~lower, 0.0))
    output = old + narrow(scores @ new)
    kept = narrow(state * last.exp().unsqueeze(-1))
    decayed = narrow(key * how.decay(last, total).unsqueeze(-1))
    return narrow(kept + narrow(new.mT @ decayed)), output
