"""Prefill of which each rank has two chunks of every request, one from its head and one from its tail.

Causal rows cost as much as they see: chunks ``r`` and ``2 * ranks - 1 - r`` of ``2 * ranks`` give every rank as much.
Sources: vllm 0.27.1, ``v1/worker/gpu/pcp_manager.py`` 164-300; sglang 0.5.23, ``layers/cp/zigzag.py`` and
``hardware_backend/npu/attention/ascend_backend.py`` 1400-1459; vllm-ascend before 2026, of which are two parts of a
chunk's keys that are merged; and zhuzilin/ring-flash-attention, where keys go round.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.distributed as dist

from npudiff import Target, implementation
from npudiff.device.ascend.context_parallel import Outputs, Partial, attention_over
from npudiff.device.ascend.fused_attention import FusedCall, compressed_mask
from npudiff.model.constraints import Box
from npudiff.reference.context_parallel import ContextParallelPart

PREFILL: Box = {"stage": ("prefill",)}

FUSED: Box = {
    **PREFILL, "page_size": range(16, 1025, 16), "head_dim": (64, 128), "dtype": ("bfloat16",),
}  # fmt: skip
"""What FIA takes in layout TND."""


@dataclass(frozen=True)
class Span:
    """New tokens of a request that are in one chunk."""

    start: int
    stop: int

    @property
    def tokens(self) -> int:
        """How many there are."""
        return self.stop - self.start


class HeadTail:
    """One prefill of one rank; its steps are methods, each of which says one thing that a backend has to get right.

    Parameters
    ----------
    inputs : ContextParallelPart
        Of this rank.
    target : Target
        Where to run.
    """

    def __init__(self, inputs: ContextParallelPart, target: Target) -> None:
        self.inputs, self.device = inputs.to(target.device), target.device
        self.rank, self.ranks = inputs.rank, inputs.ranks
        self.heads, self.kv_heads = inputs.query.shape[1], inputs.key.shape[1]
        self.new = list(inputs.query_lengths)
        self.starts = [0, *itertools.accumulate(self.new)]

    def run(self) -> Outputs:
        """Take the own rows, gather all keys, attend with both chunks, and gather what comes out."""
        rows = self.rows_of(self.rank)
        query = self.taken(self.inputs.query, rows)
        keys, values = (self.gathered(self.taken(states, rows)) for states in (self.inputs.key, self.inputs.value))
        self.write(keys, values)
        half = sum(map(self.chunk, self.new))
        halves = [self.attend(query[:half], tail=False), self.attend(query[half:], tail=True)]
        output, lse = (torch.cat(parts) for parts in zip(*halves, strict=True))
        return {"output": self.gathered(output), "lse": self.gathered(lse)}

    def prefixes(self) -> list[int]:
        """Tokens of each request before its new ones."""
        return [total - new for new, total in zip(self.new, self.inputs.kv_lengths, strict=True)]

    def chunk(self, new: int) -> int:
        """Tokens of a chunk of a request that has so many new ones; all chunks are as long."""
        return -(-new // (2 * self.ranks))

    def chunks_of(self, rank: int) -> tuple[int, int]:
        """Which chunks of each request a rank has: one of the head, one of the tail."""
        return rank, 2 * self.ranks - 1 - rank

    def span(self, new: int, chunk: int) -> Span:
        """New tokens in a chunk of a request; the last ones may be short, or empty."""
        size = self.chunk(new)
        return Span(min(new, chunk * size), min(new, (chunk + 1) * size))

    def rows_of(self, rank: int) -> torch.Tensor:
        """Rows that a rank has: chunks of all heads, then of all tails; -1 where a chunk is filled up."""
        found: list[int] = []
        for chunk in self.chunks_of(rank):
            for start, new in zip(self.starts, self.new, strict=False):
                span = self.span(new, chunk)
                found += range(start + span.start, start + span.stop)
                found += [-1] * (self.chunk(new) - span.tokens)
        return torch.tensor(found, device=self.device)

    def taken(self, states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Some rows, with zeros where there is none."""
        return states[rows.clamp(min=0)].masked_fill((rows < 0).view(-1, *[1] * (states.dim() - 1)), 0.0)

    def gathered(self, own: torch.Tensor) -> torch.Tensor:
        """All-gather rows of all ranks, and bring them into the order of the batch."""
        received = own.new_empty(self.ranks * len(own), *own.shape[1:])
        dist.all_gather_into_tensor(received, own.contiguous())
        return self.restored(received)

    def restored(self, received: torch.Tensor) -> torch.Tensor:
        """Rows in the order of the batch, without those that fill chunks up."""
        rows = torch.cat([self.rows_of(rank) for rank in range(self.ranks)])
        found = received.new_zeros(self.starts[-1], *received.shape[1:])
        found[rows[rows >= 0]] = received[rows >= 0]
        return found

    def slots(self) -> torch.Tensor:
        """Where each new token goes, int32 ``[tokens]``."""
        size, found = self.inputs.page_size, []
        for request, (prefix, new) in enumerate(zip(self.prefixes(), self.new, strict=True)):
            token = torch.arange(prefix, prefix + new, device=self.device)
            found.append(self.inputs.block_table[request].long()[token // size] * size + token % size)
        return torch.cat(found).to(torch.int32)

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put all new tokens into the pool."""
        pools = self.inputs.key_cache, self.inputs.value_cache
        torch.ops.atb._npu_reshape_and_cache(keys.contiguous(), values.contiguous(), *pools, self.slots())

    def spans(self, *, tail: bool) -> list[Span]:
        """What this rank has of each request, of its head or of its tail."""
        chunk = self.chunks_of(self.rank)[tail]
        return [self.span(new, chunk) for new in self.new]

    def kv_lengths(self, *, tail: bool) -> list[int]:
        """Keys of each request up to the last row of the chunk."""
        return [prefix + span.stop for prefix, span in zip(self.prefixes(), self.spans(tail=tail), strict=True)]

    def real(self, *, tail: bool) -> torch.Tensor:
        """Which rows of a half do not fill a chunk up, bool ``[rows]``."""
        counts = [(span.tokens, self.chunk(new)) for span, new in zip(self.spans(tail=tail), self.new, strict=True)]
        return torch.tensor([place < count for count, size in counts for place in range(size)], device=self.device)

    def attend(self, query: torch.Tensor, *, tail: bool) -> Partial:
        """Causal attention of one half: output ``[rows, heads, dim]`` and log-sum-exp ``[rows, heads]``."""
        real = self.real(tail=tail)
        output, lse = torch.zeros_like(query), torch.zeros(query.shape[:2], device=self.device)
        if bool(real.any()):
            output[real], lse[real] = self.attend_to_pool(query[real], tail=tail)
        return output, lse

    def attend_to_pool(self, query: torch.Tensor, *, tail: bool) -> Partial:
        """Attention over pages, of rows that are packed."""
        counts = [span.tokens for span in self.spans(tail=tail)]
        arguments = {
            "input_layout": "TND",
            "num_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "scale": self.inputs.scale,
            "atten_mask": compressed_mask(str(query.device)),
            "sparse_mode": 3,
            "block_table": self.inputs.block_table,
            "block_size": self.inputs.page_size,
            "actual_seq_lengths": list(itertools.accumulate(counts)),
            "actual_seq_lengths_kv": self.kv_lengths(tail=tail),
            "softmax_lse_flag": True,
        }
        pools = self.inputs.key_cache.flatten(2), self.inputs.value_cache.flatten(2)
        output, lse = FusedCall("npu_fused_infer_attention_score", query, *pools, arguments)()
        return output, lse.squeeze(-1)


@implementation("context_parallel", supports=FUSED, on_device=True)
def fia_head_tail(inputs: ContextParallelPart, target: Target) -> Outputs:
    """All-gathered keys in the pool, and FIA v1 TND in sparse mode 3 once for each half, over pages."""
    return HeadTail(inputs, target).run()


class TwoMasks(HeadTail):
    """Keys before a chunk without a mask, those of the chunk with one, and both merged; there is no prefix."""

    def run(self) -> Outputs:
        """Keep gathered keys as they are."""
        self.keys, self.values = self.inputs.key[:0], self.inputs.value[:0]
        return super().run()

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write nothing: attention reads what was gathered."""
        self.keys, self.values = keys, values

    def attend_to_pool(self, query: torch.Tensor, *, tail: bool) -> Partial:
        """Attention over dense keys, in two parts."""
        spans = self.spans(tail=tail)
        parts = [self.part(query, spans, [Span(0, span.start) for span in spans], masked=False)]
        parts.append(self.part(query, spans, spans, masked=True))
        rows = len(query) * self.heads
        merged, lse = torch.ops.npu.npu_attention_update(
            [lse.reshape(rows) for _, lse in parts], [output.reshape(rows, -1).float() for output, _ in parts], 1
        )
        return merged.view(query.shape).to(query.dtype), lse.view(query.shape[:2])

    def part(self, query: torch.Tensor, rows: list[Span], keys: list[Span], *, masked: bool) -> Partial:
        """Attention of rows over some keys of each request; those without any are absent."""
        counts = [span.tokens for span in keys]
        if not sum(counts):
            return torch.zeros_like(query), torch.full(query.shape[:2], -torch.inf, device=self.device)
        picked = torch.cat([
            torch.arange(start + span.start, start + span.stop, device=self.device)
            for start, span in zip(self.starts, keys, strict=False)
        ])  # fmt: skip
        arguments = {
            "input_layout": "TND",
            "num_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "scale": self.inputs.scale,
            "atten_mask": compressed_mask(str(query.device)) if masked else None,
            "sparse_mode": 3 if masked else 0,
            "actual_seq_lengths": list(itertools.accumulate(span.tokens for span in rows)),
            "actual_seq_lengths_kv": list(itertools.accumulate(counts)),
            "softmax_lse_flag": True,
        }
        dense = self.keys[picked], self.values[picked]
        output, lse = FusedCall("npu_fused_infer_attention_score", query, *dense, arguments)()
        lse = lse.squeeze(-1)
        return output, torch.where(lse.isinf(), -torch.inf, lse)


@implementation("context_parallel", supports={**FUSED, "prefix": (False,)}, on_device=True)
def fia_two_masks(inputs: ContextParallelPart, target: Target) -> Outputs:
    """FIA v1 TND over dense keys before a chunk and in it, merged by npu_attention_update."""
    return TwoMasks(inputs, target).run()


class Ring(HeadTail):
    """Keys go round: each rank attends to what it has, sends it on, and adds what it found to what it had."""

    def run(self) -> Outputs:
        """Begin with the prefix, which every rank has."""
        rows = self.rows_of(self.rank)
        query = self.taken(self.inputs.query, rows)
        held = torch.stack([self.taken(states, rows) for states in (self.inputs.key, self.inputs.value)])
        output, lse = self.of_prefixes(query)
        for step in range(self.ranks):
            source = (self.rank - step) % self.ranks
            found = self.of_chunks(query, held, source)
            output, lse = self.added((output, lse), found)
            if step + 1 < self.ranks:
                held = self.passed_on(held)
        return {"output": self.gathered(output.to(query.dtype)), "lse": self.gathered(lse)}

    def passed_on(self, held: torch.Tensor) -> torch.Tensor:
        """Send keys and values to the next rank, and return what the one before sent."""
        received = torch.empty_like(held)
        after, before = (self.rank + 1) % self.ranks, (self.rank - 1) % self.ranks
        if self.rank % 2 == 0:
            dist.send(held, after)
            dist.recv(received, before)
        else:
            dist.recv(received, before)
            dist.send(held, after)
        return received

    def places(self) -> list[torch.Tensor]:
        """Rows of each request among those that a rank has, rows that fill chunks up included."""
        sizes = [self.chunk(new) for new in self.new]
        starts = [0, *itertools.accumulate(sizes)]
        return [
            torch.cat([torch.arange(start, start + size), torch.arange(starts[-1] + start, starts[-1] + start + size)])
            for start, size in zip(starts, sizes, strict=False)
        ]

    def of_prefixes(self, query: torch.Tensor) -> Partial:
        """Attention over the tokens of the pool before the new ones."""
        output = torch.zeros(query.shape, device=self.device)
        lse = torch.full(query.shape[:2], -torch.inf, device=self.device)
        size = self.inputs.page_size
        for request, (rows, prefix) in enumerate(zip(self.places(), self.prefixes(), strict=True)):
            token = torch.arange(prefix, device=self.device)
            where = self.inputs.block_table[request].long()[token // size], token % size
            hidden = torch.zeros(len(rows), prefix, dtype=torch.bool, device=self.device)
            keys, values = self.inputs.key_cache[where], self.inputs.value_cache[where]
            found = attention_over(query[rows], keys, values, hidden, self.inputs.scale)
            output[rows], lse[rows] = found[0].float(), found[1]
        return output, lse

    def of_chunks(self, query: torch.Tensor, held: torch.Tensor, source: int) -> Partial:
        """Attention over the chunks of a rank, of which a row sees what is of its request and not behind it."""
        mine, theirs = self.rows_of(self.rank), self.rows_of(source)
        output, lse = torch.zeros_like(query), torch.empty(query.shape[:2], device=self.device)
        for rows in self.places():
            hidden = self.hidden(mine[rows], theirs[rows])
            found = attention_over(query[rows], held[0][rows], held[1][rows], hidden, self.inputs.scale)
            output[rows], lse[rows] = found
        return output, lse

    def hidden(self, mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        """Which held tokens of a request its rows do not see, bool ``[rows, tokens]``."""
        return (theirs < 0) | (theirs > mine.unsqueeze(1))

    def added(self, before: Partial, found: Partial) -> Partial:
        """What was found before and now, as one."""
        lse = torch.logaddexp(before[1], found[1])
        total = lse.masked_fill(lse.isneginf(), 0.0)
        parts = [torch.exp(log - total).unsqueeze(-1) * output.float() for output, log in (before, found)]
        return parts[0] + parts[1], lse


@implementation("context_parallel", supports=PREFILL, on_device=True)
def ring_head_tail(inputs: ContextParallelPart, target: Target) -> Outputs:
    """Plain torch, with keys and values that go round by send and recv."""
    return Ring(inputs, target).run()
