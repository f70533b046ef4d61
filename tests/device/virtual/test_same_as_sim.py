"""What an implementation computes on the virtual NPU is, bit for bit, what it computes on the simulator."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from draws import drawn
from npudiff.judge.compare import compare
from npudiff.judge.judge import TraceExecutor
from npudiff.model.component import Subject
from npudiff.model.constraints import Constraints
from npudiff.run.discovery import load_components, load_target, select_implementations

pytestmark = pytest.mark.virtual

CASES = 12
COMPONENTS = {component.name: component for component in load_components([])}
RIGHT = [item for item in select_implementations(COMPONENTS.values(), []) if item.wrong is None]
IMPLEMENTATIONS = [item for item in RIGHT if COMPONENTS[item.component].ranks is None]
OF_RANKS = [item for item in RIGHT if item not in IMPLEMENTATIONS]


@pytest.fixture(scope="module")
def targets():
    return [load_target(name, None) for name in ("virtual", "sim")]


def tensors_of(value):
    """Yield the tensors of an answer, wherever they are in it, on the host."""
    if isinstance(value, torch.Tensor):
        yield value.detach().cpu().clone()  # it may be live memory, which later steps write to
    elif isinstance(value, dict):
        for name in sorted(value):
            yield from tensors_of(value[name])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_of(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors_of(getattr(value, field.name))


class Recording(Subject):
    """A subject that remembers every answer of its implementation."""

    def call_guarded(self, question, *given):
        answer = super().call_guarded(question, *given)
        self.__dict__.setdefault("answers", []).extend(tensors_of(answer))
        return answer


def answers(component, item, target, case):
    """Return all tensors that an implementation gives for a case, up to and including its rejection, if it rejects."""
    subject = Recording(component, item, target)
    with target.activate():
        if component.history is not None:
            assert TraceExecutor(subject).run_to(case).holds
        else:
            subject.run(component.inputs(case))
    return subject.__dict__["answers"]


def bits(tensor):
    """Return the bytes of a tensor; two NaN of different payloads are not the same here."""
    return (
        tensor.dtype,
        tuple(tensor.shape),
        bytes(tensor.flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8).numpy().tobytes()),
    )


@pytest.mark.parametrize("item", IMPLEMENTATIONS, ids=lambda item: f"{item.component}-{item.name}")
def test_the_same_bits(item, targets, at_most):
    component = COMPONENTS[item.component]
    within = item.constraints.within(Constraints())
    for case in drawn(component, within, at_most(CASES)):
        virtual, sim = (answers(component, item, target, case) for target in targets)
        assert virtual, "nothing was compared"
        assert [bits(tensor) for tensor in virtual] == [bits(tensor) for tensor in sim], component.describe(case)


@pytest.mark.parametrize("item", OF_RANKS, ids=lambda item: f"{item.component}-{item.name}")
def test_what_ranks_compute_with_hccl_is_right(item, targets, at_most):
    """Not bit for bit: HCCL and npudiff's own collectives add what ranks have in another order."""
    component = COMPONENTS[item.component]
    subject = Subject(component, item, targets[0])
    with targets[0].activate():
        for case in drawn(component, item.constraints.within(Constraints()), at_most(CASES)):
            inputs = component.inputs(case)
            compared = compare(subject.expected(inputs), subject.run(inputs))
            assert compared.holds, component.describe(case)
