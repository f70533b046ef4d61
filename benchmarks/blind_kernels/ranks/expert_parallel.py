"""Wrong kernels of expert_parallel; TWIN=1 in the environment runs the same code without the mistakes."""

import os
from dataclasses import replace

import torch
import torch.distributed as dist

import npudiff
from npudiff.device.ascend.moe_experts import alone

TWIN = bool(os.environ.get("TWIN"))


class Routed:
    """Copies are sorted by lane, exchanged by all-to-all, computed and sent back; subclasses change one thing.

    A lane is a slot, or the shared expert of a rank that has nothing else.
    """

    def __init__(self, inputs):
        self.inputs, self.layout = inputs, inputs.layout
        self.tokens, self.k = inputs.topk_ids.shape
        apart = self.layout.shared_ranks
        self.lanes = [1 if rank < apart else slots for rank, slots in enumerate(self.layout.slots)]
        start = sum(self.lanes[: inputs.rank])
        self.own = slice(start, start + self.lanes[inputs.rank])

    def active(self):
        """Copies that take part, bool ``[tokens, k]``."""
        mask = self.inputs.mask
        if mask is None:
            return torch.ones(self.tokens, self.k, dtype=torch.bool)
        return (mask if mask.dim() == 2 else mask.unsqueeze(1)).expand(self.tokens, self.k)

    def numbers(self):
        """Number of each token for its row of the table."""
        return torch.arange(self.tokens)

    def slots(self, ids):
        row = self.numbers() % len(self.inputs.table)
        return self.inputs.table[row.unsqueeze(1), ids].long()

    def replica(self):
        """Which rank of each shared expert has the tokens of this rank."""
        return self.inputs.rank % self.layout.copies_of_shared

    def copies(self):
        """Lane, token and weight of each copy."""
        active, apart = self.active(), self.layout.shared_ranks
        taking = active & (self.inputs.topk_ids >= 0)
        token, place = taking.nonzero(as_tuple=True)
        lane = self.slots(self.inputs.topk_ids.clamp(min=0).long())[token, place] + apart
        weight = self.inputs.weights[token, place].float()
        if not apart:
            return lane, token, weight
        present = active.any(dim=1).nonzero().flatten()
        of_shared = [lane], [token], [weight]
        for expert in range(self.layout.shared_experts):
            to = expert * self.layout.copies_of_shared + self.replica()
            for parts, more in zip(of_shared, (torch.full_like(present, to), present, torch.ones(len(present)))):
                parts.append(more)
        return tuple(torch.cat(parts) for parts in of_shared)

    def exchanged(self, rows, received, sent):
        found = rows.new_empty(sum(received), *rows.shape[1:])
        dist.all_to_all_single(found, rows.contiguous(), received, sent)
        return found

    def experts_of(self, here):
        """Number of its expert for each row that came; ``here`` is ``[ranks, lanes of this rank]``."""
        ranks, experts = here.shape
        return torch.repeat_interleave(torch.arange(experts).repeat(ranks), here.flatten())

    def local(self, counts):
        return self.inputs.local

    def said(self, rows, numbers, counts):
        local, result = self.local(counts), torch.zeros_like(rows)
        for number in range(len(counts)):
            mine = numbers == number
            if bool(mine.any()):
                result[mine] = alone(rows[mine], local, number)
        return result

    def counts(self, here):
        return here.sum(dim=0)

    def run(self):
        inputs = self.inputs
        lane, token, weight = self.copies()
        order = lane.argsort(stable=True)
        token, weight = token[order], weight[order]
        histogram = torch.bincount(lane, minlength=sum(self.lanes))
        every = histogram.new_empty(self.layout.ranks * len(histogram))
        dist.all_gather_into_tensor(every, histogram)
        here = every.view(self.layout.ranks, -1)[:, self.own].contiguous()
        sent = [int(part.sum()) for part in torch.split(histogram, self.lanes)]
        received = here.sum(dim=1).tolist()
        rows = self.exchanged(inputs.states[token], received, sent)
        rows = self.said(rows, self.experts_of(here), here.sum(dim=0))
        back = self.exchanged(rows, sent, received)
        total = torch.zeros(inputs.states.shape, dtype=torch.float32)
        total.index_add_(0, token, back.float() * weight.unsqueeze(1))
        if inputs.shared is not None and self.tokens:
            for number in range(inputs.shared.up.experts):
                total += alone(inputs.states, inputs.shared, number).float()
        return {"output": total.to(inputs.states.dtype), "counts": self.counts(here)}


