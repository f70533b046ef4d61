"""Wrong L2 norms."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.l2_norm import native_l2_norm
from npudiff.reference.l2_norm import L2NormInputs


@perturbed(native_l2_norm, "example: epsilon is left out of the sum")
def epsilon_left_out(inputs: L2NormInputs) -> L2NormInputs:
    """Normalise without epsilon."""
    return replace(inputs, epsilon=0.0)


@mutant(native_l2_norm, "example: the mean of squares in place of their sum", supports={"width": range(2, 2**13)})
def mean_for_sum(inputs: L2NormInputs, target: Target) -> torch.Tensor:
    """Normalise by the root mean square."""
    return native_l2_norm(inputs, target) * inputs.x.shape[1] ** 0.5


@mutant(native_l2_norm, "example: squares are summed in the dtype of the rows", supports={"width": range(64, 2**13)})
def summed_in_low_precision(inputs: L2NormInputs, target: Target) -> torch.Tensor:
    """Round each square and their sum to the dtype of the rows."""
    squares = inputs.x.square().sum(dim=-1, keepdim=True, dtype=inputs.x.dtype)
    return inputs.x * torch.rsqrt(squares + inputs.epsilon)
