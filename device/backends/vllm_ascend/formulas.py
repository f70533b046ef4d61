"""Operators of vllm-ascend's library that torch_npu has not, as formulas of its own tests and kernels.

They are made of operators of torch, so that graphs capture them. Those that look at values on the host say so, and a
graph refuses them, as it refuses any wait.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from npudiff.device.simulator.errors import DeviceFault, NotSimulated
from npudiff.device.simulator.profiles import active_profile, use_profile

Tensor = torch.Tensor

_LONGEST = 16
_STATES = ("bfloat16", "float32")
_CHUNK = 64


def recurrent_gated_delta_rule(query: Tensor, key: Tensor, value: Tensor, state: Tensor, **named: Any) -> Tensor:  # noqa: ANN401
    """Call torch_npu's, whose lengths have the number of tokens to skip in front here; states may be float32.

    There may be more slots than tokens: the host code does not look, and the kernel reads that of each token.
    """
    slots = named.get("ssm_state_indices")
    if slots is not None:
        named["ssm_state_indices"] = slots[: len(value)]
    profile = replace(
        active_profile(),
        recurrent_lengths="skipped_and_lengths",
        recurrent_longest=_LONGEST,
        recurrent_state_dtypes=_STATES,
    )
    with use_profile(profile):
        result: Tensor = torch.ops.npu.npu_recurrent_gated_delta_rule(query, key, value, state, **named)
    return result


def causal_conv1d_custom(
    output: Tensor,
    x: Tensor,
    weight: Tensor,
    conv_state: Tensor,
    bias_opt: Tensor | None,
    query_start_loc_opt: Tensor | None,
    cache_indices_opt: Tensor | None,
    initial_state_mode_opt: Tensor | None,
    num_accepted_tokens_opt: Tensor | None,
    activation_mode: int,
    pad_slot_id: int,
    run_mode: int,
) -> Tensor:
    """Call sgl-kernel-npu's, whose kernel it shares; of a row of lines the first one counts, as its tiling says."""
    lines = cache_indices_opt
    output.copy_(
        torch.ops.npu.causal_conv1d(
            x.contiguous(),
            weight.contiguous(),
            conv_state,
            bias=bias_opt,
            query_start_loc=query_start_loc_opt,
            cache_indices=lines[:, 0].contiguous() if lines is not None and lines.dim() == 2 else lines,
            has_initial_state=initial_state_mode_opt,
            num_accepted_tokens=num_accepted_tokens_opt,
            activation_mode=activation_mode,
            pad_slot_id=pad_slot_id,
            run_mode=run_mode,
        )
    )
    return output


def bgmv_shrink(x: Tensor, weight: Tensor, indices: Tensor, y: Tensor, scale: float) -> None:
    """Add ``x @ weight[indices].mT * scale`` to y, row by row, in float32; rows whose index is negative stay."""
    rows = indices >= 0
    product = torch.bmm(weight[indices.clamp(min=0)].float(), x.float().unsqueeze(-1)).squeeze(-1)
    y += (product * scale * rows.unsqueeze(1)).to(y.dtype)


def bgmv_expand(x: Tensor, weight: Tensor, indices: Tensor, y: Tensor, slice_offset: int, slice_size: int) -> Tensor:
    """Add ``x @ weight[indices].mT`` to a slice of y's columns, and return y; rows whose index is negative stay."""
    rows = indices >= 0
    product = torch.bmm(weight[indices.clamp(min=0)].float(), x.float().unsqueeze(-1)).squeeze(-1)
    part = y[:, slice_offset : slice_offset + slice_size]
    part.copy_(part.float() + product * rows.unsqueeze(1))
    return y


