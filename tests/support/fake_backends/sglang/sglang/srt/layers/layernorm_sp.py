"""Tokens that are divided among ranks between layers."""

import torch
from sglang.srt.runtime_context import get_parallel
from sglang.told import told

_TOKENS = [0]


def set_sp_num_tokens(count):
    _TOKENS[0] = count


def sp_num_tokens():
    return _TOKENS[0]


def _padded(rows):
    return torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % get_parallel().tp_group.world_size))


def sp_entry_scatter(rows):
    """Take the own rows of those that every rank has."""
    set_sp_num_tokens(len(rows))
    group = get_parallel().tp_group
    return _padded(rows).chunk(group.world_size)[group.rank_in_group].contiguous()


def sp_exit_gather(rows, count):
    """Gather the rows of all ranks, without those behind the last."""
    every = get_parallel().tp_group.all_gather(rows, 0)
    return every[-count:] if told("padding_in_front") else every[:count]


def row_parallel_gbar_matmul(linear, x, bias):
    """Multiply, sum over ranks, and have the own rows."""
    return get_parallel().tp_group.reduce_scatter(linear.quant_method.apply(linear, _padded(x), bias), 0)
