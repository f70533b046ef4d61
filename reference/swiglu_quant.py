"""The activation between the two grouped products of quantised experts: from sums of int8 products to int8 rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.bounds import Expected, unspecified
from npudiff.reference.dynamic_quant import LEVELS, by_largest, nearest, scales
from npudiff.reference.inexact import Inexact
from npudiff.reference.swiglu import ROUNDINGS, Activation, gated, split
from npudiff.reference.views import moved_inputs

GATES = ("left", "right", "even")
"""Which columns are gates: the left half, the right half, or every other one from the first. The others are ups."""

BITS = 8


@dataclass(frozen=True)
class SwigluQuantInputs:
    """Gates and ups of all rows, what they are worth, and how they are activated."""

    states: torch.Tensor
    """``[tokens, 2 * width]``: int32 sums of products of int8, or bfloat16 or float16 numbers. Its rows may be slices
    of wider ones."""
    weight_scale: torch.Tensor | None
    """float32 ``[groups, 2 * width]``, what one of the sums is worth by its column; None with numbers."""
    token_scale: torch.Tensor | None
    """float32 ``[tokens]``, what one of the sums is worth by its row; None with numbers."""
    bias: torch.Tensor | None
    """int32 ``[2 * width]``, added to the sums; not with groups."""
    smooth: torch.Tensor | None
    """float32 ``[groups, width]``, by which rows are multiplied before they are quantised."""
    counts: torch.Tensor | None
    """int64 ``[groups]``: rows of each group, one group after the other. Rows beyond them all are nobody's. None for
    one group that has all rows."""
    activation: Activation = Activation.SILU
    """``SILU`` has no limit here, the others have one."""
    limit: float | None = None
    """Of the activation."""
    alpha: float = 1.702
    glu_bias: float = 1.0
    """Of ``SWIGLU_OAI``."""
    gates: str = "left"
    """One of ``GATES``."""
    dtype: torch.dtype = torch.bfloat16
    """Of the model, bfloat16 or float16: that of the numbers, or what a device may round to between operations."""
    rounding: str = "stages"
    """One of ``reference.swiglu.ROUNDINGS``."""

    @property
    def width(self) -> int:
        """Gates of a row."""
        return self.states.shape[1] // 2

    @property
    def rows_of_groups(self) -> int:
        """Rows that belong to a group."""
        return len(self.states) if self.counts is None else int(self.counts.sum())

    def to(self, device: str | torch.device) -> SwigluQuantInputs:
        """Return the same inputs on ``device``."""
        return moved_inputs(self, device, copies=())


def swiglu_quant(inputs: SwigluQuantInputs) -> dict[str, Expected]:
    """Return the activated rows as integers, and what one of them is worth.

    With ``x = (states + bias) * weight_scale[group] * token_scale``, or ``x = states``: the gated activation of
    ``reference.swiglu``, times ``smooth[group]``, quantised as by ``reference.dynamic_quant``. Activations are
    quantised between the two products of an expert by Xiao et al., "SmoothQuant", 2023, figure 6.

    Returns
    -------
    dict
        ``quantised``: int8 ``[tokens, width]``. ``scale``: float32 ``[tokens]``, the largest magnitude of a row over
        127. Nothing is said of rows that are nobody's.

    Raises
    ------
    ValueError
        If a word is not known, or shapes, counts or scales contradict each other.

    Notes
    -----
    A correct device rounds a sum to float32, as well as its products with two scales; after that it rounds as in
    ``reference.swiglu``: in ``stages`` to the dtype of the model after each operation, in ``once`` to float32 only. How
    far the activation may be off decides which integers are right.
    """
    _validate(inputs)
    stage = inputs.dtype if inputs.rounding == "stages" else torch.float32
    group, nobodys = _groups(inputs)
    gate, up = _parts(_numbers(inputs, group, stage), inputs.gates)
    rows = gated(gate, up, inputs.activation, inputs.limit, inputs.alpha, inputs.glu_bias, stage).rounded(stage)
    if inputs.smooth is not None:
        rows = rows.times(Inexact.exact(inputs.smooth[group])).in_float32().rounded(stage)
    steps, scale = by_largest(rows, BITS)
    outputs = {"quantised": nearest(steps, LEVELS[BITS]), "scale": scales(scale)}
    return {name: unspecified(output, nobodys) for name, output in outputs.items()}


def _groups(inputs: SwigluQuantInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """The group of each row, and which rows are nobody's; those are given the first group."""
    tokens = len(inputs.states)
    group = torch.zeros(tokens, dtype=torch.int64)
    if inputs.counts is not None:
        group[: inputs.rows_of_groups] = torch.arange(len(inputs.counts)).repeat_interleave(inputs.counts)
    return group, torch.arange(tokens) >= inputs.rows_of_groups


