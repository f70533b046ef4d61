"""What forward and backward of ``npu_fusion_attention`` share: shapes, one sequence's rows, and its scores.

Source: CANN's kernels for A2 and A3 (``flash_attention_score_s1s2_bn2gs1.h``, ``flash_attention_score_grad_*.h``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.errors import UndefinedBehaviour
from npudiff.device.simulator.fused_attention.dropout import Dropout
from npudiff.device.simulator.fused_attention.fusion_request import (
    PREFIX,
    PREFIX_TEMPLATE,
    TEMPLATE_MODES,
    FusionRequest,
    prefixes,
)
from npudiff.device.simulator.profiles import active_profile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

LOWEST = torch.finfo(torch.float32).min
"""The score of a hidden key."""

_COPIES = 8
_INVALID_ROWS = 2
_MAXIMUM = 2147483647

# Scores that are in memory at once.
_SCORES = 1 << 22


@dataclass(frozen=True)
class Span:
    """One sequence of a call."""

    batch: int
    window: range
    """Its rows of queries."""
    kept: range
    """Its keys."""
    weights: int
    """How many weights the sequences before it have."""


@dataclass(frozen=True)
class Scores:
    """What makes scores of one sequence's products."""

    scale: float
    added: bool
    """Whether pse is added to scaled products, rather than scaled with them."""
    pse: Tensor | None
    """float32 [heads, rows, keys]."""
    hidden: Tensor | None
    """bool [1 or heads, rows, keys], True where a key is hidden."""

    def __call__(self, queries: Tensor, keys: Tensor, window: slice) -> Tensor:
        """Return float32 [heads, rows of the window, keys]."""
        scores = products(queries[:, window], keys)
        if self.pse is None:
            scores = scores * self.scale
        elif self.added:
            scores = scores * self.scale + self.pse[:, window]
        else:
            scores = (scores + self.pse[:, window]) * self.scale
        return scores if self.hidden is None else scores.masked_fill(self.hidden[:, window], LOWEST)


def scores_of(request: FusionRequest, span: Span) -> Scores:
    """Return what makes the scores of a sequence; a mask that hides too little or too much is refused."""
    rows, keys = len(span.window), len(span.kept)
    added = request.pse_type == 0 or (request.pse_type is None and active_profile().fusion_pse == "added")
    return Scores(request.scale, added, _pse(request, span.batch, rows), _hidden(request, span.batch, rows, keys))


def forces_invalid_rows(request: FusionRequest) -> bool:
    """Whether rows that see nothing become 0: where asked for, and where the operator finds that there may be some."""
    if request.inner_precise == _INVALID_ROWS or request.sparse_mode in TEMPLATE_MODES:
        return True
    given = _prefixes(request)
    lengths = [(len(window), len(kept)) for _, window, kept in _ranges(request)]
    return given is not None and any(rows > keys and one == 0 for one, (rows, keys) in zip(given, lengths, strict=True))


def _prefixes(request: FusionRequest) -> Sequence[int] | None:
    if request.atten_mask is None or request.sparse_mode not in (PREFIX, PREFIX_TEMPLATE):
        return None
    return prefixes(request, [(len(window), len(kept)) for _, window, kept in _ranges(request)])


def sink_of(request: FusionRequest, maximum: Tensor) -> Tensor:
    """Return what a sink adds to the sums of exponentials under maxima: float32 [heads, rows, 1], 0 without one."""
    if request.sink is None:
        return torch.zeros(())
    return (request.sink.view(-1, 1, 1) - maximum).exp()


