"""Causal convolutions of each channel over the last few tokens, whose history lies in lines of a pool."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.bounds import Expected, accumulation_error, exactly
from npudiff.reference.inexact import Inexact, sigmoid
from npudiff.reference.views import moved_inputs

MODES = ("prompt", "step", "draft")
"""prompt: a request goes on from its line where it has a history, and from zeros else. step: it always goes on from its
line. draft: the line holds the tokens of the step before, of which some were accepted; it goes on behind those."""

ROUNDINGS = ("once", "stages")
"""once: everything in float32, and one rounding at the end. stages: a device may round a sum before its activation, as
one of two versions of a kernel does (sgl-kernel-npu's pull request 742)."""


@dataclass(frozen=True)
class CausalConvInputs:
    """One call for a batch of sequences."""

    x: torch.Tensor
    """``[tokens, channels]``, bfloat16 or float16. Rows beyond ``sum(lengths)`` are padding."""
    weight: torch.Tensor
    """``[width, channels]``: the last row meets the token itself, the first one the oldest."""
    bias: torch.Tensor | None
    """``[channels]``."""
    lines: torch.Tensor
    """``[lines, rows, channels]``, ``width - 1`` rows or more: the pool. In a prompt or step a line has its history in
    the first ``width - 1`` rows."""
    lengths: tuple[int, ...]
    """Tokens of each sequence."""
    line_of: torch.Tensor
    """int32 ``[sequences]``: line of each sequence, different ones; -1 for a padded one, of whose rows nothing is said
    and which has no line."""
    mode: str = "step"
    """One of ``MODES``."""
    has_history: torch.Tensor | None = None
    """bool ``[sequences]``, of a prompt: whether there is a history; zeros stand for it else."""
    accepted: torch.Tensor | None = None
    """int32 ``[sequences]``, of a draft: tokens of the step before that were accepted, from 1 on."""
    activation: bool = True
    """Whether SiLU is applied."""
    rounding: str = "once"
    """One of ``ROUNDINGS``."""

    @property
    def width(self) -> int:
        """Tokens under the convolution."""
        return len(self.weight)

    def to(self, device: str | torch.device) -> CausalConvInputs:
        """Return the same inputs on ``device``; the pool is a copy, into which an implementation may write."""
        return moved_inputs(self, device, copies=("lines",))


def causal_conv(inputs: CausalConvInputs) -> dict[str, Expected]:
    """Return ``act(bias + sum_j weight[j] * z[t + j])``, with z the ``width - 1`` rows of history and the new rows.

    Behind a prompt or a step the first ``width - 1`` rows of a line are the last of z. Behind a draft the line holds
    z without its first row, so that the next call may go on behind any of its tokens; its other rows stay.

    Returns
    -------
    dict
        ``output``: as ``x``. ``lines``: the pool, bit for bit.

    Raises
    ------
    ValueError
        If shapes, lines or numbers of accepted tokens contradict each other.

    Notes
    -----
    As ``causal_conv1d`` of sgl-kernel-npu and of Dao-AILab/causal-conv1d has it. Sums are float32, in any order.
    """
    _validate(inputs)
    value = torch.zeros(inputs.x.shape, dtype=torch.float64)
    bound = torch.full_like(value, torch.inf)
    lines, start = inputs.lines.clone(), 0
    for number, length in enumerate(inputs.lengths):
        rows, line = slice(start, start + length), int(inputs.line_of[number])
        start += length
        if line < 0 or not length:
            continue
        z = torch.cat([_history(inputs, number, line), inputs.x[rows]])
        output = _convolved(inputs, z)
        value[rows], bound[rows] = output.value, output.error
        kept = z[1:] if inputs.mode == "draft" else z[len(z) - inputs.width + 1 :]
        lines[line, : len(kept)] = kept
    return {"output": Expected(value, bound, inputs.x.dtype), "lines": exactly(lines)}


def _history(inputs: CausalConvInputs, number: int, line: int) -> torch.Tensor:
    """The rows before a sequence, ``[width - 1, channels]``."""
    first, rows = 0, inputs.width - 1
    if inputs.accepted is not None:
        first = int(inputs.accepted[number]) - 1
    history = inputs.lines[line, first : first + rows]
    if inputs.has_history is not None and not bool(inputs.has_history[number]):
        return torch.zeros_like(history)
    return history


def _convolved(inputs: CausalConvInputs, z: torch.Tensor) -> Inexact:
    tokens, dtype = len(z) - inputs.width + 1, inputs.x.dtype
    terms = [z[j : j + tokens].to(torch.float64) * one.to(torch.float64) for j, one in enumerate(inputs.weight)]
    if inputs.bias is not None:
        terms.append(inputs.bias.to(torch.float64).expand(tokens, -1))
    stacked = torch.stack(terms)
    total = Inexact(stacked.sum(dim=0), accumulation_error(len(terms)) * stacked.abs().sum(dim=0))
    if not inputs.activation:
        return total.stored(dtype)
    if inputs.rounding == "stages":
        total = total.rounded(dtype)
    return total.times(sigmoid(total)).in_float32(2).stored(dtype)


def _validate(inputs: CausalConvInputs) -> None:
    channels, batch = inputs.x.shape[1], len(inputs.lengths)
    if inputs.weight.shape[1] != channels or inputs.lines.shape[2] != channels:
        raise ValueError(f"weight and lines have {channels} channels, as x has")
    if inputs.mode not in MODES or inputs.rounding not in ROUNDINGS:
        raise ValueError(f"mode is one of {', '.join(MODES)}, rounding of {', '.join(ROUNDINGS)}")
    if (inputs.accepted is not None) != (inputs.mode == "draft"):
        raise ValueError("numbers of accepted tokens are of a draft")
    if inputs.has_history is not None and inputs.mode != "prompt":
        raise ValueError("only a prompt may have no history")
    if any(len(one) != batch for one in (inputs.line_of, inputs.has_history, inputs.accepted) if one is not None):
        raise ValueError(f"there are {batch} sequences")
    if sum(inputs.lengths) > len(inputs.x) or min(inputs.lengths, default=0) < 0:
        raise ValueError(f"lengths {inputs.lengths} are not of {len(inputs.x)} rows")
    used = [line for line in inputs.line_of.tolist() if line >= 0]
    if len(set(used)) < len(used) or max(used, default=-1) >= len(inputs.lines):
        raise ValueError("lines are different ones of the pool")
    least = inputs.width - 1
    if inputs.accepted is not None:
        least = max(max(inputs.accepted.tolist()) - 1 + least, least - 1 + max(inputs.lengths))
    if inputs.lines.shape[1] < least:
        raise ValueError(f"lines have {least} rows or more, got {inputs.lines.shape[1]}")
