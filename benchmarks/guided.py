"""Is a search that is guided by what cases bring worth it? Cases until a rare region is hit, beside plain draws.

    python -m benchmarks.guided                    wrong kernels with narrow regions
    python -m benchmarks.guided --mutants NAME...  mutants, which are judged for real

A kernel of the first kind is wrong where some fields of a case have the values of one case that was drawn: so many
fields that of 20,000 plain draws one to four hit it. Guided search mutates cases that brought something new (a
region, two regions together, a larger error/bound), field by field, with values that are legal. Every second case is a
plain draw. The third search sees branches of the kernel, which is Python and asks for one field after the other.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from npudiff.judge.judge import EQUIVALENCE, LocalJudge
from npudiff.model.case import declaration
from npudiff.model.component import ImplementationRaised, NotApplicable
from npudiff.model.job import Budget, Job
from npudiff.run.drawing import draw_cases
from npudiff.run.guidance import Guide
from npudiff.run.plan import Request, make_plan

COMPONENTS = {"swiglu": "npu_swiglu", "moe_gating": "npu_moe_gating_top_k", "dynamic_quant": "npu_dynamic_quant"}
"""Implementations whose cases are drawn."""

POOL, HITS = 20_000, range(1, 5)
"""Plain draws of a component, from which each search takes its own in an order of its own, and of which so many hit a
narrow region."""

MOST = 60_000
"""Cases after which a search gives up, and counts as so many."""

Seen = tuple[bool, float]
"""Whether a case fails, and its error over bound if it holds."""


class Draws:
    """Plain draws of a job, in batches from seeds of their own."""

    def __init__(self, job: Job, seed: int, batch: int = 500) -> None:
        self._job, self._seeds, self._batch = job, itertools.count(seed * 1_000_003), batch

    def __iter__(self) -> Iterator[Any]:
        while True:
            cases: list[Any] = []
            budget = Budget(examples=self._batch, seed=next(self._seeds), shrink=False)
            draw_cases(self._job, budget, cases.append)
            yield from cases


@dataclass
class Guided:
    """A corpus of cases that brought something new, and what their fields may be instead."""

    job: Job
    random: np.random.Generator
    corpus: list[Any] = field(default_factory=list)
    values: dict[str, list[Any]] = field(default_factory=dict)
    """Field to the values that cases had."""
    seen: set[object] = field(default_factory=set)
    worst: float = 0.0

    def take(self, case: Any, ratio: float) -> None:
        """Take a case that was judged; it is kept if it brought anything."""
        for one in dataclasses.fields(case):
            known = self.values.setdefault(one.name, [])
            value = getattr(case, one.name)
            if len(known) < 4096 and value not in known:
                known.append(value)
        regions = sorted(self.job.subject.component.features(case))
        new = {*regions, *itertools.combinations(regions, 2)} - self.seen
        if new or ratio > self.worst:
            self.seen |= new
            self.worst = max(self.worst, ratio)
            self.corpus.append(case)

    def mutated(self) -> Any | None:
        """Return a legal case that differs from one of the corpus in one field, or two; None if none was found."""
        component = self.job.subject.component
        said = declaration(component.case_type).quantities
        for _ in range(20):
            case = self.corpus[int(self.random.integers(len(self.corpus)))]
            names = [one.name for one in dataclasses.fields(case) if len(self.values[one.name]) > 1 or one.name in said]
            chosen = self.random.choice(names, size=1 + int(self.random.integers(2)), replace=False)
            try:
                other = dataclasses.replace(case, **{name: self._value(case, name, said) for name in chosen})
                component.check_case(other)
            except ValueError:
                continue
            if other != case and self.job.subject.reason_against(other, self.job.drawn_within) is None:
                return other
        return None

    def _value(self, case: Any, name: str, said: Any) -> Any:
        """Return another value of a field: one that another case had, one that is drawn, or a number beside its own."""
        own, known = getattr(case, name), self.values[name]
        drawn = said[name].drawn if name in said else ()
        options = drawn if isinstance(drawn, Sequence) and not isinstance(drawn, str) else ()
        way = int(self.random.integers(3))
        if way == 0 and options:
            return options[int(self.random.integers(len(options)))]
        if way == 1 and type(own) is int:
            return max(0, own + int(self.random.choice((-1, 1)))) if self.random.integers(2) else own * 2
        return known[int(self.random.integers(len(known)))]


def plain(job: Job, draws: Iterable[Any], seed: int, judge: Callable[[Any], Seen], most: int) -> int:
    """Return after how many plain draws a case fails."""
    del job, seed
    for number, case in enumerate(itertools.islice(draws, most), 1):
        if judge(case)[0]:
            return number
    return most


def guided(job: Job, draws: Iterable[Any], seed: int, judge: Callable[[Any], Seen], most: int) -> int:
    """Return after how many cases of a guided search one fails."""
    search, drawn = Guided(job, np.random.Generator(np.random.Philox(seed))), iter(draws)
    for number in range(1, most + 1):
        case = search.mutated() if number % 2 == 0 and search.corpus else None
        case = next(drawn) if case is None else case
        fails, ratio = judge(case)
        if fails:
            return number
        search.take(case, ratio)
    return most


NAMES_OF_A_CHAIN = 8
"""Conditions of a kernel at most."""


def _is_wanted(case: Any, wanted: Sequence[tuple[str, Any]]) -> bool:
    """Whether a case meets all conditions, as a kernel asks: one after the other, up to the first that it does not."""
    names, values = zip(*wanted, *[("", None)] * (NAMES_OF_A_CHAIN - len(wanted)), strict=True)
    read = _read
    return (
        read(case, names[0]) == values[0]
        and read(case, names[1]) == values[1]
        and read(case, names[2]) == values[2]
        and read(case, names[3]) == values[3]
        and read(case, names[4]) == values[4]
        and read(case, names[5]) == values[5]
        and read(case, names[6]) == values[6]
        and read(case, names[7]) == values[7]
    )


def _read(case: Any, name: str) -> Any:
    return getattr(case, name) if name else None


def branches_seen(job: Job, draws: Iterable[Any], seed: int, region: Narrow, most: int) -> int:
    """Return after how many cases a search fails that sees the branches of the kernel, as campaigns do."""
    watched = replace(job.subject.implementation, function=_kernel(region))
    guide = Guide(replace(job, subject=replace(job.subject, implementation=watched)), seed)
    function = guide.job.subject.implementation.function
    target: Any = None
    for number, case in enumerate(guide.cases(list(itertools.islice(draws, most // 2))), 1):
        if function(case, target) or number == most:
            return number
    return most


def _kernel(region: Narrow) -> Callable[[Any, Any], Any]:
    def kernel(case: Any, target: Any) -> Any:
        del target
        return _is_wanted(case, region.wanted)

    return kernel


@dataclass(frozen=True)
class Narrow:
    """A region: some fields have the values of one case. A kernel that is wrong there asks for one after the other."""

    wanted: tuple[tuple[str, Any], ...]
    share: float
    """Of plain draws."""

    def __call__(self, case: Any) -> Seen:
        """Say whether a case is in it, and nothing else: a kernel that cannot be seen."""
        return all(getattr(case, name) == value for name, value in self.wanted), 0.0


def pool_of(job: Job) -> list[Any]:
    """Return plain draws."""
    return list(itertools.islice(Draws(job, 7), POOL))


@dataclass(frozen=True)
class Again:
    """Plain draws out of a pool, each as likely as any other."""

    pool: Sequence[Any]
    seed: int

    def __iter__(self) -> Iterator[Any]:
        random = np.random.Generator(np.random.Philox(self.seed + 50_000))
        while True:
            yield from (self.pool[place] for place in random.integers(len(self.pool), size=4096).tolist())


def narrow_regions(pool: Sequence[Any], count: int) -> list[Narrow]:
    """Return regions around cases that were drawn: fields are added in any order until few other cases have them."""
    random = np.random.Generator(np.random.Philox(1))
    names = [one.name for one in dataclasses.fields(pool[0]) if one.name != "seed"]
    found: list[Narrow] = []
    for case in pool:
        alike, wanted = list(pool), list[tuple[str, Any]]()
        for name in random.permutation(names).tolist():
            value = getattr(case, name)
            rest = [other for other in alike if getattr(other, name) == value]
            if len(rest) < 0.5 * len(alike):
                alike, wanted = rest, [*wanted, (name, value)]
            if len(alike) in HITS:
                break
        if len(alike) in HITS and len(wanted) > 1:
            found.append(Narrow(tuple(wanted), len(alike) / len(pool)))
        if len(found) == count:
            break
    return found


def _job(component: str, name: str) -> Job:
    plan = make_plan(Request(components=(component,), implementations=(name,), target="sim"))
    return next(job for job in plan.jobs if job.prop is EQUIVALENCE)


def kernels(regions: int, seeds: int) -> None:
    """Print the cases that each search needs for kernels that are wrong in narrow regions."""
    totals: dict[str, list[float]] = {"guided": [], "branches seen": []}
    print("component | region, share of draws | plain | guided | branches seen")
    for component, name in COMPONENTS.items():
        job = _job(component, name)
        pool = pool_of(job)
        for region in narrow_regions(pool, regions):
            searches = (plain, guided, branches_seen)
            rows = [
                [search(job, Again(pool, seed), seed, region, MOST) for seed in range(seeds)] for search in searches
            ]
            medians = [statistics.median(row) for row in rows]
            for one, median in zip(totals, medians[1:], strict=True):
                totals[one].append(median / medians[0])
            where = ", ".join(f"{field}={value}" for field, value in region.wanted)
            print(
                f"{component} | {where[:80]}, {region.share:.1e} | " + " | ".join(f"{one:.0f}" for one in medians),
                flush=True,
            )
    for one, ratios in totals.items():
        print(f"{one} over plain, median of {len(ratios)} regions: {statistics.median(ratios):.2f}")


def _judged(job: Job) -> Callable[[Any], Seen]:
    judge = LocalJudge(job)

    def seen(case: Any) -> Seen:
        try:
            comparison = judge.check(case)
        except NotApplicable:
            return False, 0.0
        except ImplementationRaised:
            return True, 0.0
        return not comparison.holds, comparison.worst

    return seen


def mutants(names: Sequence[str], seeds: int, most: int) -> None:
    """Print the cases that each search needs for mutants."""
    plan = make_plan(Request(target="sim"))
    found = {".".join(job.subject.names): job for job in plan.mutants}
    ratios = []
    print("mutant | plain | guided | seconds")
    for name in names:
        job = found[name]
        began = time.monotonic()
        with job.subject.target.activate():
            rows = [
                [search(job, Draws(job, seed), seed, _judged(job), most) for seed in range(seeds)]
                for search in (plain, guided)
            ]
        medians = [statistics.median(row) for row in rows]
        ratios.append(medians[1] / medians[0])
        print(
            f"{name} | {medians[0]:.0f} {rows[0]} | {medians[1]:.0f} {rows[1]} | {time.monotonic() - began:.0f}",
            flush=True,
        )
    if ratios:
        print(f"guided over plain, median of {len(ratios)} mutants: {statistics.median(ratios):.2f}")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guided", description=__doc__)
    parser.add_argument("--mutants", nargs="*", metavar="NAME", help="component.name; without it, narrow regions")
    parser.add_argument("--regions", type=int, default=4, help="narrow regions of each component")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--most", type=int, default=2_000, help="cases of a mutant after which a search gives up")
    options = parser.parse_args()
    if options.mutants is None:
        kernels(options.regions, options.seeds)
    else:
        mutants(options.mutants, options.seeds, options.most)


if __name__ == "__main__":
    main()
