"""Gated activations of an expert or a dense layer: SwiGLU, limits after or before the gate, and which one applies."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import torch

from npudiff.reference.bounds import Expected
from npudiff.reference.inexact import Inexact, sigmoid, tanh
from npudiff.reference.views import moved_inputs

ROUNDINGS = ("stages", "once")
"""stages: a device may round to the dtype of the states after each operation, as composed PyTorch does. once:
everything in float32, and one rounding at the end, as fused operators do."""

LAYOUTS = ("halves", "interleaved")
"""halves: all gates, then all ups. interleaved: the gate and the up of one output next to each other."""


class Activation(enum.Enum):
    """What a model's configuration calls its activation."""

    SILU = "silu"
    """SwiGLU: ``silu(gate) * up``. With a limit it is SWIGLUSTEP, as a configuration that has one means it."""

    SWIGLUSTEP = "swiglustep"
    """``min(silu(gate), limit) * clamp(up, -limit, limit)``: the limit comes after the gate."""

    GELU_TANH = "gelu_tanh"
    """GeGLU: ``gelu(gate) * up``, by a hyperbolic tangent. No configuration has a limit beside it; where there is one,
    it comes after the gate, as in SWIGLUSTEP."""

    SWIGLU_OAI = "swiglu_oai"
    """``g * sigmoid(alpha * g) * (u + bias)`` with ``g = min(gate, limit)`` and ``u = clamp(up, -limit, limit)``."""


@dataclass(frozen=True)
class SwigluInputs:
    """Gates and ups of all rows, and the part of the configuration that says what becomes of them."""

    states: torch.Tensor
    """``[tokens, 2 * width]``, bfloat16, float16 or float32; its rows may be slices of wider ones."""
    activation: Activation
    """What the configuration says."""
    routed_limit: float | None
    shared_limit: float | None
    """Limit of routed experts, and of shared experts and dense layers; None for none."""
    shared: bool = False
    """Whether this is a shared expert or a dense layer."""
    alpha: float = 1.702
    bias: float = 1.0
    """Of ``SWIGLU_OAI``."""
    layout: str = "halves"
    """One of ``LAYOUTS``."""
    rounding: str = "stages"
    """One of ``ROUNDINGS``: how precise an implementation has to be."""

    @property
    def limit(self) -> float | None:
        """The limit that applies here."""
        return self.shared_limit if self.shared else self.routed_limit

    def to(self, device: str | torch.device) -> SwigluInputs:
        """Return the same inputs on ``device``."""
        return moved_inputs(self, device, copies=())


def swiglu(inputs: SwigluInputs) -> dict[str, Expected]:
    """Return the gated activation of every row.

    Sources: Shazeer, "GLU variants improve transformer", 2020, eq. 6, for ``silu`` and ``gelu_tanh``, whose tangent is
    that of Hendrycks and Gimpel, "Gaussian error linear units", 2016, section 2; the model files of Step-3.5 for
    ``swiglustep`` and of GPT-OSS for ``swiglu_oai``.

    Returns
    -------
    dict
        ``output``: ``[tokens, width]`` of the dtype of ``states``.

    Raises
    ------
    ValueError
        If the layout or rounding is not known, the number of columns is odd, or a limit is not positive.

    Notes
    -----
    A correct device has the exponential of a sigmoid within ``EXPONENTIAL_FUNCTION_ERROR``, and rounds sum and
    quotient in float32. In ``stages`` it rounds to the dtype of the states after each operation, the limit included.
    """
    _validate(inputs)
    dtype = inputs.states.dtype
    stage = dtype if inputs.rounding == "stages" else torch.float32
    gate, up = split(Inexact.exact(inputs.states), inputs.layout)
    result = gated(gate, up, inputs.activation, inputs.limit, inputs.alpha, inputs.bias, stage).stored(dtype)
    return {"output": Expected(result.value, result.error, dtype)}


