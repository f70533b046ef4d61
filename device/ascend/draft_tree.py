"""Trees of drafted tokens: the operator of sgl-kernel-npu, a walk from node to node, and all nodes at once."""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.reference.draft_tree import DraftTreeInputs

Outputs = dict[str, torch.Tensor]

_FULL_MASK = 0


def mask_like(inputs: DraftTreeInputs) -> torch.Tensor:
    """A mask that hides nothing, as callers of the operator give it."""
    requests, count = inputs.candidates.shape
    verified = int(inputs.verified.sum()) if inputs.mask_mode == "full" else 0
    return inputs.verified.new_ones(count * (verified + requests * count), dtype=torch.bool)


@implementation("draft_tree", supports={"mask_mode": ("full",)}, on_device=True)
def build_tree_kernel_efficient(inputs: DraftTreeInputs, target: Target) -> Outputs:
    """The operator, which leaves columns of verified tokens as they are; its rows of masks without these are another's.

    It does not verify: sglang has a kernel of Triton for that.
    """
    return built(inputs)


def built(inputs: DraftTreeInputs) -> Outputs:
    """Call the operator with outputs as sglang makes them."""
    mask, like = mask_like(inputs), inputs.candidates
    positions, index = like.new_zeros(like.numel()), torch.full_like(like, -1)
    links = {"next_token": torch.full_like(like, -1), "next_sibling": torch.full_like(like, -1)}
    torch.ops.npu.build_tree_kernel_efficient(
        inputs.parent_list, inputs.selected_index, inputs.verified, mask, positions, index, *links.values(),
        inputs.topk, inputs.depth, inputs.draft_token_num, _FULL_MASK,
    )  # fmt: skip
    return {"positions": positions, **links, "mask": mask}


@implementation("draft_tree", supports={}, on_device=True)
def node_by_node(inputs: DraftTreeInputs, target: Target) -> Outputs:
    """Lists that are linked from the last node on, and walks along them."""
    return walked(inputs)


def walked(inputs: DraftTreeInputs) -> Outputs:
    """Build and verify each tree by itself."""
    outputs = {**linked(inputs), "mask": mask_like(inputs)}
    start = 0
    for request, verified in enumerate(inputs.verified.tolist()):
        columns = inputs.draft_token_num + (verified if inputs.mask_mode == "full" else 0)
        rows = outputs["mask"][start : start + inputs.draft_token_num * columns].view(-1, columns)
        start += rows.numel()
        rows[:, columns - inputs.draft_token_num :] = False
        for node in range(inputs.draft_token_num):
            at, steps = node, 0
            while at:
                rows[node, at - inputs.draft_token_num] = True
                at, steps = parent_of(inputs, request, at), steps + 1
            rows[node, -inputs.draft_token_num] = True
            outputs["positions"][request * inputs.draft_token_num + node] = verified + steps
    return {**outputs, **verified_greedily(inputs, outputs)}


def parent_of(inputs: DraftTreeInputs, request: int, node: int) -> int:
    """The node above one that is not the root."""
    place = int(inputs.selected_index[request, node - 1]) // inputs.topk
    if not place:
        return 0
    return 1 + int((inputs.selected_index[request] == inputs.parent_list[request, place]).nonzero()[0])


def linked(inputs: DraftTreeInputs) -> Outputs:
    """First children and next siblings: each node is put before those that its parent has already."""
    first, following = torch.full_like(inputs.candidates, -1), torch.full_like(inputs.candidates, -1)
    for request in range(len(first)):
        for node in range(inputs.draft_token_num - 1, 0, -1):
            above = parent_of(inputs, request, node)
            following[request, node] = first[request, above]
            first[request, above] = node
    positions = inputs.candidates.new_zeros(inputs.candidates.numel())
    return {"positions": positions, "next_token": first, "next_sibling": following}


