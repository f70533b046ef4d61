"""What is right after any steps: the states of every request, and what one step makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from npudiff.reference.bounds import Expected, exactly, unspecified
from npudiff.reference.causal_conv import CausalConvInputs, causal_conv
from npudiff.reference.gated_delta import GatedDeltaInputs, gated_delta
from npudiff.reference.state_pools.contract import LayerTokens, StatePoolsInputs
from npudiff.reference.state_pools.steps import (
    Decode,
    Evict,
    Extend,
    Fork,
    Free,
    Restore,
    Roster,
    Step,
    Verify,
    in_words,
)

Batch = Sequence[tuple[int, int]]
"""Requests of a step with the rows of each, one after the other."""


@dataclass(frozen=True)
class StatePoolsHistory:
    """Pools, and the steps that were taken on them."""

    pools: StatePoolsInputs
    """What the pools are opened with."""
    steps: tuple[tuple[Step, LayerTokens], ...]
    """Pairs of a step and the tokens that it brings, those of padded rows last."""


@dataclass(frozen=True)
class _Held:
    """The states of one request."""

    line: torch.Tensor
    """``[width - 1, channels]``: the last rows in front of the convolution, which are exact."""
    state: Expected
    """``[heads, value_dim, key_dim]``: what it is, and how far a device may be. Once a device has said what it holds,
    that, with a bound of 0: each step is judged from there, and no bound grows with their number."""


class StatePoolsReference:
    """What a pair of pools holds and answers, step by step.

    A step is ``begin``, which says what the convolution gives; ``finish`` with what a device made of that, which says
    what the rule gives; and ``observe`` with what the device then holds.

    Parameters
    ----------
    inputs : StatePoolsInputs
        What the pools are opened with.

    Attributes
    ----------
    roster : Roster
        Who is there.
    """

    def __init__(self, inputs: StatePoolsInputs) -> None:
        self.roster = Roster(inputs.requests, inputs.drafts)
        self._inputs = inputs
        self._live: dict[int, _Held] = {}
        self._evicted: dict[int, _Held] = {}

    def begin(self, step: Step, new: LayerTokens) -> Expected:
        """Return what the convolution gives of the rows of a step, ``[rows, channels]``; nothing has changed yet.

        Raises
        ------
        ValueError
            If the step makes no sense now.
        """
        reason = self.roster.reason_against(step)
        if reason is not None:
            raise ValueError(f"{in_words(step)}: {reason}")
        batch, inputs = self.batch(step), self._inputs
        if not batch:
            return unspecified(exactly(new.mixed), torch.ones(len(new.mixed), dtype=torch.bool))
        convolution = CausalConvInputs(
            x=new.mixed,
            weight=inputs.weight,
            bias=inputs.bias,
            lines=torch.stack([self._held(request).line for request, _ in batch]),
            lengths=tuple(rows for _, rows in batch),
            line_of=torch.arange(len(batch), dtype=torch.int32),
            activation=inputs.activation,
            rounding=inputs.rounding,
        )
        return causal_conv(convolution)["output"]

    def finish(self, step: Step, new: LayerTokens, convolved: torch.Tensor) -> Expected:
        """Take a step, and return what the rule gives of rows that were convolved, ``[rows, heads, value_dim]``."""
        batch, inputs = self.batch(step), self._inputs
        shape = (len(new.mixed), inputs.heads, inputs.value_dim)
        value = torch.zeros(shape, dtype=torch.float64)
        output = Expected(value, torch.full_like(value, torch.inf), inputs.weight.dtype)
        match step:
            case Extend():
                self._extend(batch, new, convolved, output)
            case Decode(requests):
                self._advance(batch, [1] * len(requests), new, convolved, output)
            case Verify(_, accepted):
                self._advance(batch, accepted, new, convolved, output)
            case Fork(source, request):
                self._live[request] = self._live[source]
            case Evict(request):
                self._evicted[request] = self._live.pop(request)
            case Restore(request):
                self._live[request] = self._evicted.pop(request)
            case Free(request):
                del self._live[request]
        self.roster.take(step)
        return output

    def states(self) -> dict[str, Expected]:
        """Return the states of all live requests, in the order in which they came to be: ``lines`` and ``states``."""
        nobody = self._held(-1)
        held = [nobody, *(self._live[request] for request in self.roster.live)]
        parts = [(one.line, one.state.value, one.state.bound) for one in held]
        lines, values, bounds = (torch.stack(one)[1:] for one in zip(*parts, strict=True))
        return {"lines": exactly(lines), "states": Expected(values, bounds, self._inputs.state_dtype)}

    def observe(self, states: torch.Tensor) -> None:
        """Go on from the states that a device says it has, ``[live requests, heads, value_dim, key_dim]``."""
        for request, state in zip(self.roster.live, states, strict=True):
            self._live[request] = _Held(self._live[request].line, exactly(state))

    def batch(self, step: Step) -> Batch:
        """Return the requests of a step that brings rows, and the rows of each; padded ones are left out."""
        match step:
            case Extend(requests, tokens):
                return tuple(zip(requests, tokens, strict=True))
            case Decode(requests):
                return tuple((request, 1) for request in requests)
            case Verify(requests):
                return tuple((request, self._inputs.drafts) for request in requests)
        return ()

    def _held(self, request: int) -> _Held:
        """The states of a request, zeros of one that is new."""
        if request in self._live:
            return self._live[request]
        inputs = self._inputs
        line = torch.zeros(inputs.width - 1, inputs.weight.shape[1], dtype=inputs.weight.dtype)
        return _Held(line, exactly(torch.zeros(inputs.heads, inputs.value_dim, inputs.key_dim).to(inputs.state_dtype)))

    def _extend(self, batch: Batch, new: LayerTokens, convolved: torch.Tensor, output: Expected) -> None:
        """Requests with rows of any number: a slot of the pool for the first state of each, and one for its last."""
        held = [self._held(request) for request, _ in batch]
        pool = torch.stack([one.state.value for one in held] * 2).to(self._inputs.state_dtype)
        ends = torch.tensor([rows for _, rows in batch]).cumsum(dim=0) - 1
        slots = torch.full((len(new.mixed),), -1, dtype=torch.int32)
        slots[ends] = torch.arange(len(batch), 2 * len(batch), dtype=torch.int32)
        found = self._rule(new, convolved, pool, tuple(rows for _, rows in batch), slots, chunked=self._inputs.chunked)
        output.value.copy_(found["output"].value)
        output.bound.copy_(found["output"].bound)
        for place, ((request, rows), one) in enumerate(zip(batch, held, strict=True)):
            last = int(ends[place]) + 1
            self._live[request] = _Held(
                _behind(one.line, new.mixed[last - rows : last]), _part(found["states"], len(batch) + place)
            )

    def _advance(
        self, batch: Batch, kept: Sequence[int], new: LayerTokens, convolved: torch.Tensor, output: Expected
    ) -> None:
        """Requests with as many rows each, as more heads of one sequence whose states are all kept."""
        if not batch:
            return
        held, rows, heads = [self._live[request] for request, _ in batch], batch[0][1], self._inputs.heads
        real = slice(len(batch) * rows)
        first = torch.cat([one.state.value for one in held]).to(self._inputs.state_dtype)
        pool = first.expand(1 + rows, *first.shape).contiguous()
        slots = torch.arange(1, 1 + rows, dtype=torch.int32)
        found = self._rule(new.taken(real), convolved[real], pool, (rows,), slots, requests=len(batch))
        by_request = (rows, len(batch), heads, self._inputs.value_dim)
        for mine, theirs in ((output.value, found["output"].value), (output.bound, found["output"].bound)):
            mine[real] = theirs.view(by_request).transpose(0, 1).flatten(0, 1)
        for place, ((request, _), one, count) in enumerate(zip(batch, held, kept, strict=True)):
            state = _part(found["states"], count, slice(place * heads, (place + 1) * heads)) if count else one.state
            fresh = new.mixed[place * rows : place * rows + count]
            self._live[request] = _Held(_behind(one.line, fresh), state)

    def _rule(
        self,
        new: LayerTokens,
        convolved: torch.Tensor,
        pool: torch.Tensor,
        lengths: tuple[int, ...],
        slots: torch.Tensor,
        *,
        requests: int = 1,
        chunked: bool = False,
    ) -> Mapping[str, Expected]:
        """The gated delta rule, of so many requests side by side as heads of one sequence."""

        def beside(rows: torch.Tensor) -> torch.Tensor:
            """From ``[requests * tokens, heads, ...]`` to ``[tokens, requests * heads, ...]``."""
            by_request: torch.Tensor = rows.reshape(requests, -1, *rows.shape[1:])
            return by_request.transpose(0, 1).flatten(1, 2)

        query, key, value = (beside(one) for one in self._inputs.split(convolved))
        gate, channel_gate = (None if one is None else beside(one) for one in (new.gate, new.channel_gate))
        first = torch.arange(len(lengths), dtype=torch.int32)
        inputs = GatedDeltaInputs(
            query, key, value, beside(new.beta), pool, lengths, first, slots, self._inputs.scale, gate,
            channel_gate, self._inputs.raw, chunked,
        )  # fmt: skip
        return gated_delta(inputs)


def _behind(line: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The last rows in front of a convolution, as many as there were."""
    return torch.cat([line, rows])[len(rows) :]


