"""Tokens of data-parallel ranks, gathered and scattered."""

from enum import IntEnum

import torch
from sglang.srt.runtime_context import get_parallel
from sglang.told import told


class DpPaddingMode(IntEnum):
    MAX_LEN = 1
    SUM_LEN = 2


def _own(batch):
    rank, counts = get_parallel().attn_dp_rank, batch.global_num_tokens_cpu
    return sum(counts[:rank]), counts[rank]


def _gather(output, rows, batch, everybody):
    start, count = _own(batch)
    output.zero_()
    if everybody or get_parallel().attn_tp_rank == 0 or told("replicas_added_up"):
        output[start : start + count] = rows[:count]
    output.copy_(get_parallel().tp_group.all_reduce(output))


def dp_gather_replicate(output, rows, batch):
    """Gather rows that all ranks of a group have."""
    _gather(output, rows, batch, everybody=False)


def dp_gather_partial(output, rows, batch):
    """Gather rows of which all ranks of a group have a part."""
    _gather(output, rows, batch, everybody=True)


def dp_scatter(own, every, batch):
    """Take the rows of the own group."""
    start, count = _own(batch)
    own.zero_()
    own[:count] = every[start : start + count]


def dp_reduce_scatter_tensor(own, every):
    """Add up over all ranks, and take the rows of the own group, which is as long as any other one."""
    total = get_parallel().tp_group.all_reduce(every.clone())
    first = get_parallel().attn_dp_rank * len(own)
    own.copy_(total[first : first + len(own)])


def attn_tp_reduce_scatter_tensor(own, rows):
    """Add up over a group, and take the own chunk."""
    if get_parallel().attn_tp_size == 1:
        own.copy_(rows)
    else:
        get_parallel().attn_tp_group.reduce_scatter_tensor(own, rows)


def attn_tp_all_gather_into_tensor(every, own):
    """Gather the chunks of a group."""
    get_parallel().attn_tp_group.all_gather_into_tensor(every, torch.clone(own))
