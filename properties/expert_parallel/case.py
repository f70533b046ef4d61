"""Experts over ranks: a case, as sizes, where tokens and experts are, and recipes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from npudiff.draw.cases import Case, axis, derived, seed
from npudiff.model.constraints import allows
from npudiff.text import counted

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
FORMS = ("float", "w8a8")
"""w8a8: matrices are int8, and rows become int8 before they are sent or after."""
PADDINGS = ("none", "mask", "zero weight", "minus one", "mask of copies")
"""What fills up the ranks that have fewer tokens than others. none: nothing, so that they have fewer rows. mask: tokens
that are masked. zero weight: tokens with experts and weights of 0. minus one: tokens whose experts are all -1. mask of
copies: as mask, and some copies of real tokens are masked as well."""
SPREADS = ("equal", "ragged", "some without", "one alone")
"""Real tokens of the ranks. equal: all as many. ragged: at least one. some without: about half of the ranks, but one,
have none. one alone: all but one have none."""
LOADS = ("random", "one expert", "one rank", "same")
"""one expert: all tokens have one expert in common. one rank: all experts of all tokens are on one rank. same: all
tokens have the same ones."""
PLACEMENTS = ("in order", "anywhere")
"""in order: slots have experts by number, and then those that are there again. anywhere: in any order."""
RECIPES = ("gaussian", "zero rows", "outlier")
"""zero rows: some rows hold nothing but zeros. outlier: one element of each row is 64 times larger."""
POISONS = {"large": 4096.0, "nan": math.nan}
"""What the states of tokens hold that are not real."""

MOST_TOKENS = 512
"""Of a rank: what the operators allow."""
MOST_RANKS = 8
MOST_ELEMENTS = 2**24


def _ranks_apart(case: ExpertParallelCase) -> Sequence[int]:
    return [count for count in (0, 0, 0, 1, 2, 4, 4) if count < case.ranks]


def _hidden(case: ExpertParallelCase) -> Sequence[int]:
    """The cheapest that the operators take: on A2 any multiple of 32, on A3 from 1,024 on."""
    only_on_a3 = case.shared_ranks > 0 or case.padding == "mask of copies"
    narrow = allows(case.box.get("hidden", range(1, 8193)), 32)
    return (32, 64, 96) if narrow and not only_on_a3 else (1024, 1024, 1056, 32)


def _redundant(case: ExpertParallelCase) -> Sequence[int]:
    """Copies with which experts can be divided among ranks, none, and so many that some ranks have one more."""
    ranks = case.moe_ranks
    even = -case.experts % ranks
    return (even, even, even + ranks, 0, even + 1)


def _redundant_fits(case: ExpertParallelCase, count: int) -> bool:
    """Each rank has an expert, none has one twice, and all have as many where that is wanted."""
    ranks, slots = case.moe_ranks, case.experts + count
    wanted = allows(case.box.get("divides", (False, True)), slots % ranks == 0)
    return wanted and ranks <= slots <= case.experts * ranks


def _affords_tokens(case: ExpertParallelCase, tokens: int) -> bool:
    return case.ranks * tokens * case.top_k * case.hidden <= 2**18


def _spread(case: ExpertParallelCase) -> Sequence[str]:
    return SPREADS if case.ranks > 1 else SPREADS[:1]


def _global_rows(case: ExpertParallelCase) -> Sequence[bool]:
    return (True,) if case.differs else (False, True)


def _load_fits(case: ExpertParallelCase, load: str) -> bool:
    one_rank = case.redundant == 0 and case.top_k * case.moe_ranks <= case.experts
    return load != "one rank" or one_rank


@dataclass(frozen=True)
class ExpertParallelCase(Case):
    """One step of all ranks, as sizes and recipes."""

    tokens: int = axis(
        "rows of the fullest rank", range(1, MOST_TOKENS + 1), drawn=(1, 2, 3, 5, 8, 17, 33),
        affordable=_affords_tokens,
        shown=lambda case: f"{counted(case.tokens, 'token')} x {case.hidden} on {counted(case.ranks, 'rank')}",
    )  # fmt: skip
    ranks: int = axis("ranks", range(1, MOST_RANKS + 1), 1, drawn=(2, 1, 2, 3, 4, 2, 3, 6, 8), shown="")
    hidden: int = axis("elements of a row", range(1, 8193), 32, drawn=_hidden, shown="")
    width: int = axis("gates of an expert, and as many ups", range(1, 4097), 32, drawn=(32, 16, 64), shown="")
    experts: int = axis(
        "experts that the router knows", range(1, 257), 2, drawn=(2, 1, 3, 4, 6, 8, 16),
        fits=lambda case, experts: experts >= case.top_k,
        shown=lambda case: f"top {case.top_k} of {case.experts} x {case.width}",
    )  # fmt: skip
    top_k: int = axis("experts of a token", range(1, 17), 1, drawn=(1, 2, 3, 4, 8), shown="")
    form: str = axis("what weights are", FORMS, "float", region=lambda case: case.form)
    dtype: str = axis("dtype of the states and the result", tuple(DTYPES), "bfloat16", always=True)
    redundant: int = axis(
        "experts that are there once more", range(257), 0, drawn=_redundant,
        fits=_redundant_fits,
        shown="{} redundant", region="redundant experts",
    )  # fmt: skip
    placement: str = axis("which slot has which expert", PLACEMENTS, "in order", shown="slots {}", region="slots {}")
    table_rows: int = axis(
        "rows of the table of slots, which tokens take in turn", range(1, 65), 1, drawn=(1, 1, 3),
        applies=lambda case: case.redundant > 0, shown="{} rows of slots",
    )  # fmt: skip
    shared_ranks: int = axis(
        "ranks that have shared experts alone", range(MOST_RANKS), 0, drawn=_ranks_apart,
        shown="{} rank(s) of shared experts", region="shared experts apart",
    )  # fmt: skip
    shared_width: int = axis(
        "width of a shared expert; 0 for none", range(4097), 0,
        drawn=lambda case: (case.width,) if case.shared_ranks else (0, 0, case.width, 2 * case.width),
        shown="shared {}", region="shared expert",
    )  # fmt: skip
    shared_experts: int = axis(
        "shared experts, of which each has as many ranks", range(1, 5), 1, drawn=(1, 2),
        fits=lambda case, count: count == 1 or (case.shared_ranks > 0 and case.shared_ranks % count == 0),
        applies=lambda case: case.shared_ranks > 0, shown="{} shared experts",
    )  # fmt: skip
    padding: str = axis(
        "what fills up ranks with fewer tokens", PADDINGS, "none",
        drawn=lambda case: PADDINGS if not case.shared_ranks else PADDINGS[:4],
        shown="padding {}", region="padding {}",
    )  # fmt: skip
    spread: str = axis("real tokens of the ranks", SPREADS, "equal", drawn=_spread, region="{}")
    load: str = axis(
        "which experts tokens have", LOADS, "random", fits=_load_fits, shown="load {}", region="load {}"
    )  # fmt: skip
    global_rows: bool = axis(
        "whether the rows of all ranks are told", (False, True), False, drawn=_global_rows, shown="global rows"
    )
    recipe: str = axis("how the states are made", RECIPES, "gaussian", region="{}")
    seed: int = seed()
    poison: str = axis(
        "what tokens hold that are not real: large finite values, or NaN", tuple(POISONS), "large",
        applies=lambda case: case.padding != "none", shown="poison {}", region="{}",
    )  # fmt: skip

    drawn_first = ("ranks", "shared_ranks", "padding", "hidden", "form", "top_k", "experts", "redundant", "width")
    shown_first = ("tokens", "experts")
    outliers = ("tokens", "experts", "top_k")

    @derived("whether all ranks with routed experts have as many", (False, True))
    def divides(self) -> bool:
        """Whether all ranks with routed experts have as many."""
        return self.slots % self.moe_ranks == 0

    @property
    def moe_ranks(self) -> int:
        """Ranks with routed experts."""
        return max(1, self.ranks - self.shared_ranks)

    @property
    def slots(self) -> int:
        """Routed experts of all ranks."""
        return self.experts + self.redundant

    @property
    def differs(self) -> bool:
        """Whether ranks may have different numbers of rows."""
        return self.padding == "none" and self.spread != "equal"

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        for name in _contradictions(self):
            yield f"{name} {getattr(self, name)} does not go with {self.describe()}"
        if 3 * self.slots * self.hidden * self.width > 2**26:
            yield f"matrices would have more than {2**26} elements"
        if self.ranks * self.tokens * self.top_k * self.hidden > MOST_ELEMENTS:
            yield f"copies of tokens would have more than {MOST_ELEMENTS} elements"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        return {
            "several ranks": self.ranks > 1,
            "more than two ranks": self.ranks > 2,
            "a rank without tokens": self.spread in ("some without", "one alone"),
            "one expert on a rank": self.slots < 2 * self.moe_ranks,
            "ranks with one more expert": not self.divides,
        }


def _contradictions(case: ExpertParallelCase) -> Iterator[str]:
    """What a case has that does not go with the rest of it."""
    apart = case.shared_ranks
    unshared = apart > 0 and (not case.shared_width or apart % case.shared_experts > 0)
    checks = {
        "top_k": case.top_k > case.experts,
        "shared_ranks": apart >= case.ranks or unshared,
        "shared_experts": case.shared_experts > 1 and not apart,
        "padding": case.padding == "mask of copies" and apart > 0,
        "redundant": not case.moe_ranks <= case.slots <= case.experts * case.moe_ranks,
        "spread": case.spread != "equal" and case.ranks == 1,
        "load": not _load_fits(case, case.load),
        "global_rows": case.differs and not case.global_rows,
        "table_rows": case.table_rows > 1 and not case.redundant,
    }
    yield from (name for name, holds in checks.items() if holds)
