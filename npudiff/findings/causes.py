"""Findings by cause: one defect is seen by several properties, and by several functions that share it.

A finding of a relation is that of equivalence, where both are wrong values: relations between runs are judged with a
bound that is not made for wrong values. Exceptions with the same text are one. Of a backend's function, whose findings
are told apart by region, another exception is another cause; a kernel that is wrong by itself is told once, whatever
its relations raise. What comes and goes in a function whose calls poison later ones has the cause of that. Two
functions of a backend that are wrong in the same way, on a case of one of them, are one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from npudiff.errors import UsageError
from npudiff.findings.finding import POISONS, Finding
from npudiff.findings.log import LoggedFinding
from npudiff.judge.judge import EQUIVALENCE
from npudiff.judge.others import WAYS_AGREE
from npudiff.model.constraints import parse_where
from npudiff.model.faults import Kind
from npudiff.model.job import Beside, Verdict

AnyLogged = TypeVar("AnyLogged", bound=LoggedFinding)


def contradicted(finding: Finding) -> list[str]:
    """Return what a finding of a backend contradicts, in words: its contract, its plain form, or itself."""
    detail = finding.detail
    others = detail.get("others")
    if not isinstance(others, dict):  # a stranger's
        return []
    native = {str(one) for one in detail.get("native") or ()}
    holding = [str(name) for name, what in others.items() if what == Beside.HOLDS.value]
    plain = [name for name in holding if name in native]
    own = [name for name in holding if name not in native]
    said = ["the documentation, as the reference has it"] if finding.property_name == EQUIVALENCE.name else []
    said += ["itself"] if finding.property_name != EQUIVALENCE.name and not holding else []
    said += [f"its native path {', '.join(plain)}, which holds here"] if plain else []
    said += [f"itself: {', '.join(own)} {'hold' if len(own) > 1 else 'holds'} here"] if own else []
    return said


def by_cause(findings: Sequence[AnyLogged]) -> list[list[AnyLogged]]:
    """Return findings in groups of one cause, in their order; each begins with the one that says most.

    That is one of equivalence, if there is any. A wrong value of a relation belongs to one group only, so that two
    causes do not become one because a relation sees both.
    """
    groups: list[list[AnyLogged]] = []
    relations = []
    for one in findings:
        if _is_of_a_relation(one.finding):
            relations.append(one)
            continue
        mine = [group for group in groups if any(_one_cause(one.finding, other.finding) for other in group)]
        groups = [group for group in groups if group not in mine] + [[*(two for group in mine for two in group), one]]
    groups.sort(key=lambda group: findings.index(group[0]))
    for one in relations:
        sees = [group for group in groups if any(_sees(one.finding, other.finding) for other in group)]
        (sees[0] if sees else _added(groups)).append(one)
    return [_best_first(group) for group in groups]


def _added(groups: list[list[AnyLogged]]) -> list[AnyLogged]:
    groups.append([])
    return groups[-1]


def _best_first(group: Iterable[AnyLogged]) -> list[AnyLogged]:
    """Return equivalence first, and of that what fails each time; of a process that died, where it wrote before."""
    group = list(group)
    died = any(one.finding.verdict == Kind.DIED.value for one in group)

    def order(one: AnyLogged) -> tuple[bool, bool, bool]:
        wrote = died and str(one.finding.detail.get("error")).startswith("WroteOutside")
        return not wrote, one.finding.property_name != EQUIVALENCE.name, bool(one.finding.detail.get("flaky"))

    return sorted(group, key=order)  # a stable sort


_VALUES = (Verdict.WRONG.value, Verdict.DRIFT.value)


def _is_of_a_relation(finding: Finding) -> bool:
    return finding.property_name != EQUIVALENCE.name and (finding.verdict in _VALUES or not finding.of_backend)


def _sees(relation: Finding, other: Finding) -> bool:
    """Whether a relation between wrong values sees what another finding is about."""
    if (relation.component, relation.target, relation.cann) != (other.component, other.target, other.cann):
        return False
    if relation.subject == other.subject:
        wrong = other.verdict in _VALUES or not other.of_backend
        return relation.symptom == other.symptom or (wrong and other.property_name == EQUIVALENCE.name)
    return _of_one_backend(relation, other) and _has_it_too(relation, other)


def _one_cause(one: Finding, other: Finding) -> bool:
    if (one.component, one.target, one.cann) != (other.component, other.target, other.cann):
        return False
    related = one.subject == other.subject or _of_one_backend(one, other)
    if one.subject == other.subject and (_comes_of(one, other) or _comes_of(other, one)):
        return True
    if "error" in one.detail or "error" in other.detail:
        return related and one.verdict == other.verdict and _text(one) == _text(other)
    if one.subject == other.subject:
        return one.symptom == other.symptom
    return related and (_has_it_too(one, other) or _has_it_too(other, one))


def _comes_of(one: Finding, other: Finding) -> bool:
    """Whether a case that did not fail each time comes of one that spoils the device, or the process, for others."""
    return bool(one.detail.get("flaky")) and other.verdict == POISONS


def _of_one_backend(one: Finding, other: Finding) -> bool:
    return one.options == other.options and one.of_backend


def _has_it_too(one: Finding, other: Finding) -> bool:
    """Whether the function of another finding is wrong in the same way on the case of one.

    Each case has to lie where the other finding fails: where two defects overlap, a case shows both.
    """
    others = one.detail.get("others") or {}
    told = others.get(other.implementation)
    if one.property_name == WAYS_AGREE.name:  # it is the other one of two that do not agree
        return told in (Beside.FAILS.value, Beside.SAME.value)
    pairs = ((one, other), (other, one))
    return told == Beside.SAME.value and all(_lies_within(a.case, b.detail.get("region")) for a, b in pairs)


def _lies_within(case: Mapping[str, Any], region: object) -> bool:
    """Whether a case is where another finding fails; where nothing is known of that, it may be."""
    texts = [str(text) for text in region] if isinstance(region, list) else []
    values = {  # an option's value is a text, also where it looks like a number
        name: (value, int(value)) if isinstance(value, str) and value.isdecimal() else (value,)
        for name, value in case.items()
    }
    return all(_allows(text, values) for text in texts if text.partition("=")[0] in values)


def _allows(text: str, values: Mapping[str, Sequence[Any]]) -> bool:
    try:
        return parse_where([text]).touches(values)
    except UsageError:  # the value of an option may be any text
        axis, _, listed = text.partition("=")
        return values[axis][0] in listed.split(",")


_NUMBER = re.compile(r"\d+")


def _text(finding: Finding) -> str:
    """The text of an exception without numbers, which are those of a case."""
    return _NUMBER.sub("#", str(finding.detail.get("error", "")))