def transpose_kv_cache_by_block(
    k_cache: list[Tensor],
    v_cache: list[Tensor],
    block_ids: Tensor,
    block_size: int,
    head_num: int,
    head_dim: int,
    split_num: int,
    layer_num: int,
) -> None:
    """Turn blocks whose heads came in parts, [parts, block size, ...], into [block size, parts, ...], in place."""
    shape = (-1, split_num, block_size, head_num // split_num * head_dim)
    for cache in (*k_cache[:layer_num], *v_cache[:layer_num]):
        blocks = cache[block_ids.long()]
        turned = blocks.reshape(shape).transpose(1, 2).reshape(blocks.shape)
        cache.index_copy_(0, block_ids.long(), turned)


def copy_and_expand_eagle_inputs(
    target_token_ids: Tensor,
    target_positions: Tensor,
    next_token_ids: Tensor,
    query_start_loc: Tensor,
    query_end_loc: Tensor,
    padding_token_id: int,
    parallel_drafting_token_id: int,
    num_padding_slots_per_request: int,
    shift_input_ids: bool,
    total_draft_tokens: int,
) -> tuple[Tensor, ...]:
    """Lay out what a drafter of several tokens at once is given; lengths are read on the host.

    A request has its accepted tokens, the one that was sampled, ``num_padding_slots_per_request - 1`` that are to be
    drafted, and as many of padding as were rejected.

    Raises
    ------
    DeviceFault
        A request has more tokens than ``total_draft_tokens`` leaves room for.
    """
    slots = num_padding_slots_per_request
    tokens, positions, following, starts, ends = (
        one.tolist() for one in (target_token_ids, target_positions, next_token_ids, query_start_loc, query_end_loc)
    )
    ids, places, rejected, masked = ([0] * total_draft_tokens for _ in range(4))
    new, mapping = [0] * (len(following) * slots), [0] * len(tokens)
    for request, (start, stop, end, token) in enumerate(zip(starts, starts[1:], ends, following, strict=False)):
        shift = int(shift_input_ids)
        accepted = max(end - start + 1 - shift, 0)
        first = start + request * (slots - shift)
        last = min(stop if not shift else len(tokens), start + shift + accepted) - 1
        given = [tokens[min(start + shift + place, last)] if last >= start + shift else 0 for place in range(accepted)]
        dropped = max(stop - end - 1, 0)
        row = [*given, token, *[parallel_drafting_token_id] * (slots - 1), *[padding_token_id] * dropped]
        if first + len(row) > total_draft_tokens:
            found = f"request {request} ends at {first + len(row)}, there are {total_draft_tokens} tokens"
            raise DeviceFault(f"npu_copy_and_expand_eagle_inputs: {found}")
        kept = accepted + slots
        ids[first : first + len(row)] = row
        places[first : first + len(row)] = [positions[start] + place for place in range(kept)] + [0] * dropped
        rejected[first : first + len(row)] = [0] * kept + [1] * dropped
        masked[first : first + len(row)] = [0] * (accepted + 1) + [1] * (slots - 1) + [0] * dropped
        new[request * slots : (request + 1) * slots] = range(first + accepted, first + kept)
        if shift:
            mapping[start:stop] = range(first, first + stop - start)
    dtypes = (torch.int32, torch.int32, torch.int8, torch.int8, torch.int32, torch.int32)
    lists = (ids, places, rejected, masked, new, mapping)
    device = target_token_ids.device
    return tuple(torch.tensor(one, dtype=dtype, device=device) for one, dtype in zip(lists, dtypes, strict=True))


def _chunks_of(tokens: int, cu_seqlens: Sequence[int] | None, size: int) -> list[list[slice]]:
    """The chunks of each sequence, in their order."""
    starts = [0, tokens] if cu_seqlens is None else list(cu_seqlens)
    return [
        [slice(first, min(first + size, end)) for first in range(start, end, size)]
        for start, end in itertools.pairwise(starts)
    ]


def chunk_gated_delta_rule_fwd_h(
    k: Tensor, w: Tensor, u: Tensor, g: Tensor | None = None, *, gk: Tensor | None = None,
    initial_state: Tensor | None = None, output_final_state: bool | None = False, chunk_size: int | None = None,
    save_new_value: bool | None = True, cu_seqlens: Sequence[int] | None = None,
    chunk_indices: Sequence[int] | None = None, use_exp2: bool | None = False,
    transpose_state_layout: bool | None = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Go from chunk to chunk: ``v = u - w h``, and ``h = h exp(g_last) + k^T (v exp(g_last - g))``.

    As ``cpu_reference`` of vllm-ascend's ``test_chunk_gated_delta_rule_fwd_h_aclnn.py`` has it; operands of products
    are 16 bits, and sums float32. h is ``[batch, heads, chunks, key_dim, value_dim]``, before each chunk.
    """
    del save_new_value, chunk_indices, output_final_state  # all of them are made
    if gk is not None or use_exp2 or transpose_state_layout or g is None or len(k) != 1:
        raise NotSimulated("_C_ascend::chunk_gated_delta_rule_fwd_h", "its form", "another", "g, of one batch")
    heads = u.shape[1]
    key, decayed = (one[0].repeat_interleave(heads // one.shape[1], dim=0) for one in (k, w))
    total, new, before, last = g[0].float(), torch.zeros_like(u), [], []
    for place, chunks in enumerate(_chunks_of(k.shape[2], cu_seqlens, chunk_size or _CHUNK)):
        state = u.new_zeros(heads, k.shape[3], u.shape[3]).float()
        if initial_state is not None:
            state = initial_state[place].float()
        for rows in chunks:
            before.append(state.to(k.dtype))
            value = u[0, :, rows].float() - decayed[:, rows].float() @ before[-1].float()
            new[0, :, rows] = value.to(u.dtype)
            end = total[:, rows][:, -1:]
            left = (value * (end - total[:, rows]).exp().unsqueeze(-1)).to(u.dtype).float()
            state = state * end.exp().unsqueeze(-1) + key[:, rows].float().transpose(1, 2) @ left
        last.append(state)
    dtype = k.dtype if initial_state is None else initial_state.dtype
    return torch.stack(before, dim=1).unsqueeze(0), new, torch.stack(last).to(dtype)


def chunk_fwd_o(
    q: Tensor, k: Tensor, v: Tensor, h: Tensor, scale: float, *, g: Tensor | None = None,
    g_gamma: Tensor | None = None, cu_seqlens: Sequence[int] | None = None,
    chunk_indices: Sequence[int] | None = None, chunk_size: int | None = None,
    transpose_state_layout: bool | None = False,
) -> Tensor:  # fmt: skip
    """Read each chunk: ``scale * (exp(g) q h + (q k^T * exp(g_i - g_j)) v)``, causal.

    As the kernel's documentation and ``golden_chunk_fwd_o`` of vllm-ascend's ``test_chunk_fwd_o_310.py`` have it, but
    for the sign of ``g_i - g_j`` in the latter, whose test runs with decays of 0 where it compares.
    """
    del chunk_indices
    if g_gamma is not None or transpose_state_layout or g is None or len(q) != 1:
        raise NotSimulated("_C_ascend::chunk_fwd_o", "its form", "another", "g, of one batch")
    query, key = (one[0].repeat_interleave(v.shape[1] // one.shape[1], dim=0).float() for one in (q, k))
    total, output = g[0].float(), torch.zeros_like(v)
    every = itertools.chain.from_iterable(_chunks_of(q.shape[2], cu_seqlens, chunk_size or _CHUNK))
    for place, rows in enumerate(every):
        part = total[:, rows]
        decay = (part.unsqueeze(2) - part.unsqueeze(1)).clamp(max=0.0).exp().tril()
        weights = (query[:, rows] @ key[:, rows].transpose(1, 2) * decay).to(v.dtype).float()
        old = query[:, rows] @ h[0, :, place].float() * part.exp().unsqueeze(-1)
        output[0, :, rows] = ((old + weights @ v[0, :, rows].float()) * scale).to(v.dtype)
    return output


FORMULAS: Mapping[str, Callable[..., Any]] = {
    "npu_recurrent_gated_delta_rule": recurrent_gated_delta_rule,
    "npu_causal_conv1d_custom": causal_conv1d_custom,
    "chunk_gated_delta_rule_fwd_h": chunk_gated_delta_rule_fwd_h,
    "chunk_fwd_o": chunk_fwd_o,
    "bgmv_shrink": bgmv_shrink,
    "bgmv_expand": bgmv_expand,
    "transpose_kv_cache_by_block": transpose_kv_cache_by_block,
    "npu_copy_and_expand_eagle_inputs": copy_and_expand_eagle_inputs,
}
