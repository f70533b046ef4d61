"""Findings as folders: what failed, on which case, with which evidence, and how to replay it.

A folder holds ``finding.json`` and ``tensors.safetensors``, and the calls as a script for people without npudiff.
Nothing in a folder is ever executed, the script included, and no path in it is followed: folders come from other
people's pull requests.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from npudiff.errors import UsageError
from npudiff.files.reading import read_plain_file
from npudiff.files.writing import file_name, remove_file, write_file
from npudiff.judge.criteria import published_verdicts
from npudiff.judge.mistakes import likely_mistakes
from npudiff.judge.pattern import describe_pattern, explain_misplaced, worst_element, worst_gain
from npudiff.model.anything import AnyInputs
from npudiff.model.backend import option_of
from npudiff.model.case import dumps, loads, to_plain
from npudiff.model.component import Comparison, Component, OutputComparison
from npudiff.model.drift import Drift
from npudiff.model.faults import RemoteError
from npudiff.model.frames import frames_of
from npudiff.model.job import Failure, Job, Outcome, Poisoning, Verdict
from npudiff.model.version import VERSION
from npudiff.run.explain import conditions
from npudiff.text import printable

SCHEMA_VERSION = 1
FINDING_FILE = "finding.json"
TENSOR_FILE = "tensors.safetensors"
SCRIPT_FILE = "reproduce.py"
REPRODUCE_TENSORS = "reproduce.safetensors"
BACKEND_FILE = "backend.py"

MAX_FINDING_BYTES = 2**20
MAX_TENSOR_BYTES = 2**26
MAX_TENSORS_KEPT = 2**25
"""Bytes of tensors that a finding keeps; larger outputs are left out, since the case rebuilds them."""

MAX_REPRODUCE_TENSORS = 2**25
"""Bytes of tensors that a script is given, inputs and expected outputs; with more there is no script."""

MAX_SCRIPT_BYTES = 2**22

MOST_OF_A_NAME = 60
"""Characters of each name in the name of a folder."""


@dataclass(frozen=True)
class Script:
    """The calls of a finding as a program that needs torch and torch_npu only, or why there is none."""

    text: str = ""
    """The program; empty if there is none."""
    tensors: bytes = b""
    """A safetensors file with what it loads; empty if it loads nothing."""
    why_not: str = ""
    """Why there is none, as the end of a sentence."""


@dataclass(frozen=True)
class Finding:
    """A shrunk case on which a property fails."""

    component: str
    implementation: str
    target: str
    cann: str
    property_name: str
    """What failed where."""
    verdict: str
    """``wrong value``, ``exception``, or what the case did to the process or the device."""
    case: Mapping[str, Any]
    """The case, as plain JSON."""
    detail: Mapping[str, Any]
    """What was seen: worst ratio, place, pattern, published criteria, error text."""
    environment: Mapping[str, str]
    """Versions."""
    options: str = ""
    """What a replay needs besides the folder: ``--impl FILE`` for an implementation that is not built in."""
    command: str = ""
    """The line that replays the finding. Text for people: nothing reads it."""

    def replay_command(self, folder: Path) -> str:
        """The line that replays the finding from a folder, with the file that the implementation comes from."""
        return f"npudiff replay {shlex.quote(str(folder))}" + (f" {self.options}" if self.options else "")

    @property
    def of_backend(self) -> bool:
        """Whether the implementation is a function of a backend."""
        return self.options.startswith("--backend ")

    @property
    def subject(self) -> tuple[str, str]:
        """Component and implementation, as ``Subject.names``."""
        return self.component, self.implementation

    @property
    def job(self) -> str:
        """Name of the job that found it."""
        return f"{self.component}.{self.implementation}.{self.property_name}"

    @property
    def key(self) -> str:
        """A name that the same finding always has: what failed, and a digest of the case."""
        text = "\n".join(
            (
                self.component,
                self.implementation,
                self.target,
                self.cann,
                self.property_name,
                dumps(dict(self.case)),
            )
        )
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        names = (self.component, self.implementation, self.property_name)
        return "-".join((*(file_name(name, MOST_OF_A_NAME) for name in names), digest))

    @property
    def symptom(self) -> tuple[object, ...]:
        """What the findings of several properties share when they show one bug: the exception, or the smallest case."""
        seen = self.detail.get("error") or self.detail.get("line")
        return (self.component, self.implementation, self.target, self.cann, self.verdict, seen)


def write_finding(finding: Finding, failure: Failure | None, root: Path, script: Script | None = None) -> Path:
    """Write a finding as a folder below ``root``, and return the folder.

    Tensors are kept as far as the size cap allows; the checksums of all files are part of ``finding.json``.

    Raises
    ------
    OSError
        If one of its files cannot be written.
    """
    folder = root / finding.key
    tensors = _packed(None if failure is None else failure.comparison)
    files = {
        TENSOR_FILE: ("tensors_sha256", tensors),
        **_programs(_backend_script(finding), script or Script()),
    }
    for name, (_, data) in files.items():
        if data:
            write_file(folder / name, data, within=root)
        else:  # that of an earlier run
            remove_file(folder / name, within=root)
    content = {
        "schema_version": SCHEMA_VERSION,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **{name: getattr(finding, name) for name in Finding.__dataclass_fields__},
        "command": finding.replay_command(folder),
        **{field: hashlib.sha256(data).hexdigest() if data else None for field, data in files.values()},
    }
    text = json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"
    write_file(folder / FINDING_FILE, text, within=root)
    return folder


def plain_finding(finding: Finding) -> dict[str, Any]:
    """Return a finding as plain values, from which ``finding_of_plain`` makes it again, in whichever process."""
    content = {name: getattr(finding, name) for name in Finding.__dataclass_fields__}
    plain: dict[str, Any] = json.loads(json.dumps(_finite(content), allow_nan=False))
    return plain


def _finite(value: object) -> object:
    """The same plain value with non-finite numbers as text: JSON has none."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _packed(comparison: Comparison | None) -> bytes:
    """Return the tensors of a comparison as a safetensors file; nothing if there are none."""
    kept: dict[str, torch.Tensor] = {}
    size = 0
    for output in comparison.outputs if comparison is not None else ():
        for kind in ("actual", "value", "bound"):
            tensor = getattr(output, kind)
            if tensor is not None and size + tensor.nbytes <= MAX_TENSORS_KEPT:
                size += tensor.nbytes
                kept[f"{output.name}.{kind}"] = tensor.detach().cpu().contiguous().clone()
    return save(kept) if kept else b""


