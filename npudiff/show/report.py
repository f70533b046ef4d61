"""Results in words: outcomes grouped by implementation, and a finding as labelled lines."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npudiff.findings.finding import SCRIPT_FILE, Finding
from npudiff.judge.pattern import NOT_PLACES, coordinate_text
from npudiff.model.codec import dumps
from npudiff.model.outcome import Outcome
from npudiff.text import counted

NOT_APPLICABLE_LIMIT = 0.05
"""Share of draws outside what an implementation supports above which the listing says so."""


@dataclass(frozen=True)
class Group:
    """The outcomes of one implementation."""

    name: str
    outcomes: tuple[Outcome, ...]

    @property
    def cases(self) -> int:
        """Cases that were run to a verdict."""
        return sum(outcome.cases for outcome in self.outcomes)

    @property
    def steps(self) -> int:
        """Steps of these cases, for a component with history."""
        return sum(outcome.steps for outcome in self.outcomes)

    @property
    def not_applicable(self) -> int:
        """Draws that were not run."""
        return sum(outcome.not_applicable.total() for outcome in self.outcomes)

    @property
    def seconds(self) -> float:
        """Time of all properties."""
        return sum(outcome.seconds for outcome in self.outcomes)

    @property
    def findings(self) -> int:
        """Findings of all properties."""
        return sum(outcome.findings for outcome in self.outcomes)

    def share(self, feature: str) -> float:
        """Share of the cases that are in a region."""
        return sum(outcome.features[feature] for outcome in self.outcomes) / max(1, self.cases)

    def result(self) -> tuple[str, str]:
        """Return the verdict in words, and a colour for it."""
        ran = len({outcome.job.prop.name for outcome in self.outcomes if outcome.cases})
        if self.findings:
            return counted(self.findings, "finding"), "bold red"
        if not ran:
            return "not applicable", "dim"
        held = f"ok, {ran} propert{'ies' if ran > 1 else 'y'}"
        if self.not_applicable > NOT_APPLICABLE_LIMIT * (self.cases + self.not_applicable):
            return f"{held}; many draws not applicable", "yellow"
        return held, "green"


def grouped(outcomes: Sequence[Outcome]) -> list[Group]:
    """Group outcomes by component and implementation, in their order."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.job.subject.names, []).append(outcome)
    return [Group(name, tuple(members)) for (_, name), members in groups.items()]


def bound_text(group: Group) -> str:
    """The largest error over bound of the cases that hold: ``exact`` where only equality was asked for."""
    held = [outcome for outcome in group.outcomes if outcome.cases > (outcome.failure is not None)]
    if not held:
        return "-"
    if all(outcome.exact for outcome in held):
        return "exact"
    return f"{max(outcome.worst_ratio for outcome in held):.2f}"


NO_SCRIPT = "no script: "
"""How the line of a script begins where there is none."""


def is_command(label: str, text: str) -> bool:
    """Whether a line of a finding is one to paste into a shell."""
    return label == "replay" or (label == "script" and not text.startswith(NO_SCRIPT))


def finding_lines(finding: Finding, folder: Path, *, unwritten: str = "") -> list[tuple[str, str]]:
    """Return a finding as labelled lines; one that could not be written, and why, with its case instead of a folder."""
    detail = finding.detail
    lines = [("case", str(detail.get("line", "")))]
    if detail.get("context"):
        lines.append(("compared", str(detail["context"])))
    if detail.get("then"):
        lines.append(("then", str(detail["then"])))
    if "error" in detail:
        lines.append(("raised", str(detail["error"])))
    if detail.get("more"):
        lines.append(("besides", f"{counted(int(detail['more']), 'other case')} of this run did the same"))
    lines += _alone(detail)
    if "problem" in detail:
        lines.append(("output", f"{detail['output']}: {detail['problem']}"))
    elif detail.get("gain"):
        lines.append(("gain", _gain(str(detail["output"]), detail["gain"])))
    elif "worst_ratio" in detail:
        lines.append(("worst", _worst(detail)))
    lines += [
        ("also wrong", name if math.isinf(float(ratio)) else f"{name}, {_times(ratio)}")
        for name, ratio in (detail.get("also_wrong") or {}).items()
    ]
    lines += _wrong_elements(detail)
    lines += _flaky(detail)
    lines += _first(detail)
    if unwritten:
        lines += [("not kept", f"{folder}: {unwritten}"), ("as JSON", dumps(dict(finding.case)))]
        return lines
    lines.append(("replay", finding.replay_command(folder)))
    if "script" in detail:
        lines.append(("script", _script(str(detail["script"]), folder)))
    return lines


