"""``cache_loc_update`` of sgl-kernel-npu: the slots of some tokens of each request, one request after the other.

Source: its host code and kernel (``csrc/cache_location_assign``). The schema does not say that ``out_cache_loc`` is
written, which it is, nor that the result is it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks, dtype_name
from npudiff.device.simulator.errors import DeviceFault, ErrorCode, UndefinedBehaviour

_CHECK = ArgumentChecks("cache_loc_update", default=ErrorCode.WRAPPER)

_MOST_TOKENS = 16


def cache_loc_update(
    req_indices: Tensor, token_pool: Tensor, start_offset: Tensor, end_offset: Tensor, out_cache_loc: Tensor
) -> Tensor:
    """Write token_pool[req_indices[i], start_offset[i] : end_offset[i]] of all requests, packed.

    Parameters
    ----------
    req_indices : Tensor
        [B], int32 or int64.
    token_pool : Tensor
        int32 [requests, tokens].
    start_offset, end_offset : Tensor
        int64 [B], not more than 16 apart.
    out_cache_loc : Tensor
        int32, of at least as many elements; those behind stay.

    Returns
    -------
    Tensor
        out_cache_loc itself.

    Raises
    ------
    OperatorRejected
        A dtype is not one of the above.
    UndefinedBehaviour
        More than 16 tokens or fewer than none, a tensor with gaps, offsets that are too few.
    DeviceFault
        A request or a token is outside the pool, or the output too short.
    """
    _check(req_indices, token_pool, start_offset, end_offset, out_cache_loc)
    _CHECK.indices("req_indices", req_indices, len(token_pool), "requests in token_pool")
    written = 0
    for request, start, end in zip(req_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=False):
        if not 0 <= end - start <= _MOST_TOKENS:
            raise UndefinedBehaviour(
                f"{_CHECK.operator}: tokens {start} to {end}; allowed: 0 to {_MOST_TOKENS} of them"
            )
        if start < 0 or end > token_pool.shape[1] or written + end - start > out_cache_loc.numel():
            found = f"tokens {start} to {end} of {token_pool.shape[1]}, to {written} of {out_cache_loc.numel()}"
            raise DeviceFault(f"{_CHECK.operator}: {found}")
        out_cache_loc.view(-1)[written : written + end - start] = token_pool[request, start:end]
        written += end - start
    return out_cache_loc


def cache_loc_update_meta(out_cache_loc: Tensor) -> Tensor:
    """Return a tensor like out_cache_loc."""
    return torch.empty_like(out_cache_loc)


def _check(requests: Tensor, pool: Tensor, starts: Tensor, ends: Tensor, out: Tensor) -> None:
    given = {"req_indices": requests, "token_pool": pool, "start_offset": starts, "end_offset": ends}
    given["out_cache_loc"] = out
    for name, tensor in given.items():
        allowed = ["int64"] if name.endswith("offset") else ["int32"]
        if name == "req_indices":
            allowed.append("int64")
        if dtype_name(tensor) not in allowed:
            words = "Only support inputTensor combo1: int64, int32, int64, int64, int32"
            raise _CHECK.rejected(name, dtype_name(tensor), " or ".join(allowed), words=words)
    _CHECK.rank("token_pool", pool, 2, "[requests, tokens]")
    _CHECK.addressed_as_contiguous(**given)
    if min(starts.numel(), ends.numel()) < len(requests):
        found = f"{starts.numel()} and {ends.numel()} offsets for {len(requests)} requests"
        raise UndefinedBehaviour(f"{_CHECK.operator}: {found}")
