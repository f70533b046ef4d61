"""Tiled attention with online softmax, rounding where the operator rounds.

Source: CANN's ``fia_block_vec_nonquant.h``. Scores are fp32; hidden ones are REPLACED by -1e12;
probabilities ``exp(score - running maximum)`` are rounded to the values' dtype before they are normalised;
their products with the values are summed in fp32 and rescaled from tile to tile; the end is one division by
the fp32 sum of the unrounded probabilities and one final cast. Other kernels round more:
:mod:`npudiff.device.simulator.fused_attention.arithmetic` has their steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.fused_attention.arithmetic import Floats
from npudiff.device.simulator.fused_attention.rounding import narrow

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from npudiff.device.simulator.fused_attention.arithmetic import Arithmetic
    from npudiff.device.simulator.fused_attention.paging import KeyValues
    from npudiff.device.simulator.fused_attention.visibility import Visibility

KEY_TILE = 512
"""Keys per tile; tiles are aligned to position 0 of the sequence."""

_FLOATS = Floats()

# Rows are cut so that a tile of scores stays around 16 MiB. Hardware's cut is not known; ours matters only to
# poison: a key tile is loaded for all rows of a cut when the band shows any of it to one of them.
_MAX_ROWS = 128
_MAX_HEAD_ROWS = 8192


@dataclass(frozen=True)
class Softmax:
    """What the softmax of a call is made with."""

    scale: float
    """Multiplies the scores, not the sink."""
    sink: Tensor | None = None
    """float32 [heads]: adds ``exp(sink - maximum)`` to the denominator, without a value."""
    lse_includes_sink: bool = True
    """Whether the log-sum-exp is that of the enlarged denominator."""
    shift: Tensor | None = None
    """[heads, rows, keys] or more: added to the scaled scores of a sequence before any is hidden."""


@dataclass(frozen=True)
class _Sums:
    """Running maximum, sum of probabilities, weighted values of some rows: [kv heads, group * rows, ...]."""

    maximum: Tensor
    total: Tensor
    weighted: Tensor


def attend(
    queries: Tensor,
    source: KeyValues,
    visibility: Visibility,
    softmax: Softmax,
    *,
    kv_heads: int,
    output: Tensor,
    lse: Tensor | None,
    int8: Callable[[Tensor], Tensor] | None = None,
    arithmetic: Arithmetic = _FLOATS,
) -> None:
    """Attend all queries of one sequence and write what they get.

    Parameters
    ----------
    queries : Tensor
        [heads, rows, dim], bfloat16, float16 or int8; head ``h`` uses key head ``h // (heads // kv_heads)``.
    source : KeyValues
        The keys and values; only tiles that the band touches are loaded, never beyond the actual length.
    visibility : Visibility
        What the rows see.
    softmax : Softmax
        Scale and sink.
    kv_heads : int
        Heads of keys and values.
    output : Tensor
        [heads, rows, value dim], written; rows that are not computed become 0, or what 0 is in int8.
    lse : Tensor or None
        float32 [heads, rows], written: maximum + ln(sum), +inf for rows that are not computed.
    int8 : callable, optional
        What makes int8 of the output, in place of its own dtype.
    arithmetic : Arithmetic
        What the steps round.
    """
    output.copy_(output.new_zeros(output.shape) if int8 is None else int8(torch.zeros(output.shape)))
    if lse is not None:
        lse.fill_(torch.inf)
    live, heads = visibility.live_rows, queries.shape[0]
    step = max(1, min(_MAX_ROWS, _MAX_HEAD_ROWS // heads))
    for start in range(live.start, live.stop, step):
        rows = range(start, min(start + step, live.stop))
        window = slice(rows.start, rows.stop)
        grouped = _group(queries[:, window], kv_heads)
        sums = _sum_tiles(grouped, rows, source, visibility, softmax, arithmetic)
        attention, logsumexp = _finish(sums, (heads, len(rows)), visibility, softmax, arithmetic)
        output[:, window] = narrow(attention, output.dtype) if int8 is None else int8(attention)
        if lse is not None:
            lse[:, window] = logsumexp


def _group(queries: Tensor, kv_heads: int) -> Tensor:
    """Put the query heads of one key head together: float32 [kv heads, group * rows, dim].

    One matrix product per key head then serves its whole group.
    """
    heads, rows, dim = queries.shape
    return queries.float().reshape(kv_heads, heads // kv_heads * rows, dim)


def _sum_tiles(
    grouped: Tensor,
    rows: range,
    source: KeyValues,
    visibility: Visibility,
    softmax: Softmax,
    arithmetic: Arithmetic,
) -> _Sums:
    maximum = grouped.new_full((*grouped.shape[:2], 1), -torch.inf)
    total = torch.zeros_like(maximum)
    weighted = torch.zeros_like(maximum)
    first, stop = visibility.key_range(rows)
    for start in range(first // KEY_TILE * KEY_TILE, stop, KEY_TILE):
        end = min(start + KEY_TILE, visibility.keys)
        keys, values = source.load(start, end)
        scores = arithmetic.scores(grouped, keys, rows, softmax.scale)
        if softmax.shift is not None:
            # [heads, rows, keys] lies in memory as [kv heads, group * rows, keys].
            shift = softmax.shift[:, rows.start : rows.stop, start:end]
            scores = arithmetic.shifted(scores.add_(shift.reshape(scores.shape)))
        hidden = visibility.hidden(rows, start, end)
        if hidden is not None:
            # [kv heads, group, rows, keys]: what is hidden is hidden for every head.
            scores.view(len(grouped), -1, len(rows), end - start).masked_fill_(hidden, arithmetic.hidden)
        new_maximum = torch.maximum(maximum, scores.amax(-1, keepdim=True))
        rescale = torch.exp(maximum - new_maximum)
        probabilities = scores.sub_(new_maximum).exp_()
        total = total.mul_(rescale).add_(probabilities.sum(-1, keepdim=True))
        # Hidden keys are multiplied too, by 0: NaN in their values reaches the output, as on hardware.
        weighted = arithmetic.add(weighted, rescale, arithmetic.weigh(probabilities, values))
        maximum = new_maximum
    return _Sums(maximum, total, weighted)


def _finish(
    sums: _Sums, shape: tuple[int, int], visibility: Visibility, softmax: Softmax, arithmetic: Arithmetic
) -> tuple[Tensor, Tensor]:
    """Add the sink, divide, and treat rows that saw nothing; float32 [heads, rows, dim] and [heads, rows]."""
    maximum, total = sums.maximum.reshape(shape), sums.total.reshape(shape)
    denominator = total
    if softmax.sink is not None:
        # The sink does not raise the maximum.
        denominator = total + torch.exp(softmax.sink.unsqueeze(1) - maximum)
    attention = arithmetic.divide(sums.weighted.reshape(*shape, -1), denominator.unsqueeze(-1))
    logsumexp = maximum + torch.log(denominator if softmax.lse_includes_sink else total)
    if visibility.zeroes_hidden_rows:
        blind = maximum <= arithmetic.hidden
        attention = attention.masked_fill(blind.unsqueeze(-1), 0.0)
        logsumexp = logsumexp.masked_fill(blind, torch.inf)
    return attention, logsumexp
