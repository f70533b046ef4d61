"""Tokens that are gathered from data-parallel ranks and scattered again: cases, data, and what must hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, Chooser, assume, axis, derived, part, seed
from npudiff.draw.data import Stream
from npudiff.judge.relations import Changed, Outputs, relation
from npudiff.model.component import Component
from npudiff.model.constraints import Box, allows
from npudiff.model.ranks import Ranks
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import Model, of_models
from npudiff.reference.data_parallel_gather import (
    MODES,
    DataParallelGatherInputs,
    data_parallel_gather,
    rank_part,
    rows_of_ranks,
    starts_of_ranks,
)

RANKS = (1, 2, 3, 4, 6, 8)
MOST_RANKS = 8
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "int32": torch.int32}
COUNTS = (1, 2, 3, 4, 5, 7, 8, 17, 33)
POISONS = ("stale", "large", "nan")
"""What padded rows hold: numbers as of any row, 4096, or NaN; of integers the largest one, for NaN."""
LARGE = 4096.0
LARGEST_FACTOR = 8
"""Of integers."""

MOST_ELEMENTS = 2**15
"""Elements of all states up to which a case may have more tokens, or wider rows, than it must."""


def _options(case: DataParallelGatherCase, box: Box) -> list[int]:
    """Numbers of groups that go with as many ranks each, and with what the box says of ranks."""
    most = MOST_RANKS // case.attention_ranks
    return [groups for groups in (1, 2, 3, 4, 6, 8) if groups <= most and _fits(case.attention_ranks * groups, box)]


def _fits(ranks: int, box: Box) -> bool:
    return ranks in RANKS and allows(box.get("ranks", RANKS), ranks)


def _draw_counts(choose: Chooser, box: Box, case: DataParallelGatherCase) -> tuple[int, ...]:
    options = _options(case, box)
    assume(options)
    groups = choose.value(box, "groups", [*options[1:], *options[:1]])
    assume(_fits(groups * case.attention_ranks, box))
    longest = choose.value(box, "longest", COUNTS)
    alike = choose.pick((False, False, True))
    others = [longest if alike else min(choose.pick((*COUNTS, *[0] * 5)), longest) for _ in range(groups)]
    others[choose.pick(range(groups))] = longest
    return tuple(others)


def _attention(case: DataParallelGatherCase) -> Sequence[int]:
    return [ranks for ranks in (1, 2, 1, 1, 2, 4, 3) if any(_fits(ranks * groups, case.box) for groups in range(1, 9))]


@dataclass(frozen=True)
class DataParallelGatherCase(Case):
    """One layer, as the tokens of groups."""

    counts: tuple[int, ...] = part(
        draw=_draw_counts,
        shown=lambda case: f"{'+'.join(map(str, case.counts))} token(s), {case.attention_ranks} rank(s) each",
    )
    attention_ranks: int = axis("ranks of a group", (1, 2, 3, 4, 6, 8), 1, drawn=_attention, shown="",
                                region="several ranks of a group")  # fmt: skip
    mode: str = axis("how tokens are gathered", MODES, "sum", shown="{}", always=True, region="{}")
    replicated: bool = axis("whether ranks of a group have the same rows", (True, False), True,
                            applies=lambda case: case.attention_ranks > 1, shown="rows that add up",
                            region="rows that add up")  # fmt: skip
    spare: int = axis("rows that buffers have behind those they need, by which a graph pads", range(2**10), 0,
                      drawn=(0, 0, 1, 2, 5), shown="{} spare row(s)")  # fmt: skip
    width: int = axis("elements of a row", range(1, 2**16 + 1), 16, drawn=(16, 1, 3, 64, 80, 1000),
                      shown="width {}", always=True)  # fmt: skip
    dtype: str = axis("dtype of states", tuple(DTYPES), "bfloat16", always=True)
    poison: str = axis("what padded rows hold", POISONS, "stale", shown="padding of {}")
    seed: int = seed()

    drawn_first = ("attention_ranks", "counts", "mode")
    outliers = ("longest",)

    @derived("ranks of all groups", RANKS)
    def ranks(self) -> int:
        """Ranks of all groups."""
        return len(self.counts) * self.attention_ranks

    @derived("data-parallel groups", range(1, MOST_RANKS + 1))
    def groups(self) -> int:
        """Data-parallel groups."""
        return len(self.counts)

    @derived("tokens of the longest group", range(1, 2**14))
    def longest(self) -> int:
        """Tokens of the longest group."""
        return max(self.counts)

    @property
    def tokens(self) -> int:
        """Tokens of all groups."""
        return sum(self.counts)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Rows of the buffer of each group's ranks."""
        if self.mode == "sum":
            return tuple(count + self.spare for count in self.counts)
        counts = [max(self.counts)] * len(self.counts) if self.mode == "maximum" else self.counts
        size = self.attention_ranks
        return tuple(-(-(count + self.spare) // size) * size for count in counts)

    def is_cheap(self) -> bool:
        """See ``DeclaredCase``."""
        return sum(self.lengths) * self.attention_ranks * self.width <= MOST_ELEMENTS

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if self.ranks not in RANKS:
            yield f"there may be {RANKS} ranks, got {self.ranks}"
        if min(self.counts) < 0 or not sum(self.counts):
            yield f"groups must have a token, and none less than 0, got {self.counts}"
        if sum(self.lengths) * self.attention_ranks * self.width > 2**24:
            yield f"there would be more than {2**24} elements"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        padded = any(count < length for count, length in zip(self.counts, self.lengths, strict=True))
        return {
            "several ranks": self.ranks > 1,
            "several groups": self.groups > 1,
            "a group without tokens": 0 in self.counts,
            "unequal groups": len(set(self.counts)) > 1,
            "padding": padded,
            "nan": padded and self.poison == "nan",
            "tokens do not divide": any(count % self.attention_ranks for count in self.counts),
            "several groups of several ranks": self.groups > 1 < self.attention_ranks,
        }


def build_inputs(case: DataParallelGatherCase) -> DataParallelGatherInputs:
    """Build the inputs of a case."""
    dtype, rows = DTYPES[case.dtype], sum(case.lengths) * case.attention_ranks
    inputs = DataParallelGatherInputs(
        states=_numbers(case, "states", rows).to(dtype),
        factors=_factors(case).to(dtype),
        counts=case.counts, lengths=case.lengths, attention_ranks=case.attention_ranks, mode=case.mode,
        replicated=case.replicated,
    )  # fmt: skip
    starts = starts_of_ranks(inputs)
    for rank in range(case.ranks):
        group = rank // case.attention_ranks
        if case.replicated and rank % case.attention_ranks:
            first = starts[group * case.attention_ranks]
            inputs.states[starts[rank] : starts[rank + 1]] = inputs.states[first : first + case.lengths[group]]
        padding = inputs.states[starts[rank] + case.counts[group] : starts[rank + 1]]
        if case.poison != "stale":
            padding[:] = _poison(case.poison, dtype)
    return inputs


def _poison(poison: str, dtype: torch.dtype) -> float:
    if poison == "large":
        return LARGE
    return math.nan if dtype.is_floating_point else float(2**30)


def _numbers(case: DataParallelGatherCase, name: str, rows: int) -> torch.Tensor:
    if case.dtype == "int32":
        most = 2**30 // (LARGEST_FACTOR * case.ranks * (1 if case.replicated else case.attention_ranks))
        drawn = Stream(case.seed, name).integer_array(-most, most, rows * case.width)  # no sum leaves int32
        return torch.from_numpy(drawn).view(rows, case.width)
    return Stream(case.seed, name).normal((rows, case.width), torch.float32)


def _factors(case: DataParallelGatherCase) -> torch.Tensor:
    """Powers of two of either sign, those of neighbours unlike each other."""
    signs = torch.from_numpy(Stream(case.seed, "signs").integer_array(0, 2, case.ranks * case.width))
    sizes = torch.tensor([1.0, 2.0, 4.0, LARGEST_FACTOR] if case.dtype == "int32" else [1.0, 2.0, 0.5, 4.0, 0.25])
    columns = torch.arange(case.width) + torch.arange(case.ranks).unsqueeze(1)
    return sizes[columns % len(sizes)] * (1 - 2 * signs.view(case.ranks, case.width))


def coordinates(inputs: DataParallelGatherInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output: rank, group, row of its buffer, and column."""
    ranks = torch.arange(inputs.ranks)
    if output == "real":
        return {"rank": ranks, "group": ranks // inputs.attention_ranks}
    lengths = torch.tensor(inputs.lengths).repeat_interleave(inputs.attention_ranks)
    rank = ranks.repeat_interleave(lengths)
    row = torch.cat([torch.arange(length) for length in lengths.tolist()])
    return {
        "rank": rank.unsqueeze(1),
        "group": (rank // inputs.attention_ranks).unsqueeze(1),
        "row": row.unsqueeze(1),
        "column": torch.arange(inputs.states.shape[1]).unsqueeze(0),
    }


def tokens_of(inputs: DataParallelGatherInputs, *, each_rank: bool) -> list[int]:
    """Return the rows that are tokens, of every rank or of the first one of each group."""
    starts = starts_of_ranks(inputs)
    ranks = range(0, inputs.ranks, 1 if each_rank else inputs.attention_ranks)
    return [
        row
        for rank in ranks
        for row in range(starts[rank], starts[rank] + inputs.counts[rank // inputs.attention_ranks])
    ]


def _output_rows(rows: Sequence[int]) -> Callable[[Outputs], Outputs]:
    return lambda outputs: {name: output[rows] for name, output in outputs.items() if name == "output"}


def _zeros_in_padding(
    inputs: DataParallelGatherInputs, case: DataParallelGatherCase
) -> Changed[DataParallelGatherInputs]:
    rows = tokens_of(inputs, each_rank=True)
    states = torch.zeros_like(inputs.states)
    states[rows] = inputs.states[rows]
    take = _output_rows(rows)
    return Changed(replace(inputs, states=states), take, take, case=replace(case, poison="stale"))


def _another_mode(inputs: DataParallelGatherInputs, case: DataParallelGatherCase) -> Changed[DataParallelGatherInputs]:
    """Padded to the longest group, tokens have what they have one after the other."""
    other = replace(case, mode="maximum", poison="stale")
    states = inputs.states.new_zeros(sum(other.lengths) * case.attention_ranks, case.width)
    changed = replace(inputs, states=states, lengths=other.lengths, mode="maximum")
    rows = tokens_of(changed, each_rank=True)
    before = tokens_of(inputs, each_rank=True)
    states[rows] = inputs.states[before]
    return Changed(changed, _output_rows(before), _output_rows(rows), case=other)


def _one_rank(inputs: DataParallelGatherInputs, case: DataParallelGatherCase) -> Changed[DataParallelGatherInputs]:
    """One rank with all tokens, and the sum of all factors."""
    rows = tokens_of(inputs, each_rank=False)
    alone = DataParallelGatherInputs(
        states=inputs.states[rows], factors=inputs.factors.sum(dim=0, keepdim=True).to(inputs.factors.dtype),
        counts=(case.tokens,), lengths=(case.tokens,), attention_ranks=1, mode=case.mode, replicated=True,
    )  # fmt: skip
    like = replace(case, counts=(case.tokens,), attention_ranks=1, spare=0, poison="stale")
    every = _output_rows(range(case.tokens))
    return Changed(inputs, every, _output_rows(rows), case=like, before=alone)


def _sizes(model: Model) -> Box:
    return {"width": (model.hidden,), "dtype": ("bfloat16",)}


component = Component(
    name="data_parallel_gather",
    summary="tokens of data-parallel ranks, gathered for a layer of all ranks, and scattered back to each",
    case_type=DataParallelGatherCase,
    outputs=("output", "real"),
    inputs=build_inputs,
    reference=data_parallel_gather,
    ranks=Ranks(count=lambda inputs: inputs.ranks, part=rank_part, rows=rows_of_ranks),
    coordinates=coordinates,
    highlighted_region="several groups of several ranks",
    relations=(
        relation("what_padding_holds", "what padded rows hold does not matter", _zeros_in_padding,
                 needs={"poison": ("stale",)}),
        relation("padded_to_the_longest", "padded to the longest group, tokens have the same results", _another_mode,
                 within={"mode": ("sum",)}, needs={"mode": ("maximum",)}),
        relation("one_rank", "one rank with all tokens returns the same", _one_rank,
                 within={"ranks": RANKS[1:], "replicated": (True,)}, needs={"ranks": (1,)}),
    ),
    profiles=of_models(_sizes),
    baselines=BASELINES["data_parallel_gather"],
    example_ratio=0.25,
)  # fmt: skip
