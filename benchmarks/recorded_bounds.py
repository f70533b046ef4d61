"""The bounds of fixed cases as they were when somebody last looked at them; ``recorded_bounds.json`` keeps both.

A bound that becomes looser makes no test fail that asks correct results to be within it. So the bounds themselves are
recorded, in units in the last place of the value, for cases that were chosen so that every term of every bound is seen
in one of them (``benchmarks.loosened_bounds`` says which); with how far correct chains of operations, the adapters on
the simulator, come to them. ``tests/reference/test_recorded_bounds.py`` compares.

``python -m benchmarks.recorded_bounds`` measures the kept cases anew, says what has changed, and writes the file. Do
that when a bound has changed on purpose, and look at what it says: larger numbers are bugs that are not found.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

from npudiff.judge.compare import compare
from npudiff.model.case import from_plain, to_plain
from npudiff.model.component import Component, ExpectedOutput, Subject
from npudiff.run.discovery import built_in_implementations, component_names, load_component, load_target

FILE = Path(__file__).with_suffix(".json")

TOLERANCE = 0.02
"""Largest relative change of a recorded number. Some terms are computed in float32, which differs from machine to
machine by much less; a term that is four times as large, and 1 % of a bound, changes it by 3 %."""

COUNT_TOLERANCE = 1
"""Elements that may lie on the other side of a border on another machine."""

DIGITS = 5

UNREACHED = 0.5
"""Part of the recorded error that correct chains reach at least: sums are in another order on another machine."""


@dataclass(frozen=True)
class Summary:
    """What is kept of the bounds of one output."""

    exact: int
    """Elements that must be equal."""
    unspecified: int
    """Elements that may hold anything."""
    least: float
    """Smallest bound of the others, in units in the last place."""
    mean: float
    """Their geometric mean: each counts alike, so that a term that matters to small values only is not lost."""
    most: float

    @classmethod
    def of(cls, bound: torch.Tensor) -> Summary:
        """Summarise a tensor of bounds."""
        between = bound[(bound > 0) & bound.isfinite()]
        exact, unspecified = int((bound == 0).sum()), int(bound.isposinf().sum())
        if not between.numel():
            return cls(exact, unspecified, 0.0, 0.0, 0.0)
        least, most = (_short(float(end)) for end in torch.aminmax(between))
        return cls(exact, unspecified, least, _short(math.exp(float(between.log().mean()))), most)

    def change(self, other: Summary) -> float:
        """Return the largest change of a number, where 1 is as much as is tolerated."""
        counts = [(self.exact, other.exact), (self.unspecified, other.unspecified)]
        numbers = [(self.least, other.least), (self.mean, other.mean), (self.most, other.most)]
        changes = [abs(one - two) / (COUNT_TOLERANCE + TOLERANCE * one) for one, two in counts]
        changes += [abs(two / one - 1) / TOLERANCE if one else math.inf * two for one, two in numbers if one or two]
        return max(changes, default=0.0)


def _short(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")


def last_place(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the unit in the last place of float64 values that are stored in a dtype; 1 for integers."""
    if not dtype.is_floating_point:
        return torch.ones_like(value, dtype=torch.float64)
    limits = torch.finfo(dtype)
    exponent = torch.frexp(value.abs().clamp(limits.smallest_normal, limits.max)).exponent - 1
    return torch.ldexp(torch.full_like(value, limits.eps), exponent)


def bounds_of(expected: Mapping[str, ExpectedOutput]) -> dict[str, Summary]:
    """Summarise the bounds of every output, and those of the gain of its rows, with their names."""
    summaries = {}
    for name, output in expected.items():
        unit = last_place(output.value.to(torch.float64).nan_to_num(), output.dtype)
        summaries[name] = Summary.of(output.bound / unit)
        if output.gain is not None:
            summaries[f"{name} gain"] = Summary.of(output.gain)
    return summaries


REGIMES = ("as drawn", "in float32", "tiny")
"""as drawn: inputs as they are. in float32: float32 in place of 16-bit dtypes, so that roundings to float32 are what a
bound consists of. tiny: small numbers, so that underflow is. No implementation gets the last two."""

_TINY = {torch.float16: 2.0**-18, torch.bfloat16: 2.0**-126, torch.float32: 2.0**-126}


def in_regime(inputs: Any, regime: str) -> Any:
    """Return inputs with the numbers of a regime in their tensors, and in those of dataclasses in them."""
    if isinstance(inputs, torch.Tensor | torch.dtype):
        return _CHANGED[regime](inputs)
    if is_dataclass(inputs) and not isinstance(inputs, type):
        named = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
        return replace(inputs, **{name: in_regime(value, regime) for name, value in named.items()})
    return tuple(in_regime(value, regime) for value in inputs) if isinstance(inputs, tuple) else inputs


def _in_float32(part: Any) -> Any:
    if isinstance(part, torch.dtype):
        return torch.float32 if part in (torch.float16, torch.bfloat16) else part
    return part.to(_in_float32(part.dtype))


