"""Wrong kernels of data_parallel_gather; TWIN=1 in the environment runs the same code without the mistakes."""

import os

import torch
import torch.distributed as dist

import npudiff
from npudiff.device.ascend.data_parallel_gather import (
    attention_group, group_of, in_slices, own_part, padded_to, place_of, real_rows, summed_in_group, whole_of_group,
)  # fmt: skip

TWIN = bool(os.environ.get("TWIN"))
SUM, PADDED = {"mode": ("sum",)}, {"mode": ("maximum", "sum")}


class Summed:
    """A buffer of all tokens into which each rank writes its slice, all-reduced; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs, self.group = inputs, group_of(inputs)
        self.count = inputs.counts[self.group]

    def room(self):
        return sum(self.inputs.counts)

    def start(self):
        return sum(self.inputs.counts[: self.group])

    def written_at(self):
        return self.start()

    def read_at(self):
        return self.start()

    def writes(self):
        return not self.inputs.replicated or place_of(self.inputs) == 0

    def part(self, rows):
        return own_part(self.inputs, rows)

    def buffer(self):
        return self.inputs.states.new_zeros(self.room(), self.inputs.states.shape[1])

    def run(self):
        inputs, count = self.inputs, self.count
        every = self.buffer()
        if self.writes():
            at = self.written_at()
            every[at : at + count] = inputs.states[:count]
        dist.all_reduce(every)
        result = self.part(every)
        dist.all_reduce(result)
        at = self.read_at()
        own = torch.zeros_like(inputs.states)
        own[:count] = result[at : at + count]
        return {"output": own, "real": real_rows(inputs)}


class Lengths(Summed):
    def room(self):
        return sum(self.inputs.lengths)

    def written_at(self):
        return sum((self.inputs.counts if TWIN else self.inputs.lengths)[: self.group])


@npudiff.implementation("data_parallel_gather", name="r_data_parallel_gather_01_written_by_lengths", supports=SUM)
def written_by_lengths(inputs, target):
    """Slices are written where padded ones would begin, and read where unpadded ones do; shows behind a group that is
    padded."""
    return Lengths(inputs).run()


class DataRanks:
    """Padded to the longest, gathered and reduce-scattered over ranks of the same place, all-reduced in the group."""

    def __init__(self, inputs):
        self.inputs = inputs
        self.groups, self.size = len(inputs.counts), inputs.attention_ranks

    def ranks_of(self, place):
        return [group * self.size + place for group in range(self.groups)]

    def summed(self, rows):
        return summed_in_group(self.inputs, rows)

    def run(self):
        inputs = self.inputs
        teams = [self.ranks_of(place) for place in range(self.size)]
        made = [dist.new_group(ranks) for ranks in teams]
        ranks = next(one for one, team in zip(made, teams) if inputs.rank in team)
        count, most = inputs.counts[group_of(inputs)], max(inputs.counts)
        own = padded_to(self.summed(inputs.states[:count]), most)
        every = own.new_empty(most * self.groups, own.shape[1])
        dist.all_gather_into_tensor(every, own, group=ranks)
        result = torch.empty_like(own)
        dist.reduce_scatter_tensor(result, self.part(every), group=ranks)
        result = result[:count].contiguous()
        if self.size > 1:
            dist.all_reduce(result, group=attention_group(inputs))
        return {"output": padded_to(result, len(inputs.states)), "real": real_rows(inputs)}

    def part(self, rows):
        return own_part(self.inputs, rows)


class Neighbours(DataRanks):
    def ranks_of(self, place):
        if TWIN:
            return super().ranks_of(place)
        return [place * self.groups + group for group in range(self.groups)]


@npudiff.implementation("data_parallel_gather", name="r_data_parallel_gather_02_neighbours_for_data_ranks", supports=PADDED)
def neighbours_for_data_ranks(inputs, target):
    """Ranks that gather are neighbours, as if groups were of every n-th rank; shows with several groups of several
    ranks."""
    return Neighbours(inputs).run()


@npudiff.implementation(
    "data_parallel_gather", name="r_data_parallel_gather_03_kept_buffer", supports=SUM, stateful=True
)
def kept_buffer():
    """The buffer of all tokens is kept for calls with about as many, and was zero in the first alone; shows in a later
    call of several ranks."""
    kept = {}

    class Kept(Summed):
        def buffer(self):
            rows, states = self.room(), self.inputs.states
            capacity = max(-(-rows // 16), 1) * 16
            key = (capacity, states.shape[1], states.dtype)
            if key not in kept or TWIN:
                kept[key] = states.new_zeros(capacity, states.shape[1])
            return kept[key][:rows]

    def gathered(inputs, target):
        return Kept(inputs).run()

    return gathered


class Chunks:
    """Each rank computes its chunk of its group's rows; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs = inputs

    def real(self, behind, chunk):
        """Real rows of a chunk behind whose first row there are so many real ones in the group."""
        return min(behind, chunk)

    def run(self):
        inputs, place = self.inputs, place_of(self.inputs)
        chunk = len(inputs.states) // inputs.attention_ranks
        own = inputs.states[place * chunk : (place + 1) * chunk].clone()
        if not inputs.replicated:
            own = in_slices(inputs, inputs.states, leader=False)
        real = self.real(max(inputs.counts[group_of(inputs)] - place * chunk, 0), chunk)
        result = torch.zeros_like(own)
        terms = own[:real].unsqueeze(0) * inputs.factors.unsqueeze(1)
        result[:real] = terms.sum(dim=0, dtype=terms.dtype)
        return {"output": whole_of_group(inputs, result), "real": torch.tensor([real], dtype=torch.int32)}


