"""Allocation of slots for new tokens: its cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from hypothesis import assume
from hypothesis import strategies as st

from npudiff.draw.chooser import Chooser, within
from npudiff.draw.data import Stream
from npudiff.judge.compare import compare
from npudiff.model.comparison import Comparison
from npudiff.model.component import Component, NotApplicable, Property, Subject
from npudiff.model.constraints import Axis, Box, Constraints, intersection
from npudiff.properties._shared.baselines import BASELINES
from npudiff.reference.bounds import exactly
from npudiff.reference.page_allocation import PageAllocationInputs, page_allocation
from npudiff.text import counted, listed

AXES = {
    "batch": Axis("number of requests", range(1, 4097)),
    "prefix": Axis("tokens that a request has already", range(2**20 + 1)),
    "new_tokens": Axis("tokens that it gets; 1 for all requests is a decode", range(1, 2**20 + 1)),
    "page_size": Axis("tokens per page", range(1, 2**16 + 1)),
    "spare_pages": Axis("free pages beyond those that are needed", range(2**20 + 1)),
}

_PAGE_SIZES = (2, 3, 16, 32, 48, 64, 128, 192, 256)
_BATCHES = (1, 2, 3, 4, 8, 33)
_MAX_TOKENS = 2**22

_FEW_TOKENS = 600
"""Most tokens that a request of a far larger batch has, and gets."""


@dataclass(frozen=True)
class Growth:
    """A request that has some tokens and gets more."""

    prefix: int
    new: int


@dataclass(frozen=True)
class PageAllocationCase:
    """Requests that grow."""

    requests: tuple[Growth, ...]
    """The batch."""
    page_size: int = 16
    """Tokens per page."""
    spare_pages: int = 0
    """Free pages beyond those that are needed."""
    seed: int = 0
    """Seed of the names of pages."""


def pages_of(tokens: int, page_size: int) -> int:
    """Pages that some tokens fill or begin."""
    return -(-tokens // page_size)


def cases(constraints: Constraints) -> st.SearchStrategy[PageAllocationCase]:
    """Return a strategy of cases that lie within the constraints."""
    return _draw_case(constraints.boxes)


@st.composite
def _draw_case(draw: st.DrawFn, boxes: Sequence[Box]) -> PageAllocationCase:
    choose = Chooser(draw)
    box = choose.pick(boxes)
    choose.draw_outlier_axis(AXES, "batch")
    page_size = choose.value(box, "page_size", _PAGE_SIZES)
    most = _FEW_TOKENS if choose.far else _MAX_TOKENS
    kind = choose.pick(("decode", "extend", "mixed"))
    requests = choose.draw_list(
        box,
        "batch",
        _BATCHES,
        lambda: Growth(
            choose.value(box, "prefix", [count for count in _prefixes(page_size) if count <= most]),
            choose.pick(_new_tokens(box, page_size, kind, most)),
        ),
    )
    assume(sum(request.prefix + request.new for request in requests) <= _MAX_TOKENS)
    return PageAllocationCase(
        requests=requests,
        page_size=page_size,
        spare_pages=choose.value(box, "spare_pages", (*(0, 1, 5) * 4, 40_000, 140_000)),
        seed=choose.pick(range(1024)),
    )


def _prefixes(page_size: int) -> Sequence[int]:
    """Tokens that a request has: none, or one away from the border of a page."""
    borders = {max(0, pages * page_size + step) for pages in (0, 1, 2, 5) for step in (-1, 0, 1)}
    return sorted({*borders, page_size // 2, 1025, 10_001, 65_537, 100_001, 1_000_003})


def _new_tokens(box: Box, page_size: int, kind: str, most: int) -> Sequence[int]:
    borders = {pages * page_size + step for pages in (1, 2, 3) for step in (-2, -1, 0, 1, 2)} | {
        1,
        2,
        3,
        129,
        150 * page_size + 1,
    }
    options = {"decode": [1], "extend": sorted(borders), "mixed": [1, *sorted(borders)]}[kind]
    return within([count for count in options if 0 < count <= most], box.get("new_tokens"))


def build_inputs(case: PageAllocationCase) -> PageAllocationInputs:
    """Build the inputs of a case. Free pages are in no order, and never page 0."""
    prefixes = torch.tensor([request.prefix for request in case.requests], dtype=torch.int64)
    lengths = prefixes + torch.tensor([request.new for request in case.requests], dtype=torch.int64)
    held = [pages_of(request.prefix, case.page_size) for request in case.requests]
    needed = sum(
        pages_of(request.prefix + request.new, case.page_size) - count
        for request, count in zip(case.requests, held, strict=True)
    )
    pages = needed + case.spare_pages + len(held)
    names = torch.tensor(Stream(case.seed, "pages").permutation(pages), dtype=torch.int64) + 1
    last_page, free = names[: len(held)], names[len(held) :]
    last = torch.where(prefixes > 0, last_page * case.page_size + (prefixes - 1) % case.page_size, -1)
    return PageAllocationInputs(prefixes, lengths, last, free, case.page_size)


def values(case: PageAllocationCase) -> Mapping[str, Collection[object]]:
    """Return the values of each axis that the case uses."""
    return {
        "batch": (len(case.requests),),
        "prefix": {request.prefix for request in case.requests},
        "new_tokens": {request.new for request in case.requests},
        "page_size": (case.page_size,),
        "spare_pages": (case.spare_pages,),
    }


def features(case: PageAllocationCase) -> Collection[str]:
    """Return the regions of the input space that the case is in."""
    size = case.page_size
    checks = {
        "decode": all(request.new == 1 for request in case.requests),
        "prefix": any(request.prefix for request in case.requests),
        "partial page": any(request.prefix % size for request in case.requests),
        "ends on a page": any((request.prefix + request.new) % size == 0 for request in case.requests),
        "new page": any(request.prefix % size + request.new > size for request in case.requests),
    }
    return [name for name, holds in checks.items() if holds]


def describe(case: PageAllocationCase) -> str:
    """Return the case as one short line."""
    requests = listed([f"{request.prefix}+{request.new}" for request in case.requests], "request")
    parts = [
        requests,
        f"page {case.page_size}",
        counted(case.spare_pages, "spare page") if case.spare_pages else "",
        f"seed {case.seed}" if case.seed else "",
    ]
    return " · ".join(part for part in parts if part)


def check_case(case: PageAllocationCase) -> None:
    """Refuse a case that cannot be built, or that is larger than a test should be; raises ``ValueError``."""
    if not 1 <= len(case.requests) <= 4096 or not 1 <= case.page_size <= 2**16 or not 0 <= case.spare_pages <= 2**20:
        raise ValueError("a case has 1 to 4096 requests, pages of at most 65536 tokens, and at most 2**20 spare pages")
    if any(not 0 <= request.prefix <= 2**20 or not 1 <= request.new <= 2**20 for request in case.requests):
        raise ValueError("prefix must lie in 0..2**20, new in 1..2**20")
    if sum(request.prefix + request.new for request in case.requests) > _MAX_TOKENS or not 0 <= case.seed < 2**63:
        raise ValueError(f"at most {_MAX_TOKENS} tokens, and a seed in 0..2**63")


def coordinates(inputs: PageAllocationInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to the slots: request, position, and offset in the page."""
    if output != "slots":
        return {}
    counts = (inputs.lengths - inputs.prefix_lengths).tolist()
    request = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    position = torch.cat(
        [torch.arange(first, last) for first, last in zip(inputs.prefix_lengths, inputs.lengths, strict=True)]
    )
    return {"request": request, "position": position, "page offset": position % inputs.page_size}


