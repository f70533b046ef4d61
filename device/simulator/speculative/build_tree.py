"""``build_tree_kernel_efficient`` of sgl-kernel-npu: links, positions and masks of trees of drafted tokens.

Node 0 of a tree is the last verified token, node i the draft ``selected_index[i - 1]``, whose parent is the root if
that is below topk, and else the draft ``parent_list[selected_index[i - 1] // topk]``. Sources: its host code, kernel
and README (``csrc/build_tree``). The schema does not say which tensors are written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks, dtype_name
from npudiff.device.simulator.errors import DeviceFault, ErrorCode, UndefinedBehaviour
from npudiff.device.simulator.profiles import active_profile

_CHECK = ArgumentChecks("build_tree_kernel_efficient", default=ErrorCode.WRAPPER)

_FULL_MASK, _BIT_PACKED = 0, 2
_OUTPUTS = ("positions", "retrive_index", "retrive_next_token", "retrive_next_sibling")


@dataclass(frozen=True)
class TreeRequest:
    """One call, with the names of the schema."""

    parent_list: Tensor
    """int64 [B, topk * (depth - 1) + 1]."""
    selected_index: Tensor
    """int64 [B, draft_token_num - 1]."""
    verified_seq_len: Tensor
    """int64 [B]."""
    tree_mask: Tensor
    """bool: per sequence draft_token_num rows of verified_seq_len + draft_token_num, or of draft_token_num (mode 1)."""
    positions: Tensor
    """int64 [B * draft_token_num]: verified_seq_len and the depth in the tree."""
    retrive_index: Tensor
    """int64 [B, draft_token_num]: numbers of nodes, counted through."""
    retrive_next_token: Tensor
    """int64 [B, draft_token_num]: first child, or -1."""
    retrive_next_sibling: Tensor
    """int64 [B, draft_token_num]: next child of the same parent, or -1."""
    topk: int
    depth: int
    draft_token_num: int
    tree_mask_mode: int
    """0 for masks over the whole sequence, 1 for masks over the drafts."""


@dataclass(frozen=True)
class _Tree:
    """The drafts of one sequence."""

    number: int
    selected: list[int]
    parents: list[int]
    topk: int

    def parent(self, node: int) -> int | None:
        """Return the parent of a node above 0; None if it is not among the selected drafts."""
        place = self.selected[node - 1] // self.topk
        if place == 0:
            return 0
        if not 0 <= place < len(self.parents):
            raise DeviceFault(f"{_CHECK.operator}: selected_index[{self.number}] {self.selected} is beyond parent_list")
        draft = self.parents[place]
        return self.selected.index(draft) + 1 if draft in self.selected else None

    def ancestors(self, node: int) -> list[int]:
        """Return the nodes above the root on the way from a node, itself included."""
        way = [node]
        while (above := self.parent(way[-1])) != 0:
            if above is None or len(way) > len(self.selected):
                lacks = "has a node without parent" if above is None else "goes in circles"
                raise UndefinedBehaviour(f"{_CHECK.operator}: the tree of sequence {self.number} {lacks}")
            way.append(above)
        return way


def build_tree(request: TreeRequest) -> None:
    """Write positions, links and masks.

    A row of the mask has the root, the node and its ancestors; the columns of verified tokens stay as they are.

    Raises
    ------
    OperatorRejected
        A dtype is not one of the above, or the mode is 2.
    UndefinedBehaviour
        A parent was not selected, a tree goes in circles, there is no sequence, or a tensor has gaps.
    DeviceFault
        A tensor is too short.
    """
    _check(request)
    count = request.draft_token_num
    lengths = request.verified_seq_len.tolist()
    outputs = {name: getattr(request, name).view(-1) for name in _OUTPUTS}
    for tree in _trees(request):
        rows = slice(tree.number * count, (tree.number + 1) * count)
        ways = [[], *(tree.ancestors(node) for node in range(1, count))]
        children, siblings = _links(ways)
        depths = torch.tensor([len(way) for way in ways])
        outputs["positions"][rows] = depths + lengths[tree.number]
        outputs["retrive_index"][rows] = torch.arange(rows.start, rows.stop)
        outputs["retrive_next_token"][rows] = torch.tensor(children)
        outputs["retrive_next_sibling"][rows] = torch.tensor(siblings)
        for node, way in enumerate(ways):
            row = torch.zeros(count, dtype=torch.bool)
            row[[0, *way]] = True
            _store(request, tree.number, node, row, lengths)


def build_tree_meta(_: TreeRequest) -> None:
    """Return nothing."""


def _links(ways: list[list[int]]) -> tuple[list[int], list[int]]:
    """Return first children and next siblings; nodes are linked from the last one on."""
    children, siblings = [-1] * len(ways), [-1] * len(ways)
    for node in range(len(ways) - 1, 0, -1):
        above = ways[node][1] if len(ways[node]) > 1 else 0
        siblings[node], children[above] = children[above], node
    return children, siblings


def _store(request: TreeRequest, sequence: int, node: int, row: Tensor, lengths: list[int]) -> None:
    """Write one row of the mask."""
    count = request.draft_token_num
    if request.tree_mask_mode == _FULL_MASK:
        before = sum(lengths[:sequence]) * count + count * count * sequence
        start = before + (lengths[sequence] + count) * node + lengths[sequence]
    else:
        number = node if active_profile().tree_mask_rows == "of_token" else sequence
        start = count * count * sequence + count * number
    if start + count > request.tree_mask.numel():
        found = f"row {node} of sequence {sequence} begins at {start} of {request.tree_mask.numel()}"
        raise DeviceFault(f"{_CHECK.operator}: tree_mask is too short: {found}")
    request.tree_mask.view(-1)[start : start + count] = row


def _trees(request: TreeRequest) -> Iterator[_Tree]:
    drafts, width = request.draft_token_num - 1, request.topk * (request.depth - 1) + 1
    selected, parents = request.selected_index.view(-1).tolist(), request.parent_list.view(-1).tolist()
    for number in range(len(request.parent_list)):
        own = selected[number * drafts : (number + 1) * drafts]
        yield _Tree(number, own, parents[number * width : (number + 1) * width], request.topk)


def _check(request: TreeRequest) -> None:
    if request.tree_mask_mode == _BIT_PACKED:
        raise _CHECK.rejected("tree_mask_mode", _BIT_PACKED, "0 or 1", words="Not implemented")
    names = ("parent_list", "selected_index", "verified_seq_len", "tree_mask", *_OUTPUTS)
    tensors = {name: getattr(request, name) for name in names}
    for name, tensor in tensors.items():
        dtype = "bool" if name == "tree_mask" else "int64"
        if dtype_name(tensor) != dtype:
            raise _CHECK.rejected(name, dtype_name(tensor), dtype, words="Invalid input datetype. ")
    _CHECK.addressed_as_contiguous(**tensors)
    batch, count = len(request.parent_list), request.draft_token_num
    if not batch:
        raise UndefinedBehaviour(f"{_CHECK.operator}: no sequences, by whose number the host code divides")
    short = [name for name in _OUTPUTS if tensors[name].numel() < batch * count]
    if request.selected_index.numel() < batch * (count - 1):
        short.append("selected_index")
    if request.verified_seq_len.numel() < batch:
        short.append("verified_seq_len")
    if short:
        raise DeviceFault(f"{_CHECK.operator}: {', '.join(short)} too short for {batch} trees of {count}")