def in_its_mode(inputs, **changed):
    """Run the way of a mode, some of them changed."""
    ways = {"sum": Summed, "maximum": DataRanks, "chunks": Chunks, **changed}
    return ways[inputs.mode](inputs).run()


class Unclamped(Chunks):
    def real(self, behind, chunk):
        return super().real(behind, chunk) if TWIN else behind


@npudiff.implementation("data_parallel_gather", name="r_data_parallel_gather_04_more_real_rows_than_rows")
def more_real_rows_than_rows(inputs, target):
    """Real rows of a chunk are those from its begin to the end of the group; shows in what is said to be real, where
    tokens go on behind the chunk."""
    return in_its_mode(inputs, chunks=Unclamped)


class OneBefore(Summed):
    def start(self):
        if TWIN:
            return super().start()
        return self.inputs.counts[self.group - 1] if self.group else 0


@npudiff.implementation("data_parallel_gather", name="r_data_parallel_gather_05_start_behind_one_group")
def start_behind_one_group(inputs, target):
    """The slice of a group begins behind the tokens of the one before; shows with more than two groups."""
    return in_its_mode(inputs, sum=OneBefore)


class IdleHasOne(Summed):
    def room(self):
        return sum(max(count, 1) for count in self.inputs.counts)

    def read_at(self):
        least = 0 if TWIN else 1
        return sum(max(count, least) for count in self.inputs.counts[: self.group])


@npudiff.implementation("data_parallel_gather", name="r_data_parallel_gather_06_idle_group_has_a_token")
def idle_group_has_a_token(inputs, target):
    """Where results are read an idle group has one token, as in a dummy run; shows behind a group without tokens."""
    return in_its_mode(inputs, sum=IdleHasOne)


class Averaged(DataRanks):
    def summed(self, rows):
        if not self.inputs.replicated:
            return super().summed(rows)
        own = rows.clone()
        if TWIN:
            own *= place_of(self.inputs) == 0
        elif own.dtype.is_floating_point:
            own /= self.size
        else:
            own //= self.size
        dist.all_reduce(own, group=attention_group(self.inputs))
        return own


@npudiff.implementation("data_parallel_gather", name="r_data_parallel_gather_07_average_of_integers", supports=PADDED)
def average_of_integers(inputs, target):
    """Rows that the ranks of a group share are divided by their number and added up; shows with integers, of which
    remainders are lost."""
    return Averaged(inputs).run()


class ThroughFloat(Summed):
    def part(self, rows):
        if TWIN or rows.dtype != torch.int32:
            return super().part(rows)
        return super().part(rows.float()).to(torch.int32)


@npudiff.implementation("data_parallel_gather", name="r_data_parallel_gather_08_integers_through_float32", supports=SUM)
def integers_through_float32(inputs, target):
    """Integers are multiplied as float32; shows with odd ones above 2**24."""
    return ThroughFloat(inputs).run()
