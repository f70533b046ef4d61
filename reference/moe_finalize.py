"""Bringing the rows of a token's experts back together."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.bounds import Expected, accumulation_error
from npudiff.reference.inexact import Inexact
from npudiff.reference.moe_routing import NOWHERE
from npudiff.reference.views import moved_inputs


@dataclass(frozen=True)
class MoeFinalizeInputs:
    """Results of all experts, where those of each token are, and what they weigh."""

    expanded_rows: torch.Tensor
    """``[copies, width]``, bfloat16, float16 or float32. Rows that no place names may hold anything."""
    src_to_dst_row: torch.Tensor
    """int32 ``[tokens, top_k]``: the row of each copy, ``NOWHERE`` for one that is left out."""
    weights: torch.Tensor
    """``[tokens, top_k]`` of the dtype of ``expanded_rows``."""
    residual: torch.Tensor | None
    """``[tokens, width]`` of the same dtype: added, as the result of shared experts is."""

    def to(self, device: str | torch.device) -> MoeFinalizeInputs:
        """Return the same inputs on ``device``."""
        return moved_inputs(self, device, copies=())


def moe_finalize(inputs: MoeFinalizeInputs) -> dict[str, Expected]:
    """Return the weighted sum of each token's rows, ``residual[t] + sum_k weights[t, k] * rows[src_to_dst_row[t, k]]``.

    Copies that are left out count as zeros (Shazeer et al., "Outrageously large neural networks", 2017, eq. 1).

    Returns
    -------
    dict
        ``output``: ``[tokens, width]`` of the dtype of ``expanded_rows``.

    Raises
    ------
    ValueError
        If shapes contradict each other, or a place does not exist.

    Notes
    -----
    A correct device may round each product to the dtype of the rows, adds in float32 in any order, ``residual`` first
    or last, and rounds the sum once before ``residual`` is added and once at the end.
    """
    _validate(inputs)
    dtype = inputs.expanded_rows.dtype
    here = inputs.src_to_dst_row != NOWHERE
    tokens, top_k = inputs.src_to_dst_row.shape
    rows = torch.zeros(tokens, top_k, inputs.expanded_rows.shape[1], dtype=torch.float64)
    rows[here] = inputs.expanded_rows[inputs.src_to_dst_row[here].to(torch.int64)].to(torch.float64)
    weights = inputs.weights.masked_fill(~here, 0.0)
    residual = None if inputs.residual is None else Inexact.exact(inputs.residual)
    result = weighted_sum(Inexact.exact(rows), Inexact.exact(weights), residual, dtype)
    return {"output": Expected(result.value, result.error, dtype)}


def weighted_sum(
    rows: Inexact,
    weights: Inexact,
    residual: Inexact | None,
    dtype: torch.dtype,
    brought: torch.Tensor | None = None,
    topk_ids: torch.Tensor | None = None,
) -> Inexact:
    """Return the weighted sum of each token's rows, as a device has it in a dtype.

    Parameters
    ----------
    rows : Inexact
        ``[tokens, top_k, width]``.
    weights : Inexact
        ``[tokens, top_k]``.
    residual : Inexact or None
        ``[tokens, width]``.
    dtype : torch.dtype
        Of the rows and of the result.
    brought : torch.Tensor or None
        ``[tokens, top_k, width]``: further bounds on errors of the rows, by ``reference.linear.carried``. They come
        out of matrices, and those of different experts have nothing to do with each other: their squares add up.
    topk_ids : torch.Tensor or None
        ``[tokens, top_k]``: the expert of each row, where a token may name one several times; None where all differ.
    """
    wide = Inexact(weights.value.unsqueeze(2), weights.error.unsqueeze(2))
    products = rows.times(wide).in_float32().rounded(dtype)
    sizes = products.value.abs().sum(dim=1)
    if residual is not None:
        sizes = sizes + residual.value.abs()
    added = sizes * accumulation_error(rows.value.shape[1] + 2)
    error = products.error.sum(dim=1) + added
    if brought is not None:
        of_copies = (brought * wide.value).abs()
        unknown = ~of_copies.isfinite()
        of_copies = of_copies.masked_fill(unknown, 0.0)  # 0 times infinity would be nobody's bound
        of_expert = of_copies
        if topk_ids is not None:
            of_expert = (topk_ids.unsqueeze(2) == topk_ids.unsqueeze(1)).to(torch.float64) @ of_copies
        error = error + (of_copies * of_expert).sum(dim=1).sqrt()
        error = error.masked_fill(unknown.any(dim=1), torch.inf)
    total = Inexact(products.value.sum(dim=1), error)
    if residual is not None:
        total = total.rounded(dtype).plus(residual).in_float32()
    return total.stored(dtype)


def _validate(inputs: MoeFinalizeInputs) -> None:
    copies, width = inputs.expanded_rows.shape
    if inputs.weights.shape != inputs.src_to_dst_row.shape or inputs.src_to_dst_row.dim() != 2:
        raise ValueError(f"weights must be {list(inputs.src_to_dst_row.shape)}, got {list(inputs.weights.shape)}")
    if inputs.residual is not None and tuple(inputs.residual.shape) != (len(inputs.src_to_dst_row), width):
        raise ValueError(f"residual must be {[len(inputs.src_to_dst_row), width]}, got {list(inputs.residual.shape)}")
    if (
        inputs.src_to_dst_row.numel()
        and not NOWHERE <= int(inputs.src_to_dst_row.min()) <= int(inputs.src_to_dst_row.max()) < copies
    ):
        raise ValueError(f"places must lie in {NOWHERE}..{copies - 1}")
