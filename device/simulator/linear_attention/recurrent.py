"""``npu_recurrent_gated_delta_rule`` and its functional form: the rule token by token, with states in a pool.

Every token has a slot of the pool, into which the state behind it goes. A sequence begins with the state in the slot of
its token ``num_accepted_tokens - 1``: those are the tokens that were accepted of the call before, which wrote the same
slots. Sources: op-plugin's documentation, host code and test, the wheel's META rule, and vllm-ascend's kernel
(``csrc/attention/recurrent_gated_delta_rule``), which has the checks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode, UndefinedBehaviour
from npudiff.device.simulator.linear_attention.inputs import checked_sizes, given
from npudiff.device.simulator.linear_attention.rule import step
from npudiff.device.simulator.linear_attention.shared_states import Use, spoil
from npudiff.device.simulator.norms.unwritten import unwritten
from npudiff.device.simulator.profiles import CannProfile, active_profile

_CHECK = ArgumentChecks("npu_recurrent_gated_delta_rule", default=ErrorCode.PARAMETER)

_MOST_HEADS, _LARGEST_DIM = 256, 512


@dataclass(frozen=True)
class RecurrentRequest:
    """One call, with the names of the schema."""

    query: Tensor
    key: Tensor
    """[T, Nk, Dk], bfloat16."""
    value: Tensor
    """[T, Nv, Dv], bfloat16; Nk divides Nv."""
    state: Tensor
    """[slots, Nv, Dv, Dk], bfloat16."""
    beta: Tensor | None = None
    """[T, Nv], bfloat16."""
    scale: float | None = None
    actual_seq_lengths: Tensor | None = None
    """[B], int32, up to 8 each; of another form as ``recurrent_lengths`` says."""
    ssm_state_indices: Tensor | None = None
    """[T], int32."""
    num_accepted_tokens: Tensor | None = None
    """[B], int32; 1 without it."""
    g: Tensor | None = None
    """[T, Nv], float32: logarithms of decays."""
    gk: Tensor | None = None
    """[T, Nv, Dk], float32, of the state's columns."""


def recurrent_gated_delta_rule(request: RecurrentRequest) -> Tensor:
    """Run the rule, and write the state behind each token into its slot.

    Returns
    -------
    Tensor
        bfloat16 [T, Nv, Dv]; rows of no sequence are not written. A state is float32 within a call, and rounded where
        it is stored.

    Raises
    ------
    OperatorRejected
        scale or a required tensor is missing, or dtype, rank or shape is not one of the above.
    UndefinedBehaviour
        A length, or a number of accepted tokens, is out of range.
    DeviceFault
        A slot is outside the pool.
    """
    check_host(request)
    _check(request, active_profile())
    return _run(request, request.state)


def recurrent_gated_delta_rule_functional(request: RecurrentRequest) -> tuple[Tensor, Tensor]:
    """Do as :func:`recurrent_gated_delta_rule` does, but return the new pool and leave the given one alone."""
    check_host(request, rank_of_state=True)
    _check(request, active_profile())
    state = request.state.clone()
    return _run(request, state), state


def recurrent_gated_delta_rule_meta(request: RecurrentRequest) -> Tensor:
    """Allocate the output, after the check that torch_npu has for it."""
    check_host(request)
    return request.value.new_empty(request.value.shape, dtype=torch.bfloat16)


def recurrent_gated_delta_rule_functional_meta(request: RecurrentRequest) -> tuple[Tensor, Tensor]:
    """Allocate the outputs, after the checks that torch_npu has for them."""
    check_host(request, rank_of_state=True)
    out = request.value.new_empty(request.value.shape, dtype=torch.bfloat16)
    return out, request.state.new_empty(request.state.shape)


def _run(request: RecurrentRequest, pool: Tensor) -> Tensor:
    profile = active_profile()
    share = request.value.shape[1] // request.key.shape[1]
    query = (request.query.float() * float(request.scale or 0.0)).repeat_interleave(share, 1)
    key, value = request.key.float().repeat_interleave(share, 1), request.value.float()
    beta = given(request.beta).float()
    decay, by_key = (None if one is None else one.exp() for one in (request.g, request.gk))
    slots = given(request.ssm_state_indices).tolist()
    out = unwritten(value.shape, torch.bfloat16)
    uses = []
    for rows, first in _sequences(request, profile):
        current = pool[slots[first]].float()
        for t in range(rows.start, rows.stop):
            factors = (None if one is None else one[t] for one in (decay, by_key))
            current, answer = step(current, query[t], key[t], value[t], beta[t], *factors)
            pool[slots[t]] = current.to(pool.dtype)
            out[t] = answer.to(torch.bfloat16)
        uses.append(Use(rows, slots[first], frozenset(slots[rows])))
    spoil(uses, pool, out, profile)
    return out


