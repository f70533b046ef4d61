"""Gathering and scattering of tokens around a layer of all ranks, as both backends do it.

sglang ``layers/dp_attention.py`` and ``model_executor/forward_batch_info.py``; vllm-ascend
``ops/fused_moe/prepare_finalize.py`` and ``ops/register_custom_ops.py``.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from npudiff import Target, implementation
from npudiff.reference.data_parallel_gather import DataParallelPart

Outputs = dict[str, torch.Tensor]


def group_of(inputs: DataParallelPart) -> int:
    """Return the data-parallel group of this rank."""
    return inputs.rank // inputs.attention_ranks


def place_of(inputs: DataParallelPart) -> int:
    """Return which rank of its group this one is."""
    return inputs.rank % inputs.attention_ranks


def _own_group(groups: list[list[int]], rank: int) -> dist.ProcessGroup:
    """Make communicators of all groups, which every rank has to do, and return the own one."""
    made = [dist.new_group(ranks) for ranks in groups]
    mine: dist.ProcessGroup = next(group for group, ranks in zip(made, groups, strict=True) if rank in ranks)
    return mine


def attention_group(inputs: DataParallelPart) -> dist.ProcessGroup:
    """Return the communicator of the ranks of a group."""
    size = inputs.attention_ranks
    groups = [[group * size + place for place in range(size)] for group in range(len(inputs.counts))]
    return _own_group(groups, inputs.rank)


def data_group(inputs: DataParallelPart) -> dist.ProcessGroup:
    """Return the communicator of the ranks that have the same place in their groups."""
    size = inputs.attention_ranks
    groups = [[group * size + place for group in range(len(inputs.counts))] for place in range(size)]
    return _own_group(groups, inputs.rank)


def own_part(inputs: DataParallelPart, rows: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of the layer."""
    return rows * inputs.factors[inputs.rank]


def real_rows(inputs: DataParallelPart, count: int | None = None) -> torch.Tensor:
    """Return how many rows of this rank are no padding, int32 ``[1]``."""
    count = inputs.counts[group_of(inputs)] if count is None else count
    if inputs.mode == "chunks":
        chunk = inputs.lengths[group_of(inputs)] // inputs.attention_ranks
        return torch.tensor([count - place_of(inputs) * chunk], dtype=torch.int32).clamp(0, chunk)
    return torch.tensor([count], dtype=torch.int32)


def outputs_of(inputs: DataParallelPart, output: torch.Tensor) -> Outputs:
    """Return the outputs of the component."""
    return {"output": output, "real": real_rows(inputs).to(output.device)}


def gathered_by_sum(inputs: DataParallelPart, *, writes: bool) -> torch.Tensor:
    """Return the tokens of all groups: a buffer of zeros, into which each rank writes its slice, all-reduced."""
    group = group_of(inputs)
    start, count = sum(inputs.counts[:group]), inputs.counts[group]
    every = inputs.states.new_zeros(sum(inputs.counts), inputs.states.shape[1])
    if writes:
        every[start : start + count] = inputs.states[:count]
    dist.all_reduce(every)
    return every


def scattered(inputs: DataParallelPart, every: torch.Tensor) -> torch.Tensor:
    """Return the own slice of a buffer of all tokens, with zeros behind it."""
    group = group_of(inputs)
    start, count = sum(inputs.counts[:group]), inputs.counts[group]
    own = torch.zeros_like(inputs.states)
    own[:count] = every[start : start + count]
    return own


@implementation("data_parallel_gather", supports={"mode": ("sum",)}, on_device=True)
def gather_by_all_reduce(inputs: DataParallelPart, target: Target) -> Outputs:
    """Sglang's SUM_LEN: of ranks that have the same rows, the first of each group writes them."""
    every = gathered_by_sum(inputs, writes=not inputs.replicated or place_of(inputs) == 0)
    result = own_part(inputs, every)
    dist.all_reduce(result)
    return outputs_of(inputs, scattered(inputs, result))