def _tiny(part: Any) -> Any:
    factor = None if isinstance(part, torch.dtype) else _TINY.get(part.dtype)
    return part if factor is None else part * factor


_CHANGED = dict(zip(REGIMES, (lambda part: part, _in_float32, _tiny), strict=True))


def subjects_of(component: Component) -> Iterator[Subject]:
    """The correct implementations of a component, on the simulator."""
    target = load_target("sim", None)
    for item in built_in_implementations():
        if item.component == component.name and item.wrong is None:
            yield Subject(component, item, target)


def _judges(subject: Subject, case: Any) -> bool:
    """Whether an implementation has to be right about a case: it supports it, and asks for what only some ask for."""
    usual = usual_values(type(case))
    asked = [name for name, value in usual.items() if getattr(case, name) != value]
    boxes = subject.implementation.constraints.boxes
    return subject.reason_against(case) is None and all(name in box for name in asked for box in boxes)


def usual_values(kind: type[Any]) -> dict[str, Any]:
    """Return the fields of cases that have one value for everybody who does not name another, and that value."""
    quantities = {field.name: field.metadata.get("quantity") for field in fields(kind)}
    drawn = {name: said.drawn for name, said in quantities.items() if said is not None}
    return {name: values[0] for name, values in drawn.items() if isinstance(values, Sequence) and len(values) == 1}


def reached(component: Component, case: Any, expected: Mapping[str, ExpectedOutput]) -> dict[str, float]:
    """Return the largest error over bound of every output, of what correct implementations return.

    Of a component with history nothing is said: what its implementations return depends on the steps before.
    """
    largest: dict[str, float] = {}
    if component.history is not None:
        return largest
    for subject in subjects_of(component):
        if not _judges(subject, case):
            continue
        with subject.target.activate():
            actual = subject.run(component.inputs(case))
        for output in compare(expected, actual).outputs:
            parts = {output.name: output.ratio, f"{output.name} gain": output.gain_ratio}
            for name, ratio in parts.items():
                if ratio is not None and ratio.numel():
                    largest[name] = max(largest.get(name, 0.0), float(ratio.max()))
    return {name: round(ratio, 3) for name, ratio in largest.items()}


@dataclass(frozen=True)
class Recorded:
    """A case that is kept, and what was measured."""

    case: Any
    regime: str
    """One of ``REGIMES``."""
    bounds: dict[str, Summary]
    reached: dict[str, float]
    """What correct implementations reach of each; none where none supports the case."""

    def inputs(self, component: Component) -> Any:
        """Build what the reference is asked about."""
        return in_regime(component.inputs(self.case), self.regime)


def measured(component: Component, case: Any, regime: str = REGIMES[0]) -> Recorded:
    """Measure a case."""
    expected = component.reference(in_regime(component.inputs(case), regime))
    near = reached(component, case, expected) if regime == REGIMES[0] else {}
    return Recorded(case, regime, bounds_of(expected), near)


def read(path: Path = FILE) -> dict[str, list[Recorded]]:
    """Return what is recorded, by component."""
    kept: dict[str, list[Recorded]] = {}
    for name, entries in json.loads(path.read_text(encoding="utf-8")).items():
        kind = load_component(name).case_type
        kept[name] = [
            Recorded(
                from_plain(kind, entry["case"]),
                entry["regime"],
                {output: Summary(*numbers) for output, numbers in entry["bounds"].items()},
                entry["reached"],
            )
            for entry in entries
        ]
    return kept


def write(recorded: Mapping[str, Sequence[Recorded]], path: Path = FILE) -> None:
    """Keep what was measured: a line for a case, so that changes can be read."""
    parts = []
    for name in sorted(recorded):
        lines = [
            json.dumps(
                {
                    "case": to_plain(one.case),
                    "regime": one.regime,
                    "bounds": {output: list(asdict(summary).values()) for output, summary in one.bounds.items()},
                    "reached": one.reached,
                }
            )
            for one in recorded[name]
        ]
        parts.append(f"{json.dumps(name)}: [\n" + ",\n".join(lines) + "\n]")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def main() -> int:
    """Measure anew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recorded_bounds", description=__doc__)
    parser.add_argument("components", nargs="*", choices=[[], *component_names()], help="all by default")
    names = parser.parse_args().components
    recorded = read()
    for name in names or recorded:
        component = load_component(name)
        for place, one in enumerate(recorded[name]):
            now = measured(component, one.case, one.regime)
            recorded[name][place] = now
            for output in sorted({*one.bounds, *now.bounds}):
                before, after = one.bounds.get(output), now.bounds.get(output)
                if before is None or after is None or before.change(after) > 1:
                    print(f"{name} {output}: {before} is {after} now: {component.describe(one.case)}")
    write(recorded)
    return 0


if __name__ == "__main__":
    sys.exit(main())
