"""A finding in words, as labelled lines; its folder, and the page in it with words, pictures and the replay command."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from npudiff.files.writing import reason, remove_file, write_file
from npudiff.findings.causes import contradicted
from npudiff.findings.finding import (
    BACKEND_FILE,
    REPRODUCE_TENSORS,
    SCRIPT_FILE,
    TENSOR_FILE,
    Finding,
    coordinates_of,
    findings_of,
    plain_finding,
    write_finding,
)
from npudiff.findings.reproduce import reproduction
from npudiff.judge.drift import GAIN, OFFSET
from npudiff.judge.others import WAYS_AGREE
from npudiff.judge.pattern import NOT_PLACES, coordinate_text
from npudiff.model.case import dumps
from npudiff.model.component import OutputComparison
from npudiff.model.frames import frames_as_sent
from npudiff.model.job import Beside, Failure, Outcome, Verdict
from npudiff.run.messages import Keep, Kept
from npudiff.show.picture import PICTURE_FILE, Grid, drawn, grid_of, write_pictures
from npudiff.show.rendering import SafeHtml, render
from npudiff.text import counted

PAGE_FILE = "finding.html"


def keep_findings(outcome: Outcome, root: Path) -> list[tuple[Finding, Path]]:
    """Write the findings of an outcome below ``root``, each in a folder with its page; return findings and folders.

    Raises
    ------
    OSError
        If that cannot be done.
    """
    kept = [_write(outcome, finding, failure, root) for finding, failure in findings_of(outcome)]
    outcome.settle()
    return kept


def keeper(root: Path) -> Keep:
    """Return what writes findings below ``root`` as ``keep_findings`` does, for runs to call where the tensors are.

    On a full disk a finding is written without what its case can make again, and told if not even that is possible.
    """

    def keep(outcome: Outcome) -> list[Kept]:
        return [_kept(outcome, finding, failure, root) for finding, failure in findings_of(outcome)]

    return keep


def told_only(why: str) -> Keep:
    """Return what tells findings and writes none; ``why`` is said in the place of a folder."""

    def keep(outcome: Outcome) -> list[Kept]:
        return [
            Kept(plain_finding(finding), Path(finding.key), why, written=False) for finding, _ in findings_of(outcome)
        ]

    return keep


def _kept(outcome: Outcome, original: Finding, failure: Failure | None, root: Path) -> Kept:
    try:
        finding, folder = _write(outcome, original, failure, root)
    except OSError as error:
        bare = replace(original, detail={**original.detail, "script": f"{NO_SCRIPT}it could not be written"})
        folder = root / bare.key
        problem = reason(error)
        try:
            for name in (TENSOR_FILE, SCRIPT_FILE, REPRODUCE_TENSORS, BACKEND_FILE, PICTURE_FILE, PAGE_FILE):
                remove_file(folder / name, within=root)
            write_finding(bare, None, root)
        except OSError:
            return Kept(plain_finding(bare), folder, problem, written=False)
        return Kept(_told(bare, folder), folder, problem)
    return Kept(_told(finding, folder), folder)


def _told(finding: Finding, folder: Path) -> dict[str, Any]:
    return plain_finding(replace(finding, command=finding.replay_command(folder)))


def _write(outcome: Outcome, original: Finding, failure: Failure | None, root: Path) -> tuple[Finding, Path]:
    """Write the folder of a finding, with all that belongs there."""
    script = reproduction(outcome, original, failure)
    why_not = "" if script.text else f"{NO_SCRIPT}{script.why_not}"
    finding = replace(original, detail={**original.detail, "script": why_not})
    folder = write_finding(finding, failure, root, script)
    pictures, defects = _pictures(outcome, failure)
    write_pictures(folder, [(caption, grid) for caption, grid, _ in pictures])
    drawings = [(caption, drawing) for caption, _, drawing in pictures]
    write_file(folder / PAGE_FILE, finding_page(finding, folder, drawings, defects), within=root)
    return finding, folder


Picture = tuple[str, Grid, SafeHtml]
"""Caption, grid and drawing."""


def _pictures(outcome: Outcome, failure: Failure | None) -> tuple[list[Picture], list[str]]:
    """Return the pictures of a finding, and a line for each that could not be drawn: a finding is kept without it."""
    pictures: list[Picture] = []
    defects: list[str] = []
    for caption, pictured in _failures(outcome, failure):
        for output in () if pictured.comparison is None else pictured.comparison.outputs:
            try:
                pictures += _picture(outcome, pictured, output, caption, len(pictures))
            except Exception as error:  # noqa: BLE001 - whatever it is, the finding is worth more
                text = f"{type(error).__name__}: {error}"
                defects.append(f"{output.name}, {caption}: npudiff could not draw it, please report: {text}")
    return pictures, defects


def _failures(outcome: Outcome, failure: Failure | None) -> list[tuple[str, Failure]]:
    """Return the failures that are drawn: the case as it was found, whose pattern is clearer, and the smallest."""
    if failure is None:
        return []
    first = outcome.first_failure
    return [
        *([] if first is None or first.case == failure.case else [("as it was found", first)]),
        ("the smallest case", failure),
    ]


def _picture(
    outcome: Outcome, failure: Failure, output: OutputComparison, caption: str, number: int
) -> Iterator[Picture]:
    """Yield the picture of an output, if it is wrong and has elements."""
    if output.worst > 1 and output.ratio is not None:
        component = outcome.job.subject.component
        grid = grid_of(output, coordinates_of(component, component.inputs(failure.case), output))
        if grid is not None:
            yield f"{output.name}, {caption}: {component.describe(failure.case)}", grid, drawn(grid, number)


def finding_page(
    finding: Finding, folder: Path, pictures: Sequence[tuple[str, SafeHtml]], defects: Sequence[str] = ()
) -> str:
    """Return the page of a finding.

    Parameters
    ----------
    finding : Finding
        The finding.
    folder : pathlib.Path
        Its folder, as the command that replays it names it.
    pictures : sequence of (str, SafeHtml)
        Captions and drawings.
    defects : sequence of str
        A line for each picture that could not be drawn.
    """
    return render(
        "finding.html",
        title=f"{finding.component}.{finding.implementation}: {finding.property_name}: {finding.verdict}",
        lines=[(label, text, is_command(label, text)) for label, text in finding_lines(finding, folder)],
        pictures=pictures,
        defects=defects,
        case_lines=json.dumps(dict(finding.case), indent=1).splitlines(),
        environment={"target": finding.target, "CANN": finding.cann, **finding.environment},
    )


NO_SCRIPT = "no script: "
"""How the line of a script begins where there is none."""


def is_command(label: str, text: str) -> bool:
    """Whether a line of a finding is one to paste into a shell."""
    return label in ("replay", "backend") or (label == "script" and not text.startswith(NO_SCRIPT))


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
        lines += [
            ("at" if not place else "", frame) for place, frame in enumerate(frames_as_sent(detail.get("frames")))
        ]
    if detail.get("more"):
        lines.append(("besides", f"{counted(int(detail['more']), 'other case')} of this run did the same"))
    lines += _against(finding)
    lines += _alone(detail)
    if "problem" in detail:
        lines.append(("output", f"{detail['output']}: {detail['problem']}"))
    elif detail.get("gain"):
        lines.append(("gain", _gain(str(detail["output"]), detail["gain"])))
    elif "worst_ratio" in detail:
        lines.append(("worst", _worst(detail)))
    lines += _worst_case(detail)
    lines += _drift(detail)
    lines += [
        ("also wrong", name if math.isinf(float(ratio)) else f"{name}, {_times(ratio)}")
        for name, ratio in (detail.get("also_wrong") or {}).items()
    ]
    lines += _wrong_elements(detail)
    lines += _flaky(detail)
    lines += _first(detail) if "drift" not in detail else []
    if unwritten:
        lines += [("not kept", f"{folder}: {unwritten}"), ("as JSON", dumps(dict(finding.case)))]
        return lines
    lines.append(("replay", finding.replay_command(folder)))
    if "script" in detail:
        lines.append(("script", _script(str(detail["script"]), folder)))
    if finding.of_backend and finding.verdict != Verdict.DRIFT.value:
        lines.append(("backend", f"python {shlex.quote(str(folder / BACKEND_FILE))}"))
    return lines


def _script(said: str, folder: Path) -> str:
    """Why there is no script, or the line that runs it: never a line that the finding brings along."""
    return said if said.startswith(NO_SCRIPT) else f"python {shlex.quote(str(folder / SCRIPT_FILE))}"


def _worst_case(detail: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How far off it was elsewhere."""
    worst = detail.get("worst_case")
    if not worst:
        return []
    ratio = "not finite, or not equal" if math.isinf(float(worst["ratio"])) else _times(worst["ratio"])
    return [("furthest", f"{worst['output']}: {ratio} in {worst['line']}")]


