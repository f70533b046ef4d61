"""Wrong kernels of vocabulary_parallel; TWIN=1 in the environment runs the same code without the mistakes."""

import os

import torch
import torch.distributed as dist

import npudiff
from npudiff.device.ascend.vocabulary_parallel import columns_in_order, padded_rows, part_of, without_padding
from npudiff.reference.vocabulary_parallel import starts_of

TWIN = bool(os.environ.get("TWIN"))


class Vocabulary:
    """Masked lookup and all-reduce, gathered logits, and a largest one of each rank; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs, self.part, self.ranks = inputs, part_of(inputs), dist.get_world_size()

    def tokens_of_all(self, rows):
        """Rows of all tokens."""
        return rows if self.inputs.given == "whole" else without_padding(self.inputs, padded_rows(self.inputs, rows))

    def returned(self, rows):
        """The rows that this rank is asked for."""
        if self.inputs.returned == "whole":
            return rows
        first = starts_of(self.inputs.counts)[self.inputs.rank]
        return rows[first : first + self.inputs.counts[self.inputs.rank]].contiguous()

    def known(self, ids):
        return (ids >= self.part.start) & (ids < self.part.end)

    def added(self, ids):
        return (ids >= self.part.added_start) & (ids < self.part.added_end)

    def rows_before_added(self):
        return self.part.padded

    def blank(self, rows, mine):
        return rows.masked_fill(~mine.unsqueeze(1), 0)

    def embedded(self):
        ids = self.tokens_of_all(self.inputs.ids).long()
        added = self.added(ids)
        known = self.known(ids) & ~added
        places = (ids - self.part.start) * known + (ids - self.part.added_start + self.rows_before_added()) * added
        places = places.clamp(0, len(self.inputs.weight) - 1)
        rows = self.blank(self.inputs.weight[places], known | added)
        dist.all_reduce(rows)
        return self.returned(rows)

    def side_by_side(self, part):
        """Gather ``[tokens, own]`` along columns."""
        tokens, own = part.shape
        every = part.new_empty(self.ranks * tokens, own)
        dist.all_gather_into_tensor(every, part.contiguous())
        return every.view(self.ranks, tokens, own).movedim(0, 1).reshape(tokens, self.ranks * own)

    def largest_here(self, logits):
        """The largest logit of the own ids, and its id."""
        part = self.part
        mine = [torch.arange(part.end - part.start), torch.arange(part.added_end - part.added_start) + part.padded]
        ids = torch.cat([torch.arange(part.start, part.end), torch.arange(part.added_start, part.added_end)])
        if not len(ids):
            return logits.new_full((len(logits),), -torch.inf), torch.zeros(len(logits), dtype=torch.int64)
        value, place = logits[:, torch.cat(mine)].max(dim=1)
        return value, ids[place]

    def of_ranks(self, value, ids):
        """Values and ids of all ranks, ``[tokens, ranks]``."""
        return self.side_by_side(value.unsqueeze(1)), self.side_by_side(ids.unsqueeze(1))

    def chosen(self, values, ids):
        largest = values == values.amax(dim=1, keepdim=True)
        return ids.masked_fill(~largest, torch.iinfo(torch.int64).max).amin(dim=1)

    def gathered(self, logits):
        return self.side_by_side(logits)

    def run(self):
        logits = torch.nn.functional.linear(self.tokens_of_all(self.inputs.states), self.inputs.weight)
        tokens = self.chosen(*self.of_ranks(*self.largest_here(logits)))
        every = columns_in_order(self.inputs, self.gathered(logits))
        return {"embedded": self.embedded(), "logits": self.returned(every), "tokens": self.returned(tokens)}


class Viewed(Vocabulary):
    def gathered(self, logits):
        if TWIN:
            return super().gathered(logits)
        tokens, own = logits.shape
        every = logits.new_empty(self.ranks * tokens, own)
        dist.all_gather_into_tensor(every, logits.contiguous())
        return every.view(tokens, self.ranks * own)


@npudiff.implementation("vocabulary_parallel", name="r_vocabulary_parallel_01_logits_not_transposed")
def logits_not_transposed(inputs, target):
    """Gathered logits are viewed as rows of tokens and lie as ranks; shows with several tokens and ranks."""
    return Viewed(inputs).run()


class Packed(Vocabulary):
    def of_ranks(self, value, ids):
        if TWIN:
            return super().of_ranks(value, ids)
        both = self.side_by_side(torch.stack([value, ids.to(value.dtype)], dim=1)).view(len(value), self.ranks, 2)
        return both[..., 0], both[..., 1].float().long()


@npudiff.implementation("vocabulary_parallel", name="r_vocabulary_parallel_02_ids_in_the_dtype_of_logits")
def ids_in_the_dtype_of_logits(inputs, target):
    """Ids travel beside their logits, in the dtype of these; shows with ids beyond 256 in bfloat16, or 2048 in float16."""
    return Packed(inputs).run()


class EndIncluded(Vocabulary):
    def known(self, ids):
        return super().known(ids) if TWIN else (ids >= self.part.start) & (ids <= self.part.end)


@npudiff.implementation("vocabulary_parallel", name="r_vocabulary_parallel_03_end_included")
def end_included(inputs, target):
    """A rank looks up the id behind its own, too; shows with the first id of a rank, whose row and another are added."""
    return EndIncluded(inputs).run()


class NoLowerEnd(Vocabulary):
    def known(self, ids):
        return super().known(ids) if TWIN or self.part.start else ids < self.part.end


@npudiff.implementation("vocabulary_parallel", name="r_vocabulary_parallel_04_no_lower_end")
def no_lower_end(inputs, target):
    """The first rank asks whether an id is below its end alone; shows with negative ids, which have row 0."""
    return NoLowerEnd(inputs).run()


class PaddingToo(Vocabulary):
    def largest_here(self, logits):
        if TWIN:
            return super().largest_here(logits)
        part = self.part
        value, place = logits.max(dim=1)
        return value, place + torch.where(place < part.padded, part.start, part.added_start - part.padded)


@npudiff.implementation("vocabulary_parallel", name="r_vocabulary_parallel_05_padding_may_be_largest")
def padding_may_be_largest(inputs, target):
    """A rank's largest logit may be one of a row of padding; shows in tokens, where such a row has a larger one."""
    return PaddingToo(inputs).run()


