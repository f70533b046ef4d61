"""The parts for those who look further: mutants, regions, reasons, earlier findings, and what was not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from npudiff.show.run_page.card import finding_list
from npudiff.show.run_page.state import LatestResult, MutantNow, State
from npudiff.show.run_page.words import counted, folded, left_out, name_of, number, phone, table, words

MOST_MUTANTS, MOST_REASONS, MOST_SUBJECTS, MOST_KNOWN = 2_000, 8, 1_000, 500


def mutants(state: State) -> str:
    """Return the part about implementations that are wrong on purpose."""
    parts = ["<h2 id=mutants>Wrong on purpose</h2>"]
    if not state.mutants:
        return "".join((*parts, "<p class=none>These runs had no mutants.</p>"))
    found = [one for one in state.mutants if one.mutant.found]
    hidden = [one for one in state.mutants if not one.mutant.found and not one.kept.record.judged]
    parts.append(f"<p>Each re-creates a real bug: {number(len(found))} of {number(len(state.mutants))} were found.</p>")
    if state.missed:
        parts.append("<h3>Missed, and these runs had to find them</h3>" + _mutant_table("Missed mutants", state.missed))
    if hidden:
        said = f"{counted(len(hidden), 'mutant')} not shown: the run was narrowed or shortened"
        parts.append(folded(said, _mutant_table("Mutants that were not shown", hidden)))
    if found:
        parts.append(folded(f"{number(len(found))} found", _mutant_table("Mutants that were found", found)))
    return "".join(parts)


def known(state: State) -> str:
    """Return the part about known issues of gates, if there are any."""
    if not state.known:
        return ""
    rows = []
    for one in state.known[:MOST_KNOWN]:
        issue = one.known
        rows.append(
            f"<tr><th scope=row>{words(issue.name)}</th><td>{words(one.place.text)}</td>"
            f"<td class={'no' if issue.closes else 'few'}>{words(issue.state)}</td>"
            f"<td>{words(issue.link)}</td><td>{words(issue.expires, 40)}</td></tr>"
        )
    columns = ("known issue", "where", "state", "tracked in", "accepted until")
    said = "What the latest gate saw of them. The cases of those that are known there were left out of everything else."
    shown = table("Known issues", columns, rows, "words list") + left_out(len(state.known), MOST_KNOWN, "issues")
    return f"<h2 id=known>Known issues</h2><p>{said}</p>{shown}"


def _mutant_table(caption: str, ones: Sequence[MutantNow]) -> str:
    rows = []
    for one in ones[:MOST_MUTANTS]:
        mutant = one.mutant
        when = f"<span class=yes>found</span> at case {number(mutant.cases)}"
        if not mutant.found:
            kind, said = ("no", "missed") if one.kept.record.judged else ("none", "not shown")
            when = f"<span class={kind}>{said}</span> in {counted(mutant.cases, 'case')}"
        name = name_of(mutant.component, mutant.implementation)
        rows.append(
            f"<tr><th scope=row>{name}</th><td>{words(one.place.text)}</td>"
            f"<td>{when}</td><td>{words(mutant.smallest or '-')}</td><td>{words(mutant.wrong)}</td></tr>"
        )
    columns = ("mutant", "where", "found", "smallest case", "the bug")
    return table(caption, columns, rows, "words list") + left_out(len(ones), MOST_MUTANTS, "mutants")


def regions(state: State) -> str:
    """Return the part about where cases were, and why draws were not run."""
    parts = ["<h2 id=regions>Where the cases were</h2>"]
    subjects = list(state.by_subject.items())
    if not subjects:
        return "".join((*parts, "<p class=none>There were none.</p>"))
    parts.append("<p>Share of the cases in each region, and why draws were not run.</p>")
    for component, members in groupby(subjects[:MOST_SUBJECTS], key=lambda item: item[0][0]):
        rows = [_region_row(subject[1], [now for jobs in cells.values() for now in jobs]) for subject, cells in members]
        columns = ("implementation", "cases", "regions", "not applicable")
        parts.append(folded(words(component), table(f"Regions of {component}", columns, rows, "words list")))
    return "".join((*parts, left_out(len(subjects), MOST_SUBJECTS, "implementations")))


def _region_row(name: str, jobs: Sequence[LatestResult]) -> str:
    features: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for now in jobs:
        features.update({count.name: count.number for count in now.job.features})
        reasons.update({count.name: count.number for count in now.job.reasons})
    cases, draws = sum(now.job.cases for now in jobs), sum(now.job.not_applicable for now in jobs)
    shares = ", ".join(f"{words(one, 80)} {count / max(1, cases):.0%}" for one, count in features.most_common(60))
    told = "; ".join(f"{number(count)} times {words(one)}" for one, count in reasons.most_common(MOST_REASONS))
    why = f"{number(draws)} draws: {told}" if draws else "none"
    said = f"<td>{number(cases)}{phone('cases')}</td><td>{shares}</td><td>{why}{phone('not applicable')}</td>"
    return f"<tr><th scope=row>{name_of(name)}</th>{said}</tr>"


def earlier(state: State, strays: Sequence[str], page: Path) -> str:
    """Return the part about findings that are not the latest word, and folders that no run names."""
    if not state.earlier and not strays:
        return ""
    parts = ["<h2 id=earlier>Findings of earlier runs</h2>"]
    if state.earlier:
        said = f"{counted(len(state.earlier), 'finding')} of earlier runs; a later run of the same did not have them"
        parts.append(folded(said, finding_list(state.earlier, page, named=True)))
    if strays:
        said = f"{counted(len(strays), 'finding folder')} that no run here names, such as those of pytest"
        listed = "".join(f"<li><code>{words(name)}</code></li>" for name in strays[:MOST_MUTANTS])
        parts.append(folded(said, f"<ul>{listed}</ul>" + left_out(len(strays), MOST_MUTANTS, "folders")))
    return "".join(parts)


def problems(lines: Sequence[str]) -> Iterator[str]:
    """Yield the part about records that could not be read."""
    if lines:
        yield "<h2 id=problems>Not read</h2><ul>"
        yield from (f"<li class=few>{words(line, 500)}</li>" for line in lines[:200])
        yield "</ul>" + left_out(len(lines), 200, "lines")