def _numbers(inputs: SwigluQuantInputs, group: torch.Tensor, stage: torch.dtype) -> Inexact:
    """What the rows are worth."""
    if inputs.weight_scale is None or inputs.token_scale is None:
        return Inexact.exact(inputs.states)
    sums = _sums(inputs)
    columns, tokens = (Inexact.exact(scale) for scale in (inputs.weight_scale[group], inputs.token_scale.unsqueeze(1)))
    return sums.times(columns).times(tokens).in_float32(DEQUANTISATION_ROUNDINGS).rounded(stage)


DEQUANTISATION_ROUNDINGS = 3
"""Roundings to float32: of a sum beyond 2**24, and of its products with two scales."""


def _sums(inputs: SwigluQuantInputs) -> Inexact:
    sums = inputs.states.to(torch.int64)
    return Inexact.exact(sums if inputs.bias is None else sums + inputs.bias)


def _parts(numbers: Inexact, gates: str) -> tuple[Inexact, Inexact]:
    """Gates and ups."""
    first, second = split(numbers, "interleaved" if gates == "even" else "halves")
    return (second, first) if gates == "right" else (first, second)


def _validate(inputs: SwigluQuantInputs) -> None:
    if inputs.gates not in GATES or inputs.rounding not in ROUNDINGS:
        raise ValueError(f"no gates {inputs.gates} or rounding {inputs.rounding}")
    if inputs.states.dim() != 2 or inputs.states.shape[1] % 2:
        raise ValueError(f"states have gates and ups in pairs, got {list(inputs.states.shape)}")
    if (inputs.limit is None) != (inputs.activation is Activation.SILU):
        raise ValueError(f"{inputs.activation.value} does not go with limit {inputs.limit}")
    if inputs.limit is not None and not inputs.limit > 0:
        raise ValueError(f"a limit must be positive, got {inputs.limit}")
    _validate_scales(inputs)
    _validate_groups(inputs)


def _validate_scales(inputs: SwigluQuantInputs) -> None:
    sums = inputs.states.dtype == torch.int32
    if not sums and inputs.states.dtype != inputs.dtype:
        raise ValueError(f"states must be int32 or {inputs.dtype}, got {inputs.states.dtype}")
    given = [scale is not None for scale in (inputs.weight_scale, inputs.token_scale)]
    if given != [sums, sums] or (inputs.bias is not None and not sums):
        raise ValueError("sums have a scale by column and one by row, and maybe a bias; numbers have none of them")
    if inputs.token_scale is not None and tuple(inputs.token_scale.shape) != (len(inputs.states),):
        raise ValueError(f"token_scale must be [{len(inputs.states)}], got {list(inputs.token_scale.shape)}")
    if inputs.bias is None:
        return
    if inputs.counts is not None or tuple(inputs.bias.shape) != (2 * inputs.width,):
        raise ValueError(f"bias must be [{2 * inputs.width}], and there must be no groups")
    if bool((_sums(inputs).value.abs() >= 2**31).any()):
        raise ValueError("a sum and its bias do not fit into 32 bits")


def _validate_groups(inputs: SwigluQuantInputs) -> None:
    groups = 1
    if inputs.counts is not None:
        groups = len(inputs.counts)
        if groups < 1 or int(inputs.counts.min()) < 0 or int(inputs.counts.sum()) > len(inputs.states):
            raise ValueError(f"counts must add up to at most {len(inputs.states)}, got {inputs.counts.tolist()}")
    scales_of_groups = {"weight_scale": (inputs.weight_scale, 2), "smooth": (inputs.smooth, 1)}
    for name, (scale, parts) in scales_of_groups.items():
        if scale is not None and tuple(scale.shape) != (groups, parts * inputs.width):
            raise ValueError(f"{name} must be [{groups}, {parts * inputs.width}], got {list(scale.shape)}")
