"""The arithmetic of gated activations, in float32 from beginning to end.

That 16-bit inputs are widened first and rounded once is inferred from CANN's kernels.
"""

from __future__ import annotations

from torch import Tensor


def swish_gate(gate: Tensor, up: Tensor) -> Tensor:
    """Return ``gate * sigmoid(gate) * up``.

    Parameters
    ----------
    gate, up : Tensor
        float32, one shape.

    Returns
    -------
    Tensor
        float32, their shape.
    """
    return gate * gate.sigmoid() * up


def clipped_gate(gate: Tensor, up: Tensor, *, limit: float, alpha: float, bias: float) -> Tensor:
    """Return ``g * sigmoid(alpha * g) * (u + bias)``, g the gate up to a limit and u the other between both limits.

    Parameters
    ----------
    gate, up : Tensor
        float32, one shape.
    limit, alpha, bias : float
        Rounded to float32 where they are used.

    Returns
    -------
    Tensor
        float32, their shape.
    """
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * (gate * alpha).sigmoid() * (up + bias)