def in_slices(inputs: DataParallelPart, rows: torch.Tensor, *, leader: bool) -> torch.Tensor:
    """Return this rank's slice of its group's rows: the sum over the group, of the first rank's or of all."""
    if inputs.attention_ranks == 1:
        return rows
    given = rows.clone()
    if leader and place_of(inputs):
        given.zero_()
    slices = rows.new_empty(len(rows) // inputs.attention_ranks, rows.shape[1])
    dist.reduce_scatter_tensor(slices, given, group=attention_group(inputs))
    return slices


def whole_of_group(inputs: DataParallelPart, slices: torch.Tensor) -> torch.Tensor:
    """Return the rows of the group, of which each rank has a slice."""
    if inputs.attention_ranks == 1:
        return slices
    rows = slices.new_empty(len(slices) * inputs.attention_ranks, slices.shape[1])
    dist.all_gather_into_tensor(rows, slices, group=attention_group(inputs))
    return rows


@implementation("data_parallel_gather", supports={"mode": ("maximum",)}, on_device=True)
def gather_by_all_gather(inputs: DataParallelPart, target: Target) -> Outputs:
    """Sglang's MAX_LEN: reduce-scatter in the group, all-gather of all ranks, and the same back."""
    slices = in_slices(inputs, inputs.states, leader=inputs.replicated)
    every = slices.new_empty(len(slices) * dist.get_world_size(), slices.shape[1])
    dist.all_gather_into_tensor(every, slices)
    result = own_part(inputs, every)
    own = torch.empty_like(slices)
    dist.reduce_scatter_tensor(own, result)
    return outputs_of(inputs, whole_of_group(inputs, own))


@implementation("data_parallel_gather", supports={"mode": ("maximum",)}, on_device=True)
def scatter_by_all_reduce(inputs: DataParallelPart, target: Target) -> Outputs:
    """Sglang's MAX_LEN as gather, with an all-reduce of the whole result: the own rows begin at a multiple."""
    slices = in_slices(inputs, inputs.states, leader=inputs.replicated)
    every = slices.new_empty(len(slices) * dist.get_world_size(), slices.shape[1])
    dist.all_gather_into_tensor(every, slices)
    result = own_part(inputs, every)
    dist.all_reduce(result)
    start = group_of(inputs) * len(inputs.states)
    return outputs_of(inputs, result[start : start + len(inputs.states)].clone())


@implementation("data_parallel_gather", supports={"mode": ("chunks",)}, on_device=True)
def chunks_of_the_group(inputs: DataParallelPart, target: Target) -> Outputs:
    """Each rank computes its chunk of its group's rows; those that are padding stay 0."""
    return by_chunks(inputs, int(real_rows(inputs)))


def by_chunks(inputs: DataParallelPart, real: int) -> Outputs:
    """Compute as many rows of the own chunk as are said to be real."""
    chunk = len(inputs.states) // inputs.attention_ranks
    first = place_of(inputs) * chunk
    own = inputs.states[first : first + chunk].clone()
    if not inputs.replicated:
        own = in_slices(inputs, inputs.states, leader=False)
    terms = own[:real].unsqueeze(0) * inputs.factors.unsqueeze(1)
    result = torch.zeros_like(own)
    result[:real] = terms.sum(dim=0, dtype=terms.dtype)
    return outputs_of(inputs, whole_of_group(inputs, result))


def padded_to(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Return rows with zeros behind them."""
    return torch.nn.functional.pad(rows, (0, 0, 0, count - len(rows)))


def summed_in_group(inputs: DataParallelPart, rows: torch.Tensor) -> torch.Tensor:
    """Return the rows of a group, which add up where they are not the same already."""
    own = rows.clone()
    if not inputs.replicated:
        dist.all_reduce(own, group=attention_group(inputs))
    return own


@implementation("data_parallel_gather", supports={"mode": ("maximum", "sum")}, on_device=True)
def padded_over_data_ranks(inputs: DataParallelPart, target: Target) -> Outputs:
    """vllm-ascend: padded to the longest, all-gather and reduce-scatter of data-parallel ranks, cut, all-reduce."""
    count, most = inputs.counts[group_of(inputs)], max(inputs.counts)
    own = padded_to(summed_in_group(inputs, inputs.states[:count]), most)
    every = own.new_empty(most * len(inputs.counts), own.shape[1])
    ranks = data_group(inputs)
    dist.all_gather_into_tensor(every, own, group=ranks)
    result = torch.empty_like(own)
    dist.reduce_scatter_tensor(result, own_part(inputs, every), group=ranks)
    result = result[:count].contiguous()
    if inputs.attention_ranks > 1:
        dist.all_reduce(result, group=attention_group(inputs))
    return outputs_of(inputs, padded_to(result, len(inputs.states)))


def unpadded(inputs: DataParallelPart, every: torch.Tensor) -> torch.Tensor:
    """Return tokens of groups that are padded to one length, one after the other."""
    blocks = every.view(len(inputs.counts), -1, every.shape[1])
    return torch.cat([block[:count] for block, count in zip(blocks, inputs.counts, strict=True)])


@implementation("data_parallel_gather", supports={"mode": ("maximum", "sum")}, on_device=True)
def unpadded_over_expert_ranks(inputs: DataParallelPart, target: Target) -> Outputs:
    """vllm-ascend with sequence parallelism: slices of all ranks gathered, unpadded, padded again, reduce-scattered."""
    count, most = inputs.counts[group_of(inputs)], max(inputs.counts)
    length = -(-most // inputs.attention_ranks) * inputs.attention_ranks
    slices = in_slices(inputs, padded_to(inputs.states[:count], length), leader=inputs.replicated)
    every = slices.new_empty(length * len(inputs.counts), slices.shape[1])
    dist.all_gather_into_tensor(every, slices)
    result = own_part(inputs, unpadded(inputs, every))
    blocks = [padded_to(block, length) for block in torch.split(result, list(inputs.counts))]
    own = torch.empty_like(slices)
    dist.reduce_scatter_tensor(own, torch.cat(blocks))
    rows = whole_of_group(inputs, own)[:count]
    return outputs_of(inputs, padded_to(rows, len(inputs.states)))
