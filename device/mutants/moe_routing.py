"""Wrong ways of sorting tokens by expert."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, mutant
from npudiff.device.ascend.moe_routing import (
    COUNTS,
    CUMULATIVE,
    Outputs,
    init_routing_v2,
    native_routing,
    outputs_of,
    second,
)
from npudiff.device.mutants.kept import keeping
from npudiff.model.implementation import ImplementationFunction
from npudiff.reference.moe_routing import MoeRoutingInputs


@mutant(
    init_routing_v2,
    "MOE-01 vllm-project/vllm-ascend/pull/5025: the first difference twice",
    supports={"experts": range(4, 2049)},
)
def first_count_is_the_seconds(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """Take differences of cumulative counts, and the first one once more for the first expert."""
    rows, src_to_dst_row, ends, scale = second(inputs, CUMULATIVE)
    counts = torch.diff(ends)
    return outputs_of(inputs, rows, src_to_dst_row, torch.cat([counts[:1], counts]), scale)


@mutant(init_routing_v2, "MOE-02 vllm-project/vllm-ascend/pull/4822: cumulative counts where counts belong")
def ends_for_counts(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """Ask for cumulative counts."""
    return outputs_of(inputs, *second(inputs, CUMULATIVE))


@mutant(
    native_routing,
    "MOE-05 sgl-project/sglang/pull/40705: global experts beside local weights",
    supports={"form": ("as they are",)},
)
def all_experts_are_here(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """Sort copies for all experts, and cut the counts to those that are here."""
    outputs = native_routing(replace(inputs, first=0, last=inputs.all_experts), target)
    return {**outputs, "counts": outputs["counts"][inputs.first : inputs.last]}


@mutant(
    init_routing_v2, "MOE-05 sgl-project/sglang/pull/40705: -1 is read as the last row", supports={"local": (True,)}
)
def row_of_the_last_for_none(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """Count places of copies that are not here from the end."""
    rows, src_to_dst_row, counts, scale = second(inputs, COUNTS)
    return outputs_of(
        inputs,
        rows,
        torch.where(src_to_dst_row < 0, src_to_dst_row + len(src_to_dst_row), src_to_dst_row),
        counts,
        scale,
    )


@mutant(
    init_routing_v2,
    "vllm-project/vllm-ascend/pull/16806: factors of the first expert for all of them",
    supports={"form": ("smoothed",)},
)
def factors_of_the_first_expert(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """Give the operator the first row of factors, which it takes for all experts."""
    scale = None if inputs.scale is None else inputs.scale[:1].contiguous()
    wrong = replace(inputs, scale=scale)
    return outputs_of(wrong, *second(wrong, COUNTS))


@mutant(
    native_routing,
    "QNT-10 sgl-project/sglang/pull/31529: scales of the dispatch do not follow its rows",
    supports={"form": ("with scales",)},
)
def scales_in_the_order_of_tokens(inputs: MoeRoutingInputs, target: Target) -> Outputs:
    """Repeat the scale of each token for its copies, and leave them where they are."""
    outputs = native_routing(inputs, target)
    scale = None if inputs.scale is None else inputs.scale.repeat_interleave(inputs.experts.shape[1])
    return outputs if scale is None else {**outputs, "scale": scale}


@mutant(
    init_routing_v2,
    "GRF-07 xLLM-AI/xllm/pull/2065: a graph is found by its size, and has the experts of the captured batch",
    stateful=True,
    graph=True,
)
def experts_of_the_capture() -> ImplementationFunction[MoeRoutingInputs, Outputs]:
    """Keep the experts that the dummy run had."""
    return keeping(init_routing_v2, "experts")