def _one_by_one(subject: Subject, case: PageAllocationCase) -> Comparison:
    """Growing a single request token by token gives the slots of growing it at once."""
    request = case.requests[0]
    single = replace(case, requests=(request,))
    steps = [replace(single, requests=(Growth(request.prefix + i, 1),)) for i in range(request.new)]
    if request.new < 2:
        raise NotApplicable("the first request gets one token only")
    for step in steps:
        subject.require(step, "the same growth token by token")
    inputs = build_inputs(single)
    whole = subject.run(inputs)["slots"]
    free, last, slots = inputs.free_pages, inputs.last_slots, []
    for i in range(request.new):
        prefix = inputs.prefix_lengths + i
        now = subject.run(replace(inputs, prefix_lengths=prefix, lengths=prefix + 1, last_slots=last, free_pages=free))
        free = free[int(now["pages_taken"]) :]
        last = now["slots"].to(torch.int64)
        slots.append(now["slots"])
    return compare({"slots": exactly(whole)}, {"slots": torch.cat(slots)}, "token by token against at once")


component = Component(
    name="page_allocation",
    summary="which slots new tokens get: the rest of the last page, whole pages, and the tail",
    case_type=PageAllocationCase,
    outputs=("slots", "pages_taken"),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=page_allocation,
    values=values,
    features=features,
    describe=describe,
    check_case=check_case,
    coordinates=coordinates,
    highlighted_region="decode",
    relations=(
        Property(
            "one_by_one_equals_at_once",
            "growing token by token gives the same slots as growing at once",
            _one_by_one,
            within={"new_tokens": intersection(range(2, 65), AXES["new_tokens"].legal), "batch": (1,)},
            needs={"new_tokens": (1,)},
        ),
    ),
    baselines=BASELINES["page_allocation"],
)
