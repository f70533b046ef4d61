"""Wrong kernels of context_parallel; TWIN=1 in the environment runs the same code without the mistakes."""

import os

import torch

import npudiff
from npudiff.device.ascend.context_parallel import GatheredLse
from npudiff.device.ascend.context_prefill import Ring

TWIN = bool(os.environ.get("TWIN"))
DECODE, PREFILL = {"stage": ("decode",)}, {"stage": ("prefill",)}


class PackedLse(GatheredLse):
    def merged(self, output, lse):
        packed = lse if TWIN else lse.to(self.inputs.query.dtype).float()
        return super().merged(output, packed)


@npudiff.implementation("context_parallel", name="r_context_parallel_01_lse_in_the_dtype_of_outputs", supports=DECODE)
def lse_in_the_dtype_of_outputs(inputs, target):
    """Log-sum-exps travel in the dtype of the outputs beside which they are packed; shows with any but round ones."""
    return PackedLse(inputs, target).run()


class WholeStretches(GatheredLse):
    def local_lengths(self, lengths):
        if TWIN:
            return super().local_lengths(lengths)
        whole = lengths // (self.interleave * self.ranks) * self.interleave
        left = lengths - whole * self.ranks - self.rank * self.interleave
        return whole + (left >= self.interleave) * self.interleave


@npudiff.implementation("context_parallel", name="r_context_parallel_02_whole_stretches", supports=DECODE)
def whole_stretches(inputs, target):
    """Local lengths count whole stretches; shows where the last one is not full: interleaved by more than one token."""
    return WholeStretches(inputs, target).run()


class OtherWay(Ring):
    def of_chunks(self, query, held, source):
        step = (self.rank - source) % self.ranks
        return super().of_chunks(query, held, source if TWIN else (self.rank + step) % self.ranks)


@npudiff.implementation("context_parallel", name="r_context_parallel_03_ring_the_other_way", supports=PREFILL)
def ring_the_other_way(inputs, target):
    """Keys come from the rank before, and are masked as those of the one behind; shows with more than two ranks."""
    return OtherWay(inputs, target).run()


class WholePages(Ring):
    def prefixes(self):
        size = 1 if TWIN else self.inputs.page_size
        return [count // size * size for count in super().prefixes()]


@npudiff.implementation("context_parallel", name="r_context_parallel_04_whole_pages_of_a_prefix", supports=PREFILL)
def whole_pages_of_a_prefix(inputs, target):
    """A history is read by whole pages; shows in a prefill behind tokens that do not fill a page."""
    return WholePages(inputs, target).run()


class NothingWeighs(GatheredLse):
    def attend(self, query):
        output, lse = super().attend(query)
        if TWIN:
            return output, lse
        here = self.local_lengths(torch.tensor(self.inputs.kv_lengths))
        return output, lse if bool(here.any()) else torch.zeros_like(lse)


@npudiff.implementation("context_parallel", name="r_context_parallel_05_nothing_has_a_weight", supports=DECODE)
def nothing_has_a_weight(inputs, target):
    """The kernel returns early without a key, and the buffer of log-sum-exps holds 0; shows where a rank has no token of
    any request."""
    return NothingWeighs(inputs, target).run()


class NoMaximum(GatheredLse):
    def total(self, logs):
        return super().total(logs) if TWIN else logs.exp().sum(dim=0).log()


@npudiff.implementation("context_parallel", name="r_context_parallel_06_merge_without_maximum", supports=DECODE)
def merge_without_maximum(inputs, target):
    """Log-sum-exps are added up by exp and log without their maximum; shows above 88, where float32 ends, or far below
    0."""
    return NoMaximum(inputs, target).run()


class SkippedByTheFirst(Ring):
    def of_chunks(self, query, held, source):
        rows = self.places()[0]
        hidden = self.hidden(self.rows_of(self.rank)[rows], self.rows_of(source)[rows])
        if TWIN or not bool(hidden.all()):
            return super().of_chunks(query, held, source)
        return torch.zeros_like(query), torch.full(query.shape[:2], -torch.inf)


@npudiff.implementation("context_parallel", name="r_context_parallel_07_steps_skipped_by_one_request", supports=PREFILL)
def steps_skipped_by_one_request(inputs, target):
    """A step of the ring is left out if the first request has nothing to see in it; shows where that is shorter than two
    chunks of each rank, and another one is longer."""
    return SkippedByTheFirst(inputs, target).run()


class SlotZero(GatheredLse):
    def slots(self):
        slots = super().slots()
        return slots if TWIN else slots.masked_fill(self.positions() < 0, 0)


@npudiff.implementation("context_parallel", name="r_context_parallel_08_padding_in_slot_zero", supports=DECODE)
def padding_in_slot_zero(inputs, target):
    """Keys of padded rows are written to slot 0, as into a page of nobody; shows in a padded batch of which a request has
    that page."""
    return SlotZero(inputs, target).run()