def split(states: Inexact, layout: str) -> tuple[Inexact, Inexact]:
    """Return gates and ups, ``[..., width]`` each, of ``[..., 2 * width]``."""
    if layout == "interleaved":
        first, second = slice(0, None, 2), slice(1, None, 2)
    else:
        width = states.value.shape[-1] // 2
        first, second = slice(0, width), slice(width, None)
    gate, up = (Inexact(states.value[..., part], states.error[..., part]) for part in (first, second))
    return gate, up


def gated(
    gate: Inexact,
    up: Inexact,
    activation: Activation,
    limit: float | None,
    alpha: float,
    bias: float,
    stage: torch.dtype,
) -> Inexact:
    """Return the gated activation, before the last product is stored.

    Parameters
    ----------
    gate, up : Inexact
        Of the same shape.
    activation : Activation
        What the configuration says.
    limit : float or None
        Of the activation; None for none.
    alpha, bias : float
        Of ``SWIGLU_OAI``.
    stage : torch.dtype
        What a device rounds to between operations.
    """
    if activation is Activation.SWIGLU_OAI:
        return oai(gate, up, limit, alpha, bias, stage).in_float32()
    smooth = gelu_tanh(gate) if activation is Activation.GELU_TANH else gate.times(sigmoid(gate)).in_float32(2)
    return step(smooth.rounded(stage), up, limit, stage).in_float32()


def gelu_tanh(gate: Inexact) -> Inexact:
    """Return ``g / 2 * (1 + tanh(sqrt(2 / pi) * (g + 0.044715 * g**3)))``, in float32."""
    near = gate.within(GELU_FAR, torch.float32)
    cube = near.square().times(near).in_float32(2)
    inner = near.plus(cube.times(GELU_CUBE)).times(math.sqrt(2 / math.pi)).in_float32(4)
    return gate.times(0.5).times(tanh(inner).plus(1.0)).in_float32(3)


GELU_CUBE = 0.044715
"""Of the tangent's argument."""

GELU_FAR = 64.0
"""A gate beyond which the tangent is 1 or -1, also where its argument is no float32 any more."""


def step(smooth: Inexact, up: Inexact, limit: float | None, stage: torch.dtype) -> Inexact:
    """Return ``smooth * up``, each limited if there is a limit, before the product is rounded.

    Parameters
    ----------
    smooth, up : Inexact
        What became of the gate, and the up, of the same shape.
    limit : float or None
        What ``smooth`` is limited to from above, and ``up`` on both sides.
    stage : torch.dtype
        What a device rounds to between operations.
    """
    if limit is None:
        return smooth.times(up)
    return smooth.at_most(limit, stage).times(up.within(limit, stage))


def oai(gate: Inexact, up: Inexact, limit: float | None, alpha: float, bias: float, stage: torch.dtype) -> Inexact:
    """Return ``g * sigmoid(alpha * g) * (u + bias)``, before the product is rounded.

    Parameters
    ----------
    gate, up : Inexact
        Of the same shape.
    limit : float or None
        What ``gate`` is limited to from above, and ``up`` on both sides.
    alpha, bias : float
        As in the formula.
    stage : torch.dtype
        What a device rounds to between operations.
    """
    if limit is not None:
        gate, up = gate.at_most(limit, stage), up.within(limit, stage)
    inner = gate.times(alpha).in_float32(2).rounded(stage)
    silu = gate.times(sigmoid(inner).rounded(stage)).in_float32().rounded(stage)
    return silu.times(up.plus(bias).in_float32().rounded(stage))


def _validate(inputs: SwigluInputs) -> None:
    if inputs.layout not in LAYOUTS or inputs.rounding not in ROUNDINGS:
        raise ValueError(f"no layout {inputs.layout} or rounding {inputs.rounding}")
    if inputs.states.shape[-1] % 2:
        raise ValueError(f"states have gates and ups in pairs, got {inputs.states.shape[-1]} columns")
    if any(limit is not None and not limit > 0 for limit in (inputs.routed_limit, inputs.shared_limit)):
        raise ValueError(f"limits must be positive, got {inputs.routed_limit} and {inputs.shared_limit}")
