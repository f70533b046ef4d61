"""Quantisation of rows to integers, with a scale for each row that is taken from its largest element."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.bounds import ACCUMULATION_CONFIDENCE, Expected, underflow_step, unit_roundoff
from npudiff.reference.inexact import Inexact
from npudiff.reference.views import moved_inputs

LEVELS = {8: 127, 4: 7}
"""The largest integer of as many bits. The smallest one that there is, -128 or -8, is not used."""

ZERO_ROW_SCALE = (0.0, 1.0)
"""Scales of a row of zeros that are right: operators return 0, their published reference code 1."""


@dataclass(frozen=True)
class DynamicQuantInputs:
    """Rows to quantise."""

    states: torch.Tensor
    """``[tokens, width]``, bfloat16 or float16; its rows may be slices of wider ones."""
    smooth: torch.Tensor | None
    """Factors ``[experts, width]`` of the dtype of ``states``, by which rows are multiplied first."""
    expert_ends: torch.Tensor | None
    """int32 ``[experts]``: the row behind the last one of each expert; None if one row of factors is for all."""
    bits: int
    """8 or 4."""

    def to(self, device: str | torch.device) -> DynamicQuantInputs:
        """Return the same inputs on ``device``."""
        return moved_inputs(self, device, copies=())


def dynamic_quant(inputs: DynamicQuantInputs) -> dict[str, Expected]:
    """Return the integers of every row, and what one of them is worth.

    ``scale = max(|x * smooth|) / levels`` of a row, and ``q = round(x * smooth / scale)``: symmetric quantisation by
    the largest magnitude (Dettmers et al., "LLM.int8()", 2022, eq. 1), with the factors of SmoothQuant (Xiao et al.,
    2023, eq. 3).

    Returns
    -------
    dict
        ``quantised``: int8 ``[tokens, width]``, four bits in eight where there are four. ``scale``: float32
        ``[tokens]``.

    Raises
    ------
    ValueError
        If the number of bits is not known, or shapes or ends of experts contradict each other.

    Notes
    -----
    A correct device rounds product, scale, its reciprocal and quotient in float32. An integer may differ where the
    quotient lies that close to the middle between two.
    """
    smooth = _factors(inputs)
    steps, scale = by_largest(Inexact.exact(inputs.states).times(Inexact.exact(smooth)).in_float32(), inputs.bits)
    return {"quantised": nearest(steps, LEVELS[inputs.bits]), "scale": scales(scale)}


def by_largest(states: Inexact, bits: int) -> tuple[Inexact, Inexact]:
    """Return how many steps each element of rows ``[..., rows, width]`` has, and the size of a step, ``[..., rows]``.

    The largest element of a device lies between the largest of all least ones and the largest of all most ones. A row
    of zeros has steps 0.
    """
    sizes = states.value.abs()
    ends = (sizes, sizes - states.error, sizes + states.error)
    value, least, most = (end.amax(dim=-1, keepdim=True) for end in ends)
    error = torch.maximum(most - value, value - least)
    scale = Inexact(value, error).times(1 / LEVELS[bits]).in_float32(SCALE_ROUNDINGS)
    steps = states.over(scale).in_float32(STEP_ROUNDINGS)
    zero = value == 0
    of_zeros = torch.where(error == 0, 0.0, torch.inf)  # what a device has beside them may be anything of a row
    steps = Inexact(torch.where(zero, 0.0, steps.value), torch.where(zero, of_zeros, steps.error))
    return steps, Inexact(scale.value.squeeze(-1), scale.error.squeeze(-1))


SCALE_ROUNDINGS = 3
"""Roundings of a scale to float32: a device has the reciprocal of the levels, the product, or quotients instead."""

STEP_ROUNDINGS = 3
"""Roundings between a scale and the number of steps: those of a reciprocal, of its use and of a product."""


def through_float16(steps: Inexact) -> Inexact:
    """Return steps that a device may have cut to float16 on its way to integers, as some operators do."""
    return Inexact(steps.value, steps.error + (steps.value.abs() + steps.error) * 2 * unit_roundoff(torch.float16))


def as_terms(states: Inexact, bits: int) -> tuple[Inexact, Inexact]:
    """Return rows that become integers as terms of a sum, and the size of a step.

    Parameters
    ----------
    states : Inexact
        ``[rows, width]``.
    bits : int
        Of the integers.

    Returns
    -------
    tuple of Inexact
        ``[rows, width]``, with errors that have nothing to do with each other; and ``[rows]``.

    Notes
    -----
    There are two ways to see what a device has, and each row takes the one that says more. Either an integer is what
    it must be, or the middle of those that it may be and off by a half; then steps of another size than this one are
    an error that the row has in common. Or an integer times the size of its step is the number itself, off by what
    the number is off and by half a step: a rounding of a number that is not known so well has nothing to do with it.
    """
    steps, scale = by_largest(states, bits)
    steps, levels = through_float16(steps), LEVELS[bits]
    unknown = states.error.amax(dim=-1) / levels  # the size of a step, where a row is zeros but for its errors
    scale = Inexact(torch.where(scale.value > 0, scale.value, unknown), scale.error)
    low, high = ((steps.value + sign * steps.error).round().clamp(-levels, levels) for sign in (-1.0, 1.0))
    middle, half = (low + high) / 2, (high - low) / 2
    size = torch.where(scale.value > 0, scale.value, 1.0).unsqueeze(-1)
    off = through_float16(Inexact(steps.value, states.error / size)).error
    rounded = torch.hypot(off, torch.full((), 0.5, dtype=torch.float64))
    common = middle.norm(dim=-1) * scale.error / size.squeeze(-1)
    known = ACCUMULATION_CONFIDENCE * half.norm(dim=-1) + common <= ACCUMULATION_CONFIDENCE * rounded.norm(dim=-1)
    by_row = known.unsqueeze(-1)
    terms = Inexact(torch.where(by_row, middle, steps.value), torch.where(by_row, half, rounded))
    return terms, Inexact(scale.value, torch.where(known, scale.error, 0.0))


def nearest(steps: Inexact, levels: int, least: int | None = None) -> Expected:
    """Return the int8 next to each number of steps, halves to even, within ``levels`` on both sides or from ``least``.

    Where both ends of the interval of correct numbers round to one integer, equality is asked for; where nothing is
    known of a number, nothing is said of its integer.
    """
    numbers = (steps.value, steps.value - steps.error, steps.value + steps.error)
    value, low, high = (number.round().clamp(-levels if least is None else least, levels) for number in numbers)
    bound = torch.maximum(high - value, value - low)
    return Expected(value, torch.where(steps.error.isfinite(), bound, torch.inf), torch.int8)


def scales(scale: Inexact) -> Expected:
    """Return the scales of rows; where a device may have nothing but zeros, any of ``ZERO_ROW_SCALE`` and between."""
    low, high = ZERO_ROW_SCALE
    maybe_zero = scale.value <= scale.error
    value = torch.where(maybe_zero, (low + high) / 2, scale.value)
    most = (scale.value + scale.error).clamp(min=high)
    stored = scale.error + underflow_step(torch.float32)
    return Expected(value, torch.where(maybe_zero, most - value, stored), torch.float32)


def _factors(inputs: DynamicQuantInputs) -> torch.Tensor:
    """Factors that broadcast to the states, float64."""
    tokens, width = inputs.states.shape
    if inputs.bits not in LEVELS:
        raise ValueError(f"bits is one of {', '.join(map(str, LEVELS))}, got {inputs.bits}")
    if inputs.smooth is None:
        if inputs.expert_ends is not None:
            raise ValueError("expert_ends say nothing without factors")
        return torch.ones(1, width, dtype=torch.float64)
    experts = 1 if inputs.expert_ends is None else len(inputs.expert_ends)
    if tuple(inputs.smooth.shape) != (experts, width):
        raise ValueError(f"smooth must be [{experts}, {width}], got {list(inputs.smooth.shape)}")
    factors = inputs.smooth.to(torch.float64)
    if inputs.expert_ends is None:
        return factors
    ends = inputs.expert_ends.to(torch.int64)
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    if int(counts.min()) < 0 or int(ends[-1]) != tokens:
        raise ValueError(f"expert_ends must not fall, and end at {tokens}, got {ends.tolist()}")
    return factors.repeat_interleave(counts, dim=0)
