"""Cases of hybrid pools: sizes, a seed, and the steps that were taken."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from npudiff.model.constraints import Axis, allows
from npudiff.model.constraints import describe as described
from npudiff.properties._shared.head_dims import join_head_dims
from npudiff.reference.hybrid_pools import PageLedger, PoolSizes, Step, in_words, new_tokens
from npudiff.reference.hybrid_pools.steps import Allocate, Evict, Readmit

POISONS = ("large", "nan")
HEAD_DIMS = ("64", "128", "192/128", "80", "96", "192", "256")
KINDS = ("decode", "extend", "evict", "free", "preempt", "readmit", "share", "fork")
"""Steps that an implementation may support or not; without ``allocate`` there is nothing to do."""

_PAGES = range(1, 2**16 + 1)
_SIZES = range(1, 2**10 + 1)

AXES = {
    "page_size": Axis("tokens per page", range(2, 2**10 + 1)),
    "full_pages": Axis("pages of the pool of the full layers, page 0 not counted", _PAGES),
    "sliding_pages": Axis("pages of the pool of the layers with a window, page 0 not counted", _PAGES),
    "window": Axis("visible keys of a layer with a window, the query's own included", range(1, 2**31)),
    "requests": Axis("requests that are live at a time, at most", range(1, 257)),
    "prefix_sharing": Axis("whether requests may begin with pages of others", (False, True)),
    "step": Axis("kinds of step besides allocate", KINDS),
    "kv_heads": Axis("KV heads", _SIZES),
    "group": Axis("query heads per KV head", _SIZES),
    "head_dims": Axis("head dim of queries and keys, and of values if it differs: 128 or 192/128", HEAD_DIMS),
    "dtype": Axis("dtype of queries, keys and values", ("bfloat16", "float16")),
    "poison": Axis("what lies in slots that hold no token: large finite values, or NaN", POISONS),
}

_MAX_ELEMENTS = 2**26
_MAX_SCORES = 2**32
_MAX_STEPS = 10_000
_SHOWN_STEPS = 12


@dataclass(frozen=True)
class HybridPoolsCase:
    """A pair of pools and what was done with it."""

    page_size: int = 16
    """Tokens per page."""
    full_pages: int = 1
    sliding_pages: int = 1
    """Pages of each pool, page 0 not counted."""
    window: int = 1
    """Visible keys of a layer with a window, the query's own included."""
    requests: int = 1
    """Requests that are live at a time, at most."""
    prefix_sharing: bool = False
    """Whether requests may begin with pages of others."""
    kv_heads: int = 1
    group: int = 1
    head_dim: int = 64
    value_head_dim: int = 64
    """Geometry; there are ``kv_heads * group`` query heads."""
    dtype: str = "bfloat16"
    """``bfloat16`` or ``float16``."""
    poison: str = "large"
    """See ``POISONS``."""
    seed: int = 0
    """Seed of the tokens."""
    steps: tuple[Step, ...] = ()
    """The trace."""

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


def values(case: HybridPoolsCase) -> Mapping[str, Collection[object]]:
    """Return the values of each axis that the case uses."""
    return {
        "page_size": (case.page_size,),
        "full_pages": (case.full_pages,),
        "sliding_pages": (case.sliding_pages,),
        "window": (case.window,),
        "requests": (case.requests,),
        "prefix_sharing": (case.prefix_sharing,),
        "step": {step.kind for step in case.steps} - {Allocate.kind},
        "kv_heads": (case.kv_heads,),
        "group": (case.group,),
        "head_dims": (join_head_dims(case.head_dim, case.value_head_dim),),
        "dtype": (case.dtype,),
        "poison": (case.poison,),
    }


def features(case: HybridPoolsCase) -> Collection[str]:
    """Return the regions that the trace comes through."""
    ledger, found = PageLedger(case.sizes), set()
    highest = 0
    for step in case.steps:
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
                "longer than the window": any(length > case.window for length in ledger.lengths.values()),
                "whole page": any(length % case.page_size == 0 for length in ledger.lengths.values()),
            }.items()
            if holds
        }
        highest = max(highest, *ledger.holders, 0)
    if highest > min(case.full_pages, case.sliding_pages):
        found.add("reused pages")
    return sorted(found)


def describe(case: HybridPoolsCase) -> str:
    """Return the case as one line: sizes that are not at their plainest, then the steps, the last ones of many."""
    parts = [
        f"page {case.page_size}",
        f"window {case.window}",
        f"pools {case.full_pages}/{case.sliding_pages}",
        "prefix sharing" if case.prefix_sharing else "",
        f"heads {case.heads}:{case.kv_heads}" if case.heads > 1 else "",
        f"dim {dims}" if (dims := join_head_dims(case.head_dim, case.value_head_dim)) != "64" else "",
        case.dtype if case.dtype != "bfloat16" else "",
        "NaN poison" if case.poison == "nan" else "",
        f"seed {case.seed}" if case.seed else "",
        f"{len(case.steps) - _SHOWN_STEPS} steps before" if len(case.steps) > _SHOWN_STEPS else "",
        *[in_words(step) for step in case.steps[-_SHOWN_STEPS:]],
    ]
    return " · ".join(part for part in parts if part)


def check_case(case: HybridPoolsCase) -> None:
    """Refuse a case that cannot be built, or whose steps make no sense; raises ``ValueError`` with what is wrong."""
    for name, used in values(case).items():
        for value in used:
            if not allows(AXES[name].legal, value):
                raise ValueError(f"{name} must be one of {described(AXES[name].legal)}, got {value!r}")
    if case.heads > 256 or not 0 <= case.seed < 2**63 or len(case.steps) > _MAX_STEPS:
        raise ValueError(f"at most 256 heads and {_MAX_STEPS} steps, and a seed in 0..2**63")
    slots = max(case.full_pages, case.sliding_pages) * case.page_size
    if slots * case.kv_heads * (case.head_dim + case.value_head_dim) > _MAX_ELEMENTS:
        raise ValueError(f"the pools would have more than {_MAX_ELEMENTS} elements")
    ledger = PageLedger(case.sizes)
    for number, step in enumerate(case.steps, 1):
        reason = ledger.reason_against(step) or _too_much(case, sum(new_tokens(step).values()))
        if reason is not None:
            raise ValueError(f"step {number}, {in_words(step)}: {reason}")
        ledger.take(step)


def _too_much(case: HybridPoolsCase, tokens: int) -> str | None:
    """Why so many tokens at once are more than a test should have; they attend to each other."""
    if tokens * case.heads * (case.head_dim + case.value_head_dim) > _MAX_ELEMENTS:
        return f"{tokens} tokens at once are more than {_MAX_ELEMENTS} elements"
    return (
        f"{tokens} tokens at once are more than {_MAX_SCORES} scores" if tokens**2 * case.heads > _MAX_SCORES else None
    )
