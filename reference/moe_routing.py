"""Sorting tokens by expert: which row goes where, and how many rows each expert gets."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from npudiff.reference.bounds import Expected, exactly
from npudiff.reference.dynamic_quant import LEVELS, by_largest, nearest, scales, through_float16
from npudiff.reference.inexact import Inexact
from npudiff.reference.quant_matmul import RANGES
from npudiff.reference.views import moved_inputs

NOWHERE = -1
"""Place of a token's copy for an expert that is not here."""


FORMS = ("as they are", "with scales", "by largest", "smoothed", "one scale")
"""What copies become. with scales: as they are, each with the scale of its token. by largest: int8 by the largest
element of each. smoothed: the same, after a product with the factors of its expert. one scale: int8 of
``x * scale + offset``."""


@dataclass(frozen=True)
class MoeRoutingInputs:
    """Tokens and the experts that each goes to."""

    states: torch.Tensor
    """``[tokens, width]``, bfloat16 or float16; its rows may be slices of wider ones."""
    experts: torch.Tensor
    """int32 ``[tokens, top_k]``: different ones for each token, in ``0..all_experts - 1``. A padded token may have -1
    or ``all_experts`` in all places: it goes nowhere and is not counted, as is an expert that is not here."""
    all_experts: int
    """Experts of the model."""
    first: int
    last: int
    """Experts ``first`` to ``last - 1`` are here; copies for others are left out."""
    form: str = "as they are"
    """One of ``FORMS``."""
    scale: torch.Tensor | None = None
    """float32: ``[tokens]`` of tokens, ``[last - first, width]`` or ``[1, width]`` factors of elements, or ``[1]``."""
    offset: torch.Tensor | None = None
    """float32 ``[1]``, with one scale."""

    def to(self, device: str | torch.device) -> MoeRoutingInputs:
        """Return the same inputs on ``device``."""
        return moved_inputs(self, device, copies=())


def moe_routing(inputs: MoeRoutingInputs) -> dict[str, Expected]:
    """Return copies of the tokens, those of one expert after the other, and where each copy is.

    Copies for one expert keep the order of their tokens. With ``n`` copies in all, rows from ``n`` on are nobody's.

    Returns
    -------
    dict
        ``rows``: ``[tokens * top_k, width]``, of the dtype of ``states`` or int8. ``src_to_dst_row``: int64 ``[tokens,
        top_k]``, the row of each copy, ``NOWHERE`` for experts that are not here. ``counts``: int64 ``[last -
        first]``, copies for each expert that is here. ``scale``: float32 ``[tokens * top_k]``, or empty if copies
        have none.

    Raises
    ------
    ValueError
        If shapes contradict each other, or an expert does not exist.

    Notes
    -----
    In int8 a correct device may cut the quotient to float16 on its way, by a part of 2**-10. With one scale it computes
    in float16, and rounds state, scale, product, offset and sum; what int8 does not hold becomes -128 or 127.
    """
    _validate(inputs)
    tokens, top_k = inputs.experts.shape
    flat = inputs.experts.flatten().to(torch.int64)
    here = (flat >= inputs.first) & (flat < inputs.last)
    order = torch.argsort(flat.masked_fill(~here, inputs.all_experts), stable=True)[: int(here.sum())]
    src_to_dst_row = torch.full((tokens * top_k,), NOWHERE).index_copy(0, order, torch.arange(len(order)))
    counts = torch.bincount(flat[here] - inputs.first, minlength=inputs.last - inputs.first)
    rest = tokens * top_k - len(order)
    outputs = _formed(inputs, order // top_k, flat[order] - inputs.first)
    outputs = {name: _followed_by_nothing(output, rest) for name, output in outputs.items()}
    return {
        "rows": outputs["rows"],
        "src_to_dst_row": exactly(src_to_dst_row.view(tokens, top_k)),
        "counts": exactly(counts),
        "scale": outputs.get("scale", exactly(torch.empty(0))),
    }


def _formed(inputs: MoeRoutingInputs, tokens: torch.Tensor, experts: torch.Tensor) -> dict[str, Expected]:
    """Copies of tokens for experts, as numbers among those that are here, and their scales."""
    copies, scale = inputs.states[tokens], inputs.scale
    if inputs.form == "with scales" and scale is not None:
        return {"rows": exactly(copies), "scale": exactly(scale[tokens])}
    if inputs.form == "one scale" and scale is not None and inputs.offset is not None:
        least, most = RANGES[8]
        return {"rows": nearest(_in_float16(copies, scale, inputs.offset), most, least)}
    if inputs.form in ("by largest", "smoothed"):
        states = Inexact.exact(copies)
        if scale is not None:
            factors = scale if len(scale) == 1 else scale[experts]
            states = states.times(Inexact.exact(factors)).in_float32()
        steps, size = by_largest(states, 8)
        return {"rows": nearest(through_float16(steps), LEVELS[8]), "scale": scales(size)}
    return {"rows": exactly(copies)}


def _in_float16(copies: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor) -> Inexact:
    half = torch.float16
    factor, addend = (Inexact.exact(number).rounded(half) for number in (scale, offset))
    return Inexact.exact(copies).rounded(half).times(factor).rounded(half).plus(addend).rounded(half)


def _followed_by_nothing(output: Expected, rows: int) -> Expected:
    """Append rows of which nothing is said."""
    shape = (rows, *output.value.shape[1:])
    value = torch.cat([output.value, output.value.new_zeros(shape)])
    bound = torch.cat([output.bound, torch.full(shape, torch.inf, dtype=torch.float64)])
    return replace(output, value=value, bound=bound)


def _validate(inputs: MoeRoutingInputs) -> None:
    here, width = inputs.last - inputs.first, inputs.states.shape[1]
    shapes: dict[str, list[tuple[int, ...]]] = {
        "with scales": [(len(inputs.states),)],
        "smoothed": [(here, width), (1, width)],
        "one scale": [(1,)],
    }
    if inputs.form not in FORMS:
        raise ValueError(f"form is one of {', '.join(FORMS)}, got {inputs.form}")
    given = None if inputs.scale is None else tuple(inputs.scale.shape)
    if (given not in shapes[inputs.form]) if inputs.form in shapes else given is not None:
        raise ValueError(f"scale does not go with {inputs.form}, of shape {given}")
    if (inputs.offset is not None) != (inputs.form == "one scale"):
        raise ValueError("an offset goes with one scale, and with nothing else")
    if inputs.experts.dim() != 2 or len(inputs.experts) != len(inputs.states):
        raise ValueError(f"experts must be [{len(inputs.states)}, chosen], got {list(inputs.experts.shape)}")
    if not 0 <= inputs.first < inputs.last <= inputs.all_experts:
        raise ValueError(f"experts {inputs.first} to {inputs.last} are not among {inputs.all_experts}")
    marked = (inputs.experts == NOWHERE) | (inputs.experts == inputs.all_experts)
    exists = (inputs.experts >= 0) & (inputs.experts < inputs.all_experts)
    if not bool((exists.all(dim=1) | marked.all(dim=1)).all()):
        last = inputs.all_experts - 1
        raise ValueError(f"experts must lie in 0..{last}, or all of a token be {NOWHERE} or {inputs.all_experts}")
