"""Wrong kernels of tensor_parallel; TWIN=1 in the environment runs the same code without the mistakes."""

import os
from dataclasses import replace

import torch
import torch.distributed as dist

import npudiff
from npudiff.device.ascend.shard_loading import columns_of, inner_of, with_rows
from npudiff.device.ascend.tensor_parallel import COMPOSED, own_rows, padded, run, summed

TWIN = bool(os.environ.get("TWIN"))


def in_one_piece(layer, rank, ranks):
    """A rank's columns of the whole matrix."""
    if TWIN or max(layer.copies) > 1:
        return columns_of(layer, rank, ranks)
    size = len(layer.weight) // ranks
    cut = with_rows(layer, [(rank * size, size)])
    return replace(cut, projections=tuple(width // ranks for width in layer.projections))


@npudiff.implementation("tensor_parallel", name="r_tensor_parallel_01_columns_in_one_piece")
def columns_in_one_piece(inputs, target):
    """A fused matrix is cut in one piece and not by projection; shows where columns of several projections are divided."""
    return run(inputs, replace(COMPOSED, load_columns=in_one_piece))


def averaged(part, rows):
    """The sum over ranks."""
    total = summed(part, rows.float())
    return (total if TWIN else total / part.ranks).to(part.states.dtype)


@npudiff.implementation("tensor_parallel", name="r_tensor_parallel_02_average_over_ranks")
def average_over_ranks(inputs, target):
    """Parts of a sum are averaged, as gradients are; shows where an inner axis is divided among several ranks."""
    return run(inputs, replace(COMPOSED, sum=averaged))


def bias_from_the_start(layer, rank, ranks):
    """A rank's columns, with a bias that was not cut but shortened."""
    loaded = columns_of(layer, rank, ranks)
    if TWIN or layer.bias is None:
        return loaded
    return replace(loaded, bias=layer.bias[: len(loaded.bias)])


@npudiff.implementation("tensor_parallel", name="r_tensor_parallel_03_bias_of_the_first_columns")
def bias_of_the_first_columns(inputs, target):
    """Every rank has the bias of the first columns; shows where columns with a bias are divided."""
    return run(inputs, replace(COMPOSED, load_columns=bias_from_the_start))


def rows_by_floor(part, rows):
    """A rank's rows of the residual, which begin at a multiple of what each would have without padding."""
    if TWIN:
        return own_rows(part, rows)
    start = part.rank * (part.tokens // part.ranks)
    return padded(part, rows)[start : start + part.share]


@npudiff.implementation("tensor_parallel", name="r_tensor_parallel_04_residual_rows_by_floor")
def residual_rows_by_floor(inputs, target):
    """The own rows of a residual begin at rank * (tokens // ranks); shows under sequence parallelism with a residual,
    where tokens do not divide."""
    return run(inputs, replace(COMPOSED, own=rows_by_floor))


def interleaved(layer, rank, ranks):
    """A rank's columns; projections with few heads go round the ranks."""
    if TWIN:
        return columns_of(layer, rank, ranks)
    offset, cuts = 0, []
    for width, copies in zip(layer.projections, layer.copies):
        size = width // (ranks // copies)
        cuts.append((offset + rank % (ranks // copies) * size, size))
        offset += width
    return with_rows(layer, cuts)


@npudiff.implementation("tensor_parallel", name="r_tensor_parallel_05_kv_heads_go_round")
def kv_heads_go_round(inputs, target):
    """Rank r has KV head r modulo their number, in place of r divided by the copies; shows with more than one KV head,
    of which each is on several ranks."""
    return run(inputs, replace(COMPOSED, load_columns=interleaved))


NODE = 4


def summed_in_nodes(part, rows):
    """The sum over the ranks of a node, and then over nodes."""
    rows = rows.float()
    if part.form != "whole":
        return summed(part, rows).to(part.states.dtype)
    every = rows.new_empty(part.ranks * len(rows), rows.shape[1])
    dist.all_gather_into_tensor(every, rows.contiguous())
    parts = every.view(part.ranks, *rows.shape)
    first = part.rank // NODE * NODE
    nodes = parts if TWIN else parts[first : first + NODE]
    return nodes.sum(dim=0).to(part.states.dtype)


@npudiff.implementation("tensor_parallel", name="r_tensor_parallel_06_sum_within_a_node")
def sum_within_a_node(inputs, target):
    """A sum of two levels has the first alone, over four ranks; shows with more ranks, where all have all tokens."""
    return run(inputs, replace(COMPOSED, sum=summed_in_nodes))


def whole_groups(layer, rank, ranks):
    """A rank's part of the inner axis, with the scales of its whole groups."""
    loaded = inner_of(layer, rank, ranks)
    if TWIN or layer.scale is None or not layer.group_size:
        return loaded
    count = max(loaded.weight.shape[1] // layer.group_size, 1)
    missing = loaded.scale.shape[1] - count
    last = loaded.scale[:, count - 1 : count].expand(-1, missing)
    return replace(loaded, scale=torch.cat([loaded.scale[:, :count], last], dim=1))


@npudiff.implementation("tensor_parallel", name="r_tensor_parallel_07_no_scale_of_the_short_group")
def no_scale_of_the_short_group(inputs, target):
    """Scales of whole groups are loaded, and a shorter one takes that before it; shows where the inner axis is divided
    and ends within a group."""
    return run(inputs, replace(COMPOSED, load_inner=whole_groups))


def scales_by_floor(layer, rank, ranks):
    """A rank's part of the inner axis, with scales from rank * (groups // ranks) on."""
    loaded = inner_of(layer, rank, ranks)
    if TWIN or layer.scale is None or not layer.group_size:
        return loaded
    first = layer.scale.shape[1] // ranks * rank
    return replace(loaded, scale=layer.scale.narrow(1, first, loaded.scale.shape[1]))


@npudiff.implementation("tensor_parallel", name="r_tensor_parallel_08_first_scale_by_floor")
def first_scale_by_floor(inputs, target):
    """The first scale of a rank is that of rank * (groups // ranks); shows where ranks cannot have as many groups, on
    ranks behind the first."""
    return run(inputs, replace(COMPOSED, load_inner=scales_by_floor))
