"""``npu_moe_re_routing``: tokens that came from several ranks, in the order of experts.

Sources: op-plugin's documentation, host code and test, and the wheel's META rule.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode, UndefinedBehaviour
from npudiff.device.simulator.norms.unwritten import unwritten

_CHECK = ArgumentChecks("npu_moe_re_routing", default=ErrorCode.PARAMETER)

_LONGEST = 16384


def re_routing(
    tokens: Tensor,
    expert_token_num_per_rank: Tensor,
    per_token_scales: Tensor | None,
    expert_token_num_type: int,
    idx_type: int,
    tokens_dtype: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return tokens in the order of experts, and within an expert of ranks.

    Parameters
    ----------
    tokens : Tensor
        float16, bfloat16 or int8 [A, H], in the order of ranks, and within a rank of experts; H below 16,384.
    expert_token_num_per_rank : Tensor
        int32 or int64 [N, E]: how many of rank i are of expert j; together A.
    per_token_scales : Tensor, optional
        float32 [A].
    expert_token_num_type : int
        1: counts of experts.
    idx_type : int
        0: the last output says where each token was.
    tokens_dtype : int, optional
        None; others are of Ascend 950.

    Returns
    -------
    permute_tokens : Tensor
        As tokens.
    permute_per_token_scales : Tensor
        As per_token_scales; without it not written.
    permute_token_idx : Tensor
        int32 [A].
    expert_token_num : Tensor
        [E], the dtype of the counts.

    Raises
    ------
    OperatorRejected
        Dtype, shape or type is not one of the above.
    UndefinedBehaviour
        The counts are not A together, or one is below 0.
    """
    _check_host(tokens, expert_token_num_per_rank)
    counts = expert_token_num_per_rank
    _CHECK.choice("tokens_dtype", tokens_dtype, (None,), ErrorCode.WRAPPER)
    _CHECK.dtype("tokens", tokens, "float16", "bfloat16", "int8")
    _CHECK.rank("tokens", tokens, 2, "[A, H]")
    _CHECK.between("tokens", tokens.shape[1], 1, _LONGEST - 1)
    _CHECK.dtype("expert_token_num_per_rank", counts, "int32", "int64")
    _CHECK.rank("expert_token_num_per_rank", counts, 2, "[N, E]")
    _CHECK.choice("expert_token_num_type", expert_token_num_type, (1,))
    _CHECK.choice("idx_type", idx_type, (0,))
    if per_token_scales is not None:
        _CHECK.dtype("per_token_scales", per_token_scales, "float32")
        _CHECK.shape("per_token_scales", per_token_scales, (len(tokens),), meaning="[A]")
    if int(counts.sum()) != len(tokens) or (counts < 0).any():
        found = f"counts of {int(counts.sum())} tokens, the least {int(counts.min())}"
        raise UndefinedBehaviour(f"npu_moe_re_routing: expert_token_num_per_rank has {found}; there are {len(tokens)}")
    experts = torch.arange(counts.shape[1]).repeat(counts.shape[0]).repeat_interleave(counts.flatten().long())
    order = experts.argsort(stable=True)
    scales = unwritten((len(tokens),), torch.float32) if per_token_scales is None else per_token_scales[order]
    return tokens[order], scales, order.int(), counts.sum(0).to(counts.dtype)


def re_routing_meta(
    tokens: Tensor, expert_token_num_per_rank: Tensor, per_token_scales: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Allocate the outputs, after the checks of the host code."""
    _check_host(tokens, expert_token_num_per_rank)
    count = len(tokens)
    return (
        tokens.new_empty(tokens.shape),
        tokens.new_empty(count, dtype=torch.float32)
        if per_token_scales is None
        else per_token_scales.new_empty(per_token_scales.shape),
        tokens.new_empty(count, dtype=torch.int32),
        expert_token_num_per_rank.new_empty(expert_token_num_per_rank.shape[1]),
    )


def _check_host(tokens: Tensor, counts: Tensor) -> None:
    for name, tensor in (("tokens", tokens), ("expert_token_num_per_rank", counts)):
        if tensor.dim() < 2:
            words = f"{name} dim should larger than 1"
            raise _CHECK.rejected(name, f"of rank {tensor.dim()}", "rank 2", ErrorCode.WRAPPER, words)
