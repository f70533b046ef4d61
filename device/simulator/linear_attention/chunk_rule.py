"""``npu_chunk_gated_delta_rule``: the gated delta rule over whole sequences, in chunks of 64 tokens.

Sources: op-plugin's documentation, host code and test, the wheel's META rule, and vllm-ascend's call (``ops/gdn.py``).
CANN's kernel was not read, that of sgl-kernel-npu (``csrc/chunk_gated_delta_rule``, for A2 and A3) was: where it rounds
is ``chunk_rounding``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode, UndefinedBehaviour
from npudiff.device.simulator.linear_attention.inputs import checked_sizes, given
from npudiff.device.simulator.linear_attention.rule import CHUNK, Rounding, chunk
from npudiff.device.simulator.norms.unwritten import unwritten
from npudiff.device.simulator.profiles import CannProfile, active_profile

_CHECK = ArgumentChecks("npu_chunk_gated_delta_rule", default=ErrorCode.PARAMETER)

_MOST_HEADS, _LARGEST_DIM = 64, 128


@dataclass(frozen=True)
class ChunkRequest:
    """One call, with the names of the schema."""

    query: Tensor
    key: Tensor
    """[T, Nk, Dk], bfloat16."""
    value: Tensor
    """[T, Nv, Dv], bfloat16; Nk divides Nv."""
    beta: Tensor | None = None
    """[T, Nv], bfloat16."""
    initial_state: Tensor | None = None
    """[B, Nv, Dv, Dk], bfloat16."""
    actual_seq_lengths: Tensor | None = None
    """[B], int32."""
    scale: float | None = None
    g: Tensor | None = None
    """[T, Nv], float32: logarithms of decays; none decays without it."""


def chunk_gated_delta_rule(request: ChunkRequest) -> tuple[Tensor, Tensor]:
    """Run the rule over all sequences.

    Returns
    -------
    out : Tensor
        bfloat16 [T, Nv, Dv]; rows behind the last sequence are not written.
    final_state : Tensor
        As initial_state, which stays as it is; that of a sequence without tokens is its copy.

    Raises
    ------
    OperatorRejected
        An argument is missing, or dtype, rank or shape is not one of the above.
    UndefinedBehaviour
        A length is negative, or all together are more than T.
    """
    check_host(request)
    _check(request)
    how = rounding(active_profile())
    state = given(request.initial_state).clone()
    return run(request, state, how, _CHECK.operator), state


def chunk_gated_delta_rule_meta(request: ChunkRequest) -> tuple[Tensor, Tensor]:
    """Allocate the outputs, after the checks of the host code."""
    check_host(request)
    state = given(request.initial_state)
    return request.value.new_empty(request.value.shape, dtype=torch.bfloat16), state.new_empty(state.shape)


def run(
    request: ChunkRequest, state: Tensor, how: Rounding, operator: str, entered: Callable[[Tensor], None] | None = None
) -> Tensor:
    """Write the last state of each sequence with tokens, and return the outputs.

    Parameters
    ----------
    request : ChunkRequest
        Checked.
    state : Tensor
        As initial_state.
    how : Rounding
        Where it rounds.
    operator : str
        For messages.
    entered : callable, optional
        Gets the state with which each chunk begins, float32 [Nv, Dv, Dk], in order.

    Raises
    ------
    UndefinedBehaviour
        A length is negative, or all together are more than the tokens.
    """
    out = unwritten(request.value.shape, torch.bfloat16)
    for number, rows in _sequences(given(request.actual_seq_lengths), len(request.value), operator):
        current = given(request.initial_state)[number].float()
        for start in range(rows.start, rows.stop, CHUNK):
            piece = slice(start, min(start + CHUNK, rows.stop))
            if entered is not None:
                entered(current)
            current, answers = chunk(current, *_tensors(request, piece), how)
            out[piece] = answers.transpose(0, 1).to(torch.bfloat16)
        state[number] = current.to(state.dtype)
    return out


def rounding(profile: CannProfile) -> Rounding:
    """Return how a profile rounds and decays in chunks."""
    wide = profile.chunk_rounding == "float32"
    return Rounding(
        narrow=(lambda values: values) if wide else (lambda values: values.to(torch.bfloat16).float()),
        quotient=profile.chunk_decay == "quotient",
    )


def _tensors(request: ChunkRequest, rows: slice) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]:
    """Return query, key, value, beta and gate of some rows, float32 with heads in front, and the scale."""
    heads = request.value.shape[1]
    share = heads // request.key.shape[1]
    query, key = (one[rows].float().transpose(0, 1).repeat_interleave(share, 0) for one in (request.query, request.key))
    value, beta = request.value[rows].float().transpose(0, 1), given(request.beta)[rows].float().transpose(0, 1)
    gate = torch.zeros_like(beta) if request.g is None else request.g[rows].transpose(0, 1)
    return query, key, value, beta, gate, 1.0 if request.scale is None else request.scale


def _sequences(lengths: Tensor, tokens: int, operator: str) -> Iterator[tuple[int, slice]]:
    start = 0
    for number, length in enumerate(lengths.tolist()):
        if length < 0 or start + length > tokens:
            raise UndefinedBehaviour(f"{operator}: actual_seq_lengths is {lengths.tolist()} of {tokens} tokens")
        if length:
            yield number, slice(start, start + length)
        start += length


def check_host(request: ChunkRequest) -> None:
    """Raise what torch_npu's own code raises.

    Raises
    ------
    OperatorRejected
        With the wrapper's code and words.
    """
    value = request.value
    if not value.numel():
        words = "value cannot be empty"
        raise _CHECK.rejected("value", "empty", "a tensor with elements", ErrorCode.WRAPPER, words)
    if value.dim() != 3:
        words = "value dim should be 3"
        raise _CHECK.rejected("value", f"of rank {value.dim()}", "[T, Nv, Dv]", ErrorCode.WRAPPER, words)
    for argument in ("beta", "initial_state", "actual_seq_lengths", "scale"):
        if getattr(request, argument) is None:
            words = f"{argument} cannot be empty"
            raise _CHECK.rejected(argument, None, "a value", ErrorCode.WRAPPER, words)


def _check(request: ChunkRequest) -> None:
    query, key, value, state = request.query, request.key, request.value, given(request.initial_state)
    beta, lengths = given(request.beta), given(request.actual_seq_lengths)
    sizes = checked_sizes(_CHECK, query, key, value, beta, _MOST_HEADS, _LARGEST_DIM)
    # float32 states are for Ascend 950.
    _CHECK.dtype("initial_state", state, "bfloat16")
    _CHECK.dtype("actual_seq_lengths", lengths, "int32")
    _CHECK.rank("actual_seq_lengths", lengths, 1, "[B]")
    _CHECK.not_empty("actual_seq_lengths", lengths)
    shape = (len(lengths), sizes.heads, sizes.value_dim, sizes.key_dim)
    _CHECK.shape("initial_state", state, shape, meaning="[B, Nv, Dv, Dk]")
    if request.g is not None:
        _CHECK.dtype("g", request.g, "float32")
        _CHECK.shape("g", request.g, (sizes.tokens, sizes.heads), meaning="[T, Nv]")
