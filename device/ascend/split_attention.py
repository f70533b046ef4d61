"""Attention over the history in parts: every part by itself, and the parts put together by their log-sum-exps.

What a backend does that has many cores and few rows (split-KV, "flash decoding"), composed of plain torch operators.
Its steps are methods, each of which says one thing that such a kernel has to get right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from npudiff import Target, implementation
from npudiff.device.ascend.sliding_attention import Outputs
from npudiff.reference.sliding_attention import SlidingAttentionInputs

SPLITS = 4
"""Parts of a history. They are made of whole pages, so that a short one, or a narrow window, leaves some empty."""


@dataclass(frozen=True)
class Part:
    """Attention over some keys, for the rows of one request."""

    output: torch.Tensor
    """float32 ``[heads, rows, value_dim]``."""
    lse: torch.Tensor
    """float32 ``[heads, rows]``; minus infinity for a row that sees none of the keys."""


class SplitAttention:
    """One call, request by request.

    Parameters
    ----------
    inputs : SlidingAttentionInputs
        On the host.
    target : Target
        Where to run.
    """

    def __init__(self, inputs: SlidingAttentionInputs, target: Target) -> None:
        self.inputs, self.target, self.device = inputs.to(target.device), target, target.device
        self.heads, self.kv_heads = inputs.query.shape[1], inputs.kv.kv_heads
        self.page_size = inputs.kv.page_size

    def run(self) -> Outputs:
        """Return outputs ``[tokens, heads, value_dim]`` and LSEs ``[tokens, heads]``; those of padded rows are 0."""
        query = self.inputs.query
        output = query.new_zeros(*query.shape[:2], self.inputs.kv.value_head_dim)
        lse = torch.zeros(query.shape[:2], dtype=torch.float32, device=self.device)
        start = 0
        for request, rows in enumerate(self.inputs.query_lengths):
            if rows:
                part = self.attend(request, query[start : start + rows])
                output[start : start + rows] = part.output.transpose(0, 1).to(query.dtype)
                lse[start : start + rows] = part.lse.transpose(0, 1)
            start += rows
        return {"output": output, "lse": lse}

    def attend(self, request: int, query: torch.Tensor) -> Part:
        """Attention of the rows ``[rows, heads, head_dim]`` of one request."""
        total, rows = self.inputs.kv_lengths[request], len(query)
        oldest = self.oldest(torch.arange(total - rows, total, device=self.device))
        parts = []
        start = self.first_key(oldest)
        for first, last in self.spans(total):
            keys = torch.arange(min(last, max(first, start)), last, device=self.device)
            parts.append(self.part(request, query, oldest, keys) if len(keys) else self.empty(query))
        return self.merged(self.with_sink(parts, query))

    def oldest(self, positions: torch.Tensor) -> torch.Tensor:
        """The oldest key that each row sees, by its position, int64 ``[rows]``."""
        window = self.inputs.window
        return torch.zeros_like(positions) if window is None else (positions - window + 1).clamp(min=0)

    def first_key(self, oldest: torch.Tensor) -> int:
        """The first key that is read: what left the window of every row may be somebody else's."""
        return int(oldest.min())

    def spans(self, total: int) -> list[tuple[int, int]]:
        """First and last key of each part."""
        pages = -(-total // self.page_size)
        width = -(-pages // SPLITS) * self.page_size
        return [(min(total, part * width), min(total, (part + 1) * width)) for part in range(SPLITS)]

    def empty(self, query: torch.Tensor) -> Part:
        """A part without keys."""
        shape = (self.heads, len(query))
        return Part(
            torch.zeros(*shape, self.inputs.kv.value_head_dim, device=self.device),
            torch.full(shape, -torch.inf, device=self.device),
        )

    def part(self, request: int, query: torch.Tensor, oldest: torch.Tensor, keys: torch.Tensor) -> Part:
        """Attention over some keys of one request, in float32."""
        total, rows = self.inputs.kv_lengths[request], len(query)
        key, value = self.gathered(request, keys)
        grouped = query.float().view(rows, self.kv_heads, -1, query.shape[2]).permute(1, 2, 0, 3)
        scores = grouped.flatten(1, 2) @ key.permute(1, 2, 0) * self.inputs.scale
        own = torch.arange(total - rows, total, device=self.device)
        scores = self.masked(scores.view(self.heads, rows, -1), keys, oldest, own)
        largest = self.largest(scores)
        weights = torch.exp(scores - largest)
        mass = weights.sum(dim=-1, keepdim=True)
        summed = weights.view(self.kv_heads, -1, len(keys)) @ value.transpose(0, 1)
        return Part(self.normalised(summed.view(self.heads, rows, -1), mass), (largest + mass.log()).squeeze(-1))

    def gathered(self, request: int, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values at some positions, float32 ``[keys, kv_heads, dim]``."""
        pool = self.inputs.kv
        pages, offsets = pool.block_table[request].long()[keys // self.page_size], keys % self.page_size
        key, value = (
            cache[pages, offsets] if pool.layout == "PA_BSND" else cache[pages, :, :, offsets].flatten(2)
            for cache in (pool.key, pool.value)
        )
        return key.float(), value.float()

    def masked(self, scores: torch.Tensor, keys: torch.Tensor, oldest: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Scores ``[heads, rows, keys]``, minus infinity for keys left of a row's oldest or right of its own."""
        return scores.masked_fill(self.hidden(keys, oldest, own), -torch.inf)

    def hidden(self, keys: torch.Tensor, oldest: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Which keys a row does not see, bool ``[rows, keys]``."""
        return (keys < oldest.unsqueeze(1)) | (keys > own.unsqueeze(1))

    def largest(self, scores: torch.Tensor) -> torch.Tensor:
        """The largest score of each row ``[..., keys]``, as ``[..., 1]``."""
        return self.finite(scores.amax(dim=-1, keepdim=True))

    def finite(self, logarithm: torch.Tensor) -> torch.Tensor:
        """What is subtracted before an exponential: 0 where nothing is seen, since infinities have no difference."""
        return torch.where(torch.isneginf(logarithm), 0.0, logarithm)

    def normalised(self, summed: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
        """Sums of weighted values over sums of weights; 0 where nothing is seen."""
        return torch.where(mass > 0, summed / mass, 0.0)

    def with_sink(self, parts: Sequence[Part], query: torch.Tensor) -> list[Part]:
        """The sink, once, as a part of its own in front of the others: a logit without a value."""
        if self.inputs.sinks is None:
            return list(parts)
        lse = self.inputs.sinks.float().unsqueeze(1).expand(self.heads, len(query))
        return [Part(self.empty(query).output, lse), *parts]

    def merged(self, parts: Sequence[Part]) -> Part:
        """All parts as one: every output weighs as much as its keys' exponentials."""
        lse = torch.stack([part.lse for part in parts]).unsqueeze(-1)
        largest = self.finite(lse.amax(dim=0))
        weights = torch.exp(lse - largest)
        mass = weights.sum(dim=0)
        summed = (weights * torch.stack([part.output for part in parts])).sum(dim=0)
        return Part(self.normalised(summed, mass), (largest + mass.log()).squeeze(-1))


@implementation("sliding_attention")
def split_kv(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Parts of the history one by one, merged by their log-sum-exps: the path of long histories and few rows."""
    return SplitAttention(inputs, target).run()
