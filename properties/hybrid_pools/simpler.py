"""What is simpler than a trace that fails: plainer sizes, smaller pages, fewer tokens, shorter words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from typing import Any

from npudiff.properties.hybrid_pools.case import HybridPoolsCase
from npudiff.reference.hybrid_pools import Allocate, Decode, Evict, Extend, Fork, Free, Preempt, Share, Step, new_tokens

_PLAIN: tuple[dict[str, Any], ...] = (
    {"seed": 0},
    {"poison": "large"},
    {"dtype": "bfloat16"},
    {"head_dim": 64, "value_head_dim": 64},
    {"group": 1},
    {"kv_heads": 1},
    {"prefix_sharing": False},
)
_PAGE_SIZES = (2, 3, 4, 8, 16, 32, 64, 128)


def _plain(case: HybridPoolsCase) -> Iterator[HybridPoolsCase]:
    """Plain sizes, all of them or one, fewer requests, and all tokens of a request at once."""
    everything = {name: value for plain in _PLAIN for name, value in plain.items() if name != "prefix_sharing"}
    for plain in (everything, *_PLAIN):
        if any(getattr(case, name) != value for name, value in plain.items()):
            yield replace(case, **plain)
    yield from _without_requests(case)
    if (whole := _joined_throughout(case)) != case:
        yield whole
    if (named := _renamed(case)) != case:
        yield named


def _fewer_tokens(case: HybridPoolsCase) -> Iterator[HybridPoolsCase]:
    """Two steps in one, or a step in simpler words."""
    yield from _joined(case)
    for index, step in enumerate(case.steps):
        for other in _simpler_steps(case, step):
            yield replace(case, steps=(*case.steps[:index], other, *case.steps[index + 1 :]))


def _smaller_pools(case: HybridPoolsCase) -> Iterator[HybridPoolsCase]:
    """Smaller pages, fewer of them, a smaller window."""
    for size in _PAGE_SIZES:
        if size < case.page_size:
            yield _scaled(case, size)
            yield replace(case, page_size=size)
    yield from _without_a_page(case)
    for pages in _smaller(max(case.full_pages, case.sliding_pages)):
        yield replace(case, full_pages=min(pages, case.full_pages), sliding_pages=min(pages, case.sliding_pages))
    for name in ("full_pages", "sliding_pages", "requests", "window"):
        for value in _smaller(getattr(case, name), case.page_size if name == "window" else 1):
            change: dict[str, Any] = {name: value}
            yield replace(case, **change)


SIMPLER = (_plain, _smaller_pools, _fewer_tokens)
"""Ways to make a trace simpler; what they yield need not be legal, nor fail."""


def _without_a_page(case: HybridPoolsCase) -> Iterator[HybridPoolsCase]:
    """Pools and a request with a page less each, so that pages run out where they did."""
    fewer = replace(case, full_pages=case.full_pages - 1, sliding_pages=case.sliding_pages - 1)
    for index, step in enumerate(case.steps):
        if isinstance(step, Allocate | Extend | Share) and step.tokens > case.page_size:
            shorter = replace(step, tokens=step.tokens - case.page_size)
            yield replace(fewer, steps=(*case.steps[:index], shorter, *case.steps[index + 1 :]))


def _smaller(number: int, page_size: int = 1) -> list[int]:
    """Smaller positive numbers: tiny ones, half, one less, and those at borders of pages."""
    borders = {pages * page_size + step for pages in range(1, 4) for step in (-1, 0, 1)} if page_size > 1 else set()
    found = {1, 2, 3, *borders, number % page_size, number // 2, number - page_size, number - 1}
    return sorted(one for one in found if 0 < one < number)


def _without_requests(case: HybridPoolsCase) -> Iterator[HybridPoolsCase]:
    """Traces in which a request does not come, or those it shares with do not go on without it."""
    for request in sorted({one for step in case.steps for one in _requests(step)}):
        yield replace(case, steps=tuple(_without(case.steps, request)))
    for index, step in enumerate(case.steps):
        if isinstance(step, Fork):
            before, after = case.steps[:index], tuple(_without(case.steps[index + 1 :], step.source))
            names = {step.request: step.source}
            alone = _mapped(replace(case, steps=after), lambda one, names=names: names.get(one, one), int)  # type: ignore[misc]
            yield replace(case, steps=(*before, *alone.steps))


def _without(steps: Iterable[Step], request: int) -> Iterator[Step]:
    """The steps of all other requests."""
    for step in steps:
        if isinstance(step, Decode | Evict) and len(step.requests) > 1:
            yield replace(step, requests=tuple(one for one in step.requests if one != request))
        elif request not in _requests(step):
            yield step


def _joined_throughout(case: HybridPoolsCase) -> HybridPoolsCase:
    """All tokens of each request in the step in which it comes; the last step is what fails, and stays."""
    joined = replace(case, steps=case.steps[:-1])
    while (shorter := next(_joined(joined), joined)) is not joined:
        joined = shorter
    return replace(joined, steps=(*joined.steps, *case.steps[-1:]))


def _joined(case: HybridPoolsCase) -> Iterator[HybridPoolsCase]:
    """One step less, whose tokens the request gets in the step before in which it got some."""
    for index, step in enumerate(case.steps):
        for request, tokens in new_tokens(step).items() if isinstance(step, Extend | Decode) else ():
            for before in range(index - 1, -1, -1):
                earlier = case.steps[before]
                if isinstance(earlier, Allocate | Extend | Share) and earlier.request == request:
                    longer = replace(earlier, tokens=earlier.tokens + tokens)
                    steps = (*case.steps[:before], longer, *case.steps[before + 1 : index], *case.steps[index + 1 :])
                    yield replace(case, steps=steps)
                    break


def _simpler_steps(case: HybridPoolsCase, step: Step) -> Iterator[Step]:
    """The same step for fewer requests, with fewer tokens, or a plainer one in its place."""
    match step:
        case Decode(requests) | Evict(requests):
            if len(requests) > 1:
                yield from (replace(step, requests=(request,)) for request in requests)
                yield from (replace(step, requests=requests[:i] + requests[i + 1 :]) for i in range(len(requests)))
        case Preempt(request):
            yield Free(request)
        case Fork(_, request):
            yield Allocate(request, 1)
        case Share(_, request, pages, tokens):
            yield from (Allocate(request, tokens), Allocate(request, pages * case.page_size + tokens))
            yield from (replace(step, pages=fewer) for fewer in range(1, pages))
        case Extend(request, 1):
            yield Decode((request,))
    if isinstance(step, Allocate | Extend | Share):
        yield from (replace(step, tokens=fewer) for fewer in _smaller(step.tokens, case.page_size))


def _renamed(case: HybridPoolsCase) -> HybridPoolsCase:
    """The same trace with requests named in the order in which they come."""
    order: dict[int, int] = {}
    for step in case.steps:
        for request in _requests(step):
            order.setdefault(request, len(order))
    return _mapped(case, lambda request: order[request], int)


def _scaled(case: HybridPoolsCase, page_size: int) -> HybridPoolsCase:
    """The same trace in smaller pages: tokens and window stay as far from the border of a page as they are."""

    def smaller(tokens: int) -> int:
        pages = (tokens + case.page_size // 2) // case.page_size
        return max(1, pages * page_size + tokens - pages * case.page_size)

    scaled = replace(case, page_size=page_size, window=smaller(case.window))
    return _mapped(scaled, lambda request: request, smaller)


def _mapped(case: HybridPoolsCase, request: Callable[[int], int], tokens: Callable[[int], int]) -> HybridPoolsCase:
    """The same trace with other names of requests and other numbers of tokens."""

    def mapped(step: Step) -> Step:
        changes: dict[str, Any] = {}
        for field in fields(step):
            value = getattr(step, field.name)
            if field.name in ("request", "source"):
                changes[field.name] = request(value)
            elif field.name == "requests":
                changes[field.name] = tuple(request(one) for one in value)
            elif field.name == "tokens":
                changes[field.name] = tokens(value)
        return replace(step, **changes)

    return replace(case, steps=tuple(mapped(step) for step in case.steps))


def _requests(step: Step) -> tuple[int, ...]:
    """The requests that a step names, in their order."""
    match step:
        case Decode(requests) | Evict(requests):
            return requests
        case Share(source, request, _, _) | Fork(source, request):
            return (source, request)
    return (step.request,)
