"""Where drafts are written in the pools, and trees of them, in plain torch."""

import torch
from sglang.kernels.ops.speculative.spec_tree import TreeMaskMode
from sglang.told import told


def per_step_draft_out_cache_loc(out_cache_loc, batch_size, topk, num_steps):
    """Slots of each step, ``[steps, batch * topk]``, of slots that lie one request after the other."""
    return out_cache_loc.view(batch_size, topk, num_steps).permute(2, 0, 1).reshape(num_steps, -1)


def build_tree_kernel_efficient(
    bonus_tokens, parent_list, top_scores_index, draft_tokens, seq_lens, seq_lens_sum, topk, spec_steps,
    num_verify_tokens, tree_mask_mode=TreeMaskMode.FULL_MASK,
):  # fmt: skip
    """Put the nodes of each tree under their parents, one by one."""
    device, count = seq_lens.device, num_verify_tokens
    children, siblings = ([] for _ in range(2))
    positions, masks = [], []
    for number, length in enumerate(seq_lens.tolist()):
        chosen, parents = top_scores_index[number].tolist(), parent_list[number].tolist()
        ways = [[0]]
        for place in (one // topk for one in chosen):
            above = 1 + chosen.index(parents[place]) if place else 0
            ways.append([*ways[above], len(ways)])
        above = [-1, *(way[-2] for way in ways[1:])]
        born = [[node for node in range(count) if above[node] == parent] for parent in range(count)]
        later = [[one for one in born[above[node]] if one > node] if node else [] for node in range(count)]
        last = told("siblings_from_the_last")
        children.append([(max if last else min)(one, default=-1) for one in born])
        siblings.append([min(one, default=-1) for one in later])
        positions += [length + len(way) - 1 for way in ways]
        for way in ways:
            row = torch.zeros(length + count, dtype=torch.bool)
            row[:length] = True
            row[[length + node for node in way]] = True
            masks.append(row)
    index = torch.arange(len(seq_lens) * count, device=device).view(-1, count)
    links = (torch.tensor(one, device=device) for one in (children, siblings))
    tokens = torch.cat((bonus_tokens.unsqueeze(1), draft_tokens), dim=1).flatten()
    return torch.cat(masks).to(device), torch.tensor(positions, device=device), index, *links, tokens