class Multiplied(Vocabulary):
    def blank(self, rows, mine):
        return super().blank(rows, mine) if TWIN else rows * mine.unsqueeze(1)


@npudiff.implementation("vocabulary_parallel", name="r_vocabulary_parallel_06_multiplied_by_the_mask")
def multiplied_by_the_mask(inputs, target):
    """Rows of others are multiplied by 0; shows where row 0 is not finite: padding alone on a rank, of NaN or infinity."""
    return Multiplied(inputs).run()


class FirstRank(Vocabulary):
    def chosen(self, values, ids):
        if TWIN:
            return super().chosen(values, ids)
        return ids.gather(1, values.argmax(dim=1, keepdim=True)).squeeze(1)


@npudiff.implementation("vocabulary_parallel", name="r_vocabulary_parallel_07_first_rank_of_a_tie")
def first_rank_of_a_tie(inputs, target):
    """Of equal logits the first rank's counts, and not the lowest id; shows where an added id of a rank ties with an id
    of the vocabulary of a later one."""
    return FirstRank(inputs).run()


class Unpadded(Vocabulary):
    def rows_before_added(self):
        return super().rows_before_added() if TWIN else self.part.end - self.part.start


@npudiff.implementation("vocabulary_parallel", name="r_vocabulary_parallel_08_added_rows_behind_real_ones")
def added_rows_behind_real_ones(inputs, target):
    """Added rows are looked up behind real ones, in place of padded ones; shows with added ids on a rank with padding."""
    return Unpadded(inputs).run()
