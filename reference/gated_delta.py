"""The gated delta rule over sequences whose states lie in a pool, in float64 with bounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from npudiff.reference.bounds import Expected, underflow_step, unit_roundoff
from npudiff.reference.gated_delta_chunk import Bounded, DeltaChunk
from npudiff.reference.gated_delta_tokens import DeltaState
from npudiff.reference.views import moved_inputs

NORM_EPSILON = 1e-6
"""Added to the sum of squares of a query or key that an operator normalises itself."""

CHUNK = 64
"""Tokens of a chunk. Calculations in chunks begin one at the first token of a sequence."""

CHUNK_OF_CHANNELS = 16
"""The same where decays are of channels, for which each pair of tokens has a number per channel, and where a device
goes token by token, so that it is the reference's own affair."""

PAIRS_OVER_STATES = 32
"""Numbers of pairs of tokens, by channel, that are computed together, over elements of states that are."""

STATES_TOGETHER = 2**17
"""Elements of states that are computed together: few enough to stay in a cache, of as many sequences as have them."""


@dataclass(frozen=True)
class GatedDeltaInputs:
    """One call for a batch of sequences, each of which goes on from a state of a pool, or from zeros."""

    query: torch.Tensor
    key: torch.Tensor
    """``[tokens, key_heads, key_dim]``, bfloat16. Rows beyond ``sum(lengths)`` are padding: nothing is said of their
    outputs."""
    value: torch.Tensor
    """``[tokens, heads, value_dim]``, bfloat16; value head ``h`` goes with key head ``h // (heads // key_heads)``."""
    beta: torch.Tensor
    """``[tokens, heads]``, bfloat16: how much of what is read is replaced; before its sigmoid if ``raw``."""
    states: torch.Tensor
    """``[slots, heads, value_dim, key_dim]``, bfloat16 or float32: the pool."""
    lengths: tuple[int, ...]
    """Tokens of each sequence."""
    initial: torch.Tensor
    """int32 ``[sequences]``: slot of the state with which a sequence begins; -1 for zeros."""
    slots: torch.Tensor
    """int32 ``[tokens]``: slot into which the state behind a token goes; -1 for nowhere. No two tokens have the same
    one, and no sequence begins with a state that another one writes."""
    scale: float
    """Factor of queries."""
    gate: torch.Tensor | None = None
    """float32 ``[tokens, heads]``: logarithm of the decay of a state before a token; None for none."""
    channel_gate: torch.Tensor | None = None
    """float32 ``[tokens, heads, key_dim]``: the same of the columns of a state."""
    raw: bool = False
    """Whether the call normalises queries and keys, ``x / sqrt(sum(x**2) + 1e-6)``, and takes the sigmoid of beta."""
    chunked: bool = False
    """Whether a device computes in chunks of 64 tokens with products in bfloat16, as the operator for prompts does."""

    def to(self, device: str | torch.device) -> GatedDeltaInputs:
        """Return the same inputs on ``device``; the pool is a copy, into which an implementation may write."""
        return moved_inputs(self, device, copies=("states",))


def gated_delta(inputs: GatedDeltaInputs) -> dict[str, Expected]:
    """Return the outputs of all tokens, and the pool with what is written.

    For each token and head, with the state ``S [value_dim, key_dim]``: ``S = S * exp(gate) * exp(channel_gate)``, by
    columns; ``d = beta * (v - S k)``; ``S = S + d k^T``; the output is ``scale * S q`` (Yang et al., "Gated Delta
    Networks", 2024, eq. 10; Kimi Team, "Kimi Linear", 2025, for channels). A state is bfloat16 or float32 where it is
    stored, and float32 while a call goes on.

    Returns
    -------
    dict
        ``output``: bfloat16 ``[tokens, heads, value_dim]``. ``states``: as the pool; a slot that no token writes has
        the bits that it had.

    Raises
    ------
    ValueError
        If shapes or slots contradict each other.
    """
    _validate(inputs)
    value = torch.zeros(inputs.value.shape, dtype=torch.float64)
    bound = torch.empty_like(value)
    bound[sum(inputs.lengths) :] = torch.inf
    pool = inputs.states.to(torch.float64)
    results = _Results(value, bound, pool, torch.zeros_like(pool))
    for part in _parts(inputs):
        _fill(inputs, part, results)
    return {
        "output": Expected(value, bound, inputs.value.dtype),
        "states": Expected(pool, results.pool_bound, inputs.states.dtype),
    }


