"""That a call which is captured in a graph gives, replayed for other inputs of its shapes, what plain calls give.

A graph keeps addresses, kernels, and whatever the host knew when it was captured; only what lies in memory is new. So
what the host reads of a tensor, decides by it, or computes from it beforehand, is the captured batch's for ever.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from npudiff.judge.compare import same_bits
from npudiff.model.anything import AnyCase, AnyInputs
from npudiff.model.component import Comparison, NotApplicable, Property, Subject
from npudiff.model.constraints import SEEDS
from npudiff.model.implementation import Capture, NotCaptured
from npudiff.model.operators import tensors_in
from npudiff.model.returned import outputs_of, owned_tensor, plain_error

if TYPE_CHECKING:
    import torch

MOST_MATES = 3
"""Other inputs for which a graph is replayed."""


def _replays_as_eager(subject: Subject, case: AnyCase) -> Comparison:
    """Make a call as a dummy run does, capture one, and replay it for others' inputs, and for its own at last."""
    component, capture = subject.component, subject.target.capture
    if capture is None or subject.implementation.untrusted:
        raise NotApplicable("calls of it cannot be captured here")
    mates = list(mates_of(subject, case))
    if not mates:
        raise NotApplicable("no other case has inputs of the same shapes and numbers")
    graph = _Graph(subject, capture, component.inputs(case).to(subject.target.device))
    worst = Comparison(())
    for other in (*mates, case):
        inputs = component.inputs(other)
        right = subject.fresh().run(inputs)
        graph.holds(inputs)
        told = "its own data again" if other is case else component.describe(other)
        compared = same_bits(right, graph.replayed(), f"a plain call, and a replay of a graph, for {told}")
        if not compared.holds:
            return compared
        worst = max(worst, compared, key=lambda one: one.worst)
    return worst


def mates_of(subject: Subject, case: AnyCase) -> Iterator[AnyCase]:
    """Yield legal cases for which a graph of this one can be replayed: other data, and fewer real rows if there are."""
    seed = getattr(case, "seed", None)
    named = list(subject.component.padded(case))
    given = subject.component.inputs(case)
    others = [*named[: MOST_MATES - 1], case] if seed is not None else named[:MOST_MATES]
    for step, one in enumerate(others, 5):
        other = one if seed is None else replace(one, seed=(seed + step) % SEEDS)
        try:
            subject.component.check_case(other)
        except ValueError:
            continue
        if subject.reason_against(other) is None and fits(given, subject.component.inputs(other)):
            yield other


def fits(one: object, other: object) -> bool:
    """Return whether inputs differ in nothing but the elements of their tensors: shapes, strides and numbers agree."""
    if hasattr(one, "untyped_storage"):
        tensor, its = _form(one), _form(other)
        return tensor == its
    if dataclasses.is_dataclass(one):
        names = [field.name for field in dataclasses.fields(one)]
        return type(one) is type(other) and all(fits(getattr(one, name), getattr(other, name)) for name in names)
    return bool(one == other)


def _form(tensor: Any) -> object:  # noqa: ANN401 - a tensor, or what stands in its place
    return hasattr(tensor, "stride") and (tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), tensor.dtype)


class _Graph:
    """A captured call, and the memory that it reads."""

    def __init__(self, subject: Subject, capture: Capture, memory: AnyInputs) -> None:
        self._subject, self._memory = subject, memory
        live, target, names = subject.implementation.fresh(), subject.target, subject.component.outputs
        self._outputs: dict[str, torch.Tensor] = {}

        def call() -> None:
            self._outputs = outputs_of(live(memory, target), names, lambda tensor, _: tensor)  # type: ignore[arg-type, return-value]

        def take() -> None:
            try:
                self._replay = capture(call, memory)
            except NotCaptured:
                raise
            except Exception as error:
                raised = plain_error(error)
                why = f"the call raises since it is captured: {type(raised).__name__}: {raised}"
                raise NotCaptured(why).with_traceback(error.__traceback__) from error

        subject.call_guarded(call, memory)
        subject.call_guarded(take, memory)  # which takes an exit for what it is as well

    def holds(self, inputs: AnyInputs) -> None:
        """Put inputs where those of the captured call were."""
        for there, given in zip(tensors_in(self._memory), tensors_in(inputs), strict=True):
            there.copy_(given)

    def replayed(self) -> Mapping[str, torch.Tensor]:
        """Replay the call, and return copies of its outputs on the host."""
        self._subject.call_guarded(self._replay, self._memory)
        return {name: owned_tensor(tensor, name) for name, tensor in self._outputs.items()}


REPLAYS_AS_EAGER = Property(
    "replays_as_eager",
    "a call that is captured in a graph gives, replayed for other inputs, what plain calls give",
    _replays_as_eager,
    example_ratio=0.08,
    in_place=True,
)
