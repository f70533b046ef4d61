"""How far a campaign has come: a line of its own on a terminal, and one now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time

from rich.console import Console as RichConsole
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from npudiff.campaign.loop import Campaign
from npudiff.text import counted, printable

EVERY, DRAWN_EVERY = 30.0, 0.2
"""Seconds between two lines where there is no terminal, and between two drawings where there is one."""


class CampaignProgress:
    """Shows what is known by now; whoever has it closes it.

    Parameters
    ----------
    console : rich.console.Console
        Where the line goes.
    """

    def __init__(self, console: RichConsole) -> None:
        columns = (TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        self._line = Progress(
            *columns,
            console=console,
            transient=True,
            disable=not console.is_terminal,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._line.add_task("the first rounds", total=None)
        self._said = time.monotonic()

    def show(self, campaign: Campaign) -> None:
        """Show what is known."""
        now = time.monotonic()
        if now - self._said < (EVERY if self._line.disable else DRAWN_EVERY):
            return
        self._said = now
        text = printable(line_of(campaign))
        if not self._line.disable:
            self._line.start()
            self._line.update(self._task, description=text)
            self._line.refresh()
        else:
            with contextlib.suppress(OSError):  # nobody listens
                print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the line away."""
        self._line.stop()


def line_of(campaign: Campaign) -> str:
    """Return what is known in one line."""
    knowledge = campaign.knowledge
    known = [knowledge.of(job.name) for job in campaign.plan.jobs]
    regions = sum(len(one.pairs) for one in known)
    rate = campaign.cases / max(campaign.seconds, 1e-9)
    margins = [one.worst for one in known if one.worst_case and not one.exact]
    margin = f" · largest error/bound {max(margins):.2f}" if margins else ""
    return (
        f"{counted(campaign.cases, 'case')} ({rate:.0f} per second) · {counted(regions, 'pair')} of regions"
        f"{margin} · {counted(len(knowledge.causes), 'finding')}"
    )
