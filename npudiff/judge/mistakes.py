"""Likely mistakes: what a person would look for next, where all numbers of an output say so.

A hypothesis is told if it explains every element that is specified, to within its bound, and the elements are not so
few or so alike that it would explain anything: two have to agree on a factor, three on an offset. It is a hint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from npudiff.model.component import OutputComparison

NAMED = {
    -1.0: "with the other sign",
    math.log(2): "ln 2 (0.6931) times what is right: a logarithm to base e taken for one to base 2",
    1 / math.log(2): "1 / ln 2 (1.443) times what is right: a logarithm to base 2",
    0.5: "half of what is right",
    2.0: "twice what is right",
}
"""Factors that have a reason which is seen at once."""

CLOSE = 1e-3
"""Relative distance from a named factor that is taken for it; the bounds decide first."""

CLEAR = 8.0
"""Bounds by which an element has to be away from 0 to say anything of a factor."""

FEW, SOME = 2, 3
"""Elements that differ and have to agree on a factor, and on an offset."""


def likely_mistakes(output: OutputComparison) -> list[str]:
    """Return what makes the right output the wrong one, in words: a factor, an offset, other rows, other axes."""
    actual, value, bound = output.actual, output.value, output.bound
    if actual is None or value is None or bound is None or not value.is_floating_point() or not actual.numel():
        return []
    known = bound.isfinite() & value.isfinite()
    actual = actual.to(torch.float64)
    if not bool(known.any()) or not bool(actual[known].isfinite().all()):
        return []
    for told in (*_moved(actual, value, bound, known), *_scaled(actual, value, bound, known)):
        return [told]
    return []


def _scaled(actual: torch.Tensor, value: torch.Tensor, bound: torch.Tensor, known: torch.Tensor) -> Iterator[str]:
    """Yield a factor or an offset."""
    actual, value, bound = actual[known], value[known], bound[known]
    if not bool(actual.any()):
        if len(actual) >= FEW:
            yield "every element is 0"
        return
    clear = value.abs() > CLEAR * bound
    if _distinct(value[clear], bound[clear]) >= FEW:
        factor = float((actual[clear] / value[clear]).median())
        named = next((text for one, text in NAMED.items() if abs(factor / one - 1) < CLOSE), "")
        if bool(((actual - factor * value).abs() <= (1 + abs(factor)) * bound).all()):
            yield f"every element is {named or f'{factor:.4g} times what is right'}"
    offset = float((actual - value).median())
    if _distinct(value, bound) >= SOME and bool(((actual - value - offset).abs() <= 2 * bound).all()):
        yield f"every element is {abs(offset):.4g} too {'large' if offset > 0 else 'small'}"


def _distinct(values: torch.Tensor, bounds: torch.Tensor) -> int:
    """How many values there are that differ by more than what they may be off."""
    if not len(values):
        return 0
    ordered, order = values.sort()
    apart = ordered.diff() > bounds[order][1:] + bounds[order][:-1]
    return 1 + int(apart.sum())


def _moved(actual: torch.Tensor, value: torch.Tensor, bound: torch.Tensor, known: torch.Tensor) -> Iterator[str]:
    """Yield that rows are those beside them, or that two axes are exchanged."""
    rows = len(value) if value.dim() else 0
    if rows > FEW and value[0].numel() > 1:
        for here, there, word in ((slice(1, None), slice(-1), "before"), (slice(-1), slice(1, None), "after")):
            if _holds(actual[here], value[there], bound[there], known[there]):
                yield f"each row holds what belongs to the row {word} it"
    if value.dim() > 1 and value.shape[-1] == value.shape[-2] > 1:
        turned = (part.transpose(-1, -2) for part in (value, bound, known))
        if _holds(actual, *turned):
            yield "the last two axes are exchanged"


def _holds(actual: torch.Tensor, value: torch.Tensor, bound: torch.Tensor, known: torch.Tensor) -> bool:
    return bool(known.all()) and bool(((actual - value).abs() <= bound).all())
