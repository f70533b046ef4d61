"""What stands around experts under sequence parallelism."""

import torch
from vllm_ascend.told import told

_EXTRA_CTX = get_forward_context = get_ep_group = get_dp_group = None


def _counts():
    return [int(count) for count in get_forward_context().dp_metadata.num_tokens_across_dp_cpu]


def _maybe_all_gather_and_maybe_unpad_impl(rows):
    """Gather slices of all ranks, and leave padding out."""
    every = get_ep_group().all_gather(rows, 0)
    if told("padding_at_the_end"):
        return every[: sum(_counts())]
    blocks = every.split(_EXTRA_CTX.padded_length)
    return torch.cat([block[:count] for block, count in zip(blocks, _counts(), strict=True)])


def _maybe_pad_and_reduce_impl(rows):
    """Pad what each group has, add up, and take a slice."""
    length = _EXTRA_CTX.padded_length
    blocks = [torch.nn.functional.pad(block, (0, 0, 0, length - len(block))) for block in rows.split(_counts())]
    return get_ep_group().reduce_scatter(torch.cat(blocks), 0)