def _drift(detail: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the cases of the job have in common, how large it is, by how much chance is ruled out, and what shows it."""
    drift = detail.get("drift")
    if not drift:
        return []
    size, score = float(drift["size"]), float(drift["score"])
    said = (
        f"{detail['output']}: every element is within its bound, and {_way(str(drift['direction']), size)} by"
        f" {abs(size):.2g} of the bound in the mean, where {float(drift['most']):.2g} is the most; over"
        f" {counted(int(drift['cases']), 'case')} with {counted(int(drift['elements']), 'element')}"
    )
    lines = [
        ("drift", said),
        ("chance", f"less than 1 in 10^{int(score**2 / 2 / math.log(10))}, at {score:.1f} standard errors"),
    ]
    lines += [("shown by", _shown(str(drift["direction"]), one)) for one in detail.get("shown") or ()]
    besides = detail.get("besides") or ()
    return lines + [
        ("besides", f"{one['output']} is {_way(str(one['direction']), float(one['size']))}") for one in besides
    ]


def _way(direction: str, size: float) -> str:
    """Which way all elements are off together."""
    if direction == GAIN:
        return "too long" if size > 0 else "too short"
    if direction == OFFSET:
        return "too high" if size > 0 else "too low"
    return f"off as if {direction} were too {'large' if size > 0 else 'small'}"


def _shown(direction: str, one: Mapping[str, Any]) -> str:
    """A case that shows a drift."""
    size = f"{float(one['size']):+.2g} of the bound"
    step = "" if direction == OFFSET else f", {100 * float(one['step']):+.2g} %"
    return f"{one['line']}: {size}{step}"


def _alone(detail: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How often the case failed when it was run in processes of its own."""
    match detail.get("alone"):
        case [int(failed), int(runs)] if runs:
            return [("alone", f"failed {failed} of {runs} times in a process of its own")]
    return []


def _against(finding: Finding) -> list[tuple[str, str]]:
    """What the failure contradicts, which other ways of the backend have it too, and where it is."""
    detail = finding.detail
    said = contradicted(finding) if detail.get("others") or finding.property_name == WAYS_AGREE.name else []
    lines = [("contradicts", "; ".join(said))] if said else []
    others = {str(name): str(what) for name, what in (detail.get("others") or {}).items()}
    alike = [f"{name} {what}" for name, what in others.items() if what != Beside.HOLDS.value]
    lines += [("others", "; ".join(alike))] if alike else []
    region = [str(one) for one in detail.get("region") or ()]
    return lines + ([("fails where", ", ".join(region))] if region else [])


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
        "likely": detail.get("likely") or [],
        "pattern": detail.get("pattern") or [],
        "instead": detail.get("instead") or [],
        "published": [
            f"{item['criterion']} {'passes' if item['passes'] else 'fails'} ({item['detail']})" for item in verdicts
        ],
    }
    return [(label, "; ".join(lines)) for label, lines in texts.items() if lines]
