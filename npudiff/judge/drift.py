"""Drift: an error that is too small to be seen in any element, and that all cases of a job have in common.

Roundings have nothing to do with each other. Over the elements and the cases of a job they cancel, and what is left is
what an implementation does everywhere: a factor that is off, truncation in place of rounding, a scale that was rounded.
Each case gives one number for an output and a direction, its mean error along that direction over the bound. Cases are
drawn independently of each other, rows of a case are not, so the standard error is that between cases.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.case import dumps
from npudiff.model.component import Comparison, OutputComparison, Passed
from npudiff.model.drift import CaseSums, Drift, ShownCase, Sums
from npudiff.model.job import Job

GAIN, OFFSET = "gain", "offset"
"""Directions of every output: along its values, by which it is too long or too short; and up."""

SYSTEMATIC = 2.0**-6
"""The largest mean error of a correct device, as a part of the bound. Rounding to nearest has a mean of second order:
numbers that are spread over the orders of magnitude are too large by at most ``2/3 * u**2`` in the mean. That is
``2/3 * u`` of a bound ``u * |value|``, 1/384 in bfloat16, and chains of several roundings stay below six times that."""

FLOAT32_SYSTEMATIC = 2.0**-20
"""The same as a part of the value: what a device computes in float32 may be off everywhere, such as an exponential that
is approximated (2**-22), a few times in a row, or sums that are truncated."""

MOST_SYSTEMATIC = 2.0**-4
"""A case of which a correct device may have a larger part of the bound everywhere says nothing."""

SCORE = 6.0
"""The score of a drift. Where the numbers of cases are distributed evenly to both sides of what is allowed, a score
beyond ``t`` has a probability of at most ``exp(-t**2 / 2)`` (Hoeffding's bound on a self-normalised sum: B. Efron,
"Student's t-test under symmetry conditions", J. Am. Stat. Assoc. 64, 1969), 1.5e-8 here. A job has up to 30 outputs and
directions and two signs: one false alarm in a million jobs. A score is at most the root of the number of cases."""

REPLAY_SCORE = 4.0
"""The score of cases that are remembered, along the one direction that they were remembered for: by chance in one of
1,500."""

MOST_REMEMBERED = 256
"""Cases that are remembered, more only where these do not show the drift."""

MOST_TEXT = 2**19
"""Characters of all cases that are remembered."""

SHOWN = 3
"""Cases that are told of."""

MOST_ELEMENTS = 2**14
"""Elements of an output that are summed, at equal distances; more of one case would not make it count more."""

RESOLUTION = 2.0**-4
"""Error of the mean of a case, as a part of the bound, below which all cases count alike."""


def sums_of(comparison: Comparison | Passed) -> CaseSums:
    """Return the sums of each output of floats that has bounds; empty for exact ones."""
    if isinstance(comparison, Passed):
        return comparison.sums
    return {output.name: sums for output in comparison.outputs if (sums := _sums_of_output(output))}


def _sums_of_output(output: OutputComparison) -> dict[str, Sums]:
    """Sums along each direction; of a cache, nearly all of which is moved, over what is computed."""
    if output.actual is None or output.value is None or output.bound is None or not output.actual.is_floating_point():
        return {}
    tensors = [tensor.flatten() for tensor in (output.actual, output.value, output.bound)]
    tensors += [direction.flatten() for direction in (output.directions or {}).values()]
    actual, value, bound, *directions = _some_computed(tensors)
    finite = actual.isfinite() & value.isfinite()
    if not bool(finite.all()):
        actual, value, bound, *directions = (tensor[finite] for tensor in (actual, value, bound, *directions))
    elements = len(actual)
    if not elements:
        return {}
    error, along = (actual - value) / bound, value / bound
    sizes = along.abs()
    numbers = torch.stack([error.sum(), error @ error, error @ along, along @ along, sizes.sum()])
    signed, errors, gain, squares, total = numbers.tolist()
    sums = {
        GAIN: Sums(elements, gain, squares, total, squares, errors),
        OFFSET: Sums(elements, signed, elements, elements, total, errors),
    }
    for name, direction in zip(output.directions or {}, directions, strict=True):
        along = direction / bound
        numbers = torch.stack([error @ along, along @ along, along.abs().sum(), along.abs() @ sizes])
        forward, squares, total, values = numbers.tolist()
        sums[name] = Sums(elements, forward, squares, total, values, errors)
    return sums


def _some_computed(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return those elements of flat tensors that have a bound, the third of them, in float64; of many, some."""
    bound = tensors[2]
    least, most = (float(end) for end in bound.aminmax()) if len(bound) else (1.0, 1.0)
    if least > 0 and most < torch.inf:
        return [tensor[:: _distance(len(bound))].to(torch.float64) for tensor in tensors]
    if least == most:  # nothing is computed, or nothing specified: most of what is only moved
        return [tensor[:0].to(torch.float64) for tensor in tensors]
    places = ((bound > 0) & (bound < torch.inf)).nonzero().flatten()
    places = places[:: _distance(len(places))]
    return [tensor[places].to(torch.float64) for tensor in tensors]


