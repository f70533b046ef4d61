"""How ATB's attention kernels round.

Sources: ``paged_attention_decoder_nd_common.cce``, ``unpad_flash_attention_mix.cce`` and
``unpad_flashattention_bf16_prefix_cache.cce`` of ascend-transformer-boost. Scores are summed in float32;
exponentials are float32, summed before and multiplied after they are rounded to 16 bit;
all casts round half to even. The kernels take
keys in tiles and round exponentials under a running maximum; how large a tile is depends on shapes. Here all keys of a
sequence are one tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

# Scores that are in memory at once.
_SCORES = 1 << 22


@dataclass(frozen=True)
class Softmax:
    """What the softmax of a call is made with."""

    scale: float
    """Multiplies the scores."""
    halves: bool = False
    """Whether scores, mask and the last division are float16."""


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, softmax: Softmax, *, bias: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Attend all queries of one sequence.

    Parameters
    ----------
    queries : Tensor
        [heads, rows, dim], bfloat16 or float16.
    keys, values : Tensor
        [kv heads, keys, dim] and [kv heads, keys, value dim]; head ``h`` uses ``h // (heads // kv heads)``.
    softmax : Softmax
        Scale and precision.
    bias : Tensor, optional
        [rows, keys], added to the scaled scores.
    causal : bool, default False
        Whether the last row sees all keys and each one before it one key less; the bias is None then.

    Returns
    -------
    Tensor
        [heads, rows, value dim] in the dtype of the queries.
    """
    heads, rows, _ = queries.shape
    output = queries.new_empty(heads, rows, values.shape[-1])
    step = max(1, _SCORES // (heads * keys.shape[1]))
    for start in range(0, rows, step):
        window = slice(start, min(start + step, rows))
        part = None if bias is None else bias[window].float()
        if causal:
            part = _behind(
                range(window.start + keys.shape[1] - rows, window.stop + keys.shape[1] - rows), keys.shape[1]
            )
        output[:, window] = _attend(queries[:, window], keys, values, softmax, part)
    return output


def _behind(rows: range, keys: int) -> Tensor:
    """Return float32 [rows, keys]: -inf for keys behind a row's own, else 0."""
    return torch.full((len(rows), keys), -math.inf).triu(rows.start + 1)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, softmax: Softmax, bias: Tensor | None) -> Tensor:
    heads, rows, dim = queries.shape
    grouped = queries.float().reshape(len(keys), -1, dim)  # the query heads of one key head lie together
    products = torch.bmm(grouped, keys.float().transpose(1, 2)).view(heads, rows, -1)
    scores = _scores(products, softmax, bias)
    exponentials = _halved(scores - scores.amax(-1, keepdim=True), softmax).exp()
    total = exponentials.sum(-1, keepdim=True)
    rounded = exponentials.to(values.dtype).float().view(len(keys), -1, keys.shape[1])
    weighted = torch.bmm(rounded, values.float()).view(heads, rows, -1)
    return (_halved(weighted, softmax) / _halved(total, softmax)).to(queries.dtype)


def _scores(products: Tensor, softmax: Softmax, bias: Tensor | None) -> Tensor:
    scale = torch.tensor(softmax.scale, dtype=torch.float16).item() if softmax.halves else softmax.scale
    scores = _halved(_halved(products, softmax) * scale, softmax)
    return scores if bias is None else _halved(scores + bias, softmax)


def _halved(values: Tensor, softmax: Softmax) -> Tensor:
    return values.half().float() if softmax.halves else values
