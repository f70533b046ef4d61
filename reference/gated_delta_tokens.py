"""Consecutive tokens of one sequence under the gated delta rule: what comes out.

With cumulative decays ``e_i`` since the state ``S`` before the tokens, ``e_ij`` from token j to token i, and all heads
side by side, of one sequence or of several that are as long::

    A = strictly lower part of beta_i (k_i . k_j) e_ij        T = (1 + A)^-1
    d = T beta (v - e k S^T)                                  what each token adds: S_i = e_i S + sum_j e_ij d_j k_j^T
    o_i = e_i S q_i + sum over j <= i of (q_i . k_j) e_ij d_j

This is the recurrence in exact arithmetic (Yang et al., "Parallelizing Linear Transformers with the Delta Rule", 2024,
section 3). How far a device may be off is in ``reference.gated_delta_errors``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class DeltaState:
    """The states of heads, of one sequence or of several; all are ``heads`` here."""

    value: torch.Tensor
    """float64 ``[heads, value_dim, key_dim]``."""
    spread: torch.Tensor
    """``[heads, value_dim]``."""
    shape: torch.Tensor
    """``[heads, key_dim, key_dim]``: the covariance of the errors of a row is at most this, times its spread."""
    common: torch.Tensor
    """``[heads, value_dim]``: largest length of the error of a row that has a sign in common with others."""
    is_exact: bool = False
    """Whether all of these errors are zero, so that nothing has to be computed of what becomes of them."""

    @classmethod
    def exact(cls, value: torch.Tensor) -> DeltaState:
        """Return a state that a device has as it is."""
        heads, value_dim, key_dim = value.shape
        zero = torch.zeros(1, 1, 1, dtype=torch.float64)
        rows = zero[0].expand(heads, value_dim)
        return cls(value, rows, zero.expand(heads, key_dim, key_dim), rows, is_exact=True)


class DeltaTokens:
    """Tokens that follow a state.

    Parameters
    ----------
    state : DeltaState
        Before the first token.
    query, key : torch.Tensor
        ``[heads, tokens, key_dim]``, all float64; queries are scaled.
    value : torch.Tensor
        ``[heads, tokens, value_dim]``.
    beta : torch.Tensor
        ``[heads, tokens]``.
    gate : torch.Tensor
        ``[heads, tokens, 1 or key_dim]``: logarithms of decays.
    narrow : torch.dtype or None
        What products and states of a device go through, beside float32.
    raw : bool
        Whether a device makes queries, keys and beta itself, of what it is given.

    Notes
    -----
    What has one operand in common is one product: queries lie above keys that are multiplied by beta, and what tokens
    wish to add lies beside what they take off.
    """

    def __init__(
        self,
        state: DeltaState,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        beta: torch.Tensor,
        gate: torch.Tensor,
        narrow: torch.dtype | None,
        raw: bool = False,
    ) -> None:
        self.raw = raw
        self.state, self.query, self.key, self.beta = state, query, key, beta.unsqueeze(-1)
        self.narrow = narrow
        self.gates: torch.Tensor = gate.cumsum(dim=1)
        self.grown = self.gates.exp()
        self._set_decays()
        rows = torch.stack([query, self.beta * key], dim=1)  # [heads, 2, tokens, key_dim]
        self.scores, self.alike = self._pairs(rows)
        grown = rows * self.grown.unsqueeze(1)
        self.grown_query, self.grown_keys = grown.unbind(1)
        read = (grown.flatten(1, 2) @ state.value.mT).view(*grown.shape[:3], -1)
        self.old, self.taken = read.unbind(1)
        self.weighed = self.beta * value
        self.wanted = self.weighed - self.taken
        self._add()

    @cached_property
    def key_squares(self) -> torch.Tensor:
        """``[heads, tokens, 1]``: squared lengths of keys."""
        return self.key.square().sum(dim=-1, keepdim=True)

    @cached_property
    def stretch(self) -> torch.Tensor | None:
        """``[heads, tokens, 1]``: how much longer a token may make an error; None where none does."""
        stretch = (1 - self.beta * self.key_squares).abs()
        return None if float(stretch.max()) <= 1 else stretch.clamp_(min=1.0)

    def _set_decays(self) -> None:
        """Decays from token to token, ``[heads, tokens, tokens]`` of heads, and the largest of a token's channels."""
        if self.gates.shape[-1] == 1:
            self.decays: torch.Tensor = (self.gates - self.gates.mT).exp().tril()
            self._weighted: torch.Tensor | None = None
            return
        tokens = self.gates.shape[1]
        later = torch.ones(tokens, tokens, dtype=torch.bool).triu(1).unsqueeze(-1)
        distance = (self.gates.unsqueeze(2) - self.gates.unsqueeze(1)).masked_fill_(later, -torch.inf)
        each = distance.exp_()  # [heads, tokens, tokens, key_dim]
        self.decays = each.amax(dim=-1)
        self._weighted = each.mul_(self.key.unsqueeze(1))

    def _pairs(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Decayed products with keys: of queries with earlier ones and their own, of keys with earlier ones."""
        if self._weighted is None:
            pairs = (rows.flatten(1, 2) @ self.key.mT).view(*rows.shape[:3], -1) * self.decays.unsqueeze(1)
            return pairs[:, 0], pairs[:, 1].tril(-1)
        pairs = self._weighted @ rows.permute(0, 2, 3, 1)
        return pairs[..., 0].contiguous(), pairs[..., 1].tril(-1)

    @cached_property
    def pair_squares(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Squares of the terms of decayed products, summed over channels, as ``_pairs`` has products.

        They are what roundings of decayed queries and keys, channel by channel, bring into a product; None where decays
        are of heads, which a device puts behind it.
        """
        if self._weighted is None:
            return None
        rows = torch.stack([self.query, self.beta * self.key], dim=-1).square()
        pairs = self._weighted.square() @ rows
        return pairs[..., 0], pairs[..., 1].tril(-1)

    def _add(self) -> None:
        """What each token adds, and what it takes off: of the first state, and off the first state."""
        columns = [self.wanted]
        if self.narrow or not self.state.is_exact:
            columns.append(self.grown_keys)
        if self.narrow:
            columns.append(self.taken)
        made = torch.cat(columns, dim=-1) if len(columns) > 1 else self.wanted
        if self.alike.shape[-1] > 1:  # one token has nothing before it
            made = self.inverse @ made
        wide, key_dim = self.wanted.shape[-1], self.key.shape[-1]
        self.added, self.turned_keys = made[..., :wide], made[..., wide : wide + key_dim]
        self.off = made[..., wide + key_dim :]

    @cached_property
    def inverse(self) -> torch.Tensor:
        """``[heads, tokens, tokens]``: how tokens act on what the first of them add."""
        one = torch.eye(self.alike.shape[-1], dtype=torch.float64).expand_as(self.alike)
        inverse: torch.Tensor = torch.linalg.solve_triangular(self.alike, one, upper=False, unitriangular=True)
        return inverse

    def decayed_keys(self, tokens: list[int]) -> torch.Tensor:
        """Keys as they are in the states behind some tokens, ``[heads, some, tokens, key_dim]``; later ones are 0."""
        if self._weighted is not None:
            return self._weighted[:, tokens]
        return self.key.unsqueeze(1) * self.decays[:, tokens].unsqueeze(-1)

    def written(self, keys: torch.Tensor, tokens: list[int]) -> torch.Tensor:
        """The states behind some tokens."""
        kept = self.state.value.unsqueeze(1) * self.grown[:, tokens].unsqueeze(2)
        return kept.add_(self.added.mT.unsqueeze(1) @ keys)