def _distance(elements: int) -> int:
    """Distance of elements that are summed; odd, since rows have even lengths."""
    return max(1, elements // MOST_ELEMENTS) | 1


class DriftMeter:
    """Takes the cases of a job that hold, and says what they have in common."""

    def __init__(self) -> None:
        self._cases: dict[Any, CaseSums] = {}  # the same case twice says nothing more

    def add(self, case: Any, comparison: Comparison | Passed) -> None:  # noqa: ANN401 - a case of any component
        """Take a case that holds."""
        self._cases[case] = sums_of(comparison)

    def measured(self) -> tuple[Drift, ...]:
        """Return the mean error of each output along each direction; the largest score first."""
        cases = list(self._cases)
        drifts = []
        for output, direction in self._names():
            numbers = [sums.get(output, {}).get(direction) for sums in self._cases.values()]
            line = Line.of([(case, one) for case, one in zip(cases, numbers, strict=True) if one is not None])
            if line.entries:
                drifts.append(line.drift(output, direction))
        return tuple(sorted(drifts, key=lambda drift: -drift.score))

    def _names(self) -> Iterator[tuple[str, str]]:
        names = {(output, name): None for sums in self._cases.values() for output in sums for name in sums[output]}
        yield from names


@dataclass(frozen=True)
class Entry:
    """One case along one direction."""

    case: Any
    sums: Sums
    weight: float
    """Of the case: less where it has few elements."""

    @property
    def size(self) -> float:
        """Mean error over bound."""
        return self.sums.along / self.sums.sizes

    @property
    def most(self) -> float:
        """The largest that a correct device may have."""
        return _most(self.sums)

    def beyond(self, sign: float) -> float:
        """By how much it is larger than that, in a direction; weighted."""
        return self.weight * (sign * self.size - self.most)

    @property
    def shown(self) -> ShownCase:
        """The case as it is told of."""
        return ShownCase(dumps(self.case), self.size, self.sums.along / self.sums.squares if self.sums.squares else 0.0)


def _most(sums: Sums) -> float:
    return SYSTEMATIC + FLOAT32_SYSTEMATIC * sums.values / sums.sizes


@dataclass(frozen=True)
class Line:
    """All cases along one direction of one output."""

    entries: Sequence[Entry]

    @classmethod
    def of(cls, cases: Sequence[tuple[Any, Sums]]) -> Line:
        """Return the cases that say something, with their weights, which depend on no error's sign."""
        different = {
            sums: case for case, sums in cases
        }  # few numbers, such as a factor of a model, come again and again
        telling = [(case, sums) for sums, case in different.items() if sums.sizes and _most(sums) <= MOST_SYSTEMATIC]
        elements = sum(sums.elements for _, sums in telling)
        spread = sum(sums.errors for _, sums in telling) / max(1, elements)
        return cls(
            [
                Entry(case, sums, 1 / (RESOLUTION**2 + spread * (math.sqrt(sums.squares) / sums.sizes) ** 2))
                for case, sums in telling
            ]
        )

    @property
    def size(self) -> float:
        """Mean error over bound of all cases."""
        return self._mean([entry.size for entry in self.entries])

    def score(self) -> float:
        """Return by how many standard errors the mean is beyond what is allowed."""
        sign = math.copysign(1.0, self.size)
        beyond = [entry.beyond(sign) for entry in self.entries]
        spread = math.sqrt(sum(one**2 for one in beyond))
        return sum(beyond) / spread if spread else 0.0

    def drift(self, output: str, direction: str) -> Drift:
        """Return what is measured; with cases that show it, if it is a finding."""
        measured = Drift(
            output,
            direction,
            self.size,
            self._mean([entry.most for entry in self.entries]),
            self.score(),
            len(self.entries),
            sum(entry.sums.elements for entry in self.entries),
        )
        if measured.score < SCORE:
            return measured
        sign = math.copysign(1.0, self.size)
        best = sorted(self.entries, key=lambda entry: -entry.beyond(sign))
        return replace(measured, shown=tuple(entry.shown for entry in best[:SHOWN]), remembered=self._remembered())

    def _mean(self, numbers: Sequence[float]) -> float:
        weights = [entry.weight for entry in self.entries]
        return sum(weight * one for weight, one in zip(weights, numbers, strict=True)) / sum(weights)

    def _remembered(self) -> tuple[str, ...]:
        """Cases at equal distances that show it with some room: which ones does not depend on their errors."""
        count = min(MOST_REMEMBERED, len(self.entries))
        while True:
            some = [self.entries[place * len(self.entries) // count] for place in range(count)]
            if count == len(self.entries) or Line(some).score() > REPLAY_SCORE + 1:
                break
            count = min(2 * count, len(self.entries))
        texts: list[str] = []
        for entry in some:
            texts.append(dumps(entry.case))
            if sum(map(len, texts)) > MOST_TEXT:
                return tuple(texts[:-1])
        return tuple(texts)


def found(drifts: Sequence[Drift]) -> bool:
    """Whether one of those that were measured is a drift."""
    return any(drift.score >= SCORE for drift in drifts)


def measures_drift(job: Job) -> bool:
    """Whether cases of a job are independent and compared with what is right: no relation, and no steps of a trace."""
    return job.prop is EQUIVALENCE and job.subject.component.history is None
