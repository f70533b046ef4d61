"""``recurrent_gated_delta_rule`` of sgl-kernel-npu: the gated delta rule for a few tokens of each row of a batch.

It normalises queries and keys, x / sqrt(sum of squares + 1e-6), and applies the sigmoid to beta itself. With an
``intermediate_state`` the pool is read only: states go into that one, and so does the first one unless its slot begins
a row. Sources: sgl-kernel-npu's host code, kernel and test (``csrc/recurrent_gated_delta_rule``), sglang 0.5.23's call.
``gk`` is taken and goes nowhere. That the host code copies an ``intermediate_state`` with gaps, and loses the copy, is
as it is there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks, dtype_name
from npudiff.device.simulator.errors import ErrorCode, UndefinedBehaviour
from npudiff.device.simulator.linear_attention.rule import step
from npudiff.device.simulator.linear_attention.shared_states import Use, spoil
from npudiff.device.simulator.norms.unwritten import unwritten
from npudiff.device.simulator.profiles import active_profile

_CHECK = ArgumentChecks("recurrent_gated_delta_rule", default=ErrorCode.WRAPPER)

_EPSILON = 1e-6
_MOST_TOKENS = 8
_KERNEL_KEY_DIM = range(113, 129)


@dataclass(frozen=True)
class SglRequest:
    """One call, with the names of the schema."""

    mix_qkv: Tensor
    """[B, S, nk * Dk + nk * Dk + nv * Dv], bfloat16."""
    recurrent_state: Tensor
    """[slots, nv, Dv, Dk], bfloat16."""
    beta: Tensor
    """[B, S, nv], bfloat16, in front of the sigmoid."""
    scale: float
    actual_seq_lengths: Tensor
    """[B], int32, up to S and 8."""
    ssm_state_indices: Tensor
    """[B, S], int32: slots of intermediate_state, or of recurrent_state without it."""
    nk: int
    nv: int
    intermediate_state: Tensor | None = None
    """Memory of [slots, nv, Dv, Dk], bfloat16; its own shape is not looked at."""
    cache_indices: Tensor | None = None
    """[B], slots of recurrent_state; with intermediate_state."""
    num_accepted_tokens: Tensor | None = None
    """[B], of the call before; 1 without it."""
    g: Tensor | None = None
    """[B, S, nv]: logarithms of decays."""
    gk: Tensor | None = None
    """Not used."""


@dataclass(frozen=True)
class _Tokens:
    """What all tokens have, float32 [B, S, ...]."""

    query: Tensor
    key: Tensor
    value: Tensor
    beta: Tensor
    decay: Tensor | None


def sgl_recurrent_gated_delta_rule(request: SglRequest) -> Tensor:
    """Run the rule, and write the state behind each token into its slot.

    Returns
    -------
    Tensor
        bfloat16 [B, S, nv, Dv]; tokens behind a row's length are not written. A state is float32 within a call, and
        rounded where it is stored.

    Raises
    ------
    OperatorRejected
        A shape is not one of the above.
    UndefinedBehaviour
        What the host code does not check: a dtype, a tensor with gaps, sizes that the kernel addresses wrongly, a
        length or a number of accepted tokens out of range.
    DeviceFault
        A slot is outside.
    """
    _check(request)
    profile = active_profile()
    tokens = _tokens(request)
    given = request.intermediate_state
    pool = request.recurrent_state if given is None else _as_states(given, request)
    batch, length = request.mix_qkv.shape[:2]
    out = unwritten((batch * length, request.nv, pool.shape[2]), torch.bfloat16)
    uses = []
    for row, count in enumerate(request.actual_seq_lengths.tolist()):
        if not count:
            continue
        slots = request.ssm_state_indices[row, :count].tolist()
        first = int(request.ssm_state_indices[row, _accepted(request, row) - 1])
        _CHECK.indices("ssm_state_indices", torch.tensor([*slots, first]), len(pool), "slots")
        at_start = given is not None and first % length == 0
        current = (_first_of(request, row) if at_start else pool[first]).float()
        for t, slot in enumerate(slots):
            decay = None if tokens.decay is None else tokens.decay[row, t]
            given_token = (tokens.query[row, t], tokens.key[row, t], tokens.value[row, t], tokens.beta[row, t])
            current, answer = step(current, *given_token, decay, None)
            pool[slot] = current.to(pool.dtype)
            out[row * length + t] = answer.to(torch.bfloat16)
        rows = slice(row * length, row * length + count)
        uses.append(Use(rows, None if at_start else first, frozenset(slots)))
    spoil(uses, pool, out, profile)
    return out.view(batch, length, request.nv, -1)


def sgl_recurrent_gated_delta_rule_meta(request: SglRequest) -> Tensor:
    """Allocate the output, after the checks of the host code."""
    _check_host(request)
    batch, length = request.mix_qkv.shape[:2]
    return request.mix_qkv.new_empty(batch, length, request.nv, request.recurrent_state.shape[2])


def _tokens(request: SglRequest) -> _Tokens:
    value_dim, key_dim = request.recurrent_state.shape[2:]
    keys = request.nk * key_dim
    batch, length = request.mix_qkv.shape[:2]
    query, key, value = torch.tensor_split(request.mix_qkv.float(), (keys, 2 * keys), -1)
    query, key = (_normalised(one.reshape(batch, length, request.nk, key_dim)) for one in (query, key))
    query, key = ((one.repeat_interleave(request.nv // request.nk, 2)) for one in (query * request.scale, key))
    value = value.reshape(batch, length, request.nv, value_dim)
    decay = None if request.g is None else request.g.float().reshape(batch, length, request.nv).exp()
    return _Tokens(query, key, value, request.beta.float().sigmoid(), decay)


def _normalised(x: Tensor) -> Tensor:
    return x * (x.square().sum(-1, keepdim=True) + _EPSILON).rsqrt()


def _as_states(given: Tensor, request: SglRequest) -> Tensor:
    """Return memory as states like those of the pool, whose sizes the kernel takes; what is left over is none."""
    shape = request.recurrent_state.shape[1:]
    flat = given.contiguous().view(-1)
    return flat[: len(flat) // shape.numel() * shape.numel()].view(-1, *shape)


def _accepted(request: SglRequest, row: int) -> int:
    """Return how many tokens of the call before count for a row."""
    if request.num_accepted_tokens is None:
        return 1
    accepted, most = int(request.num_accepted_tokens[row]), request.mix_qkv.shape[1]
    if not 1 <= accepted <= most:
        raise UndefinedBehaviour(f"{_CHECK.operator}: num_accepted_tokens[{row}] is {accepted}; allowed: 1 to {most}")
    return accepted


def _first_of(request: SglRequest, row: int) -> Tensor:
    """Return the state in the pool that a row begins with."""
    if request.cache_indices is None:
        raise UndefinedBehaviour(f"{_CHECK.operator}: intermediate_state without cache_indices reads from address 0")
    slot = request.cache_indices[row : row + 1]
    _CHECK.indices("cache_indices", slot, len(request.recurrent_state), "slots in recurrent_state")
    return request.recurrent_state[int(slot)]


def _check(request: SglRequest) -> None:
    _check_host(request)
    found = [*_misread(request), *_misaddressed(request)]
    most = min(request.mix_qkv.shape[1], _MOST_TOKENS)
    lengths = request.actual_seq_lengths.tolist()
    if len(lengths) < len(request.mix_qkv) or not all(0 <= one <= most for one in lengths):
        found.append(f"actual_seq_lengths is {lengths} for {len(request.mix_qkv)} rows of at most {most} tokens")
    if found:
        raise UndefinedBehaviour(f"{_CHECK.operator}: {'; '.join(found)}")


def _check_host(request: SglRequest) -> None:
    mixed, state, beta, slots = request.mix_qkv, request.recurrent_state, request.beta, request.ssm_state_indices
    for argument, tensor, rank, words in (
        ("mix_qkv", mixed, 3, "MixQKV must be 3-dimensional (B, S, D)"),
        ("recurrent_state", state, 4, "State must be 4-dimensional (N, nv, dv, dk)"),
    ):
        if tensor.dim() != rank:
            raise _CHECK.rejected(argument, f"of rank {tensor.dim()}", f"rank {rank}", words=words)
    batch, length, width = mixed.shape
    expected = 2 * request.nk * state.shape[3] + request.nv * state.shape[2]
    if width != expected:
        words = f"mix_qkv width mismatch. Expected: {expected}, Got: {width}"
        raise _CHECK.rejected("mix_qkv", f"of shape {list(mixed.shape)}", f"a last axis of {expected}", words=words)
    for argument, tensor, shape, words in (
        ("recurrent_state", state, (-1, request.nv, -1, -1), "State third dimension must match nv"),
        ("beta", beta, (batch, length, request.nv), "Beta must be [B, S, nv] of MixQKV"),
        ("ssm_state_indices", slots, (batch, length), "ssm_state_indices must be [B, S] of MixQKV"),
    ):
        _CHECK.shape(argument, tensor, shape, meaning=words)


def _misread(request: SglRequest) -> list[str]:
    """Return tensors that the kernel reads as another dtype, or as if they had no gaps."""
    found = []
    for name, dtype in (
        ("mix_qkv", "bfloat16"),
        ("recurrent_state", "bfloat16"),
        ("beta", "bfloat16"),
        ("intermediate_state", "bfloat16"),
        ("actual_seq_lengths", "int32"),
        ("ssm_state_indices", "int32"),
    ):
        tensor = getattr(request, name)
        if tensor is None:
            continue
        if dtype_name(tensor) != dtype:
            found.append(f"{name} is {dtype_name(tensor)} and is read as {dtype}")
        if name != "intermediate_state" and not tensor.is_contiguous():
            found.append(f"{name} has strides {tensor.stride()} and is read as if it had no gaps")
    return found


def _misaddressed(request: SglRequest) -> list[str]:
    """Return sizes for which the kernel has no right addresses."""
    value_dim, key_dim = request.recurrent_state.shape[2:]
    found = []
    if key_dim not in _KERNEL_KEY_DIM:
        found.append(f"Dk is {key_dim}, and the kernel walks rows of 128")
    if value_dim % 8:
        found.append(f"Dv is {value_dim}, and the kernel takes rows by 8")
    if request.nk < 1 or request.nv % request.nk:
        found.append(f"nv {request.nv} is no multiple of nk {request.nk}")
    return found