def _script(said: str, folder: Path) -> str:
    """Why there is no script, or the line that runs it: never a line that the finding brings along."""
    return said if said.startswith(NO_SCRIPT) else f"python {shlex.quote(str(folder / SCRIPT_FILE))}"


def _alone(detail: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How often the case failed when it was run in processes of its own."""
    match detail.get("alone"):
        case [int(failed), int(runs)] if runs:
            return [("alone", f"failed {failed} of {runs} times in a process of its own")]
    return []


def _flaky(detail: Mapping[str, Any]) -> list[tuple[str, str]]:
    """That the case does not always fail: a race, or something that is kept between calls."""
    if not detail.get("flaky"):
        return []
    match detail.get("repeated"):
        case [int(failed), int(runs)] if runs > 1:
            return [("flaky", f"failed {failed} of {runs} times when it was repeated")]
    return [("flaky", "the same case did not fail again when it was repeated")]


def _first(detail: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the finding looked before it was shrunk: the larger case shows the pattern."""
    count = f"case {detail.get('examples_to_finding')}"
    if detail.get("remembered"):
        count += " (cases that failed before are tried first)"
    first = detail.get("first") or {}
    lines = [("found", f"at {count}" + (f", as {first['line']}" if first else ""))]
    return lines + _wrong_elements(first)


def _worst(detail: Mapping[str, Any]) -> str:
    where = detail.get("where")
    exact = where is not None and where.get("bound") == 0
    infinite = math.isinf(float(detail["worst_ratio"]))
    error = "not finite" if infinite else f"error is {_times(detail['worst_ratio'])}"
    ratio = "differs where equality is asked for" if exact else error
    ratio = f"{detail['output']}: {ratio}"
    if not where:
        return ratio
    return f"{ratio}: {_seen(where)}{_place(where)}"


def _place(where: Mapping[str, Any]) -> str:
    places = [f"{name} {coordinate_text(value)}" for name, value in where.items() if name not in NOT_PLACES]
    return f", at {', '.join(places)}" if places else ""


def _gain(output: str, gain: Mapping[str, Any]) -> str:
    error, most = float(gain["error"]), float(gain["most"])
    longer = "longer" if error > 0 else "shorter"
    return (
        f"{output}: every element is within its bound, but all of a row are off together: {gain['wrong']} of"
        f" {counted(gain['rows'], 'row')} too long or too short, the worst {100 * abs(error):.2g} % {longer} where"
        f" {100 * most:.2g} % is the most{_place(gain)}"
    )


_VALUES = ("actual", "expected")


def _seen(where: Mapping[str, Any]) -> str:
    """What came and what is right, with as many digits as it takes to tell them apart."""
    actual, expected = (float(value) if isinstance(value := where[name], str) else value for name in _VALUES)
    digits = next((count for count in (6, 9) if f"{actual:.{count}g}" != f"{expected:.{count}g}"), 17)
    texts = [str(value) if isinstance(value, int) else f"{value:.{digits}g}" for value in (actual, expected)]
    if "actual bits" in where:
        texts = [f"{where[f'{name} bits']} ({text})" for name, text in zip(_VALUES, texts, strict=True)]
    bound = float(where["bound"])
    within = f" within {bound:.2g}" if bound else ""
    return f"got {texts[0]}, expected {texts[1]}{within}"


def _times(ratio: float) -> str:
    return f"{float(ratio):.3g} times the bound"


def _wrong_elements(detail: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What sets them apart, what they hold instead, and what usual criteria say of them."""
    verdicts = detail.get("published_criteria") or []
    texts = {
        "pattern": detail.get("pattern") or [],
        "instead": detail.get("instead") or [],
        "published": [
            f"{item['criterion']} {'passes' if item['passes'] else 'fails'} ({item['detail']})" for item in verdicts
        ],
    }
    return [(label, "; ".join(lines)) for label, lines in texts.items() if lines]
