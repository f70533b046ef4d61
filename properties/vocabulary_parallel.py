"""A vocabulary that is split over ranks: cases, data, and what must hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, axis, derived, seed
from npudiff.draw.data import Stream
from npudiff.judge.compare import same_bits
from npudiff.judge.relations import Changed, Outputs, relation
from npudiff.model.component import Comparison, Component, NotApplicable, Property, Subject
from npudiff.model.constraints import Box
from npudiff.model.ranks import Ranks
from npudiff.properties._shared import rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import FEW, Model, of_models
from npudiff.reference.vocabulary_parallel import (
    PLACES,
    VocabularyParallelInputs,
    dense_table,
    even_counts,
    ids_that_may_be_most_likely,
    padded,
    rank_part,
    rows_of_ranks,
    sharded,
    starts_of,
    vocabulary_parallel,
)
from npudiff.text import counted

RANKS = (1, 2, 3, 4, 8)
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
ID_DTYPES = {"int64": torch.int64, "int32": torch.int32}
DIVISIONS = ("even", "uneven", "one has all")
"""How tokens lie on ranks that are given chunks. even: as a padded batch is cut, so that the last ranks have fewer, or
none. uneven: as data-parallel ranks have them."""
RECIPES = ("gaussian", "negative", "ties")
"""negative: every logit is, so that padding of zeros is larger. ties: small integers, and several ids have the same
row, on different ranks: logits are exact, and the largest one is there several times."""
PADDINGS = {"zeros": 0.0, "large": 512.0, "nan": math.nan}
LIMITS = (65_535, 65_536, 65_537)
"""A limit of operators, and its neighbours."""

MOST_LOGITS = 2**15
MOST_TABLE = 2**17
"""Elements up to which a case may have more tokens, or a larger table, than it must."""

_COPIES = 5
"""Ids with a row of their own in ``ties``; the others repeat them."""


def _vocabularies(case: VocabularyParallelCase) -> Sequence[int]:
    usual = (8, 1, 2, 5, 7, 16, 17, 33, 63, 64, 65, 127, 200, 1000)
    return (*usual, *LIMITS) if case.hidden <= 16 else usual


def _affords_table(case: VocabularyParallelCase, vocabulary: int) -> bool:
    return vocabulary in LIMITS or case.affords(vocabulary * case.hidden, MOST_TABLE)


def _affords_logits(case: VocabularyParallelCase, tokens: int) -> bool:
    return case.affords(tokens * (case.vocabulary + case.added) * case.ranks, MOST_LOGITS)


@dataclass(frozen=True)
class VocabularyParallelCase(Case):
    """One table and its tokens, as sizes and recipes."""

    tokens: int = axis(
        "tokens", rows.COUNTS, drawn=(1, 2, 3, 4, 7, 8, 9, 16, 33), affordable=_affords_logits,
        shown=lambda case: counted(case.tokens, "token"),
    )  # fmt: skip
    ranks: int = axis("ranks that the vocabulary is split over", RANKS, 1, drawn=(2, 1, 2, 3, 4, 8),
                      shown="{} ranks", always=True, region="several ranks")  # fmt: skip
    vocabulary: int = axis("ids of the model", range(1, 2**18 + 1), 8, drawn=_vocabularies, affordable=_affords_table,
                           shown="vocabulary {}", always=True)  # fmt: skip
    added: int = axis("ids that were added", range(2**12), 0, drawn=(0, 0, 0, 1, 2, 5, 8, 17), shown="{} added",
                      region="added vocabulary")  # fmt: skip
    padding: int = axis(
        "what the vocabulary is padded to a multiple of, times ranks where they do not divide it",
        range(1, 2**10 + 1),
        8,
        drawn=(8, 1, 2, 4, 64, 3), shown="padded to {}",
    )  # fmt: skip
    hidden: int = axis("elements of a row", range(1, 2**14 + 1), 16, drawn=lambda case: (16,) if case.huge
                       else (16, 1, 8, 64, 80, 129), shown="hidden {}", always=True)  # fmt: skip
    dtype: str = axis("dtype of the table", tuple(DTYPES), "bfloat16", always=True)
    id_dtype: str = axis("dtype of ids", tuple(ID_DTYPES), "int64", shown="ids {}")
    given: str = axis("which tokens a rank is given", PLACES, "whole", shown="given {}", region="given {}")
    returned: str = axis("which tokens a rank returns", PLACES, "whole", shown="returned {}", region="returned {}")
    division: str = axis("how tokens lie on ranks that are given chunks", DIVISIONS, "even",
                         applies=lambda case: case.given == "chunks", shown="{} chunks", region="{}")  # fmt: skip
    outside: bool = axis("whether some ids are none", (False, True), False, drawn=(False, False, True),
                         applies=lambda case: case.ranks > 1, shown="ids outside", region="ids outside")  # fmt: skip
    recipe: str = axis("how the numbers are made", RECIPES, "gaussian", shown="{} logits", region="{}")
    filler: str = axis("what rows of padding hold", tuple(PADDINGS), "zeros", shown="padding of {}")
    seed: int = seed()

    drawn_first = ("hidden", "vocabulary", "added", "ranks", "tokens")
    outliers = ("tokens", "vocabulary", "added")
    huge_axes = ("vocabulary", "tokens")

    @property
    def multiple(self) -> int:
        """What both parts of the vocabulary are padded to a multiple of."""
        return self.padding if self.padding % self.ranks == 0 else self.padding * self.ranks

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens of each rank."""
        if self.given == "whole" or self.division == "even":
            return even_counts(self.tokens, self.ranks)
        stream = Stream(self.seed, "division")
        if self.division == "one has all":
            owner = stream.integers(0, self.ranks, 1)[0]
            return tuple(self.tokens if rank == owner else 0 for rank in range(self.ranks))
        ends = sorted(stream.integers(0, self.tokens + 1, self.ranks - 1))
        return tuple(stop - start for start, stop in zip([0, *ends], [*ends, self.tokens], strict=True))

    @derived("whether some ranks have fewer ids of the model than others", (False, True))
    def unequal_ids(self) -> bool:
        """Whether some ranks have fewer ids of the model than others."""
        return self.ranks > 1 and self.vocabulary % self.multiple > 0

    @derived("whether padding stands between ids of the model and those that were added", (False, True))
    def gap(self) -> bool:
        """Whether padding stands between ids of the model and those that were added."""
        return self.added > 0 and self.vocabulary % self.multiple > 0

    @derived("whether a rank has no tokens of its own", (False, True))
    def idle_rank(self) -> bool:
        """Whether a rank has no tokens of its own."""
        return "chunks" in (self.given, self.returned) and 0 in self.counts

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        total = self.vocabulary + self.added
        if self.tokens * total * self.ranks > 2**24 or (total + 2 * self.multiple) * self.hidden > 2**24:
            yield f"there would be more than {2**24} elements"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        own = padded(self.vocabulary, self.multiple) // self.ranks
        return {
            "padding": self.vocabulary % self.multiple > 0,
            "a rank without a word": (self.ranks - 1) * own >= self.vocabulary,
            "tokens do not divide": self.tokens % self.ranks > 0,
            "a rank without tokens": self.idle_rank,
            "limit of 65,536": self.vocabulary in LIMITS,
        }


