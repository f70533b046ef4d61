"""Whatever an implementation returns: it is judged if it is tensors, and told in one line if it is not.

Each return is given to every property of several components, those with a history included. Where it is wrong, its
finding is written with all that belongs to it.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import hostile_returns
from draws import drawn
from hostile_returns import HOSTILE, Angry, AngryError, angry
from npudiff.device.ascend.hybrid_pools import NativePools
from npudiff.findings.finding import read_finding
from npudiff.judge.judge import EQUIVALENCE, LocalJudge, properties_of
from npudiff.judge.memory import STAYS_WITHIN
from npudiff.model.component import NotApplicable, Subject
from npudiff.model.constraints import Constraints
from npudiff.model.implementation import Implementation
from npudiff.model.job import Job, Verdict
from npudiff.model.returned import InvalidOutput, Raised, owned_answer, owned_tensor, plain_error
from npudiff.properties.hybrid_pools.case import HybridPoolsCase
from npudiff.reference.hybrid_pools import Allocate, Decode
from npudiff.run.discovery import load_components, load_target, select_implementations
from npudiff.run.engine import run_case
from npudiff.show.finding import keep_findings

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of much that is made here

COMPONENTS = {component.name: component for component in load_components([])}
JUDGED = ("swa_mask", "rms_norm", "sliding_attention", "paged_cache", "moe_routing", "dynamic_quant")


def spoiled(right, make):
    """Return an implementation that returns what ``make`` makes of the right outputs."""

    def function(inputs, target):
        returned = right(inputs, target)
        outputs = dict(returned) if isinstance(returned, dict) else {COMPONENTS[right.component].outputs[0]: returned}
        return make(outputs, list(outputs)[-1])

    return function


@pytest.fixture(scope="module")
def rights():
    """The right implementation of each component, and cases for each of its properties."""
    target, found = load_target("sim", None), {}
    for name in JUDGED:
        right = next(item for item in select_implementations([COMPONENTS[name]], []) if item.wrong is None)
        cases = {}
        with target.activate():
            for prop in properties_of(COMPONENTS[name]):
                job = Job(Subject(COMPONENTS[name], right, target), prop, Constraints())
                cases[prop.name] = _applies(job)
        found[name] = (right, target, cases)
    return found


def _applies(job):
    """Return a small case of which the property says something; None where there is none among the first."""
    for case in drawn(job.subject.component, job.drawn_within, 40):
        try:
            if job.subject.reason_against(case) is None and LocalJudge(job).check(case).holds:
                return case
        except NotApplicable:
            continue
    return None


def said(outcome):
    """What is told of a failure."""
    failure = outcome.failure
    if failure.error is not None:
        return f"{type(failure.error).__name__}: {failure.error}"
    return failure.comparison.worst_output.problem or f"wrong value, {failure.comparison.context}"


@pytest.mark.few(44)
@pytest.mark.parametrize("name", JUDGED)
@pytest.mark.parametrize("hostile", HOSTILE)
def test_it_is_told_in_every_property(name, hostile, rights, tmp_path):
    make, pattern = HOSTILE[hostile]
    right, target, cases = rights[name]
    item = replace(right, name="hostile", function=spoiled(right, make), factory=None)
    judged = 0
    for prop in properties_of(COMPONENTS[name]):
        case = cases[prop.name]
        if case is None:
            continue
        outcome = run_case(Job(Subject(COMPONENTS[name], item, target), prop, Constraints()), case)
        judged += 1
        if pattern is None:
            assert outcome.verdict is Verdict.HOLDS, said(outcome)
        elif prop is STAYS_WITHIN:  # which leaves what is wrong without red zones to equivalence
            assert outcome.verdict is Verdict.NOT_APPLICABLE
        elif prop.name == "equivalence" or pattern not in ("shape", "dtype"):
            assert re.search(pattern, said(outcome)), said(outcome)
            assert "\n" not in said(outcome)
        if outcome.verdict is Verdict.HOLDS or prop.name != "equivalence":
            continue
        ((finding, folder),) = keep_findings(outcome, tmp_path)
        assert read_finding(folder).verdict == finding.verdict
        assert (folder / "finding.html").exists()
        assert "please report" not in (folder / "finding.json").read_text()
        assert "please report" not in (folder / "finding.html").read_text()
    assert judged > 1


class HostilePools(NativePools):
    """Right pools, of which one method answers something else."""

    method, answer = "", staticmethod(angry)

    def __getattribute__(self, name):
        own = object.__getattribute__(self, name)
        if name != type(self).method:
            return own
        return lambda *arguments: type(self).answer(own(*arguments))


def snapshots(change):
    """Return what changes fields of a snapshot."""
    return lambda right: replace(right, **change(right))


POOLS = {
    "attend": {name: lambda right, make=make: make(right, "sliding") for name, (make, _) in HOSTILE.items()},
    "snapshot": {
        "angry": lambda right: Angry(),
        "angry error": hostile_returns.raising(AngryError()),
        "a dict": vars,
        "a tuple": lambda right: (right,),
        "no slots": snapshots(lambda right: {"slots": None}),
        "slots in a list": snapshots(lambda right: {"slots": list(right.slots.values())}),
        "slots of text": snapshots(lambda right: {"slots": {str(r): row for r, row in right.slots.items()}}),
        "slots of angry": snapshots(lambda right: {"slots": {Angry(): row for row in right.slots.values()}}),
        "slots that are lists": snapshots(lambda right: {"slots": {r: row.tolist() for r, row in right.slots.items()}}),
        "slots of nobody": snapshots(lambda right: {"slots": {r - 10**9: row for r, row in right.slots.items()}}),
        "slots below 0": snapshots(lambda right: {"slots": {r: row - 10**6 for r, row in right.slots.items()}}),
        "fewer slots": snapshots(lambda right: {"slots": {r: row[:-1] for r, row in right.slots.items()}}),
        **{
            f"{field} {name}": snapshots(lambda right, field=field, make=make: {field: make(getattr(right, field))})
            for field in ("mapping", "block_table", "sliding_block_table", "free_pages", "free_sliding_pages")
            for name, make in {
                "none": lambda tensor: None,
                "list": torch.Tensor.tolist,
                "numpy": lambda tensor: tensor.numpy(),
                "float": torch.Tensor.float,
                "complex": lambda tensor: tensor.to(torch.complex64),
                "meta": lambda tensor: tensor.to("meta"),
                "sparse": lambda tensor: tensor.to_sparse(),
                "no axis": lambda tensor: tensor.sum(),
                "one axis more": lambda tensor: tensor[None],
                "none of it": lambda tensor: tensor[:0],
                "far": lambda tensor: tensor + 10**6,
                "below 0": lambda tensor: tensor - 10**6,
                "angry functions": hostile_returns.of_subclass(hostile_returns.AngryFunction),
                "angry operations": hostile_returns.of_subclass(hostile_returns.AngryDispatch),
            }.items()
        },
    },
    "allocate": {
        "angry": lambda right: Angry(),
        "a tensor": torch.tensor,
        "meta": lambda right: torch.tensor(right, device="meta"),
        "text": lambda right: "x" * 10**6,
        "one": lambda right: 1,
        "none": lambda right: None,
        "leaves": hostile_returns.raising(hostile_returns.Leaves("bye")),
    },
}
ANSWERS = [(method, name) for method, answers in POOLS.items() for name in answers]


def pools_outcome(function, tmp_path):
    target = load_target("sim", None)
    case = HybridPoolsCase(4, 8, 8, 3, 3, True, steps=(Allocate(0, 5), Decode((0,))))
    subject = Subject(COMPONENTS["hybrid_pools"], Implementation("hybrid_pools", "hostile", function), target)
    outcome = run_case(Job(subject, EQUIVALENCE, Constraints()), case)
    if outcome.failure is not None:
        ((_, folder),) = keep_findings(outcome, tmp_path)
        assert "\n" not in said(outcome)
        assert len(said(outcome)) < 1000
        for file in ("finding.json", "finding.html"):
            assert "please report" not in (folder / file).read_text()
    return outcome


@pytest.mark.few(30)
@pytest.mark.parametrize(("method", "name"), ANSWERS, ids=lambda one: one)
def test_it_is_told_of_a_component_with_history(method, name, tmp_path):
    kind = type("Pools", (HostilePools,), {"method": method, "answer": staticmethod(POOLS[method][name])})
    outcome = pools_outcome(kind, tmp_path)
    pattern = HOSTILE[name][1] if method == "attend" else None
    if pattern is not None:
        assert re.search(pattern, said(outcome)), said(outcome)
    right = (method == "attend" and pattern is None) or name.endswith("angry functions")
    assert outcome.verdict is Verdict.HOLDS if right else outcome.failure is not None


@pytest.mark.parametrize(
    "live",
    [None, 3, Angry, dict, lambda: torch.ones(1), object],
    ids=["none", "number", "angry", "dict", "function", "object"],
)
def test_a_live_object_that_is_none_is_told(live, tmp_path):
    made = live() if callable(live) else live
    assert pools_outcome(lambda inputs, target: made, tmp_path).verdict is Verdict.RAISED


@dataclass(frozen=True)
class Told:
    """An answer with a tensor in it."""

    row: torch.Tensor


@pytest.mark.parametrize("told", [list, tuple, dict, Told, torch.Tensor])
def test_an_answer_is_taken_over_with_the_tensors_in_it(told):
    buffer = torch.zeros(2)
    made = {list: [buffer], tuple: (buffer,), dict: {"row": buffer}, Told: Told(buffer), torch.Tensor: buffer}[told]
    taken = owned_answer(made)
    buffer += 1  # as the next call may
    assert type(taken) is told
    row = {list: lambda: taken[0], tuple: lambda: taken[0], dict: lambda: taken["row"], Told: lambda: taken.row}
    assert row.get(told, lambda: taken)().tolist() == [0.0, 0.0]


def test_an_answer_may_repeat_a_little_memory_or_have_none():
    assert owned_tensor(torch.ones(1).expand(5), "y").tolist() == [1.0] * 5
    assert owned_tensor(torch._efficientzerotensor(3), "y").tolist() == [0.0] * 3


@pytest.mark.parametrize("left", [0, 8, 15])
def test_an_answer_whose_memory_is_gone_in_part_is_told(left):
    lost = torch.ones(4)
    lost.untyped_storage().resize_(left)
    with pytest.raises(InvalidOutput, match=rf"one of shape \[4\] in memory of {left} bytes"):
        owned_tensor(lost, "y")


@pytest.mark.parametrize("odd", [{"__str__": lambda _: sys.exit(0)}, {"__eq__": angry, "__hash__": None}])
def test_an_answer_that_is_an_odd_exception_is_told_by_its_name(odd):
    told = plain_error(type("Odd", (ValueError,), odd)("no"))
    assert (type(told).__name__, type(told).__bases__) == ("Odd", (Raised,))
    error = KeyboardInterrupt()
    assert plain_error(error) is error


KERNELS = """
import sys

