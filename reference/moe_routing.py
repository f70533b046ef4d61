"""Sorting tokens by expert: which row goes where, and how many rows each expert gets."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from reference.bounds import Expected, exactly
from reference.dynamic_quant import LEVELS, by_largest, nearest, scales, through_float16
from reference.inexact import Inexact
from reference.views import moved_inputs

NOWHERE = -1
"""Place of a token's copy for an expert that is not here."""


@dataclass(frozen=True)
class MoeRoutingInputs:
    """Tokens and the experts that each goes to.

    Attributes
    ----------
    states : torch.Tensor
        ``[tokens, width]``, bfloat16 or float16; its rows may be slices of wider ones.
    experts : torch.Tensor
        int32 ``[tokens, chosen]``: different ones for each token, in ``0..all_experts - 1``.
    all_experts : int
        Experts of the model.
    first, last : int
        Experts ``first`` to ``last - 1`` are here; copies for others are left out.
    quantised : bool
        Whether copies are int8, each with a scale.
    """

    states: torch.Tensor
    experts: torch.Tensor
    all_experts: int
    first: int
    last: int
    quantised: bool = False

    def to(self, device: str | torch.device) -> MoeRoutingInputs:
        """Return the same inputs on ``device``."""
        return moved_inputs(self, device, copies=())


def moe_routing(inputs: MoeRoutingInputs) -> dict[str, Expected]:
    """Return copies of the tokens, those of one expert after the other, and where each copy is.

    Copies for one expert keep the order of their tokens. With ``n`` copies in all, rows from ``n`` on are nobody's.

    Returns
    -------
    dict
        ``rows``: ``[tokens * chosen, width]``, of the dtype of ``states`` or int8. ``places``: int64 ``[tokens,
        chosen]``, the row of each copy, ``NOWHERE`` for experts that are not here. ``counts``: int64 ``[last -
        first]``, copies for each expert that is here. ``scale``: float32 ``[tokens * chosen]``, or empty if nothing is
        quantised.

    Raises
    ------
    ValueError
        If shapes contradict each other, or an expert does not exist.

    Notes
    -----
    In int8 a correct device may cut the quotient to float16 on its way, by a part of 2**-10.
    """
    _validate(inputs)
    tokens, chosen = inputs.experts.shape
    flat = inputs.experts.flatten().to(torch.int64)
    here = (flat >= inputs.first) & (flat < inputs.last)
    order = torch.argsort(flat.masked_fill(~here, inputs.all_experts), stable=True)[: int(here.sum())]
    places = torch.full((tokens * chosen,), NOWHERE).index_copy(0, order, torch.arange(len(order)))
    counts = torch.bincount(flat[here] - inputs.first, minlength=inputs.last - inputs.first)
    copies = inputs.states[order // chosen]
    rest = tokens * chosen - len(order)
    outputs = _quantised(copies) if inputs.quantised else {"rows": exactly(copies)}
    outputs = {name: _followed_by_nothing(output, rest) for name, output in outputs.items()}
    return {
        "rows": outputs["rows"],
        "places": exactly(places.view(tokens, chosen)),
        "counts": exactly(counts),
        "scale": outputs.get("scale", exactly(torch.empty(0))),
    }


def _quantised(copies: torch.Tensor) -> dict[str, Expected]:
    steps, scale = by_largest(Inexact.exact(copies), 8)
    return {"rows": nearest(through_float16(steps), LEVELS[8]), "scale": scales(scale)}


def _followed_by_nothing(output: Expected, rows: int) -> Expected:
    """Append rows of which nothing is said."""
    shape = (rows, *output.value.shape[1:])
    value = torch.cat([output.value, output.value.new_zeros(shape)])
    bound = torch.cat([output.bound, torch.full(shape, torch.inf, dtype=torch.float64)])
    return replace(output, value=value, bound=bound)


def _validate(inputs: MoeRoutingInputs) -> None:
    if inputs.experts.dim() != 2 or len(inputs.experts) != len(inputs.states):
        raise ValueError(f"experts must be [{len(inputs.states)}, chosen], got {list(inputs.experts.shape)}")
    if not 0 <= inputs.first < inputs.last <= inputs.all_experts:
        raise ValueError(f"experts {inputs.first} to {inputs.last} are not among {inputs.all_experts}")
    if inputs.experts.numel() and not 0 <= int(inputs.experts.min()) <= int(inputs.experts.max()) < inputs.all_experts:
        raise ValueError(f"experts must lie in 0..{inputs.all_experts - 1}")