def _sequences(request: RecurrentRequest, profile: CannProfile) -> Iterator[tuple[slice, int]]:
    """Yield the rows of each sequence, and the row in whose slot it begins."""
    lengths, tokens = given(request.actual_seq_lengths).tolist(), len(request.value)
    start = lengths.pop(0) if profile.recurrent_lengths == "skipped_and_lengths" else 0
    for number, length in enumerate(lengths):
        if start < 0 or not 0 <= length <= profile.recurrent_longest or start + length > tokens:
            found = f"a sequence of {length} tokens from {start} on, of {tokens}"
            allowed = f"at most {profile.recurrent_longest} tokens, within the rows"
            raise UndefinedBehaviour(f"{_CHECK.operator}: actual_seq_lengths has {found}; allowed: {allowed}")
        rows, start = slice(start, start + length), start + length
        if not length:
            continue
        accepted = 1 if request.num_accepted_tokens is None else int(request.num_accepted_tokens[number])
        if not 1 <= accepted <= length:
            found = f"num_accepted_tokens[{number}] is {accepted}"
            raise UndefinedBehaviour(f"{_CHECK.operator}: {found}; allowed: 1 to {length}, the tokens of the sequence")
        slots = given(request.ssm_state_indices)[rows]
        _CHECK.indices("ssm_state_indices", slots, len(request.state), "slots in state")
        yield rows, rows.start + accepted - 1


def check_host(request: RecurrentRequest, *, rank_of_state: bool = False) -> None:
    """Raise what torch_npu's own code raises.

    Raises
    ------
    OperatorRejected
        With the wrapper's code and words.
    """
    if request.value.dim() != 3:
        words = "value dim should be 3"
        raise _CHECK.rejected("value", f"of rank {request.value.dim()}", "[T, Nv, Dv]", ErrorCode.WRAPPER, words)
    if rank_of_state and request.state.dim() != 4:
        words = "initial_state dim should be 4"
        found = f"of rank {request.state.dim()}"
        raise _CHECK.rejected("state", found, "[slots, Nv, Dv, Dk]", ErrorCode.WRAPPER, words)


def _check(request: RecurrentRequest, profile: CannProfile) -> None:
    if request.scale is None:
        raise _CHECK.rejected("scale", None, "a number", ErrorCode.WRAPPER, "scale cannot be empty")
    query, key, value, state = request.query, request.key, request.value, request.state
    for argument in ("beta", "actual_seq_lengths", "ssm_state_indices"):
        if getattr(request, argument) is None:
            raise _CHECK.rejected(argument, None, "a tensor")
    beta, lengths = given(request.beta), given(request.actual_seq_lengths)
    sizes = checked_sizes(_CHECK, query, key, value, beta, _MOST_HEADS, _LARGEST_DIM)
    tokens, heads, key_dim = sizes.tokens, sizes.heads, sizes.key_dim
    _CHECK.dtype("state", state, *profile.recurrent_state_dtypes)
    _CHECK.shape("state", state, (-1, heads, sizes.value_dim, key_dim), meaning="[slots, Nv, Dv, Dk]")
    _CHECK.rank("actual_seq_lengths", lengths, 1)
    _CHECK.not_empty("actual_seq_lengths", lengths)
    batch = len(lengths) - (profile.recurrent_lengths == "skipped_and_lengths")
    for argument, shape, dtype in (
        ("actual_seq_lengths", tuple(lengths.shape), "int32"),
        ("ssm_state_indices", (tokens,), "int32"),
        ("num_accepted_tokens", (batch,), "int32"),
        ("g", (tokens, heads), "float32"),
        ("gk", (tokens, heads, key_dim), "float32"),
    ):
        tensor = getattr(request, argument)
        if tensor is not None:
            _CHECK.dtype(argument, tensor, dtype)
            _CHECK.shape(argument, tensor, shape, meaning="of as many tokens, heads and sequences as the others")
