"""Wrong trees of drafted tokens."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.draft_tree import (
    Outputs,
    all_nodes_at_once,
    build_tree_kernel_efficient,
    built,
    by_matrices,
    first_of,
    flat_mask,
    mask_like,
    node_by_node,
    parents,
    verified_greedily,
    walked,
    ways,
)
from npudiff.reference.draft_tree import DraftTreeInputs

_SEVERAL = range(2, 2**12 + 1)
_BRANCHES = {"topk": range(2, 33), "draft_token_num": range(3, 257)}


@mutant(
    node_by_node,
    "sgl_kernel_npu/sample/verify_tree_greedy.py 51: drafts are compared in the order of nodes, whatever their tree",
    supports=_BRANCHES,
)
def verified_as_a_chain(inputs: DraftTreeInputs, target: Target) -> Outputs:
    """Take each node for the only child of the node before."""
    outputs, count = walked(inputs), inputs.draft_token_num
    following = torch.arange(1, count + 1, device=inputs.candidates.device).expand_as(inputs.candidates).clone()
    following[:, -1] = -1
    chain = {"next_token": following, "next_sibling": torch.full_like(following, -1)}
    found = verified_greedily(replace(inputs, depth=count), chain)
    return {**outputs, **found, "accept_index": found["accept_index"][:, : inputs.depth + 1]}


@mutant(
    all_nodes_at_once,
    "sgl_kernel_npu/sample/verify_tree_greedy.py 44: rows of accepted nodes are as far apart as a tree has nodes",
    supports={**_BRANCHES, "batch": _SEVERAL},
)
def rows_as_long_as_trees(inputs: DraftTreeInputs, target: Target) -> Outputs:
    """Write accepted nodes where they would be if there was room for all nodes."""
    outputs = by_matrices(inputs)
    right = outputs["accept_index"]
    flat = torch.full_like(right, -1).flatten()
    for request, row in enumerate(right):
        written = flat[request * inputs.draft_token_num :][: len(row)]
        written[:] = row[: len(written)]
    return {**outputs, "accept_index": flat.view_as(right)}


@mutant(
    all_nodes_at_once,
    "sgl-project/sglang/pull/15360: accepted nodes are taken for the first ones of the tree",
    supports=_BRANCHES,
)
def accepted_nodes_are_the_first(inputs: DraftTreeInputs, target: Target) -> Outputs:
    """Count as many nodes as were accepted from the root on."""
    outputs = by_matrices(inputs)
    index = outputs["accept_index"]
    dense = index[:, :1] + torch.arange(index.shape[1], device=index.device, dtype=index.dtype)
    return {**outputs, "accept_index": torch.where(index < 0, index, dense)}


@mutant(
    all_nodes_at_once,
    "sgl-project/sglang/pull/26866: the bonus is found by the length of a tree, not of a row of accepted nodes",
    supports={**_BRANCHES, "batch": _SEVERAL},
)
def bonus_of_another_row(inputs: DraftTreeInputs, target: Target) -> Outputs:
    """Read the last accepted node of a request where rows would be if they were as long as trees."""
    outputs = by_matrices(inputs)
    index, predicted = outputs["accept_index"].flatten().long(), outputs["predicted"].clone()
    for request, accepted in enumerate(outputs["accepted"].tolist()):
        place = min(request * inputs.draft_token_num + accepted, len(index) - 1)
        bonus = int(outputs["accept_index"][request, accepted])
        predicted[bonus] = inputs.target_predict.flatten()[index[place]]
    return {**outputs, "predicted": predicted}


@mutant(all_nodes_at_once, "sgl_kernel_npu/speculative.py 80: every node sees all drafts")
def all_drafts_are_seen(inputs: DraftTreeInputs, target: Target) -> Outputs:
    """Show every draft to every node."""
    return {**by_matrices(inputs), "mask": mask_like(inputs)}


@mutant(
    node_by_node,
    "sgl_kernel_npu/speculative.py 44: with two nodes, siblings and mask stay as the caller had them",
    supports={"draft_token_num": (2,), "topk": (1,), "mask_mode": ("full",)},
)
def two_nodes_are_cut_short(inputs: DraftTreeInputs, target: Target) -> Outputs:
    """Return buffers as they were allocated."""
    outputs = walked(inputs)
    return {**outputs, "next_sibling": torch.zeros_like(outputs["next_sibling"]), "mask": mask_like(inputs)}


@mutant(
    node_by_node,
    "sglang/kernels/ops/speculative/spec_tree.py 93: nodes are linked from the last one on",
    supports=_BRANCHES,
)
def linked_from_the_first_node_on(inputs: DraftTreeInputs, target: Target) -> Outputs:
    """Turn the siblings of each parent round."""
    outputs = walked(inputs)
    above = parents(inputs)
    nodes = torch.arange(inputs.draft_token_num, device=above.device)
    child = (above.unsqueeze(1) == nodes.unsqueeze(1)).flip(2)
    earlier = ((above.unsqueeze(1) == above.unsqueeze(2)) & (nodes < nodes.unsqueeze(1))).flip(2)
    last, before = (
        torch.where(one < 0, one, inputs.draft_token_num - 1 - one) for one in map(first_of, (child, earlier))
    )
    links = {"next_token": last, "next_sibling": before}
    return {**outputs, **links, **verified_greedily(inputs, links)}


@mutant(
    node_by_node,
    "sgl_kernel_npu/speculative.py 199: the next sibling is tried where a child is not accepted",
    supports=_BRANCHES,
)
def first_children_alone_are_tried(inputs: DraftTreeInputs, target: Target) -> Outputs:
    """End at the first child that does not match."""
    outputs = walked(inputs)
    alone = torch.full_like(outputs["next_sibling"], -1)
    return {**outputs, **verified_greedily(inputs, {**outputs, "next_sibling": alone})}


@mutant(
    node_by_node,
    "sglang/kernels/ops/speculative/spec_tree.py 242: a walk goes on with children of the node that was accepted",
    supports=_BRANCHES,
)
def children_of_anybody(inputs: DraftTreeInputs, target: Target) -> Outputs:
    """Accept any node of the next depth."""
    outputs = walked(inputs)
    depths = outputs["positions"].view_as(inputs.candidates) - inputs.verified.unsqueeze(1)
    nodes = torch.arange(inputs.draft_token_num, device=depths.device)
    below = first_of(depths.unsqueeze(1) == depths.unsqueeze(2) + 1)
    beside = first_of((depths.unsqueeze(1) == depths.unsqueeze(2)) & (nodes > nodes.unsqueeze(1)))
    return {**outputs, **verified_greedily(inputs, {"next_token": below, "next_sibling": beside})}


@perturbed(
    node_by_node,
    "sglang/kernels/ops/speculative/spec_tree.py 248: the target's token is of the last accepted node",
    supports={"matches": ("first", "last")},
)
def target_of_the_root(inputs: DraftTreeInputs) -> DraftTreeInputs:
    """Compare every draft with what the target says behind the root."""
    return replace(inputs, target_predict=inputs.target_predict[:, :1].expand_as(inputs.target_predict).clone())


@mutant(all_nodes_at_once, "sgl_kernel_npu/speculative.py 205: the last accepted node has the bonus")
def bonus_is_left_out(inputs: DraftTreeInputs, target: Target) -> Outputs:
    """Write the target's token only where the next node was accepted."""
    outputs = by_matrices(inputs)
    last = outputs["accept_index"].gather(1, outputs["accepted"].long().unsqueeze(1)).flatten().long()
    return {**outputs, "predicted": outputs["predicted"].index_fill(0, last, -1)}


