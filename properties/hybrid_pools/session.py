"""Pools of an implementation beside the reference: every step is taken on both, and all that can be seen compared."""

from __future__ import annotations

import torch

from npudiff.judge.compare import compare
from npudiff.model.component import Comparison, OutputComparison, Subject
from npudiff.model.returned import shown, type_name
from npudiff.properties.hybrid_pools.case import HybridPoolsCase
from npudiff.properties.hybrid_pools.inputs import TokenSource, open_inputs
from npudiff.reference.hybrid_pools import (
    Allocate,
    Decode,
    Evict,
    Extend,
    Fork,
    Free,
    HybridPools,
    HybridPoolsReference,
    PoolsSnapshot,
    Preempt,
    Readmit,
    Share,
    Step,
    TokenStates,
    in_words,
    new_tokens,
)
from npudiff.reference.hybrid_pools.memory import LAYERS

_SHOWN = 3
"""Violations that are shown; what one mistake breaks is often broken everywhere."""


class PoolsSession:
    """Pools of an implementation and what the reference remembers of them.

    The implementation gets copies of tokens: some scale them in place before they write them.

    Parameters
    ----------
    subject : Subject
        The implementation.
    case : HybridPoolsCase
        Sizes and seed; its steps are not taken.
    """

    def __init__(self, subject: Subject, case: HybridPoolsCase) -> None:
        inputs = open_inputs(case)
        self._subject = subject
        self._source = TokenSource(case)
        self._reference = HybridPoolsReference(inputs)
        self._pools: HybridPools = subject.create(inputs)

    def take(self, step: Step) -> Comparison:
        """Take a step; compare its answer, where everything lies, and the attention of all live requests."""
        ledger, memory = self._reference.ledger, self._reference.memory
        new = self._source.next(sum(new_tokens(step).values()))
        states = memory.waiting[step.request].states if isinstance(step, Readmit) else new.states
        needed, room = ledger.pages_needed(step), (ledger.free_pages, ledger.free_sliding_pages)
        taken = self._reference.take(step, new)
        answer = self._subject.call_guarded(lambda: self._call(step, states.copy()))
        outputs = [self._answer(step, answer, taken=taken, needed=needed, room=room)]
        if outputs[0].problem is None:
            outputs += [self._pages(), *self._attention()]
        return Comparison(tuple(outputs), f"after {in_words(step)}")

    def _call(self, step: Step, states: TokenStates) -> bool | None:
        """Take a step on the implementation, which knows neither preemption nor re-admission."""
        pools, answer = self._pools, None
        match step:
            case Allocate(request, _) | Readmit(request):
                answer = pools.allocate(request, states)
            case Extend(request, _):
                answer = pools.extend(request, states)
            case Decode(requests):
                answer = pools.decode(requests, states)
            case Share(source, request, pages, _):
                answer = pools.share(source, request, pages, states)
            case Fork(source, request):
                answer = pools.fork(source, request)
            case Evict(requests):
                pools.evict(requests)
            case Free(request) | Preempt(request):
                pools.free(request)
        return answer

    def _answer(
        self, step: Step, answer: object, *, taken: bool, needed: int, room: tuple[int, int]
    ) -> OutputComparison:
        """Whether the step was taken; evictions and frees always are, and answer nothing."""
        if isinstance(step, Evict | Free | Preempt) or answer is taken:
            return OutputComparison("answer")
        given = f"answered {shown(answer)}, expected {taken}"
        return OutputComparison("answer", f"{given}: it needs {needed} pages, free are {room[0]} and {room[1]}")

    def _pages(self) -> OutputComparison:
        """Where everything lies, as far as the implementation tells."""
        snapshot: object = self._subject.call_guarded(lambda: self._pools.snapshot())  # noqa: PLW0108 - the name is looked up there
        if snapshot is not None and type(snapshot) is not PoolsSnapshot:
            given = f"snapshot answered {type_name(snapshot)}, expected PoolsSnapshot or None"
            return OutputComparison("pages", given)
        found = [] if snapshot is None else self._reference.violations(snapshot)
        return OutputComparison("pages", "; ".join(found[:_SHOWN]) or None)

    def _attention(self) -> tuple[OutputComparison, ...]:
        """Attention of all live requests over both pools."""
        rows = self._reference.rows
        if not rows:
            return ()
        live = self._reference.memory.live
        query = torch.cat([live[request].query[len(live[request]) - count :] for request, count in rows.items()])
        lengths = tuple(rows.values())
        actual = self._subject.outputs_of_call(lambda: self._pools.attend(tuple(rows), lengths, query), LAYERS)
        return compare(self._reference.attention(), actual).outputs
