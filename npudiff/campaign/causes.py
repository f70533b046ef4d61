"""The findings of a campaign, one for each cause, whichever worker and round sees it.

``by_cause`` says which findings are one, as at the end of a run. Days of rounds shrink one defect to several cases that
are alike in no word, so there is a second rule: a value that is wrong where its job is known to give wrong values has
no cause of its own. A job of which nobody knows where it does is known to do so everywhere.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from npudiff.campaign.known import Knowledge
from npudiff.errors import UsageError
from npudiff.files.writing import FINDINGS, file_name
from npudiff.findings.causes import by_cause
from npudiff.findings.finding import Finding, finding_of_plain, findings_of, read_finding
from npudiff.findings.log import LoggedFinding
from npudiff.model.job import Outcome, Verdict
from npudiff.run.messages import Keep, Kept
from npudiff.show.finding import keeper, told_only

_VALUES = (Verdict.WRONG.value, Verdict.DRIFT.value)


class Causes:
    """The findings of a campaign, as they are on the disk.

    Parameters
    ----------
    root : pathlib.Path
        The output folder.
    knowledge : Knowledge
        Which of the findings below it are the campaign's; causes whose folder is gone are forgotten there.

    Attributes
    ----------
    root : pathlib.Path
        Folder of findings.
    findings : dict
        Name of a folder to the finding in it.
    """

    def __init__(self, root: Path, knowledge: Knowledge) -> None:
        self.root, self._knowledge = root / FINDINGS, knowledge
        self.findings: dict[str, LoggedFinding] = {}
        for name in list(knowledge.causes):
            try:
                self._add(read_finding(self._folder(name), tensors=False))
            except (UsageError, OSError):  # somebody has removed it, to have it looked for again
                del knowledge.causes[name]

    def _folder(self, name: str) -> Path:
        if file_name(name) != name:
            raise UsageError(f"{name}: no name of a folder")
        return self.root / name

    def _add(self, finding: Finding) -> None:
        folder = self.root / finding.key
        self.findings[finding.key] = LoggedFinding(finding, folder, "")

    def keep(self) -> Keep:
        """Return what writes the findings of a round, but for those whose cause is known by now."""
        write, tell = keeper(self.root), told_only("")

        def kept(outcome: Outcome) -> Sequence[Kept]:
            if all(self.cause_of(finding) is not None for finding, _ in findings_of(outcome)):
                return [replace(one, folder=self.root / one.folder.name) for one in tell(outcome)]
            return write(outcome)

        return kept

    def cause_of(self, finding: Finding) -> str | None:
        """Return the folder of the finding that has the cause of this one; None if there is none."""
        if finding.key in self.findings:
            return finding.key
        mine = [one for one in self.findings.values() if one.finding.component == finding.component]
        new = LoggedFinding(finding, Path(finding.key), "")
        group = next(group for group in by_cause([*mine, new]) if new in group)
        alike = [one.finding.key for one in group if one is not new]
        alike += [one.finding.key for one in mine if self._shows(finding, one.finding)]
        return alike[0] if alike else None

    def _shows(self, finding: Finding, known: Finding) -> bool:
        """Whether a wrong value lies where its job is known to give wrong values."""
        if (finding.job, finding.target, finding.cann) != (known.job, known.target, known.cann):
            return False
        if finding.verdict not in _VALUES or known.verdict not in _VALUES:
            return False
        return _lies_within(finding.case, self._knowledge.causes[known.key].region)

    def told(self, kept: Sequence[Kept], region: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
        """Return what the log says of the findings of a round: what is new is known from now on."""
        return [self._told(one, region) for one in kept]

    def _told(self, one: Kept, region: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        finding = finding_of_plain(one.content)
        cause = self.cause_of(finding)
        if cause is None:
            self._add(finding)
        elif cause != finding.key and one.written:  # two workers have found it at the same time
            shutil.rmtree(one.folder, ignore_errors=True)
        found = {"folder": finding.key, "of": cause or finding.key, "new": cause is None, "region": dict(region)}
        return {**found, **({"problem": one.problem} if one.problem else {})}

    def forget(self, name: str) -> None:
        """Forget a finding whose case holds by now; its folder stays."""
        self.findings.pop(name, None)


def _lies_within(case: Mapping[str, Any], region: Mapping[str, Sequence[Any]]) -> bool:
    """Whether a case has the values with which others fail; of those that it keeps as a field."""
    return all(case[axis] in values for axis, values in region.items() if axis in case)
