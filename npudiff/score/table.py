"""The score on a console: a row per method, and what our own method misses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.table import Table

from npudiff.score.methods import METHODS
from npudiff.score.suite import SUITE
from npudiff.score.summary import MethodScore, by_mutant, share_found
from npudiff.score.trials import Trial

_WORST = 12
"""Mutants that are named: those found from the fewest seeds."""


def table_of(scores: Sequence[MethodScore]) -> Table:
    """Return a table with a row per method."""
    table = Table(box=box.SIMPLE_HEAD, title="mutants found", title_justify="left")
    for name in (
        "method",
        "mutants",
        "found",
        "found from 9 of 10 seeds",
        "",
        "false alarms",
        "median cases",
        "median seconds",
    ):
        table.add_column(name, justify="left" if name == "method" else "right")
    for score in scores:
        table.add_row(
            score.method,
            str(score.mutants),
            str(score.found),
            str(score.reliable),
            f"{score.reliable / score.mutants:.0%}",
            f"{score.accused} of {score.right}",
            "-" if score.cases is None else f"{score.cases:.0f}",
            "-" if score.seconds is None else f"{score.seconds:.2f}",
        )
    return table


def lines_of(trials: Sequence[Trial]) -> Iterator[str]:
    """Yield what each method is, and the mutants that our own does not find from every seed."""
    methods = by_mutant(trials)
    for method in METHODS:
        if methods.get(method.name):
            yield f"{method.name:20} {method.summary}"
    ours = methods.get(METHODS[0].name, {})
    unsure = sorted((share_found(found), name) for name, found in ours.items() if share_found(found) < 1)
    if unsure:
        yield ""
        yield f"not found from every seed: {len(unsure)}"
        for share, name in unsure[:_WORST]:
            yield f"  {name:60} {share:.0%} of seeds"
    sizes = [trial for found in ours.values() for trial in found if trial.size is not None]
    relations = sum(trial.prop != "equivalence" for trial in sizes)
    if sizes:
        yield f"{relations} of {len(sizes)} findings are of relations, the others of equivalence"
    yield from _of_suite(methods.get(SUITE, {}))


def _of_suite(mutants: Mapping[str, Sequence[Trial]]) -> Iterator[str]:
    """Yield what somebody's own suite misses, and how many mutants nothing in it could see."""
    missed = [trial for trials in mutants.values() for trial in trials if not trial.found]
    unseen = sorted(trial.prop for trial in missed if trial.prop)
    through = [trial.mutant for trial in missed if not trial.prop]
    if through:
        yield f"not found by the suite, which calls what they were made from: {len(through)}"
        yield from (f"  {name}" for name in through)
    if unseen:
        yield f"not run, because nothing calls what they were made from: {len(unseen)}"
        yield from (f"  {count:3} mutants: {reason}" for reason, count in Counter(unseen).items())