def build_inputs(case: VocabularyParallelCase) -> VocabularyParallelInputs:
    """Build the inputs of a case."""
    dtype = DTYPES[case.dtype]
    table, states = _numbers(case)
    return VocabularyParallelInputs(
        shards=sharded(table.to(dtype), case.vocabulary, case.multiple, case.ranks, PADDINGS[case.filler]),
        ids=_ids(case).to(ID_DTYPES[case.id_dtype]),
        states=states.to(dtype),
        vocabulary=case.vocabulary, added=case.added, multiple=case.multiple, counts=case.counts,
        given=case.given, returned=case.returned,
    )  # fmt: skip


def _numbers(case: VocabularyParallelCase) -> tuple[torch.Tensor, torch.Tensor]:
    """Table and states, float32."""
    total = case.vocabulary + case.added
    if case.recipe == "ties":
        kinds = torch.from_numpy(Stream(case.seed, "kinds").integer_array(-1, 2, _COPIES * case.hidden))
        which = torch.from_numpy(Stream(case.seed, "which").integer_array(0, _COPIES, total))
        signs = torch.from_numpy(Stream(case.seed, "signs").integer_array(-1, 2, case.tokens * case.hidden))
        return kinds.view(_COPIES, -1)[which].float(), signs.view(case.tokens, -1).float()
    table = Stream(case.seed, "table").normal((total, case.hidden), torch.float32)
    states = Stream(case.seed, "states").normal((case.tokens, case.hidden), torch.float32)
    if case.recipe == "negative":
        return -(table.abs() + 0.25), states.abs() + 0.25
    return table, states


