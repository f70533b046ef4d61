"""Cases of hybrid pools: sizes, a seed, and the steps that were taken."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from npudiff.model.case import DeclaredCase, axis, derived, part, seed
from npudiff.properties._shared.head_dims import join_head_dims
from npudiff.properties._shared.steps import steps_text
from npudiff.reference.hybrid_pools import PageLedger, PoolSizes, Step, in_words, new_tokens
from npudiff.reference.hybrid_pools.steps import Allocate, Evict, Readmit

POISONS = ("large", "nan")
HEAD_DIMS = ("64", "128", "192/128", "80", "96", "192", "256")
DIMS = ("64", "64", "64", "128", "192/128")
KINDS = ("decode", "extend", "evict", "free", "preempt", "readmit", "share", "fork")
"""Steps that an implementation may support or not; without ``allocate`` there is nothing to do."""

_PAGES = range(1, 2**16 + 1)
_SIZES = range(1, 2**10 + 1)

_MAX_ELEMENTS = 2**26
_MAX_SCORES = 2**32
_MAX_STEPS = 10_000


@dataclass(frozen=True)
class HybridPoolsCase(DeclaredCase):
    """A pair of pools and what was done with it; the state machine of the component draws it."""

    page_size: int = axis("tokens per page", range(2, 2**10 + 1), 16, shown="page {}", always=True)
    full_pages: int = axis(
        "pages of the pool of the full layers, page 0 not counted", _PAGES, 1,
        shown=lambda case: f"pools {case.full_pages}/{case.sliding_pages}",
    )  # fmt: skip
    sliding_pages: int = axis("pages of the pool of the layers with a window, page 0 not counted", _PAGES, 1, shown="")
    window: int = axis(
        "visible keys of a layer with a window, the query's own included", range(1, 2**31), 1,
        shown="window {}", always=True,
    )  # fmt: skip
    requests: int = axis("requests that are live at a time, at most", range(1, 257), 1, shown="")
    prefix_sharing: bool = axis("whether requests may begin with pages of others", (False, True), False)
    kv_heads: int = axis(
        "KV heads", _SIZES, 1, shown=lambda case: f"heads {case.heads}:{case.kv_heads}" * (case.heads > 1)
    )
    group: int = axis("query heads per KV head", _SIZES, 1, shown="")
    head_dim: int = part(64)
    value_head_dim: int = part(64)
    dtype: str = axis("dtype of queries, keys and values", ("bfloat16", "float16"), "bfloat16")
    poison: str = axis(
        "what lies in slots that hold no token: large finite values, or NaN", POISONS, "large", shown="NaN poison"
    )
    seed: int = seed()
    steps: tuple[Step, ...] = part((), shown=lambda case: steps_text([*map(in_words, case.steps)]))
    """The trace."""

    shown_first = (
        "page_size", "window", "full_pages", "prefix_sharing", "kv_heads", "head_dims", "dtype", "poison", "seed",
    )  # fmt: skip

    @derived("kinds of step besides allocate", KINDS, each=True)
    def step(self) -> Collection[str]:
        """Kinds of steps that were taken, besides allocate."""
        return {step.kind for step in self.steps} - {Allocate.kind}

    @derived(
        "head dim of queries and keys, and of values if it differs: 128 or 192/128", HEAD_DIMS, drawn=DIMS,
        shown=lambda case: f"dim {case.head_dims}" * (case.head_dims != "64"),
    )  # fmt: skip
    def head_dims(self) -> str:
        """Head dim of queries and keys, and of values if it differs."""
        return join_head_dims(self.head_dim, self.value_head_dim)

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.kv_heads * self.group

    @property
    def sizes(self) -> PoolSizes:
        """What an account of the pages is opened with."""
        return PoolSizes(
            page_size=self.page_size,
            full_pages=self.full_pages,
            sliding_pages=self.sliding_pages,
            window=self.window,
            requests=self.requests,
            prefix_sharing=self.prefix_sharing,
        )

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if self.heads > 256 or len(self.steps) > _MAX_STEPS:
            yield f"a case has at most 256 heads and {_MAX_STEPS} steps"
        slots = max(self.full_pages, self.sliding_pages) * self.page_size
        if slots * self.kv_heads * (self.head_dim + self.value_head_dim) > _MAX_ELEMENTS:
            yield f"the pools would have more than {_MAX_ELEMENTS} elements"
        ledger = PageLedger(self.sizes)
        for number, step in enumerate(self.steps, 1):
            reason = ledger.reason_against(step) or _too_much(self, sum(new_tokens(step).values()))
            if reason is not None:
                yield f"step {number}, {in_words(step)}: {reason}"
            ledger.take(step)

    def features(self) -> Collection[str]:
        """Return the regions that the trace comes through."""
        ledger, found = PageLedger(self.sizes), set()
        highest = 0
        for step in self.steps:
            before = len(ledger.evicted)
            if not ledger.take(step):
                found.add("pages run out")
                continue
            found |= {
                name
                for name, holds in {
                    "evicted": isinstance(step, Evict) and len(ledger.evicted) > before,
                    "readmitted": isinstance(step, Readmit),
                    "shared": any(holders > 1 for holders in ledger.holders.values()),
                    "shared and evicted": any(ledger.holders[page] > 1 for page in ledger.evicted),
                    "longer than the window": any(length > self.window for length in ledger.lengths.values()),
                    "whole page": any(length % self.page_size == 0 for length in ledger.lengths.values()),
                }.items()
                if holds
            }
            highest = max(highest, *ledger.holders, 0)
        if highest > min(self.full_pages, self.sliding_pages):
            found.add("reused pages")
        return sorted(found)


def _too_much(case: HybridPoolsCase, tokens: int) -> str | None:
    """Why so many tokens at once are more than a test should have; they attend to each other."""
    if tokens * case.heads * (case.head_dim + case.value_head_dim) > _MAX_ELEMENTS:
        return f"{tokens} tokens at once are more than {_MAX_ELEMENTS} elements"
    return (
        f"{tokens} tokens at once are more than {_MAX_SCORES} scores" if tokens**2 * case.heads > _MAX_SCORES else None
    )
