"""``causal_conv1d`` of sgl-kernel-npu: a convolution over the last tokens of each channel, with their history in lines.

    y[t] = act(bias + sum over j of weight[j] * z[t + j]),    z = K - 1 rows of history, then the rows of x

Sources: sgl-kernel-npu's host code and kernel (``csrc/causal_conv1d``) and sglang 0.5.23's calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode, UndefinedBehaviour
from npudiff.device.simulator.linear_attention.shared_states import Use, spoil
from npudiff.device.simulator.norms.unwritten import unwritten
from npudiff.device.simulator.profiles import active_profile

_CHECK = ArgumentChecks("causal_conv1d", default=ErrorCode.WRAPPER)

_UPDATE = 1
_SPECULATIVE_WIDTH = 4
_CHANNELS_PER_BLOCK = 16


@dataclass(frozen=True)
class ConvRequest:
    """One call, with the names of the schema."""

    x: Tensor
    """[T, D], or [B, L, D]; float16 or bfloat16."""
    weight: Tensor
    """[K, D], K from 2 to 4; the last row meets the current token."""
    conv_states: Tensor
    """[lines, W, D]."""
    bias: Tensor | None = None
    """[D]."""
    query_start_loc: Tensor | None = None
    """[B + 1], where sequences of [T, D] begin."""
    cache_indices: Tensor | None = None
    """[B], lines; sequence i has line i without it."""
    has_initial_state: Tensor | None = None
    """[B]: whether the line is the history in run_mode 0; zeros are it else, and without the tensor."""
    num_accepted_tokens: Tensor | None = None
    """[B], of the call before; for run_mode 1 and K = 4, ignored else."""
    activation_mode: int = 0
    """SiLU unless 0."""
    pad_slot_id: int = -1
    """The line of sequences that are left out."""
    run_mode: int = 0
    """1 updates: the history is always in the line."""

    @property
    def width(self) -> int:
        """Tokens under the convolution."""
        return self.weight.shape[0]

    @property
    def speculative(self) -> bool:
        """Whether num_accepted_tokens counts."""
        given = _given(self.num_accepted_tokens)
        return self.run_mode == _UPDATE and given is not None and self.width == _SPECULATIVE_WIDTH


@dataclass(frozen=True)
class _Part:
    """One sequence."""

    number: int
    rows: slice
    line: int


def causal_conv1d(request: ConvRequest) -> Tensor:
    """Convolve, and write the last rows of each sequence into its line.

    Returns
    -------
    Tensor
        As x. Products and sums are float32, the bias first and then the oldest token; rounded once. Rows of sequences
        that are left out, and rows behind the last sequence, are not written.

    Raises
    ------
    OperatorRejected
        Rank, dtype or K is not one of the above, a tensor has gaps, or query_start_loc is missing.
    UndefinedBehaviour
        What the host code does not check: channels that are no multiple of 16, a dtype of bias, lines that are too
        short, sequences that go backwards, tensors that are too short.
    DeviceFault
        A line or a row is outside.
    """
    _check(request)
    profile = active_profile()
    channels = request.x.shape[-1]
    x = request.x.view(-1, channels)
    y = unwritten(x.shape, x.dtype)
    weight, bias = request.weight.float(), None if (given := _given(request.bias)) is None else given.float()
    of_rounded = profile.causal_conv1d_silu == "of_rounded"
    uses = []
    parts = list(_parts(request))
    # Prefill reads every history before it writes a line.
    before = {} if request.run_mode == _UPDATE else {part.number: _history(request, part) for part in parts}
    for part in parts:
        history = before[part.number] if before else _history(request, part)
        z = torch.cat([history, x[part.rows]])
        y[part.rows] = _convolved(z.float(), weight, bias, request.activation_mode, x.dtype if of_rounded else None)
        _store(request, part, z)
        read = part.line if request.run_mode == _UPDATE else None
        uses.append(Use(part.rows, read, frozenset((part.line,))))
    spoil(uses, request.conv_states, y, profile)
    return y.view(request.x.shape)


def causal_conv1d_meta(request: ConvRequest) -> Tensor:
    """Allocate the output."""
    return torch.empty_like(request.x)


def _convolved(z: Tensor, weight: Tensor, bias: Tensor | None, activation: int, rounded: torch.dtype | None) -> Tensor:
    """Return float32 [L, D] of history and rows [K - 1 + L, D]."""
    rows = len(z) - len(weight) + 1
    terms: list[Tensor] = [z[j : j + rows] * one for j, one in enumerate(weight)]
    total = terms[0] if bias is None else bias + terms[0]
    for term in terms[1:]:
        total = total + term
    if rounded is not None:
        total = total.to(rounded).float()
    return total.div(1 + (-total).exp()) if activation else total


def _history(request: ConvRequest, part: _Part) -> Tensor:
    """Return the K - 1 rows before a sequence."""
    rows, line = request.width - 1, request.conv_states[part.line]
    if request.run_mode != _UPDATE:
        given = _given(request.has_initial_state)
        has_history = given is not None and bool(given.reshape(-1)[part.number])
        return line[:rows].clone() if has_history else line.new_zeros(rows, line.shape[1])
    if not request.speculative or request.num_accepted_tokens is None:
        return line[:rows].clone()
    accepted = int(request.num_accepted_tokens.reshape(-1)[part.number])
    offset = min(max(accepted - 1, 0), len(line) - rows)
    return line[offset : offset + rows].clone()


def _store(request: ConvRequest, part: _Part, z: Tensor) -> None:
    """Write into the line what the next call needs; z is the history and the rows of the sequence."""
    line, rows = request.conv_states[part.line], request.width - 1
    new = len(z) - rows
    if request.speculative and rows - 1 + new <= len(line):
        # Every row is kept, so that the next call can begin behind any accepted token.
        line[: rows - 1 + new] = z[1:]
    else:
        line[:rows] = z[-rows:]


def _parts(request: ConvRequest) -> Iterator[_Part]:
    """Yield sequences with rows and a line."""
    states, x = request.conv_states, request.x
    starts = request.query_start_loc
    if x.dim() == 3:
        bounds = [number * x.shape[1] for number in range(x.shape[0] + 1)]
    else:
        assert starts is not None  # noqa: S101 - checked
        _CHECK.indices("query_start_loc", starts, x.shape[0] + 1, "ends of rows of x")
        bounds = starts.tolist()
    lines = _given(request.cache_indices)
    for number, (start, end) in enumerate(pairwise(bounds)):
        if end < start:
            raise UndefinedBehaviour(f"{_CHECK.operator}: query_start_loc goes back from {start} to {end}")
        line = number if lines is None else int(lines.reshape(-1)[number])
        if end == start or (lines is not None and line == request.pad_slot_id):
            continue
        _CHECK.indices("cache_indices", torch.tensor([line]), len(states), "lines in conv_states")
        yield _Part(number, slice(start, end), line)


def _given(tensor: Tensor | None) -> Tensor | None:
    """Return a tensor that has elements; the operator takes one without for none."""
    return None if tensor is None or not tensor.numel() else tensor


def _check(request: ConvRequest) -> None:
    x, weight, states = request.x, request.weight, request.conv_states
    if x.dim() not in (2, 3):
        raise _CHECK.rejected("x", f"of rank {x.dim()}", "rank 2 or 3", words="x must be 2D or 3D tensor")
    if weight.dim() != 2:
        raise _CHECK.rejected("weight", f"of rank {weight.dim()}", "rank 2", words="weight must be 2D tensor")
    _CHECK.dtype("x", x, "float16", "bfloat16", code=ErrorCode.WRAPPER)
    for argument, tensor in (("weight", weight), ("conv_states", states)):
        if tensor.dtype != x.dtype:
            words = f"{argument} dtype must match x dtype"
            raise _CHECK.rejected(argument, str(tensor.dtype), f"{x.dtype}, as x", words=words)
    for argument, tensor in (("x", x), ("weight", weight), ("conv_states", states)):
        if not tensor.is_contiguous():
            words = f"{argument} must be contiguous"
            raise _CHECK.rejected(argument, f"of strides {tensor.stride()}", "a contiguous tensor", words=words)
    if not 2 <= request.width <= 4:
        words = "Only support width in [2,4]"
        raise _CHECK.rejected("weight", f"of shape {list(weight.shape)}", "2 to 4 rows", words=words)
    starts = _given(request.query_start_loc)
    if x.dim() == 2 and (starts is None or len(starts) < 2):
        words = "query_start_loc must have at least 2 elements"
        raise _CHECK.rejected("query_start_loc", None if starts is None else starts.tolist(), "[B + 1]", words=words)
    _check_unchecked(request)


def _check_unchecked(request: ConvRequest) -> None:
    """Raise UndefinedBehaviour for what the host code lets pass, and the kernel then misreads."""
    x, channels = request.x, request.x.shape[-1]
    found = []
    if channels % _CHANNELS_PER_BLOCK:
        found.append(f"{channels} channels are no multiple of {_CHANNELS_PER_BLOCK}")
    if tuple(request.weight.shape[1:]) != (channels,) or tuple(request.conv_states.shape[2:]) != (channels,):
        found.append("weight or conv_states has other channels than x")
    elif request.conv_states.shape[1] < request.width - 1:
        found.append(f"lines have {request.conv_states.shape[1]} rows, fewer than {request.width - 1}")
    bias = _given(request.bias)
    if bias is not None and (bias.dtype != x.dtype or bias.numel() != channels):
        found.append(f"bias is {bias.dtype} of shape {list(bias.shape)}")
    batch = x.shape[0] if x.dim() == 3 or request.query_start_loc is None else len(request.query_start_loc) - 1
    for name in ("cache_indices", "has_initial_state", "num_accepted_tokens"):
        tensor = _given(getattr(request, name))
        if tensor is not None and tensor.numel() < batch:
            found.append(f"{name} has {tensor.numel()} elements for {batch} sequences")
    if found:
        raise UndefinedBehaviour(f"{_CHECK.operator}: {'; '.join(found)}")
