"""The gated delta rule over sequences whose states lie in a pool, in float64 with bounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.bounds import Expected, underflow_step, unit_roundoff
from npudiff.reference.gated_delta_chunk import DeltaChunk, DeltaState
from npudiff.reference.views import moved_inputs

NORM_EPSILON = 1e-6
"""Added to the sum of squares of a query or key that an operator normalises itself."""

CHUNK = 64
"""Tokens of a chunk where decays are of heads. Calculations in chunks begin one at the first token of a sequence."""

CHUNK_OF_CHANNELS = 16
"""The same where decays are of channels, for which each pair of tokens has a number per channel."""


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
    dtype = inputs.value.dtype
    value = torch.zeros(inputs.value.shape, dtype=torch.float64)
    bound = torch.full_like(value, torch.inf)
    pool, pool_bound = inputs.states.to(torch.float64), torch.zeros(inputs.states.shape, dtype=torch.float64)
    before = pool.clone()
    start = 0
    for length, first in zip(inputs.lengths, inputs.initial.tolist(), strict=True):
        state = DeltaState.exact(before[first] if first >= 0 else torch.zeros_like(before[0]))
        for rows in _pieces(inputs, start, length):
            chunk = _chunk(inputs, rows, state)
            output = chunk.outputs()
            value[rows], bound[rows] = output.value.transpose(0, 1), output.bound.transpose(0, 1)
            for token, slot in enumerate(inputs.slots[rows].tolist()):
                if slot >= 0:
                    pool[slot], pool_bound[slot] = chunk.state_behind(token)
            if rows.stop < start + length:
                state = chunk.after()
        start += length
    rounded = bound + (value.abs() + bound) * unit_roundoff(dtype) + underflow_step(dtype)
    return {"output": Expected(value, rounded, dtype), "states": _stored(inputs, pool, pool_bound)}


def _pieces(inputs: GatedDeltaInputs, start: int, length: int) -> list[slice]:
    """The chunks of a sequence, from its first token on."""
    most = CHUNK if inputs.channel_gate is None else CHUNK_OF_CHANNELS
    return [slice(first, min(first + most, start + length)) for first in range(start, start + length, most)]


def _chunk(inputs: GatedDeltaInputs, rows: slice, state: DeltaState) -> DeltaChunk:
    heads = inputs.value.shape[1]
    share = heads // inputs.key.shape[1]
    query, key = (_by_head(one[rows], share, normalised=inputs.raw) for one in (inputs.query, inputs.key))
    beta = inputs.beta[rows].to(torch.float64).transpose(0, 1)
    gate = torch.zeros(beta.shape, dtype=torch.float64).unsqueeze(-1)
    if inputs.gate is not None:
        gate = inputs.gate[rows].to(torch.float64).transpose(0, 1).unsqueeze(-1)
    if inputs.channel_gate is not None:
        gate = gate + inputs.channel_gate[rows].to(torch.float64).transpose(0, 1)
    return DeltaChunk(
        state,
        query * inputs.scale,
        key,
        inputs.value[rows].to(torch.float64).transpose(0, 1),
        torch.sigmoid(beta) if inputs.raw else beta,
        gate,
        narrow=inputs.value.dtype if inputs.chunked else None,
        raw=inputs.raw,
    )


def _by_head(rows: torch.Tensor, share: int, *, normalised: bool) -> torch.Tensor:
    """From ``[tokens, key_heads, dim]`` to ``[heads, tokens, dim]``, float64."""
    wide = rows.to(torch.float64)
    if normalised:
        wide = wide / (wide.square().sum(dim=-1, keepdim=True) + NORM_EPSILON).sqrt()
    return wide.transpose(0, 1).repeat_interleave(share, dim=0)


def _stored(inputs: GatedDeltaInputs, pool: torch.Tensor, bound: torch.Tensor) -> Expected:
    """The pool in its dtype: one rounding of what was written, and the bits of everything else."""
    dtype = inputs.states.dtype
    written = torch.zeros(len(pool), 1, 1, 1, dtype=torch.bool)
    written[inputs.slots[inputs.slots >= 0].long()] = True
    rounded = bound + (pool.abs() + bound) * unit_roundoff(dtype) + underflow_step(dtype)
    return Expected(pool, torch.where(written, rounded, 0.0), dtype)


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
