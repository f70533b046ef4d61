"""Correct attention kernels that round where the bound of everyone does not allow it, each as a production kernel does.

They know the reference's inputs and nothing else of it: a softmax over gathered keys, or over parts of them that are
merged by their log-sum-exps.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import torch

CUBIC = (0.07802449, 0.22606727, 0.69583356, 0.99992523)
"""Coefficients of a power of two between 0 and 1, highest first, that are off by 7.5e-5 at most."""


def cubic_exponential(scores):
    """A power of two whose fraction is a polynomial of degree 3, as float32 bits are put together for it."""
    exponent = (scores * math.log2(math.e)).clamp(min=-126.0)
    whole = exponent.floor()
    fraction, power = exponent - whole, torch.zeros_like(exponent)
    for coefficient in CUBIC:
        power = power * fraction + coefficient
    return torch.where(scores.isneginf(), 0.0, torch.ldexp(power, whole))


@dataclass(frozen=True)
class Kernel:
    """Softmax attention that multiplies weights of the values' dtype, sums in float32, and rounds its output."""

    scaled_query: bool = False
    rounded_sum: bool = False
    exponential: object = staticmethod(torch.exp)
    parts: int = 1
    one_by_one: bool = False
    keys_too_many: int = 0
    """Above 0 it is wrong."""

    def __call__(self, inputs, target):
        query = inputs.query
        output = query.new_zeros(*query.shape[:2], inputs.kv.value_head_dim)
        lse = torch.full(query.shape[:2], -torch.inf)
        start = 0
        for request, (rows, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
            if rows and total:
                here = slice(start, start + rows)
                output[here], lse[here] = self.request(inputs, request, query[here], total)
            start += rows
        return {"output": output, "lse": lse}

    def request(self, inputs, request, query, total):
        """Attention of the rows of one request: ``[rows, heads, dim]`` and ``[rows, heads]``."""
        position = torch.arange(total - len(query), total)
        first = 0 if inputs.window is None else max(0, int(position[0]) - inputs.window + 1 - self.keys_too_many)
        cuts = torch.linspace(first, total, self.parts + 1).long().tolist()
        parts = [
            self.part(inputs, request, query, position, torch.arange(begin, end))
            for begin, end in itertools.pairwise(cuts)
            if end > begin
        ]
        if not self.one_by_one:
            return self.merged(parts, query.dtype)
        result = parts[0]
        for part in parts[1:]:
            result = self.merged([result, part], query.dtype)
        return result

    def part(self, inputs, request, query, position, keys):
        """Attention over some keys."""
        pool = inputs.kv
        pages, offsets = pool.block_table[request].long()[keys // pool.page_size], keys % pool.page_size
        key, value = (self.read(cache, pool.layout, pages, offsets) for cache in (pool.key, pool.value))
        group = query.shape[1] // key.shape[1]
        key, value = (tensor.float().repeat_interleave(group, dim=1) for tensor in (key, value))
        if self.scaled_query:
            scores = torch.einsum("rhd,khd->rhk", (query.float() * inputs.scale).to(query.dtype).float(), key)
        else:
            scores = torch.einsum("rhd,khd->rhk", query.float(), key) * inputs.scale
        hidden = keys > position[:, None]
        if inputs.window is not None:
            hidden |= keys <= position[:, None] - inputs.window - self.keys_too_many
        scores = scores.masked_fill(hidden[:, None], -torch.inf)
        largest = scores.amax(dim=-1, keepdim=True).nan_to_num(neginf=0.0)
        weights = self.exponential(scores - largest)
        rounded = weights.to(query.dtype).float()
        total = (rounded if self.rounded_sum else weights).sum(dim=-1)
        result = torch.einsum("rhk,khd->rhd", rounded, value.masked_fill(hidden.all(0)[:, None, None], 0.0))
        output = torch.where(total[..., None] > 0, result / total[..., None], 0.0)
        return output.to(query.dtype), torch.where(total > 0, largest[..., 0] + total.log(), -torch.inf)

    def read(self, cache, layout, pages, offsets):
        """Rows ``[keys, heads, dim]`` of a pool."""
        if layout == "PA_NZ":
            return cache[pages, :, :, offsets].flatten(2)
        return cache[pages, offsets]

    def merged(self, parts, dtype):
        """Put parts together by their float32 log-sum-exps."""
        if len(parts) == 1:
            return parts[0]
        outputs, lses = (torch.stack(column) for column in zip(*parts, strict=True))
        whole = torch.logsumexp(lses, dim=0)
        share = torch.where(lses.isneginf(), 0.0, torch.exp(lses - whole)).nan_to_num()
        return (outputs.float() * share[..., None]).sum(dim=0).to(dtype), whole


def wrong(kernel):
    """The same kernel, which sees one key too many."""
    return replace(kernel, keys_too_many=1)


KERNELS = {
    "everyone": (Kernel(), {}),
    "scaled query": (Kernel(scaled_query=True), {"scaled_query": (True,)}),
    "rounded sum": (Kernel(rounded_sum=True), {"weight_sum": ("rounded",)}),
    "cubic": (Kernel(exponential=cubic_exponential), {"exponential": ("cubic",)}),
    "2 parts at once": (Kernel(parts=2), {"merges": (1,)}),
    "8 parts at once": (Kernel(parts=8), {"merges": (1,)}),
    "2 parts": (Kernel(parts=2, one_by_one=True), {"merges": (1,)}),
    "4 parts one by one": (Kernel(parts=4, one_by_one=True), {"merges": (3,)}),
    "9 parts one by one": (Kernel(parts=9, one_by_one=True), {"merges": (8,)}),
    "all of it": (
        Kernel(True, True, cubic_exponential, 3, True),
        {"scaled_query": (True,), "weight_sum": ("rounded",), "exponential": ("cubic",), "merges": (2,)},
    ),
}
"""Name to a kernel and what it opts into."""