sys.path.insert(0, {support!r})
import npudiff
from hostile_returns import HOSTILE
from npudiff.device.ascend.swa_mask import window_mask

def made(make):
    def function(inputs, target):
        right = window_mask(inputs.kv_lengths.to(target.device), inputs.capacity, inputs.window)
        return make({{"mask": right}}, "mask")
    return function

for name, (make, _) in list(HOSTILE.items())[::4]:
    npudiff.implementation("swa_mask", name=name)(made(make))
"""


@pytest.mark.slow
def test_one_run_tells_all_of_them(cli, kernel, tmp_path):
    path = kernel(KERNELS.format(support=str(Path(hostile_returns.__file__).parent)))
    options = ("--target", "sim", "--examples", "1", "--seed", "1", "--workers", "1")
    result = cli("check", "swa_mask", "--impl", path, *options)
    assert result.code == 1, result.err
    findings = [json.loads(one.read_text()) for one in (tmp_path / ".npudiff" / "findings").glob("*/finding.json")]
    found = {one["implementation"] for one in findings if one["property_name"] == "equivalence"}
    assert found == {name for name, (_, pattern) in list(HOSTILE.items())[::4] if pattern is not None}
    assert len(found) > 12
    assert cli("report").code == 0
    page = (tmp_path / ".npudiff" / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in found)
