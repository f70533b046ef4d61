"""What errors of keys and values come to, where a device makes them itself and rounds them before attention."""

from __future__ import annotations

import torch

from npudiff.reference.bounds import ACCUMULATION_CONFIDENCE


class InexactKeys:
    """Sums over the keys of a tile of rows, of which the errors of outputs and log-sum-exp are made.

    The elements of keys and values are rounded one by one, so that errors add up as squares do where no two tokens are
    equal: by Hoeffding, they stay within ``ACCUMULATION_CONFIDENCE`` times the root of their sum. An error ``d_j`` of a
    score, whose square is at most ``sum_c (q_c e_jc)**2``, moves an output ``o`` by ``p_j (v_j - o) d_j`` and the
    log-sum-exp by ``p_j d_j``. The sum of ``(v_j - o)**2`` is taken apart, since ``o`` is known after the last key.

    Parameters
    ----------
    value : torch.Tensor
        float64 ``[kv_heads, rows, value_dim]``, of whose shape outputs are.
    """

    def __init__(self, value: torch.Tensor) -> None:
        self._second, self._first, self._own = (torch.zeros_like(value) for _ in range(3))
        self._mass = torch.zeros(*value.shape[:-1], 1, dtype=torch.float64)
        self._furthest = torch.zeros_like(self._mass)

    def add(
        self,
        query: torch.Tensor,
        weights: torch.Tensor,
        values: torch.Tensor,
        key_squares: torch.Tensor,
        value_squares: torch.Tensor,
    ) -> None:
        """Add some keys.

        Parameters
        ----------
        query : torch.Tensor
            float64 ``[kv_heads, rows, head_dim]``, times the scale.
        weights : torch.Tensor
            float64 ``[kv_heads, rows, keys]``, up to a factor of each row; 0 where a row does not see a key.
        values : torch.Tensor
            float64 ``[kv_heads, keys, value_dim]``.
        key_squares, value_squares : torch.Tensor
            Squares of errors, ``[kv_heads, head_dim, keys]`` and ``[kv_heads, keys, value_dim]``.
        """
        scores = torch.matmul(query.square(), key_squares)
        self._furthest = torch.maximum(self._furthest, torch.where(weights > 0, scores, 0.0).amax(dim=-1, keepdim=True))
        squares = weights.square()
        self._own += torch.matmul(squares, value_squares)
        squares *= scores
        self._second += torch.matmul(squares, values.square())
        self._first += torch.matmul(squares, values)
        self._mass += squares.sum(dim=-1, keepdim=True)

    def shrink(self, by: torch.Tensor) -> None:
        """Take the factor of the weights of each row, ``[kv_heads, rows, 1]``, as so much smaller."""
        for sums in (self._second, self._first, self._own, self._mass):
            sums.mul_(by.square())

    def widened(
        self, value: torch.Tensor, output_bound: torch.Tensor, lse_bound: torch.Tensor, share: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return bounds of outputs and log-sum-exp with these errors, where weights times ``share`` add up to 1.

        An exponential is convex: what is linear in the errors of scores is widened by the largest of them, in numerator
        and denominator, and so are the weights that the bounds of everything else were computed with.
        """
        unscaled = (self._second, self._first, self._own, self._mass)
        second, first, own, mass = (sums * share.square() for sums in unscaled)
        widest = torch.exp(2 * ACCUMULATION_CONFIDENCE * self._furthest.sqrt())
        moved = (second - 2 * value * first + value.square() * mass).clamp(min=0.0)
        errors = ACCUMULATION_CONFIDENCE * (moved + own).sqrt()
        logarithm = ACCUMULATION_CONFIDENCE * mass.sqrt() * widest
        return (output_bound + errors) * widest, lse_bound + logarithm.squeeze(-1)