_PROGRAMS = {
    SCRIPT_FILE: ("script_sha256", MAX_SCRIPT_BYTES),
    REPRODUCE_TENSORS: ("reproduce_sha256", MAX_REPRODUCE_TENSORS + 2**20),
    BACKEND_FILE: ("backend_sha256", MAX_SCRIPT_BYTES),
}
"""Programs that come with a finding, and what they read: where their checksums stand, and how large they may be."""


def _programs(backend: str, script: Script) -> dict[str, tuple[str, bytes]]:
    """The same files: where the checksum of each stands, and what it holds."""
    contents = {SCRIPT_FILE: script.text.encode(), REPRODUCE_TENSORS: script.tensors, BACKEND_FILE: backend.encode()}
    return {name: (_PROGRAMS[name][0], data) for name, data in contents.items()}


_BACKEND_SCRIPT = '''"""{function} of {backend} is wrong on the smallest case of a finding.

    {line}

It needs npudiff and {backend}, and calls it in this process: breakpoints in its code work.

    python {file}
    python -m pdb {file}
"""

from npudiff.findings.backend_call import call

call({arguments})
'''


def _backend_script(finding: Finding) -> str:
    """Return a program that calls the backend itself; empty where the finding is on none, or on more than a case."""
    if not finding.of_backend or finding.verdict == Verdict.DRIFT.value:
        return ""
    function = f"{finding.component}.{finding.implementation}"
    backend = shlex.split(finding.options)[1]
    arguments = {
        "function": function, "backend": backend, "target": finding.target, "cann": finding.cann,
        "prop": finding.property_name, "case": dumps(dict(finding.case)),
    }  # fmt: skip
    lines = "".join(f"    {name}={value!r},\n" for name, value in arguments.items())
    line = str(finding.detail.get("line", "")).replace("\\", "/").replace('"""', "'")
    named = backend.partition("=")[0]
    return _BACKEND_SCRIPT.format(
        function=finding.implementation, backend=named, line=printable(line), file=BACKEND_FILE, arguments=f"\n{lines}"
    )


