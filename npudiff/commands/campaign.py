"""``npudiff campaign``: search for hours or days, keep what was learned, and go on where it ended."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from npudiff.campaign.corpus import Corpus
from npudiff.campaign.known import Knowledge
from npudiff.campaign.log import CampaignLog
from npudiff.campaign.loop import Campaign
from npudiff.campaign.page import PAGE, PageKeeper, margins_of
from npudiff.campaign.progress import CampaignProgress
from npudiff.campaign.rounds import BATCH
from npudiff.campaign.store import Store, store_of
from npudiff.campaign.team import LocalTeam, Team, cards_named
from npudiff.commands.check import request_of
from npudiff.errors import ExitCode, UsageError
from npudiff.files.unwritten import Unwritten
from npudiff.files.writing import JOURNALS, begin_output, reason
from npudiff.findings.shared import plan_with_shared
from npudiff.run import guardian
from npudiff.run.events import Event, JobStarted
from npudiff.run.isolation.journal import left_behind
from npudiff.run.plan import Plan, can_isolate
from npudiff.show.console import Console
from npudiff.text import counted

MOST_CAUSES = 16
"""More than one, so that findings say in which region they fail: what is outside of it is searched on."""

MOST_MARGINS = 10
"""Margins that the summary shows."""


def campaign(options: argparse.Namespace) -> int:
    """Run ``npudiff campaign`` and return its exit code: that of a check, also of what earlier sessions have found."""
    if not can_isolate():
        raise UsageError("a campaign needs Linux: its workers are forked")
    plan = plan_with_shared(_request(options))
    store = None if options.corpus is None else store_of(options.corpus)
    begin_output(options.output)
    console, unwritten = Console(verbose=options.verbose), Unwritten()
    console.header(plan)
    console.left_behind(left_behind(options.output / JOURNALS))
    knowledge = Knowledge(f"{plan.target.name} {plan.target.cann}")
    name = None if options.seed is None else str(options.seed)
    with CampaignLog(options.output, knowledge, name) as log:
        running = Campaign.begun(plan, options.output, knowledge, log)
        running.corpus = None if store is None else _corpus(store, running)
        _say_begun(running, options.output, console, log.unread)
        if options.json is not None:
            options.json.content = lambda: {"campaign": content_of(running)}
        with _team(options, plan) as team:
            _run(running, team, options, console, unwritten)
    unwritten.tell()
    return unwritten.code(code_of(running))


def _run(running: Campaign, team: Team, options: argparse.Namespace, console: Console, unwritten: Unwritten) -> None:
    """Run a campaign, and say at its end what is known, whatever ends it."""
    progress, page = CampaignProgress(console.rich), PageKeeper(options.output, running, unwritten)

    def told() -> None:
        progress.show(running)
        page.write(team.where, live=True)
        if running.corpus is not None:
            running.corpus.keep()

    running.tell = told
    page.write(team.where, live=True)
    try:
        running.run(team, None if options.time is None else time.monotonic() + options.time)
    finally:
        progress.close()
        if running.corpus is not None:
            running.corpus.keep(now=True)
            if running.corpus.problem:
                unwritten.note("the corpus", running.corpus.problem)
                unwritten.asked = True
        page.write(team.where, live=False)
        for why, count in Counter(running.problems).items():
            unwritten.note(f"parts of {counted(count, 'finding')}", why)
        _say_ended(running, console, team.where, options.output)


def _corpus(store: Store, running: Campaign) -> Corpus:
    """Return the corpus, of which everything is read."""
    jobs = [job.name for job in running.plan.jobs]
    corpus = Corpus(store, jobs, running.knowledge, lambda: [one.finding for one in running.causes.findings.values()])
    try:
        corpus.read()
    except OSError as error:
        raise UsageError(f"--corpus {reason(error)}") from None
    return corpus


def _request(options: argparse.Namespace) -> Any:  # noqa: ANN401 - a request
    return replace(
        request_of(options),
        examples=options.batch or BATCH,
        model=options.model,
        where=tuple(options.where),
        mutants=0,
        causes=MOST_CAUSES,
        example_database=None,
    )


@contextlib.contextmanager
def _team(options: argparse.Namespace, plan: Plan) -> Iterator[Team]:
    """Give the workers that were asked for."""
    if options.ray is not None:
        from npudiff.campaign.cluster import RayTeam  # noqa: PLC0415 - Ray is an extra

        with RayTeam(plan, options.ray, options.workers, options.cards or 0) as team:
            yield team
        return
    cards = cards_named(options.cards) if options.cards else []
    if options.cards and len(cards) < options.cards:
        raise UsageError(f"--cards {options.cards}: only {', '.join(cards)} can be seen")
    yield LocalTeam(plan, plan.workers, cards, _begins)


def _begins(event: Event) -> None:
    if isinstance(event, JobStarted):
        guardian.begins(event.job.name)


def code_of(running: Campaign) -> ExitCode:
    """Return the exit code of what is known."""
    if running.knowledge.causes:
        return ExitCode.FINDINGS
    if running.given_up:
        return ExitCode.INTERNAL
    return ExitCode.CLEAN if running.cases else ExitCode.NOTHING_RAN


def _say_begun(running: Campaign, root: Path, console: Console, unread: int) -> None:
    knowledge = running.knowledge
    known = [knowledge.of(job.name) for job in running.plan.jobs]
    lines = [f"campaign {knowledge.name}: {counted(len(known), 'job')} · {root / PAGE} shows how far it is"]
    if knowledge.sessions:
        cases = counted(sum(one.cases for one in known), "case")
        lines.append(f"goes on with {cases} and {counted(len(knowledge.causes), 'finding')} of before")
    if running.corpus is not None:
        lines.append(f"corpus {running.corpus.where}: {counted(running.corpus.waiting, 'case')} of others come first")
    if unread:
        lines.append(
            f"{counted(unread, 'line')} of its log could not be read, and {'is' if unread == 1 else 'are'} left out"
        )
    console.lines(lines)


def _say_ended(running: Campaign, console: Console, where: str, root: Path) -> None:
    """Show each finding, the narrowest margins, and the sum of all."""
    knowledge = running.knowledge
    for name, logged in running.causes.findings.items():
        console.finding(logged.finding, logged.folder)
        times = knowledge.causes[name].times
        console.lines([f"  seen in {counted(times, 'round')}"] if times > 1 else [])
    margins = margins_of(running)[:MOST_MARGINS]
    console.lines(["largest error/bound of cases that hold:"] if margins else [])
    console.lines([f"  {one.worst:.3f} {one.job} · {one.case}" for one in margins])
    console.lines([f"holds by now: {folder}" for folder in knowledge.fixed])
    console.lines([f"card {card} was lost: {why}" for card, why in knowledge.lost])
    console.lines([f"{worker} was lost, and what it ran was run again: {why}" for worker, why in knowledge.restarted])
    console.lines(_corpus_lines(running.corpus))
    for job in running.given_up:
        why = next(why for name, why in reversed(knowledge.failed) if name == job)
        console.verdict(f"{job} is not run any more: {why}", "red")
    cases, seconds = running.cases, running.seconds
    rate = f"{cases / max(seconds, 1e-9):.1f} per second"
    known = [knowledge.of(job.name) for job in running.plan.jobs]
    said = [
        f"{counted(cases, 'case')} in {seconds:.1f} s on {where} ({rate})",
        f"{counted(sum(one.cases for one in known), 'case')} in all sessions",
        counted(len(knowledge.causes), "finding"),
        str(root / PAGE),
    ]
    console.verdict(" · ".join(said), "red" if knowledge.causes or not cases else "green")


def _corpus_lines(corpus: Corpus | None) -> list[str]:
    if corpus is None:
        return []
    added = f"{counted(corpus.added, 'case')} added"
    unread = f" · {counted(corpus.unread, 'object')} there could not be read" if corpus.unread else ""
    return [f"corpus {corpus.where}: {counted(corpus.taken, 'case')} of others run · {added}{unread}"]


def content_of(running: Campaign) -> Mapping[str, Any]:
    """Return what the JSON document says of a campaign."""
    knowledge = running.knowledge
    jobs = {job.name: knowledge.of(job.name) for job in running.plan.jobs}
    return {
        "name": knowledge.name,
        "seconds": running.seconds,
        "cases": running.cases,
        "jobs": {
            name: {
                "rounds": one.rounds,
                "cases": one.cases,
                "seconds": one.seconds,
                "regions": len(one.regions),
                "pairs": len(one.pairs),
                "worst": one.worst,
                "worst_case": one.worst_case,
                "exact": one.exact,
            }
            for name, one in jobs.items()
        },
        "causes": [
            {"folder": one.folder, "job": one.job, "times": one.times, "others": sorted(one.others)}
            for one in knowledge.causes.values()
        ],
        "fixed": list(knowledge.fixed),
        "lost": [{"card": card, "why": why} for card, why in knowledge.lost],
        "restarted": [{"worker": worker, "why": why} for worker, why in knowledge.restarted],
        **({} if running.corpus is None else {"corpus": _content_of_corpus(running.corpus)}),
    }


def _content_of_corpus(corpus: Corpus) -> Mapping[str, Any]:
    return {
        "where": corpus.where,
        "taken": corpus.taken,
        "added": corpus.added,
        "waiting": corpus.waiting,
        "unread": corpus.unread,
    }
