"""Allocation of slots for new tokens: its cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, Chooser, assume, axis, choice, derived, part, seed, within
from npudiff.judge.compare import compare
from npudiff.model.component import Comparison, Component, NotApplicable, Property, Subject
from npudiff.model.constraints import Box
from npudiff.model.illegal import constant, wrong_element
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.slots import page_names, page_order_axis
from npudiff.reference.bounds import exactly
from npudiff.reference.page_allocation import PageAllocationInputs, page_allocation
from npudiff.text import listed

_MAX_TOKENS = 2**22

_FEW_TOKENS = 600
"""Most tokens that a request of a far larger batch has, and gets."""


@dataclass(frozen=True)
class Growth:
    """A request that has some tokens and gets more."""

    prefix: int
    new: int


def _draw_requests(choose: Chooser, box: Box, case: PageAllocationCase) -> tuple[Growth, ...]:
    most = _FEW_TOKENS if choose.far else _MAX_TOKENS
    prefixes = [count for count in _prefixes(case.page_size) if count <= most]
    requests = choose.draw_list(
        box,
        "batch",
        (1,) if choose.huge and choose.far == "new_tokens" else (1, 2, 3, 4, 8, 33),
        lambda: Growth(
            choose.value(box, "prefix", prefixes),
            choose.value(box, "new_tokens", _new_tokens(box, case.page_size, str(case.kind), most)),
        ),
        lambda first, other: replace(other, new=first.new),
    )
    assume(sum(request.prefix + request.new for request in requests) <= _MAX_TOKENS)
    return requests


@dataclass(frozen=True)
class PageAllocationCase(Case):
    """Requests that grow."""

    requests: tuple[Growth, ...] = part(
        draw=_draw_requests,
        shown=lambda case: listed([f"{request.prefix}+{request.new}" for request in case.requests], "request"),
    )
    page_size: int = axis(
        "tokens per page", range(1, 2**16 + 1), 16, drawn=(2, 3, 16, 1, 32, 48, 64, 128, 192, 256, 100),
        shown="page {}", always=True,
    )  # fmt: skip
    spare_pages: int = axis(
        "free pages beyond those that are needed", range(2**20 + 1), 0, drawn=(*(0, 1, 5) * 4, 40_000, 140_000),
        shown="{} spare page(s)",
    )  # fmt: skip
    seed: int = seed()
    page_order: str = page_order_axis()

    kind = choice(("decode", "extend", "mixed"))
    drawn_first = ("page_size", "kind")
    outliers = ("batch",)
    huge_axes = ("new_tokens", "batch")

    @derived("number of requests", range(1, 4097))
    def batch(self) -> int:
        """Number of requests."""
        return len(self.requests)

    @derived("tokens that a request has already", range(2**20 + 1), each=True)
    def prefix(self) -> Collection[int]:
        """Tokens that the requests have already."""
        return {request.prefix for request in self.requests}

    @derived("tokens that it gets; 1 for all requests is a decode", range(1, 2**20 + 1), each=True)
    def new_tokens(self) -> Collection[int]:
        """Tokens that the requests get."""
        return {request.new for request in self.requests}

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if sum(request.prefix + request.new for request in self.requests) > _MAX_TOKENS:
            yield f"there would be more than {_MAX_TOKENS} tokens"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        size = self.page_size
        return {
            "decode": all(request.new == 1 for request in self.requests),
            "prefix": any(request.prefix for request in self.requests),
            "partial page": any(request.prefix % size for request in self.requests),
            "ends on a page": any((request.prefix + request.new) % size == 0 for request in self.requests),
            "new page": any(request.prefix % size + request.new > size for request in self.requests),
        }


def pages_of(tokens: int, page_size: int) -> int:
    """Pages that some tokens fill or begin."""
    return -(-tokens // page_size)


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
    names = torch.tensor(page_names("pages", case.seed, 1 + pages, case.page_order), dtype=torch.int64)
    last_page, free = names[: len(held)], names[len(held) :]
    last = torch.where(prefixes > 0, last_page * case.page_size + (prefixes - 1) % case.page_size, -1)
    return PageAllocationInputs(prefixes, lengths, last, free, case.page_size)


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
    inputs=build_inputs,
    reference=page_allocation,
    illegal=(
        wrong_element("a negative length", "lengths", constant(-1)),
        wrong_element("a length that is less than before", "lengths", lambda inputs: int(inputs.prefix_lengths[0]) - 1),
    ),
    coordinates=coordinates,
    highlighted_region="decode",
    relations=(
        Property(
            "one_by_one_equals_at_once",
            "growing token by token gives the same slots as growing at once",
            _one_by_one,
            within={"new_tokens": range(2, 65), "batch": (1,)},
            needs={"new_tokens": (1,)},
        ),
    ),
    baselines=BASELINES["page_allocation"],
)
