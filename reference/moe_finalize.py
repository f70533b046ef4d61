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

    expert_rows: torch.Tensor
    """``[copies, width]``, bfloat16, float16 or float32. Rows that no place names may hold anything."""
    places: torch.Tensor
    """int32 ``[tokens, chosen]``: the row of each copy, ``NOWHERE`` for one that is left out."""
    weights: torch.Tensor
    """``[tokens, chosen]`` of the dtype of ``expert_rows``."""
    skip: torch.Tensor | None
    """``[tokens, width]`` of the same dtype: added, as the result of shared experts is."""

    def to(self, device: str | torch.device) -> MoeFinalizeInputs:
        """Return the same inputs on ``device``."""
        return moved_inputs(self, device, copies=())


def moe_finalize(inputs: MoeFinalizeInputs) -> dict[str, Expected]:
    """Return the weighted sum of each token's rows, ``skip[t] + sum_k weights[t, k] * rows[places[t, k]]``.

    Copies that are left out count as zeros (Shazeer et al., "Outrageously large neural networks", 2017, eq. 1).

    Returns
    -------
    dict
        ``output``: ``[tokens, width]`` of the dtype of ``expert_rows``.

    Raises
    ------
    ValueError
        If shapes contradict each other, or a place does not exist.

    Notes
    -----
    A correct device may round each product to the dtype of the rows, adds in float32 in any order, ``skip`` first or
    last, and rounds the sum once before ``skip`` is added and once at the end.
    """
    _validate(inputs)
    dtype = inputs.expert_rows.dtype
    here = inputs.places != NOWHERE
    rows = inputs.expert_rows[inputs.places.clamp(min=0).to(torch.int64)].to(torch.float64)
    rows = torch.where(here.unsqueeze(2), rows, 0.0)
    skip = None if inputs.skip is None else Inexact.exact(inputs.skip)
    result = weighted_sum(Inexact.exact(rows), Inexact.exact(inputs.weights), skip, dtype)
    return {"output": Expected(result.value, result.error, dtype)}


def weighted_sum(
    rows: Inexact, weights: Inexact, skip: Inexact | None, dtype: torch.dtype, brought: torch.Tensor | None = None
) -> Inexact:
    """Return the weighted sum of each token's rows, as a device has it in a dtype.

    Parameters
    ----------
    rows : Inexact
        ``[tokens, chosen, width]``.
    weights : Inexact
        ``[tokens, chosen]``.
    skip : Inexact or None
        ``[tokens, width]``.
    dtype : torch.dtype
        Of the rows and of the result.
    brought : torch.Tensor or None
        ``[tokens, chosen, width]``: further bounds on errors of the rows, by ``reference.linear.carried``. They come
        out of matrices that have nothing to do with each other, so that their squares add up.
    """
    wide = Inexact(weights.value.unsqueeze(2), weights.error.unsqueeze(2))
    products = rows.times(wide).in_float32().rounded(dtype)
    sizes = products.value.abs().sum(dim=1)
    if skip is not None:
        sizes = sizes + skip.value.abs()
    added = sizes * accumulation_error(rows.value.shape[1] + 2)
    error = products.error.sum(dim=1) + added
    if brought is not None:
        error = error + (brought * wide.value).square().sum(dim=1).sqrt()
    total = Inexact(products.value.sum(dim=1), error)
    if skip is not None:
        total = total.rounded(dtype).plus(skip).in_float32()
    return total.rounded(dtype)


def _validate(inputs: MoeFinalizeInputs) -> None:
    copies, width = inputs.expert_rows.shape
    if inputs.weights.shape != inputs.places.shape or inputs.places.dim() != 2:
        raise ValueError(f"weights must be {list(inputs.places.shape)}, got {list(inputs.weights.shape)}")
    if inputs.skip is not None and tuple(inputs.skip.shape) != (len(inputs.places), width):
        raise ValueError(f"skip must be {[len(inputs.places), width]}, got {list(inputs.skip.shape)}")
    if inputs.places.numel() and not NOWHERE <= int(inputs.places.min()) <= int(inputs.places.max()) < copies:
        raise ValueError(f"places must lie in {NOWHERE}..{copies - 1}")