def _ids(case: VocabularyParallelCase) -> torch.Tensor:
    """Ids of tokens, half of them at a border: of a rank's part, of the vocabulary, and of the added one."""
    total = case.vocabulary + case.added
    own, of_added = (padded(count, case.multiple) // case.ranks for count in (case.vocabulary, case.added))
    borders = {0, case.vocabulary - 1, case.vocabulary, total - 1}
    borders |= {rank * own + step for rank in range(1, case.ranks) for step in (-1, 0)}
    borders |= {case.vocabulary + rank * of_added + step for rank in range(1, case.ranks) for step in (-1, 0)}
    near = torch.tensor(sorted(border for border in borders if 0 <= border < total))
    words = torch.from_numpy(Stream(case.seed, "ids").random_uint64(2 * case.tokens) >> 2).to(torch.int64)
    pick, place = words.view(2, -1)
    ids = torch.where(pick % 2 == 0, near[place % len(near)], place % total)
    if case.outside:
        others = torch.tensor([total, -1, total + case.multiple, 2**31 - 1, -(2**31)])
        ids = torch.where((pick // 2) % 3 == 0, others[place % len(others)], ids)
    return ids


def coordinates(inputs: VocabularyParallelInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output: rank, token, and column or id."""
    if inputs.returned == "chunks":
        rank = torch.repeat_interleave(torch.arange(inputs.ranks), torch.tensor(inputs.counts))
        token = torch.arange(len(inputs.ids))
    else:
        rank = torch.arange(inputs.ranks).repeat_interleave(len(inputs.ids))
        token = torch.arange(len(inputs.ids)).repeat(inputs.ranks)
    if output == "tokens":
        return {"rank": rank, "token": token}
    last = {"column": inputs.shards.shape[2]} if output == "embedded" else {"id": inputs.vocabulary + inputs.added}
    along = {name: torch.arange(count).unsqueeze(0) for name, count in last.items()}
    return {"rank": rank.unsqueeze(1), "token": token.unsqueeze(1), **along}


def resplit(inputs: VocabularyParallelInputs, ranks: int) -> VocabularyParallelInputs:
    """Return the same table and tokens on another number of ranks."""
    multiple = inputs.multiple if inputs.multiple % ranks == 0 else inputs.multiple * ranks
    shards = sharded(dense_table(inputs), inputs.vocabulary, multiple, ranks, 0.0)
    return replace(inputs, shards=shards, multiple=multiple, counts=even_counts(len(inputs.ids), ranks))


def _one_rank(inputs: VocabularyParallelInputs, case: VocabularyParallelCase) -> Changed[VocabularyParallelInputs]:
    """One rank with everything returns what each of them returned."""
    alone = replace(case, ranks=1, division="even")

    def of_one(outputs: Outputs) -> Outputs:
        return {name: output[: len(inputs.ids)] for name, output in outputs.items()}

    return Changed(inputs, part=of_one, case=alone, before=resplit(inputs, 1))


def _zeros_in_padding(inputs: VocabularyParallelInputs, case: VocabularyParallelCase) -> VocabularyParallelInputs:
    table = dense_table(inputs)
    return replace(inputs, shards=sharded(table, case.vocabulary, case.multiple, case.ranks, 0.0))


def _tokens_in_reverse(
    inputs: VocabularyParallelInputs, case: VocabularyParallelCase
) -> Changed[VocabularyParallelInputs]:
    """Tokens of every rank in reverse, where ranks have chunks of them."""
    order = list(reversed(range(case.tokens)))
    if "chunks" in (case.given, case.returned):
        order = [
            first + place
            for first, count in zip(starts_of(inputs.counts), inputs.counts, strict=True)
            for place in reversed(range(count))
        ]
    every = [rank * case.tokens + token for rank in range(case.ranks) for token in order]
    moved = order if case.returned == "chunks" else every
    changed = replace(inputs, ids=inputs.ids[order], states=inputs.states[order])
    return Changed(changed, lambda outputs: {name: output[moved] for name, output in outputs.items()})


def _largest_of_own_ids(subject: Subject, case: VocabularyParallelCase) -> Comparison:
    """Every token is one of those whose logits may be the largest, where several are near to each other."""
    inputs = build_inputs(case)
    outputs = subject.run(inputs)
    if "tokens" not in outputs:
        raise NotApplicable("it returns no tokens")
    chosen = outputs["tokens"]
    may_be = ids_that_may_be_most_likely(inputs).repeat(len(chosen) // case.tokens, 1)
    inside = (chosen >= 0) & (chosen < may_be.shape[1])
    place = chosen.clamp(0, may_be.shape[1] - 1).to(torch.int64).unsqueeze(1)
    right = inside & may_be.gather(1, place).squeeze(1)
    wanted = torch.where(right, chosen, may_be.to(torch.int8).argmax(dim=1).to(chosen.dtype))
    return same_bits({"tokens": wanted}, {"tokens": chosen}, "the ids whose logits may be the largest")


def _sizes(model: Model) -> Box:
    return {"tokens": FEW, "hidden": (model.hidden,), "dtype": ("bfloat16",)}


component = Component(
    name="vocabulary_parallel",
    summary="a vocabulary that is split over ranks: the embedding of ids, logits, and the most likely token",
    case_type=VocabularyParallelCase,
    outputs=("embedded", "logits", "tokens"),
    inputs=build_inputs,
    reference=vocabulary_parallel,
    ranks=Ranks(count=lambda inputs: inputs.ranks, part=rank_part, rows=rows_of_ranks),
    coordinates=coordinates,
    highlighted_region="several ranks",
    relations=(
        relation("one_rank", "one rank with the whole vocabulary returns the same", _one_rank,
                 within={"ranks": RANKS[1:], "outside": (False,)}, needs={"ranks": (1,)}),
        relation("what_padding_holds", "what rows of padding hold does not matter", _zeros_in_padding,
                 within={"filler": ("large", "nan")}, needs={"filler": ("zeros",)}),
        relation("tokens_do_not_mix", "the order of a rank's tokens does not matter", _tokens_in_reverse,
                 within={"tokens": range(2, 2**17 + 1)}),
        Property("a_token_of_the_largest", "a token is one of those whose logits may be the largest",
                 _largest_of_own_ids, example_ratio=0.3),
    ),
    profiles=of_models(_sizes),
    baselines=BASELINES["vocabulary_parallel"],
    example_ratio=0.25,
)  # fmt: skip
