"""What is simpler than a trace that fails: plainer sizes, fewer requests, fewer tokens, shorter words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from typing import Any

from npudiff.properties.state_pools.case import StatePoolsCase
from npudiff.reference.state_pools import Decode, Extend, Free, Step, Verify

_PLAIN: tuple[dict[str, Any], ...] = (
    {"seed": 0}, {"keys": "usual"}, {"group": 1}, {"key_heads": 1}, {"value_dim": 16}, {"key_dim": 16},
    {"biased": False}, {"decays": "usual"}, {"gates": "head"}, {"state_dtype": "bfloat16"}, {"chunked": False},
    {"raw": False}, {"activation": True}, {"width": 4}, {"width": 2},
)  # fmt: skip


def _plain(case: StatePoolsCase) -> Iterator[StatePoolsCase]:
    """Plain sizes, all of them or one, and fewer requests."""
    everything = {name: value for plain in _PLAIN[:-1] for name, value in plain.items()}
    for plain in (everything, *_PLAIN):
        if any(getattr(case, name) != value for name, value in plain.items()):
            yield replace(case, **plain)
    for request in sorted({one for step in case.steps for one in _requests(step)}):
        yield replace(case, steps=tuple(_without(case.steps, request)))
    for index, step in enumerate(case.steps):
        if isinstance(step, Free):  # an earlier life of a number that another request has later
            yield replace(case, steps=(*_without(case.steps[: index + 1], step.request), *case.steps[index + 1 :]))
    if (named := _renamed(case)) != case:
        yield named


def _fewer(case: StatePoolsCase) -> Iterator[StatePoolsCase]:
    """Fewer requests at a time, fewer drafts, and steps in simpler words."""
    for name in ("requests", "drafts"):
        for value in range(1, getattr(case, name)):
            change: dict[str, Any] = {name: value}
            yield replace(case, **change)
    for index, step in enumerate(case.steps):
        for other in _simpler_steps(step):
            yield replace(case, steps=(*case.steps[:index], other, *case.steps[index + 1 :]))


SIMPLER = (_plain, _fewer)
"""Ways to make a trace simpler; what they yield need not be legal, nor fail."""


def _requests(step: Step) -> tuple[int, ...]:
    """The requests that a step names, in their order."""
    match step:
        case Extend(requests) | Decode(requests) | Verify(requests):
            return requests
    return tuple(getattr(step, field.name) for field in fields(step) if field.name in ("source", "request"))


def _without(steps: Iterable[Step], request: int) -> Iterator[Step]:
    """The steps of all other requests."""
    for step in steps:
        if isinstance(step, Extend | Decode | Verify) and request in step.requests:
            left = _left_out(step, step.requests.index(request))
            if left is not None:
                yield left
        elif request not in _requests(step):
            yield step


def _left_out(step: Extend | Decode | Verify, place: int) -> Step | None:
    """A step of a batch without one of its requests; None where nobody is left."""

    def rest(parts: tuple[int, ...]) -> tuple[int, ...]:
        return parts[:place] + parts[place + 1 :]

    match step:
        case Extend(requests, tokens):
            return Extend(rest(requests), rest(tokens)) if len(requests) > 1 else None
        case Verify(requests, accepted, padded):
            return Verify(rest(requests), rest(accepted), padded) if len(requests) + padded > 1 else None
        case Decode(requests, padded):
            return Decode(rest(requests), padded) if len(requests) + padded > 1 else None


def _simpler_steps(step: Step) -> Iterator[Step]:
    """The same step with fewer requests, tokens or padded rows, or a plainer one in its place."""
    if isinstance(step, Extend | Decode | Verify):
        yield from (left for place in range(len(step.requests)) if (left := _left_out(step, place)) is not None)
        if step.requests != tuple(sorted(step.requests)):
            yield _in_order(step)
    match step:
        case Extend(requests, tokens):
            if set(tokens) == {1}:
                yield Decode(requests)
            for place, count in enumerate(tokens):
                for fewer in sorted({1, 2, 3, 4, count // 2, count - 1} & set(range(1, count))):
                    yield replace(step, tokens=(*tokens[:place], fewer, *tokens[place + 1 :]))
        case Verify(requests, accepted, padded):
            yield from (replace(step, padded=fewer) for fewer in range(padded))
            for place, count in enumerate(accepted):
                for fewer in range(1, count):
                    yield replace(step, accepted=(*accepted[:place], fewer, *accepted[place + 1 :]))
        case Decode(requests, padded):
            yield from (replace(step, padded=fewer) for fewer in range(padded))


def _in_order(step: Extend | Decode | Verify) -> Step:
    """The same step with its requests in the order of their numbers."""
    order = sorted(range(len(step.requests)), key=lambda place: step.requests[place])

    def sorted_parts(parts: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(parts[place] for place in order)

    match step:
        case Extend(requests, tokens):
            return Extend(sorted_parts(requests), sorted_parts(tokens))
        case Verify(requests, accepted, padded):
            return Verify(sorted_parts(requests), sorted_parts(accepted), padded)
        case Decode(requests, padded):
            return Decode(sorted_parts(requests), padded)


def _renamed(case: StatePoolsCase) -> StatePoolsCase:
    """The same trace with requests named in the order in which they come."""
    order: dict[int, int] = {}
    for step in case.steps:
        for request in _requests(step):
            order.setdefault(request, len(order))

    def named(step: Step) -> Step:
        changes: dict[str, Any] = {}
        for field in fields(step):
            value = getattr(step, field.name)
            if field.name in ("request", "source"):
                changes[field.name] = order[value]
            elif field.name == "requests":
                changes[field.name] = tuple(order[one] for one in value)
        return replace(step, **changes)

    return replace(case, steps=tuple(named(step) for step in case.steps))
