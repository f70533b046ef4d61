"""``build_tree_kernel_efficient`` of sgl-kernel-npu against trees of nodes that know their parents."""

import dataclasses
import random
from itertools import pairwise

import pytest
import torch

from npudiff.device.simulator import PROFILES, DeviceFault, OperatorRejected, UndefinedBehaviour, use_profile

TOPK, DEPTH, COUNT = 3, 4, 6


def changed(**choices):
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **choices))


def grown(seed):
    """Draw a tree as beam search does: each step has topk candidates of each of topk parents.

    Return ``parent_list`` and ``selected_index`` of one sequence, and for each node its parent.
    """
    dice = random.Random(seed)  # noqa: S311 - data of a test
    candidates = dict.fromkeys(range(TOPK))  # draft: its parent, None for the root
    parents, beam = [-1], list(range(TOPK))
    for step in range(DEPTH - 1):
        parents += beam
        # Draft d has the parent parent_list[d // topk]: drafts of a step are numbered through, parent by parent.
        first = TOPK + step * TOPK * TOPK
        drafts = {first + number: beam[number // TOPK] for number in range(TOPK * TOPK)}
        candidates |= drafts
        beam = sorted(dice.sample(list(drafts), TOPK))
    chosen = [dice.randrange(TOPK)]
    while len(chosen) < COUNT - 1:
        draft = dice.choice(list(candidates))
        if draft not in chosen and candidates[draft] in (None, *chosen):
            chosen.append(draft)
    chosen.sort()  # as the best scores are sorted by place
    above = [None, *(0 if candidates[draft] is None else chosen.index(candidates[draft]) + 1 for draft in chosen)]
    return parents, chosen, above


def call(trees, lengths, mode=0, **spoil):
    batch = len(trees)
    size = sum(COUNT * (length + COUNT) for length in lengths) if mode == 0 else batch * COUNT * COUNT
    tensors = {
        "parent_list": torch.tensor([tree[0] for tree in trees]),
        "selected_index": torch.tensor([tree[1] for tree in trees]),
        "verified_seq_len": torch.tensor(lengths),
        "tree_mask": torch.ones(size, dtype=torch.bool),
        "positions": torch.full((batch * COUNT,), -9),
        **{f"retrive_{name}": torch.full((batch, COUNT), -9) for name in ("index", "next_token", "next_sibling")},
    } | spoil
    torch.ops.npu.build_tree_kernel_efficient(*tensors.values(), TOPK, DEPTH, COUNT, mode)
    return tensors


def _way(above, node):
    """Return the nodes from one up to the root."""
    return [node] if above[node] is None else [node, *_way(above, above[node])]


@pytest.mark.parametrize("seed", range(8))
def test_positions_links_and_masks(seed):
    trees, lengths = [grown(3 * seed + i) for i in range(3)], [4, 0, 9]
    tensors = call(trees, lengths)
    start = 0
    for number, ((_, _, above), length) in enumerate(zip(trees, lengths, strict=True)):
        rows = slice(number * COUNT, (number + 1) * COUNT)
        assert tensors["positions"][rows].tolist() == [length + len(_way(above, node)) - 1 for node in range(COUNT)]
        assert tensors["retrive_index"][number].tolist() == list(range(rows.start, rows.stop))
        children = [[node for node in range(COUNT) if above[node] == parent] for parent in range(COUNT)]
        assert tensors["retrive_next_token"][number].tolist() == [min(one, default=-1) for one in children]
        following = {one: other for group in children for one, other in pairwise(group)}
        assert tensors["retrive_next_sibling"][number].tolist() == [following.get(node, -1) for node in range(COUNT)]
        end = start + COUNT * (length + COUNT)
        mask, start = tensors["tree_mask"][start:end].view(COUNT, length + COUNT), end
        assert mask[:, :length].all()  # as the caller set them
        for node in range(COUNT):
            assert mask[node, length:].nonzero().flatten().tolist() == sorted(_way(above, node))


def test_a_chain_is_causal():
    # With topk 3 the first candidate of the first one of each step; parents of 3, 12 and 21 are at 1, 4 and 7.
    parents, chosen = [-1, 0, 1, 2, 3, 4, 5, 12, 13, 14], [0, 3, 12, 21]
    tensors = {
        "parent_list": torch.tensor([parents]), "selected_index": torch.tensor([chosen]),
        "verified_seq_len": torch.tensor([2]), "tree_mask": torch.zeros(5 * 7, dtype=torch.bool),
        "positions": torch.zeros(5).long(), **{name: torch.zeros(1, 5).long() for name in "abc"},
    }  # fmt: skip
    torch.ops.npu.build_tree_kernel_efficient(*tensors.values(), TOPK, DEPTH, 5, 0)
    assert tensors["positions"].tolist() == [2, 3, 4, 5, 6]
    assert torch.equal(tensors["tree_mask"].view(5, 7)[:, 2:], torch.ones(5, 5).tril().bool())
    assert tensors["b"].tolist() == [[1, 2, 3, 4, -1]]
    assert tensors["c"].tolist() == [[-1] * 5]


def test_masks_over_the_drafts_are_a_choice():
    """The kernel writes all rows of sequence i to the place of its row i; the CUDA kernel writes a row per node."""
    trees = [grown(0), grown(1)]
    rows = {number: [sorted(_way(trees[number][2], node)) for node in range(COUNT)] for number in range(2)}
    mask = call(trees, [4, 7], mode=1)["tree_mask"].view(2, COUNT, COUNT)
    for number in range(2):
        assert mask[number, number].nonzero().flatten().tolist() == rows[number][-1]
        assert mask[number, [row for row in range(COUNT) if row != number]].all()
    with changed(tree_mask_rows="of_token"):
        mask = call(trees, [4, 7], mode=1)["tree_mask"].view(2, COUNT, COUNT)
    assert [[row.nonzero().flatten().tolist() for row in mask[number]] for number in range(2)] == [rows[0], rows[1]]


def test_a_parent_that_was_not_selected_is_undefined():
    parents, chosen, _ = grown(0)
    with pytest.raises(UndefinedBehaviour, match="the tree of sequence 1 has a node without parent"):
        call([(parents, chosen), (parents, [3, 4, 5, 6, 7])], [1, 1])


def test_a_circle_is_undefined():
    parents = [-1, 3, 0, 0, 3, 0, 0, 0, 0, 0]  # the parent of draft 3 is draft 3
    with pytest.raises(UndefinedBehaviour, match="goes in circles"):
        call([(parents, [0, 1, 2, 3, 4])], [1])


def test_no_sequences_are_undefined():
    with pytest.raises(UndefinedBehaviour, match="no sequences"):
        call([grown(0)], [1], parent_list=torch.zeros(0, 10).long())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({"tree_mask": torch.ones(41, dtype=torch.bool)}, "tree_mask is too short: row 5 of sequence 0"),
        ({"positions": torch.zeros(5).long()}, "positions too short for 1 trees of 6"),
        ({"selected_index": torch.tensor([[0, 1, 2, 3]])}, "selected_index too short"),
        ({"selected_index": torch.tensor([[0, 1, 2, 3, 30]])}, "is beyond parent_list"),
    ],
)
def test_tensors_that_are_too_short_are_faults(spoil, words):
    call([grown(0)], [1])
    with pytest.raises(DeviceFault, match=words):
        call([grown(0)], [1], **spoil)


@pytest.mark.parametrize("name", ["parent_list", "selected_index", "verified_seq_len", "positions", "retrive_index"])
def test_int32_is_refused(name):
    tensors = call([grown(0)], [1])
    with pytest.raises(OperatorRejected, match=f"{name} was int32.*Invalid input datetype"):
        call([grown(0)], [1], **{name: tensors[name].int()})


def test_bit_packed_masks_are_refused():
    with pytest.raises(OperatorRejected, match="Not implemented"):
        call([grown(0)], [1], mode=2)
    with pytest.raises(OperatorRejected, match="tree_mask was uint8"):
        call([grown(0)], [1], tree_mask=torch.ones(42, dtype=torch.uint8))
