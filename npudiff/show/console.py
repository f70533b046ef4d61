"""What a person sees: progress while it runs, a table, findings with the line that replays them."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console as RichConsole
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from npudiff.findings.finding import Finding
from npudiff.findings.log import LoggedFinding
from npudiff.findings.replay import Replay, ReplayVerdict
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.component import Component
from npudiff.model.implementation import Target
from npudiff.model.job import Outcome, Verdict
from npudiff.model.operators import doubts
from npudiff.model.version import VERSION
from npudiff.run.isolation.journal import LeftBehind
from npudiff.run.plan import Plan
from npudiff.run.timing import TimedCase, timing_line
from npudiff.show.finding import PAGE_FILE, finding_lines
from npudiff.show.report import Group, bound_text, grouped
from npudiff.text import clipped, counted, listed, lose, printable, printable_lines

PLAIN_WIDTH = 132

MOST_AGAIN = 4
"""Findings of a cause that are shown with a line to replay them, beside the first."""

MOST_LEFT_BEHIND, MOST_OF_A_CASE = 20, 20_000
"""Cases of journals that are shown, and the characters up to which one is shown as a command."""


class _Terminal(RichConsole):
    """A console for words of others, which are stripped of control characters, whatever shows them.

    It reports a reader who went away, instead of leaving the process with the code of a finding. A disk that is full
    under standard output is told at the end of the command line: what was found is worth more.
    """

    def print(self, *objects: Any, **options: Any) -> None:  # noqa: ANN401 - as the method that it overrides
        """Write objects, as far as that can be done."""
        try:
            super().print(*objects, **options)
        except BrokenPipeError:
            raise
        except OSError as error:
            lose(error)

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401 - as above
        """Return a text as it is shown."""
        return super().render_str(printable_lines(text), **options)

    def on_broken_pipe(self) -> None:
        """Let the command line end the run."""
        raise BrokenPipeError


_REPLAY_STYLE = {ReplayVerdict.FIXED: "green", ReplayVerdict.FAILED: "red", ReplayVerdict.ERROR: "yellow"}


class Console:
    """Writes to the terminal, or plain lines where there is none.

    Parameters
    ----------
    verbose : bool
        Whether every property has a row of its own.
    """

    def __init__(self, *, verbose: bool) -> None:
        self.verbose = verbose
        self.rich: RichConsole = _Terminal(highlight=False, soft_wrap=False, emoji=False)
        if not self.rich.is_terminal:
            self.rich = _Terminal(highlight=False, width=PLAIN_WIDTH, no_color=True, emoji=False)

    def lines(self, lines: Sequence[str]) -> None:
        """Write lines as they are."""
        for line in lines:
            self.rich.print(escape(printable(line.expandtabs())), soft_wrap=True)

    def header(self, plan: Plan) -> None:
        """Say what runs where."""
        from npudiff.run.environment import version_of  # noqa: PLC0415 - reads package metadata

        request = plan.request
        parts = [
            f"npudiff {VERSION}",
            f"target {plan.target.name}, CANN {plan.target.cann}",
            f"torch {version_of('torch')}",
            f"profile {request.hypothesis_profile}" + (f", seed {request.seed}" if request.seed is not None else ""),
        ]
        self.rich.print(f"[bold]{escape(' · '.join(parts))}[/]")
        if plan.target.name == "sim":
            self.rich.print("[dim]operators are simulated on the CPU: nothing here ran on an NPU[/]")
        if plan.only_begins:
            fewer = f"up to {plan.usual_examples} cases of each implementation; more of a named component"
            self.rich.print(f"[dim]{fewer}, any number with --examples[/]")
        if plan.target.other_canns:
            others = ", ".join(plan.target.other_canns)
            self.rich.print(
                f"[dim]one CANN is looked at, {plan.target.cann} (others: --cann {others}); no SoC is told apart[/]"
            )
        if request.shared is not None:
            self.rich.print(f"[dim]{escape(clipped(printable(plan.shared.line)))}[/]")
        for name, kinds in plan.model_sizes.items():
            for kind in kinds:
                self.rich.print(f"[dim]sizes of {escape(name)}: {escape(printable(kind))}[/]", soft_wrap=True)
        for why in dict.fromkeys(plan.without_sizes.values()):
            names = ", ".join(name for name, reason in plan.without_sizes.items() if reason == why)
            self.rich.print(f"[dim]not run: {escape(printable(f'{names}: {why}'))}[/]", soft_wrap=True)
        for line in plan.left_out_lines:
            self.rich.print(f"[dim]not applicable here: {escape(clipped(printable(line)))}[/]")

    def table(self, outcomes: Sequence[Outcome]) -> None:
        """Show one row per implementation, or per property when verbose."""
        for name, members in groupby(outcomes, key=lambda outcome: outcome.job.subject.component.name):
            rows = list(members)
            component = rows[0].job.subject.component
            watched = component.highlighted_region
            table = Table(title=name, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
            table.add_column("implementation", no_wrap=True)
            for column in (
                "cases",
                *(["steps"] if component.history is not None else []),
                *([watched] if watched else []),
                "n/a",
                "error/bound",
                "job s",
            ):
                table.add_column(column, justify="right")
            table.add_column("result", no_wrap=True)
            for group in grouped(rows):
                self._row(table, group, group.name, component)
                if self.verbose:
                    for outcome in group.outcomes:
                        self._row(table, Group(group.name, (outcome,)), f"  {outcome.job.prop.name}", component)
            self.rich.print(table)
            if self.verbose:
                self._features(rows)

    def _row(self, table: Table, group: Group, name: str, component: Component) -> None:
        result, style = group.result()
        cells = [escape(name), str(group.cases)]
        if component.history is not None:
            cells.append(str(group.steps))
        if component.highlighted_region:
            cells.append(f"{group.share(component.highlighted_region):.0%}" if group.cases else "-")
        cells += [
            str(group.not_applicable),
            bound_text(group),
            f"{group.seconds:.1f}",
            f"[{style}]{escape(result)}[/]",
        ]
        table.add_row(*cells)

    def _features(self, outcomes: Sequence[Outcome]) -> None:
        total: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        for outcome in outcomes:
            total.update(outcome.features)
            reasons.update(outcome.not_applicable)
        cases = sum(outcome.cases for outcome in outcomes) or 1
        shares = ", ".join(f"{name} {count / cases:.0%}" for name, count in total.most_common())
        self.rich.print(f"  [dim]cases by region: {escape(shares)}[/]")
        for reason, count in reasons.most_common(5):
            self.rich.print(f"  [dim]not applicable {count} times: {escape(reason)}[/]")

    def left_behind(self, cases: Sequence[LeftBehind]) -> None:
        """Say what a run that was killed was doing."""
        for one in cases[:MOST_LEFT_BEHIND]:
            what = f"failed ({clipped(one.verdict)}), and was not reported" if one.verdict else "was being run"
            subject, _, prop = one.job.rpartition(".")
            component, _, implementation = subject.partition(".")
            words = ["npudiff", "check", component, "--impl", implementation, "--case", one.case]
            said = f"a run before this one was killed: a case of {clipped(printable(one.job))} {printable(what)}"
            self.rich.print(f"[bold red]{escape(said)}[/]", soft_wrap=True)
            if prop == EQUIVALENCE.name and len(one.case) <= MOST_OF_A_CASE:
                self.rich.print(f"  {escape(printable(shlex.join(words)))}", soft_wrap=True)
        if len(cases) > MOST_LEFT_BEHIND:
            self.rich.print(f"  and {counted(len(cases) - MOST_LEFT_BEHIND, 'other case')}")

    def finding(self, finding: Finding, folder: Path, *, unwritten: str = "") -> None:
        """Show a finding and the line that replays it; or why there is none."""
        title = f"FINDING {finding.component}.{finding.implementation} · {finding.property_name} · {finding.verdict}"
        self.rich.print(f"\n[bold red]{escape(title)}[/]")
        page = [] if unwritten else [("picture", str(folder / PAGE_FILE))]
        for label, text in [*finding_lines(finding, folder, unwritten=unwritten), *page]:
            self.rich.print(f"  [bold]{label:10}[/] {escape(printable(text))}", soft_wrap=True)

    def findings_again(self, of: Finding, others: Sequence[LoggedFinding]) -> None:
        """Show in two lines each the findings that have the cause of one which was shown, and count the rest."""
        shown = others if len(others) <= MOST_AGAIN + 1 else others[:MOST_AGAIN]
        for one in shown:
            finding = one.finding
            where = "" if finding.subject == of.subject else f"{finding.implementation} · "
            raised = finding.detail.get("error", "")
            said = f" ({clipped(str(raised))})" if raised and raised != of.detail.get("error") else ""
            title = f"also {where}{finding.property_name}: {finding.verdict}{said} on {finding.detail.get('line', '')}"
            kept = f"not kept: {one.unwritten}" if one.unwritten else finding.replay_command(one.folder)
            self._again(title, f"       {kept}")
        rest = [one.finding for one in others[len(shown) :]]
        seen = Counter(f"{one.implementation} · {one.property_name}" for one in rest)
        names = ", ".join(name + (f" ({count} times)" if count > 1 else "") for name, count in seen.items())
        self._again(*([f"also {counted(len(rest), 'other finding')}: {names}"] if rest else []))

    def _again(self, *lines: str) -> None:
        for text in lines:
            self.rich.print(f"  [bold red]{escape(printable(text))}[/]", soft_wrap=True)

    def mutants(self, outcomes: Sequence[Outcome], *, judged: bool) -> None:
        """Show whether the implementations that are wrong on purpose were found, and had to be."""
        if not outcomes:
            return
        table = Table(
            title="wrong on purpose: each re-creates a real bug" + (", and this run has to find it" if judged else ""),
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
        )
        for column in ("mutant", "found", "smallest case"):
            table.add_column(column, overflow="fold")
        for outcome in outcomes:
            subject = outcome.job.subject
            if outcome.drift is not None:
                found, case = f"[green]drift, {outcome.seconds:.1f} s[/]", f"all of {outcome.cases} cases together"
            elif outcome.failure is None:
                found = "[red]MISSED[/]" if judged else "[dim]not shown[/]"
                case = f"not in {outcome.cases} cases" + ("" if judged else ": this run was narrowed or shortened")
            else:
                found = f"[green]case {outcome.cases}, {outcome.seconds_to_failure:.1f} s[/]"
                case = subject.component.describe(outcome.failure.case)
            table.add_row(escape(f"{subject.component.name}.{subject.implementation.name}"), found, escape(case))
        self.rich.print(table)

    def summary(
        self,
        outcomes: Sequence[Outcome],
        mutants: Sequence[Outcome],
        *,
        judged: bool = True,
        seconds: float | None = None,
        causes: int = 0,
        workers: int = 1,
    ) -> None:
        """Say in one line how it ended, and how long it took: by the clock, or the sum over the jobs."""
        cases = sum(outcome.cases for outcome in (*outcomes, *mutants))
        if seconds is None:
            seconds = sum(outcome.seconds for outcome in (*outcomes, *mutants))
        implementations = len(grouped(outcomes))
        findings = sum(outcome.findings for outcome in outcomes)
        parts = [
            f"{counted(cases, 'case')} in {seconds:.1f} s" + (f" on {workers} workers" if workers > 1 else ""),
            counted(implementations, "implementation"),
            counted(findings, "finding") + (f" of {counted(causes, 'cause')}" if 0 < causes < findings else ""),
        ]
        if mutants:
            parts.append(f"{sum(m.found for m in mutants)} of {len(mutants)} mutants found")
        missed = judged and any(outcome.verdict is Verdict.HOLDS for outcome in mutants)
        style = "red" if findings or missed or not cases else "green"
        self.rich.print(f"[bold {style}]{' · '.join(parts)}[/]")

    def timings(self, timings: Mapping[tuple[str, str], Sequence[TimedCase]], target: Target) -> None:
        """Say how long implementations take beside those that are built in."""
        self.lines([timing_line(names, cases, target) for names, cases in timings.items()])

    def unreached(self, outcomes: Sequence[Outcome]) -> None:
        """Say of which implementations nothing was run in the time that there was."""
        reached = {one.job.subject.names for one in outcomes if one.cases or one.not_applicable}
        names = [
            ".".join(one) for one in dict.fromkeys(one.job.subject.names for one in outcomes) if one not in reached
        ]
        if names:
            said = f"not reached in this time: {listed(names, 'implementation')}"
            self.rich.print(f"[yellow]{escape(printable(said))}[/]", soft_wrap=True)

    def doubts(self, outcomes: Sequence[Outcome]) -> None:
        """Say which implementations may not be what they say."""
        said = {
            f"{'.'.join(outcome.job.subject.names)} {line}": None
            for outcome in outcomes
            for line in doubts(outcome.job.subject.implementation, outcome.operators)
        }
        for line in said:
            self.rich.print(f"[yellow]{escape(printable(line))}[/]", soft_wrap=True)

    def unjudged(self, reasons: Mapping[tuple[str, str], str]) -> None:
        """Say of which implementations no case could be judged, and why."""
        for names, why in reasons.items():
            self.verdict(printable(f"no case of {'.'.join(names)} could be judged: {why}"), "red")

    def verdict(self, text: str, style: str) -> None:
        """Say in one line how it ended."""
        self.rich.print(f"[bold {style}]{escape(text)}[/]", soft_wrap=True)

    def replay(self, result: Replay) -> None:
        """Say what became of one finding."""
        style = _REPLAY_STYLE[result.verdict]
        line = escape(clipped(printable(result.line)))
        self.rich.print(f"[bold {style}]{result.verdict.value:6}[/] {line}", soft_wrap=True)
        for place, text in enumerate(result.raised):
            label = ("raised", "at")[place] if place < 2 else ""
            self.rich.print(f"  {label:10} {escape(clipped(printable(text)))}", soft_wrap=True)
