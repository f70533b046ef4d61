"""Decode over a history that is split over ranks, as backends do it: local attention, then a merge by log-sum-exps.

Sources: vllm-ascend (August 2026), ``attention/context_parallel/common_cp.py`` 12-195, ``attention_cp.py`` 205-395,
``worker/block_table.py`` 231-276 and ``worker/dcp_utils.py`` 645-693; sglang 0.5.23, ``layers/dcp/comm.py`` 56-161.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from npudiff import Target, implementation
from npudiff.device.ascend.fused_attention import FusedCall
from npudiff.model.constraints import Box
from npudiff.reference.context_parallel import ContextParallelPart

Outputs = dict[str, torch.Tensor]
Partial = tuple[torch.Tensor, torch.Tensor]
"""Output ``[rows, heads, dim]`` and log-sum-exp ``[rows, heads]`` over some of the keys; both are float32 where they
are merged."""

DECODE: Box = {"stage": ("decode",)}

FUSED: Box = {**DECODE, "page_size": range(16, 1025, 16), "head_dim": (64, 128)}
"""What fused attention takes of pages."""

INVALID_ROWS = 2
"""``inner_precise`` that leaves out rows of which a mask hides every key; without it they see all keys alike."""


class ShardedDecode:
    """One decode of one rank; its steps are methods, each of which says one thing that a backend has to get right.

    Parameters
    ----------
    inputs : ContextParallelPart
        Of this rank.
    target : Target
        Where to run.
    """

    def __init__(self, inputs: ContextParallelPart, target: Target) -> None:
        self.inputs, self.device = inputs.to(target.device), target.device
        self.rank, self.ranks, self.interleave = inputs.rank, inputs.ranks, inputs.interleave
        self.own_heads, self.kv_heads = inputs.query.shape[1], inputs.key.shape[1]

    def run(self) -> Outputs:
        """Write the new tokens, attend to what lies here, and merge with what the others found."""
        self.write()
        output, lse = self.merged(*self.present(*self.attend(self.all_heads(self.inputs.query))))
        return {"output": output.to(self.inputs.query.dtype), "lse": lse}

    def positions(self) -> torch.Tensor:
        """Position of each new token, int64 ``[tokens]``; -1 in padded requests."""
        lengths = zip(self.inputs.query_lengths, self.inputs.kv_lengths, strict=True)
        found = [torch.arange(total - new, total) if total else torch.full((new,), -1) for new, total in lengths]
        return torch.cat(found).to(self.device)

    def local_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """How many of so many first tokens lie here, of the shape of ``lengths``."""
        whole = lengths // (self.interleave * self.ranks) * self.interleave
        left = lengths - whole * self.ranks - self.rank * self.interleave
        return whole + left.clamp(0, self.interleave)

    def visible(self) -> torch.Tensor:
        """Keys here that each row sees, int64 ``[tokens]``."""
        return self.local_lengths(self.positions() + 1)

    def request_of_row(self) -> torch.Tensor:
        """Request of each row, int64 ``[tokens]``."""
        counts = torch.tensor(self.inputs.query_lengths, device=self.device)
        return torch.repeat_interleave(torch.arange(len(counts), device=self.device), counts)

    def is_mine(self, positions: torch.Tensor) -> torch.Tensor:
        """Which tokens lie here; none of those at negative positions."""
        return (positions >= 0) & (positions // self.interleave % self.ranks == self.rank)

    def local_index(self, positions: torch.Tensor) -> torch.Tensor:
        """The how-manieth token of its request on its rank a token is."""
        turn = self.interleave * self.ranks
        return positions // turn * self.interleave + positions % self.interleave

    def slots(self) -> torch.Tensor:
        """Where each new token goes, int32 ``[tokens]``; -1 for those that lie elsewhere."""
        positions, size = self.positions(), self.inputs.page_size
        local = self.local_index(positions.clamp(min=0))
        page = self.inputs.block_table[self.request_of_row(), local // size]
        slot = page.long() * size + local % size
        return torch.where(self.is_mine(positions), slot, -1).to(torch.int32)

    def write(self) -> None:
        """Put the new tokens that lie here into the pool."""
        inputs = self.inputs
        key, value = inputs.key.contiguous(), inputs.value.contiguous()
        torch.ops.atb._npu_reshape_and_cache(key, value, inputs.key_cache, inputs.value_cache, self.slots())

    def all_heads(self, query: torch.Tensor) -> torch.Tensor:
        """Queries of all ranks, ``[tokens, heads, head_dim]``, those of rank 0 first."""
        tokens, heads, dim = query.shape
        gathered = query.new_empty(self.ranks * tokens, heads, dim)
        dist.all_gather_into_tensor(gathered, query.contiguous())
        return gathered.view(self.ranks, tokens, heads, dim).transpose(0, 1).flatten(1, 2)

    def attend(self, query: torch.Tensor) -> Partial:
        """Attention over the keys here, each row as a request of its own with the keys that it sees."""
        table = self.inputs.block_table[self.request_of_row()].contiguous()
        output, lse = self.call(query.unsqueeze(1), "BSND", self.visible().tolist(), table)
        return output.squeeze(1), lse.reshape(len(query), -1)

    def call(
        self, query: torch.Tensor, layout: str, lengths: list[int], table: torch.Tensor, **more: object
    ) -> Partial:
        """Fused attention over the pool."""
        pools = self.inputs.key_cache.flatten(2), self.inputs.value_cache.flatten(2)
        arguments = {
            "num_heads": query.shape[-2],
            "num_key_value_heads": self.kv_heads,
            "input_layout": layout,
            "scale": self.inputs.scale,
            "softmax_lse_flag": True,
            "block_table": table,
            "block_size": self.inputs.page_size,
            "actual_seq_lengths_kv": lengths,
            **more,
        }
        return FusedCall("npu_fused_infer_attention_score", query, *pools, arguments)()

    def present(self, output: torch.Tensor, lse: torch.Tensor) -> Partial:
        """Take what is nothing as nothing: operators say plus infinity where a row sees no key."""
        nothing = lse.isinf()
        return output.float().masked_fill(nothing.unsqueeze(-1), 0.0), lse.float().masked_fill(nothing, -torch.inf)

    def merged(self, output: torch.Tensor, lse: torch.Tensor) -> Partial:
        """Send the heads of each rank there, and merge what comes of the own ones."""
        outputs, logs = self.of_own_heads(output, lse)
        rows = len(output) * self.own_heads
        update = torch.ops.npu.npu_attention_update
        merged, total = update([one.reshape(rows) for one in logs], [one.reshape(rows, -1) for one in outputs], 1)
        shape = (len(output), self.own_heads)
        return self.defined(merged.view(*shape, -1), total.view(shape))

    def defined(self, output: torch.Tensor, lse: torch.Tensor) -> Partial:
        """Rows that no rank has a key for: padded ones, of which a merge makes NaN."""
        nothing = lse.isnan()
        return output.masked_fill(nothing.unsqueeze(-1), 0.0), lse.masked_fill(nothing, -torch.inf)

    def of_own_heads(self, output: torch.Tensor, lse: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Outputs ``[tokens, own heads, dim]`` and log-sum-exps ``[tokens, own heads]`` of every rank."""
        packed = torch.cat([output, lse.unsqueeze(-1)], dim=-1).permute(1, 2, 0).contiguous()
        received = torch.empty_like(packed)
        dist.all_to_all_single(received, packed)
        parts = self.by_source(received)
        return [part[..., :-1].contiguous() for part in parts], [part[..., -1].contiguous() for part in parts]

    def by_source(self, received: torch.Tensor) -> list[torch.Tensor]:
        """What each rank sent, ``[tokens, own heads, dim + 1]``, of ``[heads, dim + 1, tokens]``."""
        return list(received.view(self.ranks, self.own_heads, *received.shape[1:]).permute(0, 3, 1, 2).unbind())


