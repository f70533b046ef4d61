"""Pools of an implementation beside the reference: every step is taken on both, and all that can be seen compared."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from npudiff.judge.compare import compare
from npudiff.model.component import Comparison, OutputComparison, Subject
from npudiff.properties.state_pools.case import StatePoolsCase
from npudiff.properties.state_pools.inputs import open_inputs, tokens_of
from npudiff.reference.state_pools import (
    Decode,
    Evict,
    Extend,
    Fork,
    Free,
    LayerTokens,
    Restore,
    StatePools,
    StatePoolsReference,
    Step,
    Verify,
    in_words,
    new_rows,
)

ROWS = ("convolved", "output")
STATES = ("lines", "states")


class StatePoolsSession:
    """Pools of an implementation and what the reference remembers of them.

    Every step is judged from the states that the implementation had before it, which were right: so no bound grows with
    the number of steps, and a state that no step may touch has to keep its bits.

    Parameters
    ----------
    subject : Subject
        The implementation.
    case : StatePoolsCase
        Sizes and seed; its steps are not taken.
    """

    def __init__(self, subject: Subject, case: StatePoolsCase) -> None:
        inputs = open_inputs(case)
        self._subject, self._case, self._taken = subject, case, 0
        self._reference = StatePoolsReference(inputs)
        self._pools: StatePools = subject.create(inputs)

    def take(self, step: Step) -> Comparison:
        """Take a step; compare what its rows give, and then the states of all live requests."""
        new = tokens_of(self._case, self._taken, new_rows(step, self._case.drafts))
        self._taken += 1
        given = self._rows(step, new.copy())
        found = self._compared_rows(step, new, given)
        if all(output.worst <= 1 for output in found):
            found += self._compared_states(step)
        return Comparison(tuple(found), f"after {in_words(step)}")

    def _compared_rows(
        self, step: Step, new: LayerTokens, given: Mapping[str, torch.Tensor] | None
    ) -> list[OutputComparison]:
        """Compare what the convolution gave, and what the rule made of that; of a step without rows nothing."""
        convolved = self._reference.begin(step, new)
        if given is None:
            self._reference.finish(step, new, new.mixed)
            return []
        missing = [OutputComparison(name, "was not returned") for name in ROWS if name not in given]
        first = missing or list(compare({"convolved": convolved}, {"convolved": given["convolved"]}).outputs)
        if any(output.worst > 1 for output in first):
            return first
        output = self._reference.finish(step, new, given["convolved"])
        return [*first, *compare({"output": output}, {"output": given["output"]}).outputs]

    def _compared_states(self, step: Step) -> list[OutputComparison]:
        """Compare the states of all live requests, after drafts were taken back."""
        if isinstance(step, Verify):
            self._subject.call_guarded(lambda: self._pools.accept(step.accepted))
        live = tuple(self._reference.roster.live)
        if not live:
            return []
        states = self._subject.outputs_of_call(lambda: self._pools.states(live), STATES)
        missing = [OutputComparison(name, "was not returned") for name in STATES if name not in states]
        found = missing or list(compare(self._reference.states(), states).outputs)
        if all(output.worst <= 1 for output in found):
            self._reference.observe(states["states"])
        return found

    def _rows(self, step: Step, tokens: LayerTokens) -> Mapping[str, torch.Tensor] | None:
        """Take a step on the implementation; None of one that brings no rows."""
        pools, subject = self._pools, self._subject
        match step:
            case Extend(requests, counts):
                return subject.outputs_of_call(lambda: pools.extend(requests, counts, tokens), ROWS)
            case Decode(requests):
                return subject.outputs_of_call(lambda: pools.decode(requests, tokens), ROWS)
            case Verify(requests):
                return subject.outputs_of_call(lambda: pools.verify(requests, tokens), ROWS)
            case Fork(source, request):
                subject.call_guarded(lambda: pools.fork(source, request))
            case Free(request):
                subject.call_guarded(lambda: pools.free(request))
            case Evict(request):
                subject.call_guarded(lambda: pools.evict(request))
            case Restore(request):
                subject.call_guarded(lambda: pools.restore(request))
        return None