@mutant(
    build_tree_kernel_efficient,
    "sgl_kernel_npu/speculative.py 131: a position counts the steps to the root",
    supports=_BRANCHES,
)
def position_by_the_number_of_the_node(inputs: DraftTreeInputs, target: Target) -> Outputs:
    """Place nodes one after the other, as those of a chain."""
    nodes = torch.arange(inputs.draft_token_num, device=inputs.verified.device)
    return {**built(inputs), "positions": (inputs.verified.unsqueeze(1) + nodes).flatten()}


@mutant(all_nodes_at_once, "sglang/kernels/ops/speculative/spec_tree.py 155: the root is seen by all nodes")
def root_is_hidden(inputs: DraftTreeInputs, target: Target) -> Outputs:
    """Show ancestors without the root."""
    sees = ways(parents(inputs), inputs.depth)
    sees[:, 1:, 0] = False
    return {**by_matrices(inputs), "mask": flat_mask(inputs, sees)}


@mutant(all_nodes_at_once, "sglang/kernels/ops/speculative/spec_tree.py 168: a node sees itself")
def nodes_do_not_see_themselves(inputs: DraftTreeInputs, target: Target) -> Outputs:
    """Begin at the parent."""
    sees = ways(parents(inputs), inputs.depth)
    sees[:, 1:].diagonal(offset=1, dim1=1, dim2=2).fill_(False)
    return {**by_matrices(inputs), "mask": flat_mask(inputs, sees)}


