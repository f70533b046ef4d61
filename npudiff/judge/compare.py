"""Comparison by bound: every element of every output, the worst ratio even when all is well, and where it is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from npudiff.model.component import Comparison, ComputedElements, ExpectedOutput, OutputComparison


def compare(
    expected: Mapping[str, ExpectedOutput], actual: Mapping[str, torch.Tensor], context: str = ""
) -> Comparison:
    """Compare the outputs of an implementation with what the reference says of them.

    Outputs that the implementation did not return are not compared, and named.
    """
    outputs = tuple(_compare_output(name, expected.get(name), tensor.detach()) for name, tensor in actual.items())
    return Comparison(outputs, context, tuple(name for name in expected if name not in actual))


def _compare_output(name: str, expected: ExpectedOutput | None, actual: torch.Tensor) -> OutputComparison:
    if expected is None:
        return OutputComparison(name, _NOT_THERE, actual=actual)
    some = expected.computed
    shape = expected.value.shape if some is None else some.moved.shape
    if actual.shape != shape:
        return OutputComparison(name, f"shape {list(actual.shape)}, expected {list(shape)}", actual=actual)
    if actual.dtype != expected.dtype:
        return OutputComparison(name, f"dtype {actual.dtype}, expected {expected.dtype}", actual=actual)
    return _compare_numbers(name, expected, actual) if some is None else _compare_updated(name, expected, some, actual)


def _compare_updated(
    name: str, expected: ExpectedOutput, some: ComputedElements, actual: torch.Tensor
) -> OutputComparison:
    """Compare what was computed by its bounds, and all else bit for bit; if all is right, tell of the former only."""
    given = actual.flatten()
    computed = given[some.places]
    compared = _compare_numbers(name, Derived(some.value, some.bound, expected.dtype), computed)
    kept = _same_bits(given, some.moved.flatten().index_copy(0, some.places, computed))
    if compared.worst <= 1 and bool(kept.all()):
        return compared
    ratio = torch.zeros(kept.shape, dtype=torch.float64).masked_fill_(~kept, torch.inf)
    if compared.ratio is not None:
        ratio[some.places] = compared.ratio
    return OutputComparison(name, None, ratio.view(actual.shape), actual, expected.value, expected.bound)


def _compare_numbers(name: str, expected: ExpectedOutput, actual: torch.Tensor) -> OutputComparison:
    value, bound = expected.value, expected.bound
    overflows = may_overflow(expected)
    ratio = error_ratio(actual, value, bound)
    if overflows is not None:
        right = _overflowed(actual.to(torch.float64), value, bound, torch.finfo(actual.dtype).max)
        ratio = torch.where(overflows, torch.zeros_like(ratio).masked_fill_(~right, torch.inf), ratio)
        bound = bound.masked_fill(overflows, torch.inf)  # how far infinity is from a number says nothing of a row
    gain = None
    if expected.gain is not None:  # an element that may hold anything says nothing, and is part of its row
        gain = gain_error(actual, value).masked_fill(bound.isposinf().any(dim=-1), 0.0)
    return OutputComparison(name, None, ratio, actual, value, bound, gain, expected.gain, expected.directions)


def may_overflow(expected: ExpectedOutput) -> torch.Tensor | None:
    """Return where correct numbers may lie beyond the range of their dtype, bool; None if nowhere."""
    if expected.value.dtype != torch.float64 or not expected.dtype.is_floating_point:
        return None
    most = torch.finfo(expected.dtype).max
    if not expected.value.numel():
        return None
    lowest, highest = (float(end) for end in expected.value.aminmax())
    if -most / 2 < lowest and highest < most / 2:  # by far the most often
        return None
    overflows = (expected.value.abs() + expected.bound > most) & expected.value.isfinite() & expected.bound.isfinite()
    return overflows if bool(overflows.any()) else None


def _overflowed(actual: torch.Tensor, value: torch.Tensor, bound: torch.Tensor, most: float) -> torch.Tensor:
    """Return where a device has what it may have of numbers that its dtype does not hold, or only nearly.

    That is infinity, or where it saturates the largest number, of the sign of the number; or a number that its dtype
    holds and that is within the bound. Which of the two it is depends on a mode of the device. NaN it never is.
    """
    far_enough = actual.abs() >= (value.abs() - bound).clamp(max=most)
    return (actual.sign() == value.sign()) & far_enough


def gain_error(actual: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return by which factor each row is too long along itself, less 1: ``sum((actual - value) * value) / |value|**2``.

    0 for rows of zeros, and where anything is not finite: there the elements are wrong, or not specified.
    """
    error = (actual.to(torch.float64) - value) * value
    return torch.nan_to_num(error.sum(dim=-1) / value.square().sum(dim=-1), nan=0.0, posinf=0.0, neginf=0.0)