@dataclass(frozen=True)
class _Results:
    """What is returned, float64: a bound is rounded where it is written."""

    value: torch.Tensor
    bound: torch.Tensor
    pool: torch.Tensor
    pool_bound: torch.Tensor


@dataclass(frozen=True)
class _Part:
    """Sequences of one length, and heads of them, that are computed together."""

    starts: torch.Tensor
    """int64 ``[sequences]``: their first tokens."""
    initial: torch.Tensor
    """int64 ``[sequences]``."""
    length: int
    heads: slice
    key_heads: slice

    def rows(self, first: int, last: int) -> torch.Tensor | slice:
        """Tokens of each sequence from one to another: ``[sequences, tokens]``, or of the only one."""
        if len(self.starts) == 1:
            start = int(self.starts)
            return slice(start + first, start + last)
        return self.starts.unsqueeze(1) + torch.arange(first, last)


def _parts(inputs: GatedDeltaInputs) -> Iterator[_Part]:
    """Yield parts of a batch whose states fit into a cache, together, or have one sequence and key head."""
    heads, value_dim, key_dim = inputs.states.shape[1:]
    key_heads = inputs.key.shape[1]
    share = heads // key_heads
    of_key_head = share * value_dim * key_dim
    if inputs.channel_gate is not None:
        tokens = min(_tokens_of_chunk(inputs), max(inputs.lengths, default=1))
        of_key_head = max(of_key_head, share * tokens * tokens * key_dim // PAIRS_OVER_STATES)
    alike: dict[int, list[tuple[int, int]]] = {}
    start = 0
    for length, first in zip(inputs.lengths, inputs.initial.tolist(), strict=True):
        alike.setdefault(length, []).append((start, first))
        start += length
    together = max(1, STATES_TOGETHER // max(1, of_key_head))
    for length, found in alike.items():
        sequences = max(1, together // max(1, key_heads))
        for place in range(0, len(found) if length else 0, sequences):
            starts, initial = torch.tensor(found[place : place + sequences]).unbind(1)
            for head in range(0, key_heads, together):
                own = slice(head, min(head + together, key_heads))
                yield _Part(starts, initial, length, slice(own.start * share, own.stop * share), own)


def _tokens_of_chunk(inputs: GatedDeltaInputs) -> int:
    """Tokens that are computed at once: those of a device where it has roundings of its own between chunks."""
    return CHUNK_OF_CHANNELS if inputs.channel_gate is not None and not inputs.chunked else CHUNK


def _fill(inputs: GatedDeltaInputs, part: _Part, results: _Results) -> None:
    """Compute a part, one chunk after the other."""
    states = inputs.states[part.initial.clamp(min=0), part.heads].to(torch.float64)
    states[part.initial < 0] = 0.0
    state, sequences = DeltaState.exact(states.flatten(0, 1)), len(part.starts)
    most = _tokens_of_chunk(inputs)
    for first in range(0, part.length, most):
        last = min(first + most, part.length)
        rows = part.rows(first, last)
        chunk = _chunk(inputs, part, rows, state)
        output = _rounded(chunk.outputs(), inputs.value.dtype)
        for whole, own in ((results.value, output.value), (results.bound, output.bound)):
            by_token = own.view(sequences, -1, *own.shape[1:]).transpose(1, 2)
            whole[:, part.heads][rows] = by_token[0] if isinstance(rows, slice) else by_token
        _keep(inputs, part, rows, chunk, results)
        if last < part.length:
            state = chunk.after()


def _keep(
    inputs: GatedDeltaInputs, part: _Part, rows: torch.Tensor | slice, chunk: DeltaChunk, results: _Results
) -> None:
    """Write the states behind tokens that have a slot into the pool."""
    slots = inputs.slots[rows].long().view(len(part.starts), -1)
    kept = (slots >= 0).any(dim=0).nonzero().flatten().tolist()
    size = max(1, STATES_TOGETHER // max(1, chunk.state.value.numel()))
    for place in range(0, len(kept), size):
        tokens = kept[place : place + size]
        behind = _rounded(chunk.states_behind(tokens), inputs.states.dtype)
        named = slots[:, tokens]
        written = named >= 0
        for whole, own in ((results.pool, behind.value), (results.pool_bound, behind.bound)):
            by_slot = own.reshape(len(named), -1, *own.shape[1:]).transpose(1, 2)  # [sequences, tokens, heads, ...]
            whole[:, part.heads][named[written]] = by_slot[written]


def _rounded(number: Bounded, dtype: torch.dtype) -> Bounded:
    """A number and its bound, which is stored in a dtype."""
    bound = (number.value.abs() + number.bound).mul_(unit_roundoff(dtype)).add_(number.bound)
    return Bounded(number.value, bound.add_(underflow_step(dtype)))


def _chunk(inputs: GatedDeltaInputs, part: _Part, rows: torch.Tensor | slice, state: DeltaState) -> DeltaChunk:
    share = (part.heads.stop - part.heads.start) // (part.key_heads.stop - part.key_heads.start)

    def by_head(tensor: torch.Tensor, heads: slice) -> torch.Tensor:
        """From ``[tokens, heads, ...]`` to ``[sequences * heads, tokens, ...]``, float64."""
        some = tensor[rows, heads] if isinstance(rows, slice) else tensor[:, heads][rows]
        wide = some.to(torch.float64)
        return wide.transpose(0, 1) if isinstance(rows, slice) else wide.transpose(1, 2).flatten(0, 1)

    def of_key_head(tensor: torch.Tensor) -> torch.Tensor:
        wide = by_head(tensor, part.key_heads)
        if inputs.raw:
            wide = wide / (wide.square().sum(dim=-1, keepdim=True) + NORM_EPSILON).sqrt()
        return wide if share == 1 else wide.repeat_interleave(share, dim=0)

    beta = by_head(inputs.beta, part.heads)
    gate = torch.zeros((), dtype=torch.float64).expand(beta.shape).unsqueeze(-1)
    if inputs.gate is not None:
        gate = by_head(inputs.gate, part.heads).unsqueeze(-1)
    if inputs.channel_gate is not None:
        gate = gate + by_head(inputs.channel_gate, part.heads)
    return DeltaChunk(
        state,
        of_key_head(inputs.query) * inputs.scale,
        of_key_head(inputs.key),
        by_head(inputs.value, part.heads),
        torch.sigmoid(beta) if inputs.raw else beta,
        gate,
        narrow=inputs.value.dtype if inputs.chunked else None,
        raw=inputs.raw,
    )


def _validate(inputs: GatedDeltaInputs) -> None:
    tokens, heads, value_dim = inputs.value.shape
    key_heads, key_dim = inputs.key.shape[1:]
    if heads % key_heads:
        raise ValueError(f"{heads} value heads are no multiple of {key_heads} key heads")
    wanted = {
        "query": (tokens, key_heads, key_dim), "key": (tokens, key_heads, key_dim), "beta": (tokens, heads),
        "states": (len(inputs.states), heads, value_dim, key_dim), "initial": (len(inputs.lengths),),
        "slots": (tokens,), "gate": (tokens, heads), "channel_gate": (tokens, heads, key_dim),
    }  # fmt: skip
    for name, shape in wanted.items():
        tensor = getattr(inputs, name)
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {shape}, got {tuple(tensor.shape)}")
    if sum(inputs.lengths) > tokens or min(inputs.lengths, default=0) < 0:
        raise ValueError(f"lengths {inputs.lengths} are not of {tokens} tokens")
    written = [slot for slot in inputs.slots[: sum(inputs.lengths)].tolist() if slot >= 0]
    if len(set(written)) < len(written):
        raise ValueError("two tokens write one slot")
    if max([*written, *inputs.initial.tolist()], default=-1) >= len(inputs.states):
        raise ValueError(f"a slot is beyond the pool of {len(inputs.states)}")
    if bool((inputs.slots[sum(inputs.lengths) :] >= 0).any()):
        raise ValueError("a row of padding has a slot")
