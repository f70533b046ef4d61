"""How small an error may be and is still found: of each component and output, by npudiff and by usual criteria.

The exact result times ``1 + g``, rounded once to nearest, is compared with the reference: elements and rows of every
case, and what the cases of a run have in common. ``g`` is a power of two. Cases are those that npudiff draws, in
bfloat16 where there is a choice. ``python -m benchmarks.sharpness`` measures all, and writes
``benchmarks/sharpness.json`` and the table of ``docs/measured.md``.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from npudiff.judge.compare import compare
from npudiff.judge.criteria import MIXED, SINGLE, published_verdicts
from npudiff.judge.drift import DriftMeter, found
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.component import Comparison, Component, ExpectedOutput, OutputComparison, Passed, Subject
from npudiff.model.constraints import Constraints
from npudiff.model.implementation import Implementation
from npudiff.model.job import Budget, Job, Outcome
from npudiff.reference.bounds import Expected
from npudiff.run.discovery import load_components, load_target
from npudiff.run.engine import run_job

RECORD = Path(__file__).with_name("sharpness.json")
DOCUMENT = Path(__file__).parent.parent / "docs" / "measured.md"
BEGIN, END = "<!-- sharpness: begin -->", "<!-- sharpness: end -->"

EXPONENTS = range(-4, -13, -1)
"""Errors that are tried, as powers of two."""

CASES, SEEDS = 100, (1, 2, 3)
"""Cases of a run, as by default, and runs."""

RUN, CASE, ALLCLOSE = "npudiff, run", "npudiff, case", "allclose(1e-2)"
METHODS = (RUN, CASE, ALLCLOSE, MIXED, SINGLE)

NONE, TRUNCATED, SOFTMAX_SCALE = "none", "truncated", "softmax scale x 1.001"
"""Other errors: none but one rounding to nearest; rounding toward zero; and a scale that is off by 0.1 %, in outputs of
which the reference says what it does to them."""

BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}

Error = int | str


@dataclass
class Seen:
    """In how many cases each method finds an error of an output, and in how many runs npudiff does."""

    cases: int = 0
    by: dict[str, int] = field(default_factory=lambda: dict.fromkeys(METHODS, 0))
    meter: DriftMeter = field(default_factory=DriftMeter)


class SharpnessJudge:
    """A judge that compares errors of known size, in place of an implementation.

    Parameters
    ----------
    component : Component
        What is compared.
    """

    def __init__(self, component: Component) -> None:
        self._component = component
        self.case: Any = None
        self.seen: dict[tuple[str, Error], Seen] = defaultdict(Seen)

    def begin(self) -> None:
        """Nothing: there are no traces."""

    def close(self, outcome: Outcome) -> None:
        """Nothing to end."""

    def check(self, case: Any, *, thorough: bool = True) -> Passed:
        """Compare all errors of a case."""
        del thorough
        self.case = case
        for name, whole in self._component.reference(self._component.inputs(case)).items():
            expected = computed(whole)
            for error, actual in errors_of(expected):
                (output,) = compare({name: expected}, {name: actual}).outputs
                self._count(self.seen[name, error], output)
        return Passed(0.0, exact=False)

    def _count(self, seen: Seen, output: OutputComparison) -> None:
        seen.cases += 1
        seen.by[CASE] += output.worst > 1
        seen.by[ALLCLOSE] += not is_close(output)
        for verdict in published_verdicts(output):
            if verdict.criterion in seen.by:
                seen.by[verdict.criterion] += not verdict.passes
        if output.worst <= 1:
            seen.meter.add(self.case, Comparison((output,)))

    def runs_found(self) -> Iterator[tuple[tuple[str, Error], bool]]:
        """Yield whether a run that has these cases finds each error: in one of them, or in all together."""
        for key, seen in self.seen.items():
            yield key, seen.by[CASE] > 0 or found(seen.meter.measured())


def computed(expected: ExpectedOutput) -> ExpectedOutput:
    """Return what is computed of an output, without what is moved: caches are large, and nearly all of them is that.

    Where something is said of its rows it stays as it is.
    """
    if expected.gain is not None:
        return expected
    counts = (expected.bound > 0) & expected.bound.isfinite()
    directions = {name: direction[counts] for name, direction in expected.directions.items()}
    return Expected(expected.value[counts], expected.bound[counts], expected.dtype, None, directions)


def errors_of(expected: ExpectedOutput) -> Iterator[tuple[Error, torch.Tensor]]:
    """Yield errors of known size and the outputs that have them; none for what is exact or not of floats."""
    counts = (expected.bound > 0) & expected.bound.isfinite()
    if expected.dtype not in BITS or not bool(counts.any()):
        return
    value = expected.value.to(torch.float64)
    for exponent in EXPONENTS:
        yield exponent, torch.where(counts, value * (1 + 2.0**exponent), value).to(expected.dtype)
    yield NONE, value.to(expected.dtype)
    yield TRUNCATED, torch.where(counts, toward_zero(value, expected.dtype), value.to(expected.dtype))
    for direction in expected.directions.values():
        yield SOFTMAX_SCALE, (value + 0.001 * direction).to(expected.dtype)


def toward_zero(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return float64 numbers rounded toward zero."""
    near = value.to(dtype)
    beyond = near.to(torch.float64).abs() > value.abs()
    return torch.where(beyond, (near.view(BITS[dtype]) - 1).view(dtype), near)