def error_ratio(actual: torch.Tensor, value: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
    """Return ``|actual - value| / bound`` per element, in float64.

    An element that equals its value, infinities of one sign included, has ratio 0; an infinite bound gives 0; a wrong
    element with bound 0, and any NaN or infinity that is not expected, gives infinity. A value of the dtype of
    ``actual`` was moved and not computed: then equal means the same bits.
    """
    if actual.dtype == value.dtype:
        return _ratio_where(~_same_bits(actual, value), actual, value, bound)
    wide = actual.to(torch.float64)
    if _is_mostly_moved(bound):
        return _ratio_where(wide != value, wide, value, bound)
    ratio = (wide - value).abs_().div_(bound)
    if ratio.numel() and not math.isfinite(float(ratio.max())):  # that of anything with NaN is NaN
        right = ratio.isnan() & ((wide == value) | bound.isposinf())  # 0 / 0, the same infinity, anything at all
        ratio.masked_fill_(right, 0.0).nan_to_num_(nan=math.inf, posinf=math.inf)
    return ratio


SAMPLED = 61
"""Elements of a bound that are looked at."""


def _is_mostly_moved(bound: torch.Tensor) -> bool:
    """Whether most elements have bound 0, as in a cache of which some rows were computed: to divide few is cheaper."""
    if bound.numel() < SAMPLED**2 or not bound.is_contiguous():
        return False
    some = bound.view(-1)[:: bound.numel() // SAMPLED]
    return 2 * int(some.count_nonzero()) < len(some)


def _ratio_where(differs: torch.Tensor, actual: torch.Tensor, value: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
    """Return the ratio where two numbers differ, and 0 elsewhere; a cache is equal nearly everywhere, or altogether."""
    places = differs.reshape(-1).nonzero().squeeze(1)
    if not len(places):
        return _zeros(differs)
    ratio = torch.zeros(differs.shape, dtype=torch.float64)
    indices = torch.unravel_index(places, differs.shape)  # of zeros that are one, a flat view would be a copy
    wide, value, bound = (one[indices].to(torch.float64) for one in (actual, value, bound))
    finite = torch.isfinite(wide) & torch.isfinite(value) & (bound != 0)  # a bound of 0: 0 / 0 of large integers
    unequal = torch.where(finite, (wide - value).abs_() / bound, torch.inf)
    ratio.view(-1)[places] = unequal.masked_fill_(torch.isposinf(bound), 0.0)
    return ratio


def _zeros(like: torch.Tensor) -> torch.Tensor:
    """Return zeros of float64 in the shape of a tensor, which are one zero: most of millions of elements are equal."""
    return torch.zeros((), dtype=torch.float64).expand(like.shape)


_ONE_ONLY = "only one of the two runs returns it"
_NOT_THERE = "returned, and of these inputs there is no such output"

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _same_bits(actual: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Data that is moved and not computed: NaN equals the same NaN, and zeros of different sign differ."""
    if not actual.is_floating_point():
        return actual == value
    bits = _BITS[actual.dtype.itemsize]
    return actual.view(bits) == value.view(bits)


def bounds_of(expected: Mapping[str, ExpectedOutput]) -> dict[str, torch.Tensor]:
    """Return the bound of each output; infinite where one of two runs may be infinity, and the other one a number."""
    bounds = {}
    for name, output in expected.items():
        overflows = may_overflow(output)
        bounds[name] = output.bound if overflows is None else output.bound.masked_fill(overflows, torch.inf)
    return bounds


@dataclass(frozen=True)
class Derived:
    """What must be, taken from another run of the same implementation or from the inputs, and how far it may be off."""

    value: torch.Tensor
    bound: torch.Tensor
    dtype: torch.dtype = torch.float64
    gain: torch.Tensor | None = None
    directions: Mapping[str, torch.Tensor] = field(default_factory=dict)
    computed: None = None


def compare_runs(
    bounds: Mapping[str, torch.Tensor], one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor], context: str
) -> Comparison:
    """Compare two runs that compute the same, each of which may be off by the bound: they differ by at most twice that.

    A device may take another path for another shape (other tiles, another order of a sum), so equal bits may be asked
    of moved data only.

    Parameters
    ----------
    bounds : mapping
        The reference's bound of each output, in the shape of the outputs.
    """
    twice = {name: 2 * bound for name, bound in bounds.items()}
    return _agreement(one, other, twice, context)


def same_bits(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor], context: str) -> Comparison:
    """Compare two runs that must agree bit for bit, but for the sign of a zero and the payload of a NaN."""
    return _agreement(first, second, None, context)


def _agreement(
    first: Mapping[str, torch.Tensor],
    second: Mapping[str, torch.Tensor],
    bounds: Mapping[str, torch.Tensor] | None,
    context: str,
) -> Comparison:
    """Compare outputs of two runs; without bounds they must be the same numbers."""
    outputs = []
    for name in {**first, **second}:
        one, other = first.get(name), second.get(name)
        if one is None or other is None:
            outputs.append(OutputComparison(name, _ONE_ONLY, actual=other if one is None else one))
        elif other.shape != one.shape or other.dtype != one.dtype:
            outputs.append(OutputComparison(name, "the two runs return different shapes or dtypes", actual=one))
        elif bounds is not None and name not in bounds:
            outputs.append(OutputComparison(name, _NOT_THERE, actual=one))
        else:
            bound = _zeros(one) if bounds is None else bounds[name]
            ratio = _ratio_where(~_same_numbers(one, other), other, one, bound)
            outputs.append(OutputComparison(name, None, ratio, other, one.to(torch.float64), bound))
    return Comparison(tuple(outputs), context)


def _same_numbers(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Where both are the same number, whatever the sign of a zero, or both are none.

    A row that sees nothing is a sum over nothing: which zero it is depends on how many zeros a device adds up.
    """
    return (one == other) | (one.isnan() & other.isnan())