def _part(pool: Expected, slot: int, heads: slice = slice(None)) -> Expected:
    return Expected(pool.value[slot, heads], pool.bound[slot, heads], pool.dtype)


def state_pools(history: StatePoolsHistory) -> dict[str, Expected]:
    """Return what can be seen after some steps.

    Where no device says what it holds, each step goes on from the right states, rounded to their dtypes.

    Returns
    -------
    dict
        ``convolved`` and ``output`` of the rows of the last step, as in ``StatePools``; ``lines`` and ``states`` of all
        live requests, in the order in which they came to be live.

    Raises
    ------
    ValueError
        If a step makes no sense where it stands.

    Notes
    -----
    Composed of ``causal_conv`` and ``gated_delta``, with their bounds. How backends keep states: sglang 0.5.23,
    ``mem_cache/memory_pool.py`` 505-1240 and ``attention/ascend_gdn_backend.py``; vllm-ascend, ``ops/gdn.py``.
    """
    reference, pools = StatePoolsReference(history.pools), history.pools
    dtype = pools.weight.dtype
    rows = {
        "convolved": exactly(torch.zeros(0, pools.weight.shape[1], dtype=dtype)),
        "output": exactly(torch.zeros(0, pools.heads, pools.value_dim, dtype=dtype)),
    }
    for step, new in history.steps:
        reference.observe(reference.states()["states"].value.to(pools.state_dtype))
        convolved = reference.begin(step, new)
        rows = {"convolved": convolved, "output": reference.finish(step, new, convolved.value.to(dtype))}
    return {**rows, **reference.states()}


def coordinates_of(history: StatePoolsHistory) -> tuple[Iterable[tuple[int, int]], Iterable[int]]:
    """Return request and token of each row of the last step, padded ones as -1, and the requests that are live."""
    reference = StatePoolsReference(history.pools)
    rows: list[tuple[int, int]] = []
    for step, new in history.steps:
        before = dict(reference.roster.live)
        rows = [(request, before.get(request, 0) + one) for request, count in reference.batch(step)
                for one in range(count)]  # fmt: skip
        rows += [(-1, -1)] * (len(new.mixed) - len(rows))
        reference.roster.take(step)
    return rows, list(reference.roster.live)
