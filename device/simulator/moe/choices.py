"""What no source settles of the routing operators of mixtures of experts.

DOC is each operator's torch_npu documentation, GOLDEN the expected values of op-plugin's tests, SOURCE the kernels as
far as they were read: vllm-ascend carries copies of CANN's in ``csrc/mc2/dispatch_ffn_combine``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class MoeChoices:
    """Attributes of a CANN profile; the comment above each says what is disputed and by whom."""

    # npu_moe_gating_top_k, renorm other than 0: DOC allows 0 only, sglang gives its flag renormalize (topk.py), and
    # custom builds normalise softmax with 1 as they do sigmoid. With sigmoid nothing depends on it.
    moe_gating_renorm: Literal["normalises_softmax", "ignored", "rejected"] = "normalises_softmax"

    # npu_moe_gating_top_k_softmax, equal probabilities: GOLDEN sorts stably by probability, so that the lower expert
    # is first. A kernel may sort logits, of which several can have one probability.
    moe_gating_softmax_order: Literal["probabilities", "logits"] = "probabilities"

    # npu_moe_init_routing_v2, quant_mode 1, int8 from float32: SOURCE (moe_v2_gather_dynamic_quant.h) cuts to float16
    # and rounds that half away from zero. It is the kernel of moe_init_routing_quant_v2; that the one behind this
    # operator does the same is inferred.
    moe_init_routing_dynamic_int8: Literal["cut_then_half_away", "half_to_even"] = "cut_then_half_away"

    # The same, smooth scales: DOC's formula divides x by the scale of the products x * s, DOC's code and GOLDEN divide
    # the products.
    moe_init_routing_smooth: Literal["multiplied", "scale_only"] = "multiplied"

    # npu_moe_init_routing_v2, drop_pad_mode 1, counts of expert_tokens_num_type 1: no source that was read says whether
    # they count what was dropped.
    moe_init_routing_drop_pad_counts: Literal["before_capacity", "kept"] = "before_capacity"

    # npu_moe_init_routing_v2, type 2, the first of each pair: that it is the number of the expert and not its place in
    # active_expert_range is inferred.
    moe_init_routing_keys: Literal["expert", "place_in_range"] = "expert"

    # The same, row_idx_type 1, behind the last active pair: DOC's code and GOLDEN sort on, first the pairs of experts
    # above the range by expert, then those of experts below it. That a kernel leaves what was there before is inferred.
    moe_init_routing_inactive: Literal["sorted", "unwritten"] = "sorted"

    # npu_moe_finalize_routing, drop_pad_mode 1 and 3, a pair whose row is -1: GOLDEN has 0 there, which is read as
    # zeros, to which the bias is added; the first row is what a kernel that clamps would take.
    moe_finalize_dropped_row: Literal["zeros", "first_row"] = "zeros"

    # npu_moe_finalize_routing, CANN without version 4 of it: op-plugin refuses calls without skip1.
    moe_finalize_version: Literal["4", "before_4"] = "4"

    # npu_moe_distribute_dispatch and _combine: A2 and A3 do not take the same. DOC has, for A2, any width that is a
    # multiple of 32 up to 10,240, no ranks of shared experts and a mask of tokens; for A3 widths of 1,024 to 8,192.
    # either: what one of them takes.
    moe_distribute_soc: Literal["either", "A2", "A3"] = "either"