@mutant(
    all_nodes_at_once,
    "sglang/kernels/ops/speculative/spec_tree.py 165: a walk takes as many steps as a tree is deep",
    supports={"depth": range(2, 33), "draft_token_num": range(3, 257)},
)
def walks_end_a_step_early(inputs: DraftTreeInputs, target: Target) -> Outputs:
    """Lose the last step to the root, of nodes of the last depth."""
    outputs = by_matrices(inputs)
    sees = ways(parents(inputs), inputs.depth - 2)
    sees[:, :, 0] = True
    positions = (inputs.verified.unsqueeze(1) + sees.sum(dim=2) - 1).flatten()
    return {**outputs, "positions": positions, "mask": flat_mask(inputs, sees)}


@mutant(
    all_nodes_at_once,
    "sgl_kernel_npu/speculative.py 54: a mask begins behind those of all requests before",
    supports={"mask_mode": ("full",), "batch": _SEVERAL},
)
def masks_as_if_all_were_as_long(inputs: DraftTreeInputs, target: Target) -> Outputs:
    """Begin where the mask would if requests before had as many verified tokens."""
    mask, count = mask_like(inputs), inputs.draft_token_num
    sees = ways(parents(inputs), inputs.depth)
    nodes = torch.arange(count, device=mask.device)
    for request, verified in enumerate(inputs.verified.tolist()):
        places = (request * count + nodes).unsqueeze(1) * (verified + count) + verified + nodes
        there = places < len(mask)
        mask[places[there]] = sees[request][there]
    return {**by_matrices(inputs), "mask": mask}


@mutant(
    node_by_node,
    "sgl_kernel_npu/speculative.py 39: nodes are counted through the batch",
    supports={"batch": _SEVERAL},
)
def nodes_counted_by_request(inputs: DraftTreeInputs, target: Target) -> Outputs:
    """Begin at 0 for each request."""
    outputs = walked(inputs)
    index = outputs["accept_index"]
    return {**outputs, "accept_index": torch.where(index < 0, index, index % inputs.draft_token_num)}


@perturbed(
    build_tree_kernel_efficient,
    "sglang/kernels/ops/speculative/spec_tree.py 118: a tree is of its request's own row",
    supports={**_BRANCHES, "batch": _SEVERAL},
)
def trees_of_the_first_request(inputs: DraftTreeInputs) -> DraftTreeInputs:
    """Read parents and candidates of the first request for all."""
    return replace(
        inputs,
        parent_list=inputs.parent_list[:1].expand_as(inputs.parent_list).clone(),
        selected_index=inputs.selected_index[:1].expand_as(inputs.selected_index).clone(),
    )


@perturbed(
    all_nodes_at_once,
    "sglang/kernels/ops/speculative/spec_tree.py 111: parents are those that the search went on from, the best first",
    supports={**_BRANCHES, "depth": range(3, 33)},
)
def parents_in_order(inputs: DraftTreeInputs) -> DraftTreeInputs:
    """Take the parents of each step for the first candidates of the step before."""
    topk, parent_list = inputs.topk, inputs.parent_list.clone()
    for step in range(1, inputs.depth - 1):
        first = topk + (step - 1) * topk**2
        parent_list[:, 1 + step * topk : 1 + (step + 1) * topk] = torch.arange(first, first + topk)
    return replace(inputs, parent_list=parent_list)
