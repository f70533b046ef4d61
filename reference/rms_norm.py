"""RMS normalisation, with and without a residual that is added before."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.bounds import (
    ACCUMULATION_CONFIDENCE,
    FLOAT32_ROUNDOFF,
    Expected,
    accumulation_error,
    gain_bound,
    rounding_gain,
    underflow_step,
    unit_roundoff,
)
from npudiff.reference.views import moved_inputs

ROUNDINGS = ("stages", "once")
"""stages: a device may round what it normalised, and the weight of a Gemma norm after adding 1, before it multiplies.
once: everything in float32, and one rounding at the end. The first is what fused operators do, each in its own way; the
second is what the models are trained with."""

WEIGHT_OFFSETS = {"plain": 0.0, "gemma": 1.0}
"""What is added to the weight before it multiplies: a Gemma norm stores the difference from 1."""


@dataclass(frozen=True)
class RmsNormInputs:
    """Hidden states, an optional residual, and the weight."""

    hidden: torch.Tensor
    """``[tokens, hidden_size]``, bfloat16, float16 or float32; its rows may be a slice of wider ones."""
    residual: torch.Tensor | None
    """Added to ``hidden`` first, of the same shape and dtype."""
    weight: torch.Tensor
    """``[hidden_size]``, of the same dtype."""
    epsilon: float
    """Added to the mean of squares."""
    kind: str
    """``plain`` or ``gemma``."""
    rounding: str = "stages"
    """One of ``ROUNDINGS``: how precise an implementation has to be."""

    def to(self, device: str | torch.device) -> RmsNormInputs:
        """Return the same inputs on ``device``; hidden states and residual are copies, since operators write there."""
        return moved_inputs(self, device, copies=("hidden", "residual"))


def rms_norm(inputs: RmsNormInputs) -> dict[str, Expected]:
    """Return the normalised states, the reciprocal root mean square, and the sum that becomes the next residual.

    ``y = x / sqrt(mean(x ** 2) + epsilon) * (offset + weight)`` with ``x = hidden + residual``, over the last axis
    (Zhang and Sennrich, "Root mean square layer normalization", 2019, eq. 4).

    Returns
    -------
    dict
        ``output`` of the shape and dtype of ``hidden``; ``rstd``: float32 ``[tokens, 1]``; ``sum``, of the shape and
        dtype of ``hidden``: ``x`` as it is stored.

    Raises
    ------
    ValueError
        If the shapes contradict each other, or the kind is not known.

    Notes
    -----
    A correct device stores the sum in the dtype of ``hidden``, and normalises what it stored. It accumulates squares in
    float32. Where ``rounding`` is ``stages`` it may round ``x * rstd`` to the dtype of ``hidden`` before it multiplies
    by the weight, and the weight of a Gemma norm after adding 1. Of a row whose sum it may not hold nothing is said but
    of the sum.
    """
    _validate(inputs)
    dtype = inputs.hidden.dtype
    rounding, step = unit_roundoff(dtype), underflow_step(dtype)
    total = inputs.hidden.to(torch.float64)
    stored_error = torch.zeros_like(total)
    if inputs.residual is not None:
        total = total + inputs.residual.to(torch.float64)
        stored_error = total.abs() * (rounding + 2 * FLOAT32_ROUNDOFF) + step
    weight = inputs.weight.to(torch.float64) + WEIGHT_OFFSETS[inputs.kind]
    stages = inputs.rounding == "stages"
    weight_error = weight.abs() * (rounding if stages else FLOAT32_ROUNDOFF) * (inputs.kind == "gemma")
    roundings = 2 if stages else 1
    normed = normalised(total, stored_error, weight, weight_error, inputs.epsilon, dtype, roundings)
    gain = normed.gain + rounding_gain(normed.value, normed.value, dtype)
    if inputs.residual is not None:
        gain = gain + rounding_gain(normed.value, total, dtype, normed.rstd * weight)
    if stages:
        gain = gain + rounding_gain(normed.value, total * normed.rstd, dtype, weight)
        gain = gain + rounding_gain(normed.value, weight, dtype, total * normed.rstd)
    overflows = (total.abs() + stored_error).amax(dim=-1, keepdim=True) > torch.finfo(dtype).max
    return {
        "output": Expected(normed.value, normed.bound.masked_fill(overflows, torch.inf), dtype, gain),
        "rstd": Expected(normed.rstd, (normed.rstd * normed.relative).masked_fill(overflows, torch.inf), torch.float32),
        "sum": Expected(total, stored_error, dtype),
    }


@dataclass(frozen=True)
class Normalised:
    """Normalised rows, and how far a correct device may be from them."""

    value: torch.Tensor
    """float64 ``[rows, columns]``."""
    independent: torch.Tensor
    """Error of each element that has nothing to do with the others': its roundings."""
    rstd: torch.Tensor
    relative: torch.Tensor
    """float64 ``[rows, 1]``: the factor of a row, and its relative error, which all elements of the row share."""

    @property
    def bound(self) -> torch.Tensor:
        """Both errors of each element."""
        return self.independent + self.value.abs() * self.relative

    @property
    def gain(self) -> torch.Tensor:
        """Largest gain error of each row that independent roundings and the row's factor cause."""
        return gain_bound(self.value, self.independent, self.relative.squeeze(-1))


