"""A gate as GitHub shows it: annotations at lines of the change, and a summary of the job."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator, Sequence

from npudiff.gate.result import GateResult, State
from npudiff.model.job import Outcome
from npudiff.show.problems import Level, Problem
from npudiff.text import clipped, counted, printable

MOST_ANNOTATIONS = 10
"""Annotations of each level: GitHub keeps no more of a step."""

MOST_SUMMARY = 2**20 - 2**12
"""Bytes of a summary: GitHub refuses a step's beyond 1 MiB."""

MOST_SHOWN = 50
"""Findings that are shown in full."""

_COMMANDS = {Level.ERROR: "error", Level.WARNING: "warning", Level.NOTE: "notice"}


def workflow_commands(problems: Sequence[Problem]) -> Iterator[str]:
    """Yield workflow commands, a line each; the last one of a level says how many there are besides."""
    for level, command in _COMMANDS.items():
        mine = [problem for problem in problems if problem.level is level]
        shown = mine if len(mine) <= MOST_ANNOTATIONS else mine[: MOST_ANNOTATIONS - 1]
        for problem in shown:
            yield _annotation(command, problem)
        if len(mine) > len(shown):
            yield f"::{command} title=npudiff::and {counted(len(mine) - len(shown), 'other')}; see the job's summary"


def _annotation(command: str, problem: Problem) -> str:
    properties = {"title": "npudiff"}
    if problem.place is not None:
        properties = {"file": problem.place.path, "line": str(problem.place.line), **properties}
    told = ",".join(f"{name}={_escaped(value, of_property=True)}" for name, value in properties.items())
    text = problem.title + (f"\n{problem.text}" if problem.text else "")
    return f"::{command} {told}::{_escaped(text)}"


def _escaped(text: str, *, of_property: bool = False) -> str:
    """As GitHub's runner reads workflow commands: per cent and line breaks, in properties also colon and comma."""
    replaced = {"%": "%25", "\r": "%0D", "\n": "%0A", **({":": "%3A", ",": "%2C"} if of_property else {})}
    return "".join(replaced.get(letter, letter) for letter in text)


def summary(result: GateResult, problems: Sequence[Problem]) -> str:
    """Return the summary of a job, as Markdown."""
    lines: list[str] = []
    size = 0
    for line in _summary(result, problems):
        size += len(line.encode()) + 1
        if size > MOST_SUMMARY:
            lines.append("\nThe rest is left out, since it is too long for a summary.")
            break
        lines.append(line)
    return "\n".join(lines) + "\n"


def _summary(result: GateResult, problems: Sequence[Problem]) -> Iterator[str]:
    target = result.plan.target
    yield f"## npudiff gate: {_plain(result.verdict)}"
    yield ""
    yield (
        f"{counted(result.cases, 'case')} in {result.seconds:.0f} s of {result.budget:.0f} s on target "
        f"**{target.name}**, CANN {_plain(target.cann)}; {counted(result.turns, 'turn')} of rotation "
        f"`{_code(result.rotation)}`."
    )
    if target.name != "npu":
        yield ""
        yield "Nothing here ran on an NPU."
    for note in result.notes:
        yield ""
        yield _plain(note)
    yield ""
    yield from _table(result)
    told = [problem for problem in problems if problem.level is not Level.NOTE]
    for problem in told[:MOST_SHOWN]:
        yield from _shown(problem)
    if len(told) > MOST_SHOWN:
        yield f"\nAnd {counted(len(told) - MOST_SHOWN, 'other')}."
    notes = [problem for problem in problems if problem.level is Level.NOTE]
    if notes:
        yield "\n### Known issues\n"
    for problem in notes:
        link = dict(problem.lines).get("link", "")
        yield f"- {_plain(problem.title)}" + (f" ([issue]({_target(link)}))" if link else "")


def _table(result: GateResult) -> Iterator[str]:
    yield "| component | implementation | cases | worst error/bound | result |"
    yield "| --- | --- | ---: | ---: | --- |"
    findings = Counter((told.finding.component, told.finding.implementation) for told in result.findings)
    known = Counter((one.issue.component, one.issue.implementation) for one in result.known if one.state is State.SEEN)
    for (component, name), outcomes in result.by_implementation().items():
        found, issues = findings[component, name], known[component, name]
        word = f"**{counted(found, 'finding')}**" if found else _word(outcomes)
        word += f", {counted(issues, 'known issue')}" if issues else ""
        cases = sum(outcome.cases for outcome in outcomes)
        yield f"| {_plain(component)} | {_plain(name)} | {cases} | {_worst(outcomes)} | {word} |"


def _word(outcomes: Sequence[Outcome]) -> str:
    if not outcomes:
        return "not run"
    return "ok" if any(outcome.cases for outcome in outcomes) else "not applicable"


def _worst(outcomes: Sequence[Outcome]) -> str:
    held = [outcome for outcome in outcomes if outcome.cases]
    if not held:
        return "-"
    if all(outcome.exact for outcome in held):
        return "exact"
    return f"{max(outcome.worst_ratio for outcome in held):.2f}"


def _shown(problem: Problem) -> Iterator[str]:
    sign = "❌" if problem.level is Level.ERROR else "⚠️"
    yield f"\n<details><summary>{sign} {html.escape(clipped(problem.title))}</summary>\n"
    yield "```"
    yield from (clipped(line).replace("```", "'''") for line in problem.text.splitlines())
    yield "```\n"
    yield "</details>"


_MARKED = str.maketrans({letter: f"\\{letter}" for letter in "\\`*_{}[]<>|#~"})


def _plain(text: str) -> str:
    """Text that Markdown and HTML leave as it is."""
    return clipped(printable(text)).translate(_MARKED).replace("&", "&amp;")


def _code(text: str) -> str:
    return printable(text).replace("`", "'")


def _target(link: str) -> str:
    """The address of a link, without what would end it."""
    return link.replace("(", "%28").replace(")", "%29").replace("<", "%3C").replace(">", "%3E")
