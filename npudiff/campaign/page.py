"""The live page of a campaign: one file, written as a whole again and again, which a browser loads anew by itself."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from npudiff.campaign.known import JobKnowledge
from npudiff.campaign.loop import Campaign
from npudiff.campaign.shares import shares
from npudiff.files.unwritten import Unwritten
from npudiff.files.writing import FINDINGS, write_file
from npudiff.model.case import loads
from npudiff.show.finding import PAGE_FILE
from npudiff.show.rendering import counted, duration, number, render
from npudiff.show.run_page.margins import length

PAGE = "campaign.html"

REFRESH = 10
"""Seconds after which a browser loads the page anew."""

WRITTEN_EVERY, MOST_OF_THE_TIME = 5.0, 0.02
"""Seconds after which it is written again, and the part of the time that this may take."""


class PageKeeper:
    """Keeps the page up to date.

    Parameters
    ----------
    root : pathlib.Path
        The output folder.
    campaign : Campaign
        What is shown.
    unwritten : Unwritten
        Told where it cannot be written.
    """

    def __init__(self, root: Path, campaign: Campaign, unwritten: Unwritten) -> None:
        self._root, self._campaign, self._unwritten = root, campaign, unwritten
        self._next = 0.0

    def write(self, where: str, *, live: bool) -> None:
        """Write the page: now and then while the campaign runs, and at its end."""
        began = time.monotonic()
        if live and began < self._next:
            return
        with self._unwritten.trying("the page of the campaign"):
            write_file(self._root / PAGE, page_of(self._campaign, where, live=live), within=self._root)
        now = time.monotonic()
        self._next = now + max(WRITTEN_EVERY, (now - began) / MOST_OF_THE_TIME)


@dataclass(frozen=True)
class FindingRow:
    """A finding as it is shown."""

    subject: str
    property_name: str
    verdict: str
    line: str
    times: int
    others: str
    """Other jobs that have seen it."""
    address: str


@dataclass(frozen=True)
class MarginRow:
    """The margin of a job."""

    job: str
    worst: float
    case: str

    @property
    def length(self) -> float:
        """Length of its bar, in percent of the scale."""
        return length(self.worst)


@dataclass(frozen=True)
class JobRow:
    """A job as it is shown."""

    name: str
    share: float
    known: JobKnowledge


def page_of(campaign: Campaign, where: str, *, live: bool) -> str:
    """Return the page."""
    plan, knowledge = campaign.plan, campaign.knowledge
    known = {job.name: knowledge.of(job.name) for job in plan.jobs}
    share = shares(known) if known else {}
    jobs = [JobRow(name, share[name], one) for name, one in known.items()]
    findings = findings_of(campaign)
    text, kind = verdict_of(campaign, live=live)
    return render(
        "campaign.html",
        title="npudiff campaign",
        refresh=REFRESH if live else 0,
        verdict=text,
        kind=kind,
        numbers=numbers_of(campaign, known, where),
        notes=notes_of(campaign),
        findings=findings,
        margins=margins_of(campaign),
        jobs=sorted(jobs, key=lambda one: -one.share),
    )


def verdict_of(campaign: Campaign, *, live: bool) -> tuple[str, str]:
    """Return what is known in one sentence, and its CSS class."""
    causes = len(campaign.knowledge.causes)
    cases = sum(campaign.knowledge.of(job.name).cases for job in campaign.plan.jobs)
    state = "The campaign runs." if live else "The campaign has ended, and goes on when it is started again."
    if causes:
        return f"{counted(causes, 'finding')}, one of each cause. {state}", "no"
    if not cases:
        return f"No case has been judged. {state}", "few"
    return f"No finding in {counted(cases, 'case')}. {state}", "yes"


def numbers_of(campaign: Campaign, known: Mapping[str, JobKnowledge], where: str) -> dict[str, str]:
    """Return names and values of what is counted."""
    plan, rate = campaign.plan, campaign.cases / max(campaign.seconds, 1e-9)
    return {
        "target": f"{plan.target.name}, CANN {plan.target.cann}",
        "cases": number(sum(one.cases for one in known.values())),
        "cases per second, this session": f"{rate:.1f}",
        "time of this session": duration(campaign.seconds),
        "time of all rounds": duration(sum(one.seconds for one in known.values())),
        "runs on": where,
        "jobs": number(len(known)),
        "cases of the corpus": number(sum(len(one.corpus) for one in known.values())),
        "written": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def notes_of(campaign: Campaign) -> list[str]:
    """Return what a reader has to know besides, a line each: what was lost, what is fixed."""
    knowledge = campaign.knowledge
    notes = [f"Card {card} is lost, and not used any more: {why}" for card, why in knowledge.lost]
    notes += [f"{worker} was lost, and what it ran was run again: {why}" for worker, why in knowledge.restarted[-3:]]
    notes += [f"{name} is not run any more, since its rounds failed one after the other." for name in campaign.given_up]
    notes += [f"A round of {job} failed by no fault of a case: {why}" for job, why in knowledge.failed[-3:]]
    notes += [f"Holds by now: {folder}" for folder in knowledge.fixed]
    return notes


def findings_of(campaign: Campaign) -> list[FindingRow]:
    """Return the findings, the latest first."""
    causes = campaign.knowledge.causes
    rows = [(causes[name], logged.finding) for name, logged in campaign.causes.findings.items() if name in causes]
    return [
        FindingRow(
            f"{finding.component}.{finding.implementation}",
            finding.property_name,
            finding.verdict,
            str(finding.detail.get("error") or finding.detail.get("line", "")),
            cause.times,
            ", ".join(sorted(cause.others)),
            f"{FINDINGS}/{quote(cause.folder)}/{PAGE_FILE}",
        )
        for cause, finding in sorted(rows, key=lambda row: -row[0].found)
    ]


def margins_of(campaign: Campaign) -> Sequence[MarginRow]:
    """Return the largest error over bound of each job that has bounds, the narrowest margin first."""
    rows = []
    for job in campaign.plan.jobs:
        known = campaign.knowledge.of(job.name)
        if known.worst > 0 and not known.exact:
            component = job.subject.component
            try:
                case = component.describe(loads(component.case_type, known.worst_case))
            except ValueError:  # of another version
                case = known.worst_case
            rows.append(MarginRow(job.name, known.worst, case))
    return sorted(rows, key=lambda one: -one.worst)