def normalised(
    total: torch.Tensor,
    stored_error: torch.Tensor,
    weight: torch.Tensor,
    weight_error: torch.Tensor,
    epsilon: float,
    dtype: torch.dtype,
    roundings: int = 2,
) -> Normalised:
    """Return float64 rows divided by their root mean square, times a weight; with errors of rows and weight.

    A device rounds to ``dtype`` once, or a second time before it multiplies by the weight (``roundings``).
    """
    rounding, step = unit_roundoff(dtype), underflow_step(dtype)
    rstd = torch.rsqrt(total.square().mean(dim=-1, keepdim=True) + epsilon)
    relative = _rstd_error(total, stored_error, rstd)
    value = total * rstd * weight
    independent = (stored_error * rstd * weight.abs() + value.abs() * (roundings * rounding + 2 * FLOAT32_ROUNDOFF)
           + total.abs() * rstd * weight_error) * (1 + 2 * rounding) + step * (1 + weight.abs())  # fmt: skip
    return Normalised(value, independent, rstd, relative * (1 + 2 * rounding))


def _rstd_error(total: torch.Tensor, stored_error: torch.Tensor, rstd: torch.Tensor) -> torch.Tensor:
    """Relative error of the reciprocal root: half of that of the mean, and the function's own four roundings."""
    squares = total.square().mean(dim=-1, keepdim=True)
    independent = ACCUMULATION_CONFIDENCE * (2 * total * stored_error).square().sum(dim=-1, keepdim=True).sqrt()
    worst = (2 * total.abs() * stored_error).sum(dim=-1, keepdim=True)  # less than the above in a row of few elements
    moved = torch.minimum(independent, worst) / total.shape[-1] + stored_error.square().mean(dim=-1, keepdim=True)
    mean_error = moved + squares * (accumulation_error(total.shape[-1]) + 4 * FLOAT32_ROUNDOFF)
    return 0.5 * mean_error * rstd.square() * (1 + mean_error * rstd.square()) + 8 * FLOAT32_ROUNDOFF


def _validate(inputs: RmsNormInputs) -> None:
    if inputs.rounding not in ROUNDINGS:
        raise ValueError(f"rounding is one of {', '.join(ROUNDINGS)}, got {inputs.rounding}")
    if inputs.kind not in WEIGHT_OFFSETS:
        raise ValueError(f"kind is one of {', '.join(WEIGHT_OFFSETS)}, got {inputs.kind}")
    if inputs.weight.shape != inputs.hidden.shape[-1:]:
        raise ValueError(f"weight must be {list(inputs.hidden.shape[-1:])}, got {list(inputs.weight.shape)}")
    if inputs.residual is not None and inputs.residual.shape != inputs.hidden.shape:
        raise ValueError(f"residual must be {list(inputs.hidden.shape)}, got {list(inputs.residual.shape)}")
