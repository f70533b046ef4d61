"""``npu_moe_init_routing``: rows in the order of their experts, by a row index that the caller made.

With it goes ``npu_moe_compute_expert_tokens``, which finds where each expert's rows end. Sources: the documentation of
both, and the expected values of op-plugin's tests.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import FLOATS, ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode, UndefinedBehaviour
from npudiff.device.simulator.norms.unwritten import unwritten

_ROUTING = ArgumentChecks("npu_moe_init_routing", default=ErrorCode.PARAMETER)
_TOKENS = ArgumentChecks("npu_moe_compute_expert_tokens", default=ErrorCode.PARAMETER)

_MAX_COUNTED_EXPERTS = 2048
_MAX_COUNTED_ROWS = 2**24 - 1


def init_routing(x: Tensor, row_idx: Tensor, expert_idx: Tensor, active_num: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the pairs of tokens and experts by expert, stably, and copy the tokens' rows.

    Parameters
    ----------
    x : Tensor
        [n, H], float16, bfloat16 or float32.
    row_idx : Tensor
        int32 [n, k], a number for each pair: column-major, ``j * n + token``, as npu_moe_gating_top_k_softmax gives it.
    expert_idx : Tensor
        int32 [n, k].
    active_num : int
        How many tokens are copied at most: ``min(n, active_num) * k`` rows.

    Returns
    -------
    expanded_x : Tensor
        [min(n, active_num) * k, H]: row i is that of token ``row % n``, where row is the i-th number in sorted order.
    expanded_row_idx : Tensor
        int32 [n * k]: where the pair with some number went. What no number names holds what was there before.
    expanded_expert_idx : Tensor
        int32 [n * k], the sorted experts.

    Raises
    ------
    OperatorRejected
        Rank, dtype, shape or active_num is not one of the above.
    DeviceFault
        A number is not 0 to n * k - 1.
    """
    _check(x, row_idx, expert_idx, active_num)
    rows, pairs = len(x), expert_idx.numel()
    _ROUTING.indices("row_idx", row_idx, pairs, "rows and experts")
    experts, order = expert_idx.reshape(-1).sort(stable=True)
    numbers = row_idx.reshape(-1)[order].long()
    expanded_row_idx = unwritten((pairs,), torch.int32)
    expanded_row_idx[numbers] = torch.arange(pairs, dtype=torch.int32)
    active = min(rows, active_num) * expert_idx.shape[1]
    return x[numbers[:active] % max(rows, 1)], expanded_row_idx, experts


def init_routing_meta(x: Tensor, row_idx: Tensor, expert_idx: Tensor, active_num: int) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate the outputs; as torch_npu's META, this checks nothing."""
    active = min(len(x), active_num) * row_idx.shape[1]
    pairs = (len(x) * row_idx.shape[1],)
    return x.new_empty((active, x.shape[1])), row_idx.new_empty(pairs), expert_idx.new_empty(pairs)


def compute_expert_tokens(sorted_expert_for_source_row: Tensor, num_expert: int) -> Tensor:
    """Return where the rows of each expert end.

    Parameters
    ----------
    sorted_expert_for_source_row : Tensor
        int32 [rows], not decreasing, fewer than 2 ** 24.
    num_expert : int
        1 to 2048.

    Returns
    -------
    Tensor
        int32 [num_expert]: how many of the experts are i or less.

    Raises
    ------
    OperatorRejected
        Rank, dtype or size is not one of the above.
    UndefinedBehaviour
        The experts are not sorted.
    """
    experts = sorted_expert_for_source_row
    _TOKENS.rank("sorted_expert_for_source_row", experts, 1)
    _TOKENS.dtype("sorted_expert_for_source_row", experts, "int32")
    _TOKENS.between("num_expert", num_expert, 1, _MAX_COUNTED_EXPERTS, ErrorCode.TILING)
    if len(experts) > _MAX_COUNTED_ROWS:
        given = f"of {len(experts)} rows"
        raise _TOKENS.rejected("sorted_expert_for_source_row", given, f"at most {_MAX_COUNTED_ROWS}", ErrorCode.TILING)
    falls = (experts[1:] < experts[:-1]).nonzero()
    if len(falls):
        place = int(falls[0]) + 1
        message = f"sorted_expert_for_source_row[{place}] is {experts[place]}, after {experts[place - 1]}"
        raise UndefinedBehaviour(f"npu_moe_compute_expert_tokens: {message}; it must not decrease")
    numbers = torch.arange(num_expert, dtype=torch.int32)
    return torch.searchsorted(experts.contiguous(), numbers, right=True, out_int32=True)


def compute_expert_tokens_meta(sorted_expert_for_source_row: Tensor, num_expert: int) -> Tensor:
    """Allocate the output."""
    return sorted_expert_for_source_row.new_empty((num_expert,), dtype=torch.int32)


def _check(x: Tensor, row_idx: Tensor, expert_idx: Tensor, active_num: int) -> None:
    for argument, tensor in (("x", x), ("row_idx", row_idx), ("expert_idx", expert_idx)):
        _ROUTING.rank(argument, tensor, 2, code=ErrorCode.WRAPPER)
    _ROUTING.dtype("x", x, *FLOATS, code=ErrorCode.WRAPPER)
    _ROUTING.dtype("row_idx", row_idx, "int32", code=ErrorCode.WRAPPER)
    _ROUTING.dtype("expert_idx", expert_idx, "int32", code=ErrorCode.WRAPPER)
    _ROUTING.shape("expert_idx", expert_idx, (len(x), expert_idx.shape[1]), meaning="[n, k], the rows of x")
    _ROUTING.shape("row_idx", row_idx, expert_idx.shape, meaning="the shape of expert_idx")
    if active_num < 0:
        raise _ROUTING.rejected("active_num", active_num, "0 or more", ErrorCode.WRAPPER)