def pieces(heads: int, span: Span) -> Iterator[slice]:
    """Yield rows of a sequence whose scores are in memory at once."""
    count = len(span.window)
    step = max(1, _SCORES // (heads * len(span.kept)))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def attention_shape(request: FusionRequest) -> list[int]:
    """Return the shape of the result: the query's with the head dim of value."""
    sizes = {**request.sizes, "D": request.value_dim}
    sizes["H"] = sizes["N"] * sizes["D"]
    return [sizes[axis] for axis in request.input_layout]


def softmax_shape(request: FusionRequest) -> list[int]:
    """Return [B, N, S, 8], or [T, N, 8] of packed sequences."""
    sizes = request.sizes
    if request.packed:
        return [sizes["T"], sizes["N"], _COPIES]
    return [sizes["B"], sizes["N"], sizes["S"], _COPIES]


def softmax_rows(request: FusionRequest, tensor: Tensor, span: Span) -> Tensor:
    """View the numbers of one sequence as [heads, rows, 8]."""
    if not request.packed:
        return tensor[span.batch]
    part = tensor[span.window.start : span.window.stop]
    if request.softmax_layout:
        return part.transpose(0, 1)
    return part.view(request.head_num, len(span.window), _COPIES)


def spans(request: FusionRequest) -> Iterator[Span]:
    """Yield the sequences of a call; zeros at the end of the lengths are none."""
    weights = 0
    for batch, window, kept in _ranges(request):
        yield Span(batch, window, kept, weights)
        weights += request.head_num * len(window) * len(kept)


def weights_of(request: FusionRequest) -> int:
    """Return how many weights a call has, for each of which a dropout has a bit."""
    return request.head_num * sum(len(window) * len(kept) for _, window, kept in _ranges(request))


def _ranges(request: FusionRequest) -> Iterator[tuple[int, range, range]]:
    if not request.packed:
        rows, keys = range(request.sizes["S"]), range(request.key_rows)
        for batch in range(request.sizes["B"]):
            yield batch, rows, keys
        return
    start = key_start = 0
    ends = zip(request.actual_seq_qlen or (), request.actual_seq_kvlen or (), strict=True)
    for batch, (end, key_end) in enumerate(ends):
        if end >= start:
            yield batch, range(start, end), range(key_start, max(key_start, key_end))
        start, key_start = max(start, end), max(key_start, key_end)


def dropped(dropout: Dropout | None, request: FusionRequest, span: Span, weights: Tensor, window: slice) -> Tensor:
    """Return weights [heads, rows of the window, keys] of which some are 0, and the others are more."""
    if dropout is None:
        return weights
    whole = dropout.kept(span.weights, (request.head_num, len(span.window), len(span.kept)))
    return (weights / dropout.keep_prob).masked_fill(~whole[:, window], 0)


def products(left: Tensor, right: Tensor) -> Tensor:
    """Multiply [heads, rows, n] with [kv heads, columns, n], of which a head has that of its group."""
    grouped = left.float().reshape(len(right), -1, left.shape[2])
    return torch.bmm(grouped, right.float().transpose(1, 2)).view(*left.shape[:2], -1)


def _pse(request: FusionRequest, batch: int, count: int) -> Tensor | None:
    """Return float32 [heads, rows, keys] of one sequence."""
    if request.pse is None:
        return None
    return request.pse[batch % len(request.pse)].float().expand(-1, count, -1)


def _hidden(request: FusionRequest, batch: int, count: int, keys: int) -> Tensor | None:
    """Return bool [1 or heads, rows, keys], True where a key is hidden."""
    mask = request.atten_mask
    if mask is None:  # modes and tokens have no effect then
        return None
    outside = _outside(request, batch, count, keys).unsqueeze(0)
    if request.sparse_mode in (*TEMPLATE_MODES, PREFIX_TEMPLATE):
        return outside
    own = mask if mask.dim() == 2 else mask[batch % len(mask)]
    own = own.view(-1, *own.shape[-2:]).to(torch.bool)
    if own.shape[1] < count or own.shape[2] < keys:
        allowed = f"{count} rows and {keys} keys, as sequence {batch} has, or more"
        raise request.check.rejected("atten_mask", f"of shape {list(mask.shape)}", allowed)
    own = own[:, :count, :keys]
    if request.sparse_mode in (0, PREFIX) and (outside & ~own).any():
        said = f"pre_tockens {request.pre_tockens} and next_tockens {request.next_tockens}"
        said = f"prefix {list(request.prefix or ())} and its triangle" if request.sparse_mode else said
        raise UndefinedBehaviour(
            f"{request.operator}: atten_mask shows keys outside of {said}; they must say the same with sparse_mode "
            f"{request.sparse_mode}, or hardware gives wrong values"
        )
    return own


def _outside(request: FusionRequest, batch: int, count: int, keys: int) -> Tensor:
    """Return bool [rows, keys], True where a sequence's band, or its triangle and prefix, shows no key."""
    shift = 0 if request.sparse_mode in (0, 2) else keys - count
    offset = torch.arange(keys) - torch.arange(count).unsqueeze(1) - shift
    if request.sparse_mode in (PREFIX, PREFIX_TEMPLATE):
        given = _prefixes(request)
        return (offset > 0) & (torch.arange(keys) >= (keys if given is None else given[batch]))
    before, after = request.pre_tockens, request.next_tockens
    if request.sparse_mode in (2, 3):
        before, after = _MAXIMUM, 0
    return (offset < -before) | (offset > after)
