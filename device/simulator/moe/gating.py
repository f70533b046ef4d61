"""``npu_moe_gating_top_k_softmax`` and ``npu_moe_gating_top_k``: which experts a token goes to, and with what weight.

Sources: the documentation of both, op-plugin's host checks and its tests' expected values. All arithmetic is float32
with one rounding at the end; of equal scores the lower expert is first (stable sort).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import FLOATS, ArgumentChecks, dtype_name
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.profiles import active_profile

_SOFTMAX = ArgumentChecks("npu_moe_gating_top_k_softmax", default=ErrorCode.PARAMETER)
_GATING = ArgumentChecks("npu_moe_gating_top_k", default=ErrorCode.PARAMETER)

_MAX_K = 1024
_MAX_EXPERTS = 2048
_SORT_LANES = 32
_INDICES = ("int32", "int64")


def gating_top_k_softmax(x: Tensor, finished: Tensor | None = None, k: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Return the k largest probabilities of each row, not normalised again.

    Parameters
    ----------
    x : Tensor
        [n, E] or [B, S, E] logits; float16, bfloat16 or float32.
    finished : Tensor, optional
        bool, shape of x without its last axis: rows that need no expert.
    k : int
        1 to min(E, 1024).

    Returns
    -------
    y : Tensor
        [..., k] in the dtype of x, descending.
    expert_idx : Tensor
        int32 [..., k]; E, which no expert has, in finished rows.
    row_idx : Tensor
        int32 [..., k], column-major: ``j * n + i`` for the j-th expert of row i.

    Raises
    ------
    OperatorRejected
        Rank, dtype, shape or k is not one of the above.
    """
    _check_softmax(x, finished, k)
    experts = x.shape[-1]
    probabilities = torch.softmax(x.float(), -1)
    by_logits = active_profile().moe_gating_softmax_order == "logits"
    chosen = _largest(x.float() if by_logits else probabilities, k)
    y = probabilities.gather(-1, chosen).to(x.dtype)
    expert_idx = chosen.to(torch.int32)
    if finished is not None:
        expert_idx.masked_fill_(finished.unsqueeze(-1), experts)
    rows = math.prod(x.shape[:-1])
    row_idx = torch.arange(rows * k, dtype=torch.int32).view(k, rows).t().reshape(y.shape)
    return y, expert_idx, row_idx.contiguous()


def gating_top_k_softmax_meta(x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate the outputs; as torch_npu's META, this checks the rank."""
    _SOFTMAX.rank("x", x, (2, 3), code=ErrorCode.WRAPPER)
    shape = (*x.shape[:-1], k)
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int32), x.new_empty(shape, dtype=torch.int32)


def gating_top_k(
    x: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    input_ids: Tensor | None = None,
    tid2eid: Tensor | None = None,
    k_group: int = 1,
    group_count: int = 1,
    group_select_mode: int = 0,
    renorm: int = 0,
    norm_type: int = 0,
    out_flag: bool = False,
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the weights of k experts per token; the bias takes part in the choice only.

    Parameters
    ----------
    x : Tensor
        [T, E] logits, E up to 2048; float16, bfloat16 or float32.
    k : int
        1 to ``E / group_count * k_group``.
    bias : Tensor, optional
        [E] in the dtype of x.
    input_ids, tid2eid : Tensor, optional
        int32 or int64, [T] and [V, k]: the experts of each token are looked up instead of chosen.
    k_group, group_count, group_select_mode : int
        The experts are cut into ``group_count`` groups, of which the best ``k_group`` take part. A group is as good
        as its best expert (mode 0) or its two best together (mode 1).
    renorm : int
        0. For others see ``MoeChoices.moe_gating_renorm``.
    norm_type : int
        0: softmax. 1: sigmoid, and the weights are divided by their sum + eps.
    out_flag : bool
        Whether the third output is wanted.
    routed_scaling_factor : float
        The weights are multiplied by it.
    eps : float
        Added to the sum of the weights.

    Returns
    -------
    y : Tensor
        [T, k] in the dtype of x, descending by what the choice went by.
    expert_idx : Tensor
        int32 [T, k].
    norm : Tensor or None
        float32 [T, E], the scores of all experts without bias; None unless ``out_flag``.

    Raises
    ------
    OperatorRejected
        An argument is not one of the above.
    DeviceFault
        An element of input_ids or tid2eid is no index.
    """
    _check_gating(x, k, bias, input_ids, tid2eid)
    _check_groups(x.shape[1], k, k_group, group_count)
    _check_modes(group_select_mode=group_select_mode, renorm=renorm, norm_type=norm_type)
    scores = x.float()
    norm = torch.sigmoid(scores) if norm_type == 1 else torch.softmax(scores, -1)
    if input_ids is not None and tid2eid is not None:
        chosen = _looked_up(input_ids, tid2eid, x.shape[1])
    else:
        selection = norm if bias is None else norm + bias.float()
        chosen = _largest(_in_best_groups(selection, k_group, group_count, group_select_mode), k)
    y = norm.gather(1, chosen)
    if norm_type == 1 or (renorm and active_profile().moe_gating_renorm == "normalises_softmax"):
        y = y / (y.sum(1, keepdim=True) + eps)
    y = (y * routed_scaling_factor).to(x.dtype)
    return y, chosen.to(torch.int32), norm if out_flag else None


def gating_top_k_meta(
    x: Tensor, k: int, bias: Tensor | None, input_ids: Tensor | None, tid2eid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate the outputs; torch_npu's META has the third one always."""
    _check_gating(x, k, bias, input_ids, tid2eid)
    shape = (len(x), k)
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int32), x.new_empty(x.shape, dtype=torch.float32)