def is_close(output: OutputComparison) -> bool:
    """Whether ``torch.allclose`` with 1e-2 passes what is specified of an output."""
    assert output.actual is not None and output.value is not None and output.bound is not None  # noqa: PT018, S101
    specified = ~torch.isposinf(output.bound)
    actual, value = output.actual.to(torch.float64)[specified], output.value.to(torch.float64)[specified]
    return torch.allclose(actual, value, rtol=1e-2, atol=1e-2, equal_nan=True)


def subjects() -> list[Component]:
    """Return the components that are measured: those of single calls."""
    return [component for component in load_components(()) if component.history is None]


def measured(component: Component, seeds: Sequence[int] = SEEDS, cases: int = CASES) -> dict[str, dict[str, Any]]:
    """Return by output and method the smallest error that is found in half of the cases or runs, and shares of others.

    The smallest error is the exponent of a power of two.
    """
    where = Constraints.of({"dtype": ("bfloat16",)}) if "dtype" in component.axes else Constraints()
    where = where.legal(component.axes) or Constraints()
    item: Implementation[Any] = Implementation(component.name, "of a known error", _not_called, where)
    job = Job(Subject(component, item, load_target("sim", None)), EQUIVALENCE, where)
    total: dict[tuple[str, Error], Seen] = defaultdict(Seen)
    for seed in seeds:
        judge = SharpnessJudge(component)
        run_job(job, Budget(examples=cases, seed=seed, shrink=False), judge=judge)
        for key, whether in judge.runs_found():
            total[key].cases += judge.seen[key].cases
            for method, number in judge.seen[key].by.items():
                total[key].by[method] += number
            total[key].by[RUN] += whether
    return {name: _described(name, total, len(seeds)) for name in dict.fromkeys(name for name, _ in total)}


def _not_called(*_: object) -> torch.Tensor:
    raise AssertionError("the judge has outputs of its own")


def _described(name: str, total: Mapping[tuple[str, Error], Seen], runs: int) -> dict[str, Any]:
    shares = {error: _shares(seen, runs) for (output, error), seen in total.items() if output == name}
    line: dict[str, Any] = {method: _smallest(shares, method) for method in METHODS}
    for error in (NONE, TRUNCATED, SOFTMAX_SCALE):
        if error in shares:
            line[error] = {method: round(shares[error][method], 2) for method in METHODS}
    return line


def _shares(seen: Seen, runs: int) -> dict[str, float]:
    return {method: number / (runs if method == RUN else seen.cases) for method, number in seen.by.items()}


def _smallest(shares: Mapping[Error, Mapping[str, float]], method: str) -> int | None:
    """The smallest error that is found in half, as all larger ones are; None if the largest is not."""
    smallest = None
    for exponent in EXPONENTS:
        if shares[exponent][method] < 0.5:
            break
        smallest = exponent
    return smallest


def table(record: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Return the record as a table of Markdown."""
    lines = [f"| output | {' | '.join(METHODS)} | truncation: run, case |", f"|{' --- |' * (len(METHODS) + 2)}"]
    for component, outputs in sorted(record.items()):
        for output, line in outputs.items():
            cells = [_cell(line[method], line[NONE][method]) for method in METHODS]
            cut = line[TRUNCATED]
            lines.append(f"| {component} {output} | {' | '.join(cells)} | {cut[RUN]:.0%}, {cut[CASE]:.0%} |")
    return lines


def _cell(exponent: int | None, accused: float) -> str:
    """The smallest error that is found, or that the method accuses half of the exact results."""
    if accused >= 0.5:
        return "(accuses all)"
    return "-" if exponent is None else f"2^{exponent}"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("components", nargs="*", help="which to measure again; all by default")
    chosen = parser.parse_args().components
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    for component in subjects():
        if not chosen or component.name in chosen:
            record.pop(component.name, None)
            if lines := measured(component):
                record[component.name] = lines
            print(component.name, json.dumps(lines), flush=True)
            RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    DOCUMENT.write_text(f"{before}{BEGIN}\n{chr(10).join(table(record))}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
