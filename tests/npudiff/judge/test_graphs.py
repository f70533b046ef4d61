"""A call that is captured in a graph has to give, replayed for other inputs of its shapes, what plain calls give."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from npudiff.device.graphs import recorded
from npudiff.judge.graphs import REPLAYS_AS_EAGER, fits, mates_of
from npudiff.judge.judge import property_of_mutant
from npudiff.judge.others import properties_with_others
from npudiff.model.component import ImplementationRaised, NotApplicable
from npudiff.model.implementation import NotCaptured


@dataclass(frozen=True)
class Given:
    """A number for each row, and a number that the host knows."""

    x: torch.Tensor
    factor: int = 2

    def to(self, device):
        return replace(self, x=self.x.to(device))


@dataclass(frozen=True)
class Case:
    """Rows, of which some are padding."""

    rows: int
    padded: int = 0
    seed: int = 1


def given_of(case):
    generator = torch.Generator().manual_seed(case.seed)
    x = torch.rand(case.rows + case.padded, generator=generator)
    x[case.rows :] = -1
    return Given(x)


@pytest.fixture
def subject(toy):
    """A subject of a function on numbers, whose target captures as the simulator does."""

    def of(function, **changes):
        found = toy.job(function).subject
        component = replace(
            found.component,
            case_type=Case,
            inputs=given_of,
            check_case=lambda case: None,
            values=lambda case: {},
            describe=str,
            padded=lambda case: [replace(case, rows=case.rows - 1, padded=case.padded + 1)] if case.rows > 1 else [],
        )
        item = replace(found.implementation, graph=True, **changes)
        return replace(found, component=component, implementation=item, target=replace(found.target, capture=recorded))

    return of


def judged(subject, case=Case(4)):
    return REPLAYS_AS_EAGER.check(subject, case)


def test_a_call_that_only_launches_is_right(subject):
    assert judged(subject(lambda inputs, target: inputs.x * inputs.factor + 1)).holds


def test_views_writes_in_place_and_other_shapes_in_place_are_replayed(subject):
    def function(inputs, target):
        doubled = inputs.x.clone().unsqueeze_(1)
        doubled[:2].mul_(2)
        found = torch.empty(0)
        torch.add(doubled.expand(-1, 3), 1, out=found)
        return found.sum(dim=1).squeeze_(-1)

    assert judged(subject(function)).holds


def test_what_is_computed_beforehand_is_the_captured_batchs(subject):
    def opens():
        kept = []

        def function(inputs, target):
            kept.append(inputs.x * 2)
            return kept[0] + 0 * inputs.x

        return function

    found = judged(subject(opens(), factory=opens))
    assert not found.holds
    assert "a replay of a graph" in found.context


@pytest.mark.parametrize(
    ("reads", "said"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x.numpy(), "numpy"),
        (lambda x: x.cpu(), "cpu"),
        (lambda x: bool((x > 0).any()), "_local_scalar_dense"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "index"),
        (lambda x: (x + 1).relu().tolist(), "tolist"),
    ],
)
def test_what_the_host_reads_is_a_finding(subject, reads, said):
    def function(inputs, target):
        reads(inputs.x)
        return inputs.x * 2

    with pytest.raises(ImplementationRaised, match=said) as raised:
        judged(subject(function))
    assert isinstance(raised.value.__cause__, NotCaptured)


def test_the_host_may_read_what_does_not_come_from_the_inputs(subject):
    def function(inputs, target):
        table = torch.arange(3)
        assert table.tolist() == [0, 1, 2]
        assert int(table[table > 1].sum()) == 2
        return inputs.x[: len(table)] * 2

    assert judged(subject(function)).holds


def test_what_a_capture_breaks_is_told_as_that(subject):
    def function(inputs, target):
        calls.append(1)
        if len(calls) == 2:  # the dummy run is the first
            raise RuntimeError("no stream is left")
        return inputs.x * 2

    calls = []
    with pytest.raises(ImplementationRaised, match="since it is captured: RuntimeError: no stream is left"):
        judged(replace(subject(function), component=replace(subject(function).component, padded=lambda case: [])))


@pytest.mark.parametrize("leaves", [SystemExit(0), pytest.skip.Exception("not today"), GeneratorExit()], ids=repr)
def test_who_leaves_when_it_is_captured_is_a_finding(subject, leaves):
    def function(inputs, target):
        calls.append(1)
        if len(calls) == 2:  # the dummy run is the first
            raise leaves
        return inputs.x * 2

    calls = []
    with pytest.raises(ImplementationRaised):
        judged(subject(function))


def test_fewer_real_rows_come_first_and_then_other_data(subject):
    mates = list(mates_of(subject(lambda inputs, target: inputs.x), Case(3)))
    assert [(mate.rows, mate.padded) for mate in mates] == [(2, 1), (3, 0)]
    assert len({Case(3).seed, *(mate.seed for mate in mates)}) == 3


def test_a_padded_row_that_counts_shows(subject):
    """The longest real row is looked for once: by the dummy run, when all rows were real."""

    def opens():
        kept = []

        def function(inputs, target):
            kept.append((inputs.x >= 0).clone())
            return torch.where(kept[0], inputs.x, 0.0)

        return function

    assert not judged(subject(opens(), factory=opens), Case(4)).holds


def test_inputs_fit_where_only_elements_differ():
    rows = torch.zeros(2, 3)
    assert fits(Given(rows), Given(rows + 1))
    assert not fits(Given(rows), Given(rows, factor=3))
    assert not fits(Given(rows), Given(rows.t().contiguous().t()))
    assert not fits(Given(rows), Given(rows.double()))
    assert not fits(Given(rows), Given(None))


def test_nothing_is_said_without_graphs_or_without_another_batch(subject):
    plain = subject(lambda inputs, target: inputs.x)
    with pytest.raises(NotApplicable, match="cannot be captured here"):
        judged(replace(plain, target=replace(plain.target, capture=None)))
    alone = replace(plain, component=replace(plain.component, inputs=lambda case: Given(torch.ones(2), case.seed)))
    with pytest.raises(NotApplicable, match="no other case"):
        judged(alone)


def test_only_who_says_so_is_captured(subject):
    found = subject(lambda inputs, target: inputs.x)
    assert REPLAYS_AS_EAGER in properties_with_others(found.component, found.implementation)
    plain = replace(found.implementation, graph=False)
    assert REPLAYS_AS_EAGER not in properties_with_others(found.component, plain)
    assert property_of_mutant(found.implementation) is REPLAYS_AS_EAGER
