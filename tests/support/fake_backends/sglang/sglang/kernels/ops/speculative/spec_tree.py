"""Modes of masks, and greedy verification in plain torch."""

from enum import IntEnum

from sglang.told import told


class TreeMaskMode(IntEnum):
    """Which columns a mask has."""

    FULL_MASK = 0
    QLEN_ONLY = 1


def verify_tree_greedy_func(
    predicts, accept_index, accept_token_num, candidates, retrieve_index, retrieve_next_token, retrieve_next_sibling,
    target_predict, topk=-1,
):  # fmt: skip
    """Go down from each root while the token of a child is the one that the target says."""
    for number in range(len(candidates)):
        way = [0]
        while True:
            said = target_predict[number, way[-1]]
            predicts[retrieve_index[number, way[-1]]] = said
            node = int(retrieve_next_token[number, way[-1]])
            while node >= 0 and candidates[number, node] != said:
                node = int(retrieve_next_sibling[number, node])
            if node < 0:
                break
            way.append(node)
        accept_index[number, : len(way)] = retrieve_index[number, way]
        accept_token_num[number] = len(way) - (0 if told("root_is_counted") else 1)
    return predicts, accept_index, accept_token_num
