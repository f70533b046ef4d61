"""Trees of drafted tokens: where they stand, what each may attend to, and which of them a target model accepts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.bounds import Expected, exactly
from npudiff.reference.views import moved_inputs

NOTHING = -1
"""No child, no sibling, no further accepted node."""

MASKS = ("full", "qlen_only")
"""What columns a mask has: verified tokens and drafts, or drafts alone (``FULL_MASK`` and ``QLEN_ONLY`` of sglang's
``TreeMaskMode``)."""


@dataclass(frozen=True)
class DraftTreeInputs:
    """The trees of a batch, as beam search leaves them, and what the target model said of each node.

    A step of the search has ``topk`` candidates of the root, each later one ``topk`` of each of ``topk`` parents.
    Candidates are numbered through, step by step and parent by parent: ``topk + (depth - 1) * topk**2`` of them.
    """

    parent_list: torch.Tensor
    """int64 ``[requests, topk * (depth - 1) + 1]``; of depth 1 nothing, as sglang has it. Candidate ``c`` is a child of
    candidate ``parent_list[c // topk]``, and of the root where ``c < topk``; the first entry is not read."""
    selected_index: torch.Tensor
    """int64 ``[requests, nodes - 1]``: the candidates that are verified. Number ``i`` is node ``i + 1``, behind the
    root, and parents come before their children; sglang sorts them."""
    verified: torch.Tensor
    """int64 ``[requests]``: tokens before the root."""
    candidates: torch.Tensor
    """int64 ``[requests, nodes]``: the token of each node; that of the root is the last verified one."""
    target_predict: torch.Tensor
    """int64 ``[requests, nodes]``: the target model's most likely token behind each node."""
    topk: int
    depth: int
    """Steps of the search: no way from the root is longer."""
    draft_token_num: int
    """Nodes of each tree, the root included."""
    mask_mode: str
    """One of ``MASKS``."""

    def to(self, device: str | torch.device) -> DraftTreeInputs:
        """Return the same inputs on ``device``."""
        return moved_inputs(self, device, copies=())


@dataclass(frozen=True)
class Tree:
    """The nodes of one request, 0 is the root."""

    parents: list[int]
    """Of each node; -1 of the root."""

    def way(self, node: int) -> list[int]:
        """Return the nodes from the root to one, both included."""
        return [node] if node == 0 else [*self.way(self.parents[node]), node]

    def children(self, node: int) -> list[int]:
        """Return the children of a node in order of their numbers."""
        return [other for other, parent in enumerate(self.parents) if parent == node]


def draft_tree(inputs: DraftTreeInputs) -> dict[str, Expected]:
    """Return links, positions and masks of the trees, and what greedy verification accepts.

    The links of a node are its first child, and the next child of its parent, in order of their numbers. A node stands
    behind the verified tokens at the length of its way from the root, and attends to that way and to verified tokens.
    Greedy verification begins at the root, and goes on to the first child whose token is what the target says behind
    the node, until there is none (SpecInfer, arXiv 2305.09781, algorithm 2, of one sample of the target; sglang's
    ``build_tree_kernel_efficient`` and ``verify_tree_greedy``).

    Returns
    -------
    dict
        All exact. ``positions``: int64 ``[requests * nodes]``. ``next_token`` and ``next_sibling``: int64
        ``[requests, nodes]``, -1 where there is none. ``mask``: bool, flat: of each request a row per node, of the
        columns that ``mask_mode`` says. ``accept_index``: int32 ``[requests, depth + 1]``, accepted nodes, counted
        through the batch, from the root on; the rest is -1. ``accepted``: int32 ``[requests]``, accepted drafts, the
        root left out. ``predicted``: int32 ``[requests * nodes]``, the target's token behind each accepted node, of
        which the last is the bonus; of other nodes nothing is said.

    Raises
    ------
    ValueError
        If shapes contradict each other; if a candidate is selected twice, does not exist, or has a parent that is not
        selected before it; if a way is longer than ``depth``; if a length is negative.
    """
    _validate(inputs)
    trees = [Tree(_parents(inputs, request)) for request in range(len(inputs.verified))]
    nodes, placed = range(inputs.draft_token_num), list(zip(trees, inputs.verified.tolist(), strict=True))
    positions = [length + len(tree.way(node)) - 1 for tree, length in placed for node in nodes]
    children = [[tree.children(node) for node in nodes] for tree in trees]
    return {
        "positions": exactly(torch.tensor(positions)),
        "next_token": exactly(torch.tensor([[min(one, default=NOTHING) for one in tree] for tree in children])),
        "next_sibling": exactly(torch.tensor([_next_siblings(tree) for tree in trees])),
        "mask": exactly(torch.cat([_mask(inputs, tree, length) for tree, length in placed])),
        **_verified(inputs, children),
    }


def _parents(inputs: DraftTreeInputs, request: int) -> list[int]:
    selected, parents = inputs.selected_index[request].tolist(), [NOTHING]
    for number, candidate in enumerate(selected):
        place = candidate // inputs.topk
        above = int(inputs.parent_list[request, place]) if place else None
        if above is not None and above not in selected[:number]:
            raise ValueError(f"request {request}: {above}, the parent of {candidate}, is not selected before it")
        parents.append(0 if above is None else 1 + selected.index(above))
    longest = max(len(Tree(parents).way(node)) for node in range(len(parents))) - 1
    if longest > inputs.depth:
        raise ValueError(f"request {request}: a way of {longest} candidates in a tree of depth {inputs.depth}")
    return parents


def _next_siblings(tree: Tree) -> list[int]:
    later = [[one for one in tree.children(parent) if one > node] for node, parent in enumerate(tree.parents)]
    return [NOTHING, *(min(one, default=NOTHING) for one in later[1:])]


def _mask(inputs: DraftTreeInputs, tree: Tree, length: int) -> torch.Tensor:
    before = length if inputs.mask_mode == "full" else 0
    mask = torch.zeros(len(tree.parents), before + len(tree.parents), dtype=torch.bool)
    mask[:, :before] = True
    for node in range(len(tree.parents)):
        mask[node, [before + one for one in tree.way(node)]] = True
    return mask.flatten()


def _verified(inputs: DraftTreeInputs, children: list[list[list[int]]]) -> dict[str, Expected]:
    requests, count = inputs.candidates.shape
    index = torch.full((requests, inputs.depth + 1), NOTHING, dtype=torch.int32)
    bound = torch.full((requests, count), torch.inf, dtype=torch.float64)
    accepted = torch.zeros(requests, dtype=torch.int32)
    for request, links in enumerate(children):
        tokens, target = inputs.candidates[request].tolist(), inputs.target_predict[request].tolist()
        way = [0]
        while taken := [child for child in links[way[-1]] if tokens[child] == target[way[-1]]]:
            way.append(taken[0])
        index[request, : len(way)] = torch.tensor([request * count + node for node in way])
        bound[request, way] = 0.0
        accepted[request] = len(way) - 1
    predicted = inputs.target_predict.to(torch.int32).masked_fill(bound.isinf(), 0)
    return {
        "accept_index": exactly(index),
        "accepted": exactly(accepted),
        "predicted": Expected(predicted.flatten(), bound.flatten(), torch.int32),
    }


def _validate(inputs: DraftTreeInputs) -> None:
    requests, count, topk, depth = len(inputs.verified), inputs.draft_token_num, inputs.topk, inputs.depth
    if min(topk, depth) < 1 or count < 2 or inputs.mask_mode not in MASKS:
        raise ValueError(f"no trees of {count} nodes, topk {topk} and depth {depth} with a mask {inputs.mask_mode}")
    wanted = {
        "parent_list": (requests, topk * (depth - 1) + 1 if depth > 1 else 0), "selected_index": (requests, count - 1),
        "verified": (requests,), "candidates": (requests, count), "target_predict": (requests, count),
    }  # fmt: skip
    for name, shape in wanted.items():
        tensor = getattr(inputs, name)
        if tuple(tensor.shape) != shape or tensor.dtype != torch.int64:
            raise ValueError(f"{name} must be int64 {shape}, got {tensor.dtype} {tuple(tensor.shape)}")
    most = topk + (depth - 1) * topk**2
    selected = inputs.selected_index
    if not requests or bool((selected < 0).any()) or bool((selected >= most).any()):
        raise ValueError(f"selected_index lies in 0..{most - 1}, of one request or more")
    if bool((selected.sort(dim=1).values.diff(dim=1) == 0).any()):
        raise ValueError("a candidate is selected twice")
    if bool((inputs.verified < 0).any()):
        raise ValueError(f"verified lengths {inputs.verified.tolist()} must not be negative")