def read_finding(folder: Path, *, tensors: bool = True) -> Finding:
    """Read a finding folder, trusting nothing in it.

    Parameters
    ----------
    folder : pathlib.Path
        The folder.
    tensors : bool
        Whether what its case can make again is compared with its checksums.

    Raises
    ------
    UsageError
        If the folder is not a finding, is damaged, is of a newer version, or is larger than a finding may be.
    """
    content = _read_json(folder)
    version = content.get("schema_version")
    if type(version) is not int or version < 1:
        raise UsageError(f"{folder}: {FINDING_FILE} has no schema_version: not a finding")
    if version > SCHEMA_VERSION:
        raise UsageError(
            f"{folder}: written by a newer npudiff (schema {version}, this one reads up to {SCHEMA_VERSION}): upgrade"
        )
    if tensors:
        _check_file(folder / TENSOR_FILE, "tensors_sha256", content, MAX_TENSOR_BYTES)
    for name, (field, limit) in _PROGRAMS.items() if tensors else ():
        if (folder / name).exists() or (folder / name).is_symlink():  # they are for others: none is needed to replay it
            _check_file(folder / name, field, content, limit)
    return finding_of_plain(content, f"{folder}: {FINDING_FILE}")


def finding_of_plain(content: Mapping[str, Any], place: str = "a finding") -> Finding:
    """Return the finding that plain values say; raises ``UsageError``, naming the place, if they are no finding."""
    fields: dict[str, Any] = {}
    for name in Finding.__dataclass_fields__:
        wanted = dict if name in ("case", "detail", "environment") else str
        value = content.get(name)
        if not isinstance(value, wanted):
            raise UsageError(f"{place}: {name} must be {wanted.__name__}, got {type(value).__name__}")
        fields[name] = value
    return Finding(**fields)