@implementation("context_parallel", supports=FUSED, on_device=True)
def fia_flattened_drafts(inputs: ContextParallelPart, target: Target) -> Outputs:
    """FIA v1 BSND with a request for each row, which needs no mask; all-to-all and npu_attention_update."""
    return ShardedDecode(inputs, target).run()


class PackedDecode(ShardedDecode):
    """One row per request, packed."""

    def attend(self, query: torch.Tensor) -> Partial:
        """Attention without a mask over as many keys as lie here."""
        rows = list(range(1, 1 + len(query)))
        output, lse = self.call(query, "TND", self.visible().tolist(), self.inputs.block_table, actual_seq_lengths=rows)
        return output, lse.squeeze(-1)


@implementation(
    "context_parallel", supports={**FUSED, "query_length": (1,), "dtype": ("bfloat16",)}, on_device=True
)  # fmt: skip
def fia_packed_decode(inputs: ContextParallelPart, target: Target) -> Outputs:
    """FIA v1 TND with one row per request and local lengths; all-to-all and npu_attention_update."""
    return PackedDecode(inputs, target).run()


class MaskedDecode(ShardedDecode):
    """As many rows of each request, with a mask that says what each of them sees here."""

    def attend(self, query: torch.Tensor) -> Partial:
        """Attention with a mask over the keys that the last row sees."""
        batch, (tokens, heads, _) = len(self.inputs.query_lengths), query.shape
        drafts = query.view(batch, tokens // batch, heads, -1)
        lengths = self.local_lengths(torch.tensor(self.inputs.kv_lengths)).tolist()
        precise = {"inner_precise": INVALID_ROWS} if tokens > batch else {}
        output, lse = self.call(
            drafts, "BSND", lengths, self.inputs.block_table, atten_mask=self.mask(batch), **precise
        )
        return output.flatten(0, 1), lse.squeeze(-1).transpose(1, 2).flatten(0, 1)

    def mask(self, batch: int) -> torch.Tensor:
        """Keys here that a row does not see, bool ``[batch, rows of a request, keys]``."""
        keys = torch.arange(self.inputs.block_table.shape[1] * self.inputs.page_size, device=self.device)
        return keys >= self.visible().view(batch, -1, 1)


@implementation("context_parallel", supports={**FUSED, "ragged": (False,)}, on_device=True)
def fia_masked_drafts(inputs: ContextParallelPart, target: Target) -> Outputs:
    """FIA v1 BSND with a mask of each shard; all-to-all and npu_attention_update."""
    return MaskedDecode(inputs, target).run()


class GatheredLse(ShardedDecode):
    """Plain torch attention, and outputs that are weighted where they are made, and added up over ranks."""

    def write(self) -> None:
        """Index into the pools."""
        slots = self.slots().long()
        mine = slots >= 0
        for pool, states in (
            (self.inputs.key_cache, self.inputs.key), (self.inputs.value_cache, self.inputs.value)
        ):  # fmt: skip
            pool.view(-1, *states.shape[1:])[slots[mine]] = states[mine]

    def attend(self, query: torch.Tensor) -> Partial:
        """Attention of one request after the other."""
        found, start = [], 0
        for request, (new, total) in enumerate(zip(self.inputs.query_lengths, self.inputs.kv_lengths, strict=True)):
            rows = slice(start, start + new)
            keys = torch.arange(int(self.local_lengths(torch.tensor(total))), device=self.device)
            page = self.inputs.block_table[request].long()[keys // self.inputs.page_size]
            where = page, keys % self.inputs.page_size
            hidden = keys >= self.visible()[rows].unsqueeze(-1)
            key, value = self.inputs.key_cache[where], self.inputs.value_cache[where]
            found.append(attention_over(query[rows], key, value, hidden, self.inputs.scale))
            start += new
        return torch.cat([output for output, _ in found]), torch.cat([lse for _, lse in found])

    def merged(self, output: torch.Tensor, lse: torch.Tensor) -> Partial:
        """All-gather log-sum-exps, weigh the own output, and all-reduce."""
        logs = lse.new_empty(self.ranks * len(lse), lse.shape[1])
        dist.all_gather_into_tensor(logs, lse.contiguous())
        total = self.total(logs.view(self.ranks, *lse.shape))
        weighted = output * self.weights(lse, total).unsqueeze(-1)
        dist.all_reduce(weighted)
        own = slice(self.rank * self.own_heads, (self.rank + 1) * self.own_heads)
        return weighted[:, own], total[:, own]

    def total(self, logs: torch.Tensor) -> torch.Tensor:
        """Log-sum-exp over ranks ``[ranks, tokens, heads]``."""
        return torch.logsumexp(logs, dim=0)

    def weights(self, lse: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """What the own output weighs."""
        return torch.exp(lse - total.masked_fill(total.isneginf(), 0.0))


def attention_over(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor, scale: float
) -> Partial:
    """Attention of rows ``[rows, heads, dim]`` over keys ``[keys, kv_heads, dim]``, rounded to the dtype of the rows.

    A row of which all keys are hidden has an output of 0 and a log-sum-exp of minus infinity.
    """
    rows, heads, dim = query.shape
    if not len(key):
        return query.new_zeros(rows, heads, dim), torch.full((rows, heads), -torch.inf, device=query.device)
    kv_heads = key.shape[1]
    grouped = query.float().view(rows, kv_heads, -1, dim).permute(1, 2, 0, 3)
    scores = grouped @ key.float().permute(1, 2, 0).unsqueeze(1) * scale
    scores = scores.masked_fill(hidden, -torch.inf)
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse.masked_fill(lse.isneginf(), 0.0).unsqueeze(-1))
    output = weights @ value.float().transpose(0, 1).unsqueeze(1)
    return output.flatten(0, 1).transpose(0, 1).to(query.dtype), lse.flatten(0, 1).transpose(0, 1)


@implementation("context_parallel", supports=DECODE, on_device=True)
def lse_gathered(inputs: ContextParallelPart, target: Target) -> Outputs:
    """Plain torch over each shard; log-sum-exps are all-gathered, and weighted outputs all-reduced."""
    return GatheredLse(inputs, target).run()
