"""Which regions of the input space the default budget reaches, by the strategies alone: nothing is judged.

A region that few seeds reach is found by luck. Each is counted over seeds, within all that a component has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from benchmarks.measure import Row
from npudiff.model.component import Component
from npudiff.model.constraints import Constraints
from npudiff.properties import grouped_matmul, swiglu_quant
from npudiff.properties._shared.slots import SLOT_ORDERS
from npudiff.run.discovery import load_components

CASES = 120
SEEDS = range(20)

Region = Callable[[Any], bool]

ROWS: Mapping[str, Callable[[Any], int]] = {
    "cache_gather": lambda case: int(case.tokens),
    "dynamic_quant": lambda case: int(case.tokens),
    "format_cast": lambda case: max(case.rows, case.columns),
    "grouped_matmul": lambda case: int(case.rows_of_all),
    "int4_pack": lambda case: int(case.rows),
    "kv_rmsnorm_rope_cache": lambda case: int(case.batch * case.length),
    "mla_preprocess": lambda case: int(case.tokens),
    "moe_experts": lambda case: int(case.tokens),
    "moe_finalize": lambda case: int(case.tokens),
    "moe_gating": lambda case: int(case.tokens),
    "moe_routing": lambda case: int(case.tokens),
    "padded_tokens": lambda case: int(case.all_rows),
    "page_allocation": lambda case: sum(request.new for request in case.requests),
    "paged_cache": lambda case: int(case.tokens),
    "quant_matmul": lambda case: int(case.tokens),
    "rms_norm": lambda case: int(case.tokens),
    "rope_cache": lambda case: int(case.tokens),
    "rotary": lambda case: int(case.tokens),
    "scale_pack": lambda case: int(case.columns),
    "swiglu": lambda case: int(case.tokens),
    "swiglu_quant": lambda case: int(case.tokens),
    "weight_quant_matmul": lambda case: int(case.tokens),
}
"""Rows that a kernel divides among cores, by component; cases of some have no room for the largest numbers."""

NUMBERS = (1_024, 2_048, 65_535)

FEWER = {"mla_preprocess": 2}
"""How many of them are for a component: each token of some has matrices to go through."""

WRITERS = ("paged_cache", "kv_rmsnorm_rope_cache", "mla_preprocess")
TOTALS = ("sliding_attention", "cached_attention", "page_allocation", "decoder_layer")
PAGED = ("cached_attention", "cache_gather", "sliding_attention", "kv_rmsnorm_rope_cache")


def _slots_are(name: str, order: str) -> Region:
    tokens = ROWS[name]
    return lambda case: case.slot_order == order and tokens(case) > 2


def _orders(name: str) -> Sequence[str]:
    return [one for one in SLOT_ORDERS[1:] if name != "kv_rmsnorm_rope_cache" or one != "pages"]  # placement says that


def _pages_are(order: str) -> Region:
    return lambda case: case.page_order == order


def _lengths(case: Any, name: str) -> Sequence[int]:
    if name == "swa_mask":
        return list(case.kv_lengths)
    names = {"sliding_attention": "query", "cached_attention": "query", "cache_gather": "length",
             "page_allocation": "new", "decoder_layer": "prefill"}  # fmt: skip
    return [getattr(request, names[name]) for request in case.requests]


def _totals(case: Any, name: str) -> Sequence[int]:
    return [
        request.kv if name in ("sliding_attention", "cached_attention") else request.prefix for request in case.requests
    ]


def _is_uniform(numbers: Sequence[int]) -> bool:
    return len(numbers) > 1 and len(set(numbers)) == 1 and numbers[0] > 1


def _uniform(name: str) -> Region:
    return lambda case: _is_uniform(_lengths(case, name))


def _all_uniform(name: str) -> Region:
    return lambda case: _is_uniform(_lengths(case, name)) and len(set(_totals(case, name))) == 1


def _window_on_a_page(case: Any) -> bool:
    return case.window is not None and any(
        request.query and request.kv > case.window and (request.kv - case.window) % case.page_size == 0
        for request in case.requests
    )


def _has_tail(name: str) -> Region:
    return lambda case: getattr(case, name) > 64 and getattr(case, name) % 64 != 0


def _alike_but_for_one(name: str) -> Region:
    def check(case: Any) -> bool:
        totals = _totals(case, name) if name in TOTALS else _lengths(case, name)
        numbers = list(zip(_lengths(case, name), totals, strict=True))
        return len(numbers) > 2 and numbers[0] == numbers[-1] and len(set(numbers)) > 1

    return check


def _equal_by_ends(sizes: Callable[[Any], torch.Tensor | None]) -> Region:
    """Groups of which the first one, times their number, is all that there is."""

    def check(case: Any) -> bool:
        counts = sizes(case)
        return (
            counts is not None
            and len(counts) > 2
            and bool((counts[0] > 0) & (counts[0] * len(counts) == counts.sum()) & (counts != counts[0]).any())
        )

    return check


def _wide(name: str) -> Region:
    return lambda case: getattr(case, name) > 16_384


def _page_size_is(check: Callable[[int], bool]) -> Region:
    return lambda case: check(case.page_size)


def _no_power_of_two(size: int) -> bool:
    return size & (size - 1) != 0


USUAL = {"64", "128", "192/128", "512/64", "80", "96", "192", "256", "32", "576", "576/512", "128/64", "64/32",
         "128/64/512", "32/16/64", "32/64", "64/128", "64/192", "96/128", "16/80"}  # fmt: skip
"""Dims that were on some list."""


def _other_dims(axis: str) -> Region:
    return lambda case: str(getattr(case, axis)) not in USUAL


OTHERS: Mapping[str, Mapping[str, Region]] = {
    "sliding_attention": {
        "window begins on a page": _window_on_a_page,
        "blind rows >= 128": lambda case: any(one.kv and one.query - one.kv >= 128 for one in case.requests),
        "other head dims": _other_dims("head_dims"),
        "prompts beyond 2,048 rows": lambda case: any(one.query > 2_048 for one in case.requests),
        "keys with a weight beyond 65,536": lambda case: (
            case.recipe == "needle" and any(one.kv > 65_536 for one in case.requests)
        ),
    },
    "cached_attention": {
        "window begins on a page": _window_on_a_page,
        "other head dims": _other_dims("head_dim"),
    },
    "paged_cache": {
        "other head dims": _other_dims("head_dims"),
        "pages of no power of two, and several": lambda case: _no_power_of_two(case.page_size) and case.pages > 4,
        "page size 1": _page_size_is(lambda size: size == 1),
    },
    "page_allocation": {"page size 1": _page_size_is(lambda size: size == 1)},
    "grouped_matmul": {"groups that are alike by their ends": _equal_by_ends(grouped_matmul.group_sizes)},
    "moe_experts": {
        "nothing for this rank": lambda case: case.here == "others",
        "an expert named twice": lambda case: case.load == "repeated" and case.top_k > 1,
    },
    "moe_gating": {
        "8 of 128 or more, with a bias": lambda case: case.top_k == 8 and case.experts >= 128 and case.bias,
    },
    "int4_pack": {"slices of several matrices": lambda case: case.layout == "sliced" and case.matrices > 1},
    "cache_gather": {"other head dims": _other_dims("head_dims")},
    "kv_rmsnorm_rope_cache": {
        "other dims": _other_dims("dims"),
        "positions >= 2^19": lambda case: case.table > 2**19,
    },
    "mla_preprocess": {
        "other dims": _other_dims("dims"),
        "positions >= 2^19": lambda case: case.table > 2**19,
    },
    "rotary": {
        "other dims": _other_dims("dims"),
        "positions >= 2^19": lambda case: case.table > 2**19,
        "consecutive but for one": lambda case: case.positions == "consecutive but one" and case.tokens > 2,
        "heads beyond 64": lambda case: case.heads > 64,
        "other sections": lambda case: case.sections not in ("none", "16/24/24", "24/20/20", "8/12/12", "16/16/16/16"),
    },
    "rope_cache": {"positions >= 2^19": lambda case: case.lengths[-1] > 2**19},
    "rms_norm": {"tail behind vectors of 64": _has_tail("hidden_size"), "rows of 16,384": _wide("hidden_size")},
    "swiglu": {"tail behind vectors of 64": _has_tail("width"), "rows of 16,384": _wide("width")},
    "swiglu_quant": {
        "tail behind vectors of 64": _has_tail("width"),
        "rows of 16,384": _wide("width"),
        "groups that are alike by their ends": _equal_by_ends(swiglu_quant.counts_of),
    },
    "dynamic_quant": {"tail behind vectors of 64": _has_tail("width"), "rows of 16,384": _wide("width")},
    "moe_finalize": {
        "tail behind vectors of 64": _has_tail("width"),
        "rows of 16,384": _wide("width"),
        "2 MB in blocks of 32 bytes": lambda case: (
            case.width % 16 == 0 and case.tokens * case.top_k * case.width > 2**20
        ),
    },
    "moe_routing": {
        "rows of 16,384": _wide("width"),
        "integers beyond int8": lambda case: case.form == "one scale" and case.seed % 2 == 1,
        "tail behind vectors of 64": _has_tail("width"),
        "padding has no expert": lambda case: case.padded_ids != "none",
    },
    "padded_tokens": {"tail behind vectors of 64": _has_tail("width")},
}


def regions(name: str) -> Mapping[str, Region]:
    """Return the regions of a component, each as whether a case is in it."""
    found: dict[str, Region] = {}
    if name in ROWS:
        numbers = NUMBERS[: FEWER.get(name)]
        found |= {f"rows > {number:,}": _more_rows(ROWS[name], number) for number in numbers}
    if name in WRITERS:
        found |= {f"slots in {order}": _slots_are(name, order) for order in _orders(name)}
    if name in PAGED:
        found["pages in a run"] = _pages_are("run")
    if name in ("sliding_attention", "cached_attention", "cache_gather", "page_allocation", "decoder_layer",
                "swa_mask"):  # fmt: skip
        found["uniform lengths"] = _uniform(name)
        found["alike but for one in the middle"] = _alike_but_for_one(name)
    if name in TOTALS:
        found["uniform lengths and totals"] = _all_uniform(name)
    return found | OTHERS.get(name, {})


def _more_rows(rows: Callable[[Any], int], number: int) -> Region:
    return lambda case: rows(case) > number


def drawn(component: Component, number: int, cases: int = CASES) -> Collection[Any]:
    """Draw cases as a run with a seed does."""
    found: list[Any] = []
    configured = settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )

    def collect(case: Any) -> None:
        found.append(case)

    configured(seed(number)(given(component.strategy(Constraints()))(collect)))()
    return found


def reached(component: Component, seeds: Sequence[int] = SEEDS) -> Mapping[str, tuple[int, float]]:
    """Return by region how many seeds reach it, and its share of cases."""
    checks = regions(component.name)
    hits: dict[str, list[int]] = {name: [] for name in checks}
    for number in seeds:
        cases = drawn(component, number)
        for name, check in checks.items():
            hits[name].append(sum(map(check, cases)))
    return {name: (sum(map(bool, counts)), sum(counts) / len(seeds) / CASES) for name, counts in hits.items()}


def rows() -> Iterator[Row]:
    """Say of every component how many seeds reach each region, the rarest first."""
    least = round(0.8 * len(SEEDS))
    for component in load_components(()):
        if component.history is None and regions(component.name):
            found = sorted(reached(component).items(), key=lambda item: item[1])
            measured = "; ".join(f"{name} {count} ({share:.1%})" for name, (count, share) in found)
            holds = all(count >= least for _, (count, _) in found)
            yield Row(f"regions of {component.name}, seeds of {len(SEEDS)}", measured, f"each >= {least}", holds)
