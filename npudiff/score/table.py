"""The score on a console: a row per method, and what our own method misses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from npudiff.score.account import MethodScore, by_mutant, share_found
from npudiff.score.methods import METHODS
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