def verified_greedily(inputs: DraftTreeInputs, links: Outputs) -> Outputs:
    """Follow the links while a child has the token that the target says."""
    requests, count = inputs.candidates.shape
    index = inputs.candidates.new_full((requests, inputs.depth + 1), -1, dtype=torch.int32)
    accepted = inputs.candidates.new_zeros(requests, dtype=torch.int32)
    predicted = inputs.candidates.new_zeros(requests * count, dtype=torch.int32)
    for request in range(requests):
        node, steps = 0, 0
        while node >= 0:
            token = inputs.target_predict[request, node]
            index[request, steps] = request * count + node
            predicted[request * count + node] = token
            accepted[request] = steps
            child = int(links["next_token"][request, node])
            while child >= 0 and inputs.candidates[request, child] != token:
                child = int(links["next_sibling"][request, child])
            node, steps = child, steps + 1
    return {"accept_index": index, "accepted": accepted, "predicted": predicted}


@implementation("draft_tree", supports={}, on_device=True)
def all_nodes_at_once(inputs: DraftTreeInputs, target: Target) -> Outputs:
    """Matrices of all nodes of all trees: who is whose child, and who stands on whose way."""
    return by_matrices(inputs)


def by_matrices(inputs: DraftTreeInputs) -> Outputs:
    """Compute links, masks and what is accepted from the parents of all nodes."""
    requests, count = inputs.candidates.shape
    above = parents(inputs)
    nodes = torch.arange(count, device=above.device)
    child = above.unsqueeze(1) == nodes.unsqueeze(1)  # [request, parent, node]
    later = (above.unsqueeze(1) == above.unsqueeze(2)) & (nodes > nodes.unsqueeze(1))
    sees = ways(above, inputs.depth)
    depths = sees.sum(dim=2) - 1
    wanted = child & (inputs.target_predict.unsqueeze(2) == inputs.candidates.unsqueeze(1))
    taken = (wanted & (nodes == first_of(wanted).unsqueeze(2))).any(dim=1) | (nodes == 0)
    accepted = (taken.unsqueeze(1) | ~sees).all(dim=2)
    index = inputs.candidates.new_full((requests, inputs.depth + 1), -1, dtype=torch.int32)
    request, node = accepted.nonzero(as_tuple=True)
    index[request, depths[request, node]] = (request * count + node).to(torch.int32)
    return {
        "positions": (inputs.verified.unsqueeze(1) + depths).flatten(),
        "next_token": first_of(child),
        "next_sibling": first_of(later),
        "mask": flat_mask(inputs, sees),
        "accept_index": index,
        "accepted": (accepted.sum(dim=1) - 1).to(torch.int32),
        "predicted": (inputs.target_predict * accepted).flatten().to(torch.int32),
    }


def parents(inputs: DraftTreeInputs) -> torch.Tensor:
    """The node above each node, int64 ``[requests, nodes]``; -1 above the root."""
    place = inputs.selected_index // inputs.topk
    above = torch.zeros_like(place)
    if inputs.depth > 1:
        candidate = inputs.parent_list.gather(1, place)
        found = (candidate.unsqueeze(2) == inputs.selected_index.unsqueeze(1)).int().argmax(dim=2)
        above = torch.where(place == 0, 0, found + 1)
    return torch.nn.functional.pad(above, (1, 0), value=-1)


def ways(above: torch.Tensor, depth: int) -> torch.Tensor:
    """Which nodes stand on the way from the root to each, both included, bool ``[requests, nodes, nodes]``."""
    requests, count = above.shape
    at = torch.arange(count, device=above.device).expand(requests, count)
    sees = above.new_zeros(requests, count, count, dtype=torch.bool)
    for _ in range(depth + 1):
        sees.scatter_(2, at.unsqueeze(2), True)
        at = above.clamp(min=0).gather(1, at)
    return sees


def first_of(chosen: torch.Tensor) -> torch.Tensor:
    """The first place of each row that is chosen, or -1."""
    return torch.where(chosen.any(dim=2), chosen.int().argmax(dim=2), -1)


def flat_mask(inputs: DraftTreeInputs, sees: torch.Tensor) -> torch.Tensor:
    """Write the columns of drafts into a mask that hides nothing."""
    mask, count = mask_like(inputs), inputs.draft_token_num
    verified = inputs.verified if inputs.mask_mode == "full" else torch.zeros_like(inputs.verified)
    columns = verified + count
    starts = (count * columns).cumsum(dim=0) - count * columns + verified
    nodes = torch.arange(count, device=mask.device)
    places = starts.view(-1, 1, 1) + nodes.view(1, -1, 1) * columns.view(-1, 1, 1) + nodes
    mask[places.flatten()] = sees.flatten()
    return mask