def _largest(scores: Tensor, k: int) -> Tensor:
    """Return the indices of the k largest of each row, descending, the lower first of equal ones: int64 [..., k]."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]


def _in_best_groups(selection: Tensor, k_group: int, group_count: int, mode: int) -> Tensor:
    """Return the scores with -inf for experts whose group is not among the best."""
    if k_group == group_count:
        return selection
    groups = selection.view(len(selection), group_count, -1)
    score = groups.amax(-1) if mode == 0 else groups.topk(2, -1).values.sum(-1)
    kept = torch.zeros_like(score, dtype=torch.bool).scatter_(1, _largest(score, k_group), value=True)
    return groups.masked_fill(~kept.unsqueeze(-1), -math.inf).view(selection.shape)


def _looked_up(input_ids: Tensor, tid2eid: Tensor, experts: int) -> Tensor:
    _GATING.indices("input_ids", input_ids, len(tid2eid), "rows of tid2eid")
    chosen = tid2eid[input_ids.long()].long()
    _GATING.indices("tid2eid[input_ids]", chosen, experts, "experts")
    return chosen


def _check_softmax(x: Tensor, finished: Tensor | None, k: int) -> None:
    _SOFTMAX.rank("x", x, (2, 3), code=ErrorCode.WRAPPER)
    _SOFTMAX.dtype("x", x, *FLOATS, code=ErrorCode.WRAPPER)
    _SOFTMAX.between("k", k, 1, min(x.shape[-1], _MAX_K), ErrorCode.WRAPPER)
    if finished is not None:
        _SOFTMAX.dtype("finished", finished, "bool", code=ErrorCode.WRAPPER)
        _SOFTMAX.shape("finished", finished, x.shape[:-1], meaning="the rows of x")


def _check_gating(x: Tensor, k: int, bias: Tensor | None, input_ids: Tensor | None, tid2eid: Tensor | None) -> None:
    _GATING.rank("x", x, 2, code=ErrorCode.WRAPPER)
    _GATING.dtype("x", x, *FLOATS, code=ErrorCode.WRAPPER)
    if bias is not None:
        _GATING.dtype("bias", bias, dtype_name(x), code=ErrorCode.WRAPPER)
        _GATING.shape("bias", bias, (x.shape[1],), meaning="[E]")
    if (input_ids is None) != (tid2eid is None):
        argument = "input_ids" if input_ids is None else "tid2eid"
        raise _GATING.rejected(argument, None, "both input_ids and tid2eid, or neither", ErrorCode.WRAPPER)
    if input_ids is not None and tid2eid is not None:
        _GATING.dtype("input_ids", input_ids, *_INDICES, code=ErrorCode.WRAPPER)
        _GATING.dtype("tid2eid", tid2eid, *_INDICES, code=ErrorCode.WRAPPER)
        _GATING.shape("input_ids", input_ids, (len(x),), meaning="[T]")
        _GATING.rank("tid2eid", tid2eid, 2, code=ErrorCode.WRAPPER)
        _GATING.shape("tid2eid", tid2eid, (len(tid2eid), k), meaning="[V, k]")


def _check_groups(experts: int, k: int, k_group: int, group_count: int) -> None:
    if experts > _MAX_EXPERTS:
        raise _GATING.rejected("x", f"of {experts} experts", f"at most {_MAX_EXPERTS}", ErrorCode.TILING)
    if group_count < 1 or experts % group_count:
        allowed = f"a divisor of the {experts} experts"
        raise _GATING.rejected("group_count", group_count, allowed, ErrorCode.TILING)
    size = experts // group_count
    padded = -(-size // _SORT_LANES) * _SORT_LANES * group_count
    if size <= 2 or padded > _MAX_EXPERTS:
        given = f"{group_count}, groups of {size}"
        allowed = f"groups of more than 2 experts, at most {_MAX_EXPERTS} if each is padded to {_SORT_LANES}"
        raise _GATING.rejected("group_count", given, allowed, ErrorCode.TILING)
    _GATING.between("k_group", k_group, 1, group_count, ErrorCode.TILING)
    _GATING.between("k", k, 1, size * k_group, ErrorCode.TILING)


def _check_modes(*, group_select_mode: int, renorm: int, norm_type: int) -> None:
    _GATING.choice("group_select_mode", group_select_mode, (0, 1), ErrorCode.TILING)
    _GATING.choice("norm_type", norm_type, (0, 1), ErrorCode.TILING)
    renorms = (0,) if active_profile().moe_gating_renorm == "rejected" else (0, 1)
    _GATING.choice("renorm", renorm, renorms, ErrorCode.TILING)
