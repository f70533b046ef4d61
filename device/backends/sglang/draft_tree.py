"""Trees of drafted tokens on sglang, as ``eagle_utils`` builds and verifies them; plain forms of sgl-kernel-npu.

No path of sglang 0.5.23 comes to those: they are what sgl-kernel-npu compares its kernels with.
"""

from __future__ import annotations

import torch
from sglang.kernels.ops.speculative.spec_tree import TreeMaskMode, verify_tree_greedy_func
from sglang.srt.speculative.eagle_utils import build_tree_kernel_efficient

from npudiff import Target, implementation
from npudiff.model.constraints import Box
from npudiff.reference.draft_tree import DraftTreeInputs

Outputs = dict[str, torch.Tensor]

CHAINS: tuple[Box, ...] = tuple(
    {"topk": (1,), "depth": (depth,), "draft_token_num": (depth + 1,), "mask_mode": ("full",), "batch": range(1, 33)}
    for depth in range(1, 9)
)
"""What sglang makes of a top-k of 1: a node for each step, behind the root. The interpreter of Triton runs one request
after the other, so there are few."""

TREES: Box = {"topk": range(2, 17), "draft_token_num": range(3, 33), "mask_mode": ("full",), "batch": range(1, 9)}
"""Of a larger top-k. sglang takes arguments with one, beside pages of one token; its attention for an NPU has neither
rows for branches nor masks of trees, so that no run comes here."""

FEW: Box = {"batch": range(1, 33)}


def _built(inputs: DraftTreeInputs) -> tuple[torch.Tensor, ...]:
    """Mask, positions, and numbers, first children and next siblings of nodes."""
    mask, positions, index, first, following, _ = build_tree_kernel_efficient(
        inputs.candidates[:, 0], inputs.parent_list, inputs.selected_index, inputs.candidates[:, 1:], inputs.verified,
        int(inputs.verified.sum()), inputs.topk, inputs.depth, inputs.draft_token_num, TreeMaskMode.FULL_MASK,
    )  # fmt: skip
    return mask, positions, index, first, following


def _room(inputs: DraftTreeInputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What verification writes into, as ``eagle_sample`` makes it."""
    new, requests = inputs.candidates.new_full, len(inputs.candidates)
    predicted = new((inputs.candidates.numel(),), 0, dtype=torch.int32)
    return predicted, new((requests, inputs.depth + 1), -1, dtype=torch.int32), new((requests,), 0, dtype=torch.int32)


def _accepted(answer: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> Outputs:
    return dict(zip(("predicted", "accept_index", "accepted"), answer, strict=True))


@implementation("draft_tree", name="build_tree_kernel_efficient", supports={"mask_mode": ("full",)}, on_device=True)
def build(inputs: DraftTreeInputs, target: Target) -> Outputs:
    """``build_tree_kernel_efficient`` of ``eagle_utils``, with masks as its default has them."""
    mask, positions, _, first, following = _built(inputs)
    return {"positions": positions, "next_token": first, "next_sibling": following, "mask": mask}


@implementation("draft_tree", name="verify_tree_greedy_func", supports=CHAINS, on_device=True)
def verify(inputs: DraftTreeInputs, target: Target) -> Outputs:
    """``verify_tree_greedy_func`` of a chain: its Triton kernel for an NPU takes every tree for one."""
    _, _, index, first, following = _built(inputs)
    answer = verify_tree_greedy_func(
        *_room(inputs), inputs.candidates, index, first, following, inputs.target_predict, topk=inputs.topk
    )
    return _accepted(answer)


@implementation("draft_tree", name="verify_tree_greedy_func_of_trees", supports=TREES, on_device=True)
def verify_trees(inputs: DraftTreeInputs, target: Target) -> Outputs:
    """The same of trees. Its kernel writes behind the nodes that it returns, for which there is room here."""
    _, _, index, first, following = _built(inputs)
    predicted, accepted_nodes, accepted = _room(inputs)
    count = accepted_nodes.numel()
    room = accepted_nodes.new_full((count + inputs.candidates.numel(),), -1)
    verify_tree_greedy_func(
        predicted, room[:count].view_as(accepted_nodes), accepted, inputs.candidates, index, first, following,
        inputs.target_predict, topk=inputs.topk,
    )  # fmt: skip
    return _accepted((predicted, room[:count].view_as(accepted_nodes), accepted))


def _built_natively(inputs: DraftTreeInputs) -> tuple[torch.Tensor, ...]:
    """Positions, and numbers, first children and next siblings of nodes, and mask."""
    from sgl_kernel_npu.speculative import build_tree_efficient_native  # noqa: PLC0415 - of a checkout, if there is one

    requests, count = inputs.candidates.shape
    full = inputs.mask_mode == "full"
    elements = count * ((int(inputs.verified.sum()) if full else 0) + requests * count)
    mask = inputs.candidates.new_full((elements,), 1, dtype=torch.bool)
    links = [torch.full_like(inputs.candidates, -1) for _ in range(3)]
    mode = TreeMaskMode.FULL_MASK if full else TreeMaskMode.QLEN_ONLY
    answer: tuple[torch.Tensor, ...] = build_tree_efficient_native(
        inputs.parent_list, inputs.selected_index, inputs.verified, mask, *links, inputs.topk, count, mode, requests
    )
    return answer


@implementation("draft_tree", name="build_tree_efficient_native", supports=FEW, on_device=True, native=True)
def build_natively(inputs: DraftTreeInputs, target: Target) -> Outputs:
    """``build_tree_efficient_native`` of sgl-kernel-npu: links and positions."""
    positions, _, first, following, _ = _built_natively(inputs)
    return {"positions": positions, "next_token": first, "next_sibling": following}


@implementation("draft_tree", name="build_tree_efficient_native_mask", supports=FEW, on_device=True, native=True)
def mask_natively(inputs: DraftTreeInputs, target: Target) -> Outputs:
    """``build_tree_efficient_native`` of sgl-kernel-npu: masks."""
    return {"mask": _built_natively(inputs)[-1]}


@implementation("draft_tree", name="verify_tree_greedy_native", supports=FEW, on_device=True, native=True)
def verify_natively(inputs: DraftTreeInputs, target: Target) -> Outputs:
    """``verify_tree_greedy_native`` of sgl-kernel-npu, with links of its own; of two nodes it returns wider tokens."""
    from sgl_kernel_npu.speculative import verify_tree_greedy_native  # noqa: PLC0415 - of a checkout, if there is one

    _, index, first, following, _ = _built_natively(inputs)
    predicted, index, accepted = verify_tree_greedy_native(
        *_room(inputs), inputs.candidates, index, first, following, inputs.target_predict, inputs.topk
    )
    return _accepted((predicted.to(torch.int32), index, accepted))