class IdsForSlots(Routed):
    def slots(self, ids):
        return super().slots(ids) if TWIN else ids


@npudiff.implementation("expert_parallel", name="r_expert_parallel_01_ids_for_slots")
def ids_for_slots(inputs, target):
    """Numbers of experts are taken for slots, without the table; shows where an expert is in a slot of another number."""
    return IdsForSlots(inputs).run()


class SourcesMixed(Routed):
    def experts_of(self, here):
        if TWIN:
            return super().experts_of(here)
        return torch.repeat_interleave(torch.arange(here.shape[1]), here.sum(dim=0))


@npudiff.implementation("expert_parallel", name="r_expert_parallel_02_sorted_over_sources")
def sorted_over_sources(inputs, target):
    """Rows that came are taken as sorted by expert over all ranks, and are so for each source; shows where two sources
    have rows for two experts of a rank."""
    return SourcesMixed(inputs).run()


class TokensOfAll(Routed):
    def numbers(self):
        first = 0 if TWIN else self.layout.tokens(self.inputs.rank).start
        return torch.arange(self.tokens) + first


@npudiff.implementation("expert_parallel", name="r_expert_parallel_03_replica_by_the_token_of_all")
def replica_by_the_token_of_all(inputs, target):
    """A replica is chosen by the number of a token among those of all ranks; shows in counts, where tables have several
    rows, and ranks before have a number of tokens that is no multiple of them."""
    return TokensOfAll(inputs).run()


class AnyCopy(Routed):
    def active(self):
        active = super().active()
        return active if TWIN else active.any(dim=1, keepdim=True).expand_as(active)


@npudiff.implementation("expert_parallel", name="r_expert_parallel_04_mask_of_tokens_from_copies")
def mask_of_tokens_from_copies(inputs, target):
    """A mask of copies becomes one of tokens, by any; shows where some copies of a token are masked and others not."""
    return AnyCopy(inputs).run()


class ScalesOfUsed(Routed):
    def local(self, counts):
        local = self.inputs.local
        if TWIN or not local.quantised:
            return local
        place = ((counts > 0).cumsum(0) - 1).clamp(min=0)  # scales lie behind each other in groups that have rows
        up, down = (replace(part, scale=part.scale[place]) for part in (local.up, local.down))
        return replace(local, up=up, down=down)


@npudiff.implementation("expert_parallel", name="r_expert_parallel_05_scales_of_experts_with_rows")
def scales_of_experts_with_rows(inputs, target):
    """Scales of a rank are counted by experts that have rows; shows with integer weights, behind an expert of the rank
    that has none."""
    return ScalesOfUsed(inputs).run()


class Blocks(Routed):
    def replica(self):
        if TWIN:
            return super().replica()
        return self.inputs.rank * self.layout.copies_of_shared // self.layout.ranks


@npudiff.implementation("expert_parallel", name="r_expert_parallel_06_shared_expert_by_blocks")
def shared_expert_by_blocks(inputs, target):
    """A shared expert's ranks have blocks of ranks, not every n-th of them; shows in counts, where an expert has several
    ranks of its own."""
    return Blocks(inputs).run()


class Room(Routed):
    def said(self, rows, numbers, counts):
        result = super().said(rows, numbers, counts)
        most = max(self.layout.rows) if TWIN else max(self.tokens, 1)
        if self.inputs.rank >= self.layout.shared_ranks:
            result[most * self.layout.ranks * min(self.lanes[self.inputs.rank], self.k) :] = 0
        return result


@npudiff.implementation("expert_parallel", name="r_expert_parallel_07_room_by_own_tokens")
def room_by_own_tokens(inputs, target):
    """There is room for as many rows as if all ranks had the own tokens, or one; shows on a rank with few tokens that is given
    many copies."""
    return Room(inputs).run()


class Idle(Routed):
    def counts(self, here):
        counts = super().counts(here)
        return counts if TWIN or self.tokens else torch.zeros_like(counts)


@npudiff.implementation("expert_parallel", name="r_expert_parallel_08_idle_rank_counts_nothing")
def idle_rank_counts_nothing(inputs, target):
    """A rank without tokens says that its experts had none; shows where others send it copies."""
    return Idle(inputs).run()
