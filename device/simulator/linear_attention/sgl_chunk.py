"""``chunk_gated_delta_rule`` of sgl-kernel-npu: as torch_npu's, and it gives the states with which chunks begin.

Source: sgl-kernel-npu's host code and kernel for A2 and A3 (``csrc/chunk_gated_delta_rule``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks, dtype_name
from npudiff.device.simulator.errors import DeviceFault, ErrorCode
from npudiff.device.simulator.linear_attention.chunk_rule import ChunkRequest, rounding, run
from npudiff.device.simulator.norms.unwritten import unwritten
from npudiff.device.simulator.profiles import active_profile

_CHECK = ArgumentChecks("chunk_gated_delta_rule", default=ErrorCode.WRAPPER)

_MOST_HEADS, _LARGEST_DIM = 64, 128


@dataclass(frozen=True)
class SglChunkRequest(ChunkRequest):
    """One call, with the names of the schema; scale is 1 if it is not given."""

    chunk_state: Tensor | None = None
    """[chunks, Nv, Dv, Dk], dtype of initial_state: written."""


def sgl_chunk_gated_delta_rule(request: SglChunkRequest) -> tuple[Tensor, Tensor]:
    """Run the rule over all sequences.

    Returns
    -------
    out : Tensor
        bfloat16 [T, Nv, Dv]; rows behind the last sequence are not written.
    final_state : Tensor
        As initial_state; that of a sequence without tokens is not written.

    Raises
    ------
    OperatorRejected
        An argument is missing, or dtype, rank or shape is not what the host code wants.
    UndefinedBehaviour
        A length is negative, or all together are more than T.
    DeviceFault
        There are more chunks than chunk_state has states.
    """
    _check(request)
    assert request.initial_state is not None  # noqa: S101 - checked
    state = unwritten(request.initial_state.shape, request.initial_state.dtype)
    # The host code copies one with gaps, and what is written is lost.
    states = None if request.chunk_state is None else request.chunk_state.contiguous()
    chunks = 0

    def entered(current: Tensor) -> None:
        nonlocal chunks
        if states is None:
            return
        if chunks == len(states):
            raise DeviceFault(f"{_CHECK.operator}: chunk_state has {len(states)} states, and there are more chunks")
        states[chunks] = current.to(states.dtype)
        chunks += 1

    return run(request, state, rounding(active_profile()), _CHECK.operator, entered), state


def sgl_chunk_gated_delta_rule_meta(request: SglChunkRequest) -> tuple[Tensor, Tensor]:
    """Allocate the outputs, after the checks of the host code."""
    _check(request)
    assert request.initial_state is not None  # noqa: S101 - checked
    out = request.value.new_empty(request.value.shape, dtype=torch.bfloat16)
    return out, torch.empty_like(request.initial_state)


def _check(request: SglChunkRequest) -> None:
    for argument in ("beta", "initial_state", "actual_seq_lengths"):
        if getattr(request, argument) is None:
            raise _CHECK.rejected(argument, None, "a tensor", words=f"{argument} must be provided")
    given = {
        name: getattr(request, name)
        for name in ("query", "key", "value", "beta", "initial_state", "actual_seq_lengths", "g", "chunk_state")
        if getattr(request, name) is not None
    }
    _check_ranks_and_dtypes(given)
    (tokens, heads, value_dim), (_, key_heads, key_dim) = given["value"].shape, given["query"].shape
    batch = len(given["initial_state"])
    wanted = {
        "key": (tuple(given["query"].shape), "key shape must match query"),
        "query": ((tokens, -1, -1), "value shape must match (T, Nv, Dv)"),
        "beta": ((tokens, heads), "beta shape must be (T, Nv)"),
        "initial_state": ((-1, heads, value_dim, key_dim), "initial_state shape must be (B, Nv, Dv, Dk)"),
        "actual_seq_lengths": ((batch,), "actual_seq_lengths size must equal initial_state dim 0"),
        "g": ((tokens, heads), "g shape must be (T, Nv)"),
        "chunk_state": ((-1, heads, value_dim, key_dim), "chunk_state shape must match (totalChunks, Nv, Dv, Dk)"),
    }
    for argument, (shape, words) in wanted.items():
        if argument in given:
            _CHECK.shape(argument, given[argument], shape, meaning=words)
    _check_sizes(min(tokens, batch), key_heads, heads, key_dim, value_dim)


def _check_ranks_and_dtypes(given: dict[str, Tensor]) -> None:
    ranks = {"beta": 2, "initial_state": 4, "actual_seq_lengths": 1, "g": 2, "chunk_state": 4}
    for argument, tensor in given.items():
        rank = ranks.get(argument, 3)
        if tensor.dim() != rank:
            words = f"{argument} must be {rank}D" if argument in ranks else "query/key/value must be 3D"
            raise _CHECK.rejected(argument, f"of rank {tensor.dim()}", f"rank {rank}", words=words)
    dtypes = {"actual_seq_lengths": "int32", "g": "float32", "chunk_state": dtype_name(given["initial_state"])}
    for argument, tensor in given.items():
        wanted = dtypes.get(argument, "bfloat16")
        if dtype_name(tensor) != wanted:
            words = f"{argument} must be {wanted}"
            if argument == "initial_state" and dtype_name(tensor) == "float32":
                words = "FP32 initial_state is only supported on Ascend950 (arch35)"
            raise _CHECK.rejected(argument, dtype_name(tensor), wanted, words=words)


def _check_sizes(least: int, key_heads: int, heads: int, key_dim: int, value_dim: int) -> None:
    for argument, holds, words in (
        ("value", min(least, key_heads, heads, key_dim, value_dim) > 0, "dims must be positive"),
        ("value", max(key_heads, heads) <= _MOST_HEADS, "nk and nv must be <= 64"),
        ("value", max(key_dim, value_dim) <= _LARGEST_DIM, "dk and dv must be <= 128"),
        ("value", not heads % max(key_heads, 1), "nv must be an integer multiple of nk"),
    ):
        if not holds:
            given = f"of {heads} heads of {value_dim}, beside {key_heads} of {key_dim}"
            raise _CHECK.rejected(argument, given, words, words=words)