def _read_json(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UsageError(f"{folder}: not a finding folder" if folder.exists() else f"{folder}: no such folder")
    text = read_plain_file(folder / FINDING_FILE, MAX_FINDING_BYTES).decode("utf-8", errors="replace")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{folder}: {FINDING_FILE} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{folder}: {FINDING_FILE} is damaged: expected an object")
    return content


def _check_file(path: Path, field: str, content: Mapping[str, Any], limit: int) -> None:
    checksum = content.get(field)
    if checksum is None:
        return
    if not isinstance(checksum, str):
        raise UsageError(f"{path.parent}: {field} must be text")
    if hashlib.sha256(read_plain_file(path, limit)).hexdigest() != checksum:
        raise UsageError(f"{path.parent}: {path.name} does not match its checksum: damaged or changed")


POISONS = "poisons the device"
"""Verdict of a case that holds, and after which another one fails that is right by itself."""

DRIFT_FIGURES = ("direction", "size", "most", "score", "cases", "elements")
"""What the detail of a drift has of ``npudiff.model.drift.Drift``."""

AFTER_OTHERS = "fails after other cases only"
"""Verdict of a case that is right by itself, and failed after others of which none could be found guilty."""


def findings_of(outcome: Outcome) -> list[tuple[Finding, Failure | None]]:
    """Describe all that an outcome has to report: failure or drift, and cases that spoiled the device for others."""
    failed: list[tuple[Finding, Failure | None]] = []
    if outcome.failure is not None and not outcome.spoiled:
        failed.append((finding_of(outcome), outcome.failure))
    elif outcome.drift is not None:
        failed.append((_drift(outcome, outcome.drift), None))
    poisonings = sorted(outcome.poisonings, key=lambda one: (not one.case, len(one.case) + len(one.victim)))
    return [*failed, *((_poisoning(outcome, one), None) for one in poisonings[:1])]


def _poisoning(outcome: Outcome, poisoning: Poisoning) -> Finding:
    """Describe the smallest case that poisons, or one that only fails after others if it was not found which."""
    subject = outcome.job.subject
    culprit, victim = (
        loads(subject.component.case_type, text) if text else None for text in (poisoning.case, poisoning.victim)
    )
    detail = {
        "line": subject.component.describe(victim if culprit is None else culprit),
        "error": printable(poisoning.error)[:2000],
        "then": "" if culprit is None else subject.component.describe(victim),
        "victim": {} if culprit is None else _plain_case(victim),
        "examples_to_finding": outcome.cases,
        "flaky": culprit is None,
        "more": len(outcome.poisonings) - 1,
    }
    verdict = POISONS if culprit is not None else AFTER_OTHERS
    return _described(outcome, victim if culprit is None else culprit, verdict, detail)


def _drift(outcome: Outcome, drift: Drift) -> Finding:
    """Describe what the cases of a job have in common; its case is the one that shows it best."""
    component = outcome.job.subject.component
    cases = [loads(component.case_type, one.case) for one in drift.shown]
    detail = {
        "line": component.describe(cases[0]),
        "output": drift.output,
        "drift": {name: getattr(drift, name) for name in DRIFT_FIGURES},
        "shown": [
            {"line": component.describe(case), "size": one.size, "step": one.step}
            for case, one in zip(cases, drift.shown, strict=True)
        ],
        "besides": [
            {"output": one.output, "direction": one.direction, "size": one.size}
            for one in outcome.drifts
            if one.shown and one is not drift
        ],
        "remembered": list(drift.remembered),
        "examples_to_finding": outcome.cases,
    }
    return _described(outcome, cases[0], Verdict.DRIFT.value, detail)


def finding_of(outcome: Outcome) -> Finding:
    """Describe the failure of an outcome.

    Raises
    ------
    ValueError
        If the outcome has no failure.
    """
    failure = outcome.failure
    if failure is None:
        raise ValueError(f"{outcome.job.name} has no failure")
    return _described(outcome, failure.case, _verdict_of(failure), _detail(outcome, failure))


def _verdict_of(failure: Failure) -> str:
    """``wrong value``, ``exception``, or what the case did to the process or the device."""
    if failure.error is None:
        return Verdict.WRONG.value
    return failure.error.kind.value if isinstance(failure.error, RemoteError) else Verdict.RAISED.value


def _options(job: Job) -> str:
    """Return what ``npudiff replay`` has to be told to find what a job is about, and to judge it as it was judged."""
    item = job.subject.implementation
    files = dict.fromkeys(one for one in (job.subject.component.selector, job.prop.selector) if one)
    named = [option_of(item.selector)] if item.selector and item.selector not in files else []
    own = [f"--component {shlex.quote(file)}" for file in files]
    return " ".join([*named, *own, *(["--untrusted"] if item.untrusted else [])])


def _described(outcome: Outcome, case: object, verdict: str, detail: Mapping[str, Any]) -> Finding:
    subject = outcome.job.subject
    return Finding(
        component=subject.component.name,
        implementation=subject.implementation.name,
        target=subject.target.name,
        cann=subject.target.cann,
        property_name=outcome.job.prop.name,
        verdict=verdict,
        case=_plain_case(case),
        detail=detail,
        environment=environment(),
        options=_options(outcome.job),
    )


def _plain_case(case: object) -> dict[str, Any]:
    plain = to_plain(case)
    if not isinstance(plain, dict):
        raise TypeError(f"a case must be a dataclass, got {type(case).__name__}")
    return plain


def environment() -> dict[str, str]:
    """Return the versions that a result depends on."""
    import hypothesis  # noqa: PLC0415 - only its version is wanted

    return {
        "npudiff": VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hypothesis": hypothesis.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _detail(outcome: Outcome, failure: Failure) -> dict[str, Any]:
    component = outcome.job.subject.component
    detail: dict[str, Any] = {
        "line": component.describe(failure.case),
        "examples_to_finding": outcome.cases,
        "remembered": outcome.remembered,
        "flaky": outcome.flaky,
        "repeated": list(outcome.repeated),
        "alone": list(outcome.alone),
        "others": dict(outcome.others),
        "native": [one.name for one in outcome.job.subject.implementation.others if one.native],
        "region": conditions(outcome.region, component.axes) if outcome.region else [],
        "first": _first(outcome),
        "worst_case": _worst_case(outcome, failure),
        "known_answers": [one.plain for one in outcome.job.subject.known_in(failure.case)],
    }
    if failure.error is not None:
        detail["error"] = error_text(failure.error)
        detail["frames"] = list(frames(failure.error))
    if failure.comparison is None:
        return detail
    output = failure.comparison.worst_output
    detail["context"] = failure.comparison.context
    detail["output"] = output.name
    detail["also_wrong"] = {
        other.name: other.worst for other in failure.comparison.outputs if other is not output and other.worst > 1
    }
    detail["worst_ratio"] = output.worst
    if output.problem is not None:
        detail["problem"] = output.problem
        return detail
    inputs = component.inputs(failure.case)
    coordinates = coordinates_of(component, inputs, output)
    if output.only_gain:
        detail["gain"] = worst_gain(output, coordinates)
    detail["where"] = worst_element(output, coordinates)
    return detail | _described_output(output, coordinates, inputs)


def _described_output(
    output: OutputComparison,
    coordinates: Mapping[str, torch.Tensor],
    inputs: AnyInputs,
) -> dict[str, Any]:
    """Say in words where it is wrong, and what others would say; a defect in that is told, and costs no finding."""
    try:
        return {
            "pattern": describe_pattern(output, coordinates),
            "instead": explain_misplaced(output, coordinates, getattr(inputs, output.name, None)),
            "likely": likely_mistakes(output),
            "published_criteria": [to_plain(verdict) for verdict in published_verdicts(output)],
        }
    except Exception as error:  # noqa: BLE001 - whatever it is, the finding is worth more
        return {"pattern": [f"npudiff could not describe it, please report: {error_text(error)}"]}


def frames(error: BaseException) -> tuple[str, ...]:
    """Where it was raised, as ``npudiff.model.frames`` says it, in whichever process."""
    return error.frames if isinstance(error, RemoteError) else frames_of(error)


def error_text(error: BaseException) -> str:
    """The exception's type and text, with line breaks marked: device errors have several lines."""
    text = str(error) if isinstance(error, RemoteError) else f"{type(error).__name__}: {error}"
    lines = text[:2000].splitlines()
    return " | ".join(printable(line.strip()) for line in lines if line.strip())


def _first(outcome: Outcome) -> dict[str, Any]:
    """The failing case as it was drawn; being larger, it shows the pattern better than the smallest one."""
    failure, component = outcome.first_failure, outcome.job.subject.component
    if failure is None or outcome.failure is None or failure.case == outcome.failure.case:
        return {}
    first: dict[str, Any] = {"line": component.describe(failure.case)}
    if failure.comparison is not None and failure.comparison.worst_output.problem is None:
        output = failure.comparison.worst_output
        inputs = component.inputs(failure.case)
        coordinates = coordinates_of(component, inputs, output)
        first |= _described_output(output, coordinates, inputs)
    return first


def _worst_case(outcome: Outcome, failure: Failure) -> dict[str, Any]:
    """The failing case that is off furthest, where it is another one: the smallest is often just beyond its bound."""
    worst = outcome.worst_failure
    if worst is None or worst.comparison is None or worst.case == failure.case:
        return {}
    smallest = 0.0 if failure.comparison is None else failure.comparison.worst
    if worst.comparison.worst <= smallest:
        return {}
    line = outcome.job.subject.component.describe(worst.case)
    output = max(worst.comparison.outputs, key=lambda one: one.worst)
    return {"line": line, "case": _plain_case(worst.case), "output": output.name, "ratio": output.worst}


def coordinates_of(component: Component, inputs: AnyInputs, output: OutputComparison) -> Mapping[str, torch.Tensor]:
    """Where each element is, in the component's words; by index where a relation compared other rows."""
    named = component.coordinates(inputs, output.name)
    if named and all(_broadcasts(values, output.ratio) for values in named.values()):
        return named
    sizes = output.ratio.shape if output.ratio is not None else ()
    shapes = [[-1 if place == axis else 1 for place in range(len(sizes))] for axis in range(len(sizes))]
    of_rows = _ranks_of_rows(component, inputs, output.name)
    first = {"rank": of_rows.reshape(shapes[0])} if sizes and len(of_rows) == sizes[0] else {}
    return first | {f"index {axis}": torch.arange(size).reshape(shapes[axis]) for axis, size in enumerate(sizes)}


def _ranks_of_rows(component: Component, inputs: AnyInputs, name: str) -> torch.Tensor:
    """The rank that returns each row of an output; empty where there are no ranks."""
    ranks = component.ranks
    if ranks is None:
        return torch.empty(0, dtype=torch.int64)
    rows = torch.tensor(list(ranks.rows(inputs, name)), dtype=torch.int64)
    return torch.repeat_interleave(torch.arange(len(rows)), rows)


def _broadcasts(values: torch.Tensor, ratio: torch.Tensor | None) -> bool:
    """A relation may compare some rows only; then coordinates of all rows say nothing about them."""
    if ratio is None or values.dim() != ratio.dim():
        return False
    return all(have in (1, want) for have, want in zip(values.shape, ratio.shape, strict=True))
