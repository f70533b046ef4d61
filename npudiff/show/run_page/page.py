"""The page of one or more runs: what a reader needs first stands first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from npudiff.show.html_page import page_of
from npudiff.show.run_page import other_parts
from npudiff.show.run_page.findings_part import findings_part
from npudiff.show.run_page.margins import margins
from npudiff.show.run_page.matrix import matrix
from npudiff.show.run_page.read import Kept
from npudiff.show.run_page.state import State, findings_of
from npudiff.show.run_page.style import STYLE
from npudiff.show.run_page.words import counted, duration, few_and_rest, number, phone, words

RUNS_SHOWN = 5

_PARTS = {
    "findings": "Findings",
    "matrix": "What was checked where",
    "known": "Known issues",
    "margins": "Margins",
    "mutants": "Wrong on purpose",
    "regions": "Where the cases were",
}


def run_page(kept: Sequence[Kept], problems: Sequence[str], strays: Sequence[str], page: Path) -> str:
    """Return the page.

    Parameters
    ----------
    kept : sequence of Kept
        Records, the earliest first.
    problems : sequence of str
        A line for each record that was not read.
    strays : sequence of str
        Folders of findings that no record names.
    page : pathlib.Path
        The file that it becomes: links are relative to it.
    """
    state = State(kept)
    body = (
        *_overview(state),
        findings_part(state, page),
        matrix(state),
        other_parts.known(state),
        margins(state),
        other_parts.mutants(state),
        other_parts.regions(state),
        other_parts.earlier(state, strays, page),
        *other_parts.problems(problems),
    )
    return page_of("npudiff report", "".join(body), STYLE)


def _overview(state: State) -> Iterator[str]:
    verdict, kind = verdict_of(state)
    yield '<a class=skip href="#findings">Skip to the findings</a>'
    yield f'<p class="verdict {kind}">{verdict}</p>'
    if "npu" not in {place.target for place in state.places}:
        yield "<p class=few>Nothing here ran on an NPU: operators were simulated on the host.</p>"
    for kept in state.kept:
        if kept.record.ended != "complete":
            why = f": {words(kept.record.problem)}" if kept.record.problem else ""
            yield f"<p class=few>The run of {words(kept.record.started)} did not come to its end "
            yield f"({words(kept.record.ended)}{why}). What it did not get to is marked as not run.</p>"
    yield "<dl class=numbers>"
    for name, value in _numbers(state):
        yield f"<div><dt>{name}</dt><dd>{value}</dd></div>"
    yield "</dl><nav aria-label=Contents><ul>"
    for name, title in _PARTS.items():
        if name != "known" or state.known:
            yield f"<li><a href=#{name}>{title}</a></li>"
    yield "</ul></nav><h2 id=runs>Runs</h2>"
    shared = _versions(state.kept[-1]) if state.kept else ""
    yield f"<p>{shared}</p>"
    rows = [_run(kept, shared) for kept in reversed(state.kept)]
    columns = ("started (UTC)", "where", "took", "cases", "findings", "drawn")
    yield from few_and_rest(rows, RUNS_SHOWN, {"caption": "Runs", "columns": columns, "kind": "words list"})


def verdict_of(state: State) -> tuple[str, str]:
    """Return in one sentence how things are, and a class for it."""
    lost, due = len(state.missed), sum(one.known.closes for one in state.known)
    missed = f"{counted(lost, 'mutant')} that had to be found {'was' if lost == 1 else 'were'} missed." if lost else ""
    looks = f"{counted(due, 'known issue')} {'has' if due == 1 else 'have'} to be looked at." if due else ""
    missed = f"{missed} {looks}".strip()
    accused = sum(any(findings_of(jobs) for jobs in cells.values()) for cells in state.by_subject.values())
    if accused:
        wrong = f"{counted(findings_of(state.jobs), 'finding')} in {number(accused)} of"
        return f"{wrong} {counted(len(state.by_subject), 'implementation')}. {missed}".rstrip(), "no"
    if not state.cases:
        return "Nothing ran: nothing is known.", "few"
    if missed:
        return f"No findings, but {missed}", "no"
    incomplete = any(now.job.verdict == "not run" and not now.job.without for now in state.jobs)
    held = f"Every property held, in {number(sum(now.job.cases for now in state.jobs))} cases"
    without = {name for now in state.jobs for name in now.job.without}
    held += f", without those of {counted(len(without), 'known issue')}" if without else ""
    return (f"{held}; some were not run.", "few") if incomplete else (f"{held}.", "yes")


def _numbers(state: State) -> Iterator[tuple[str, str]]:
    found = sum(one.mutant.found for one in state.mutants)
    yield "implementations", number(len(state.by_subject))
    yield "properties", number(len(state.jobs))
    yield "cases", number(state.cases)
    yield "findings", number(findings_of(state.jobs))
    if state.known:
        yield "known issues", number(len(state.known))
    if state.mutants:
        yield "mutants found", f"{number(found)} of {number(len(state.mutants))}"
    yield "targets", words("; ".join(place.text for place in state.places) or "none", 160)


def _versions(kept: Kept) -> str:
    return ", ".join(f"{words(one.name, 30)} {words(one.text, 60)}" for one in kept.record.environment[:8])


def _run(kept: Kept, shared: str) -> str:
    """A row of the table of runs; versions are told where they are not those of the latest run."""
    said = kept.record
    versions = _versions(kept)
    other = f"<br><small>{versions}</small>" if versions != shared else ""
    drawn = [f"profile {said.profile}"]
    drawn += [f"{name} {value}" for name in ("seed", "examples", "budget") if (value := getattr(said, name))]
    drawn += said.scope[:10]
    cases = sum(job.cases for job in said.jobs) + sum(mutant.cases for mutant in said.mutants)
    ended = "" if said.ended == "complete" else f"<br><span class=few>{words(said.ended)}</span>"
    ended += (
        f"<br><span class={'yes' if said.gate == 'open' else 'no'}>gate {words(said.gate)}</span>" if said.gate else ""
    )
    started = words(said.started.replace("T", " ").rstrip("Z"))
    return (
        f"<tr><th scope=row>{started}<br><small>npudiff {words(said.command, 30)}</small></th>"
        f"<td>{words(said.target, 40)}, CANN {words(said.cann, 40)}{ended}</td><td>{duration(said.seconds)}</td>"
        f"<td>{number(cases)}{phone('cases')}</td><td>{number(len(said.findings))}{phone('findings')}</td>"
        f"<td>{words(', '.join(drawn))}{other}</td></tr>"
    )
