"""Wrong ways of gathering and scattering tokens of data-parallel ranks."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist

from npudiff import Target, mutant
from npudiff.device.ascend.data_parallel_gather import (
    Outputs,
    attention_group,
    by_chunks,
    chunks_of_the_group,
    data_group,
    gather_by_all_gather,
    gather_by_all_reduce,
    gathered_by_sum,
    group_of,
    in_slices,
    outputs_of,
    own_part,
    padded_over_data_ranks,
    padded_to,
    place_of,
    scatter_by_all_reduce,
    scattered,
    summed_in_group,
    unpadded_over_expert_ranks,
    whole_of_group,
)
from npudiff.reference.data_parallel_gather import DataParallelPart

_GROUPS = {"groups": range(2, 9)}
_WIDE_GROUPS = {"attention_ranks": (2, 3, 4, 6, 8)}
_SPARE = {"spare": range(1, 2**10)}


def writes(inputs: DataParallelPart) -> bool:
    """Return whether this rank has something to write that no other one of its group writes."""
    return not inputs.replicated or place_of(inputs) == 0


def layer_of_all(inputs: DataParallelPart, every: torch.Tensor) -> torch.Tensor:
    """Return what the layer makes of rows that all ranks have."""
    result = own_part(inputs, every)
    dist.all_reduce(result)
    return result


@mutant(
    gather_by_all_reduce,
    "sgl-project/sglang/pull/31700: rows that all ranks of a group have are added up, as if each had a part of them",
    supports={**_WIDE_GROUPS, "replicated": (True,)},
)
def replicated_rows_added_up(inputs: DataParallelPart, target: Target) -> Outputs:
    """Let every rank of a group write."""
    every = gathered_by_sum(inputs, writes=True)
    return outputs_of(inputs, scattered(inputs, layer_of_all(inputs, every)))


@mutant(
    gather_by_all_gather,
    "sgl-project/sglang/pull/31700: rows that all ranks of a group have are added up, as if each had a part of them",
    supports={**_WIDE_GROUPS, "replicated": (True,)},
)
def replicated_slices_added_up(inputs: DataParallelPart, target: Target) -> Outputs:
    """Reduce-scatter the rows of all ranks of a group."""
    return gather_by_all_gather(replace(inputs, replicated=False), target)


@mutant(
    gather_by_all_gather,
    "sgl-project/sglang/pull/31700: what the caller has is zeroed on all ranks of a group but the first",
    supports={**_WIDE_GROUPS, "replicated": (True,)},
)
def rows_of_the_caller_zeroed(inputs: DataParallelPart, target: Target) -> Outputs:
    """Zero the given rows in place of a copy."""
    outputs = gather_by_all_gather(inputs, target)
    if place_of(inputs):
        inputs.states.zero_()
    return outputs


@mutant(
    gather_by_all_reduce,
    "sglang srt/layers/dp_attention.py 667: the gathered buffer is zeroed, since every rank writes a slice of it alone",
    supports=_GROUPS,
)
def buffer_of_the_batch_before(inputs: DataParallelPart, target: Target) -> Outputs:
    """Leave what memory holds where others write."""
    group, every = group_of(inputs), inputs.states.new_ones(sum(inputs.counts), inputs.states.shape[1])
    start, count = sum(inputs.counts[:group]), inputs.counts[group]
    if writes(inputs):
        every[start : start + count] = inputs.states[:count]
    dist.all_reduce(every)
    return outputs_of(inputs, scattered(inputs, layer_of_all(inputs, every)))


@mutant(
    gather_by_all_reduce,
    "sglang srt/layers/dp_attention.py 663: as many rows are written as there are tokens, whatever a graph pads",
    supports={**_GROUPS, **_SPARE},
)
def padding_written_over_others(inputs: DataParallelPart, target: Target) -> Outputs:
    """Write all rows of the own buffer, as far as the gathered one goes."""
    start = sum(inputs.counts[: group_of(inputs)])
    every = inputs.states.new_zeros(sum(inputs.counts), inputs.states.shape[1])
    if writes(inputs):
        count = min(len(inputs.states), len(every) - start)
        every[start : start + count] = inputs.states[:count]
    dist.all_reduce(every)
    return outputs_of(inputs, scattered(inputs, layer_of_all(inputs, every)))


@mutant(
    gather_by_all_reduce,
    "sgl-project/sglang/pull/12052: where a rank's rows begin is counted by numbers of another buffer",
    supports=_GROUPS,
)
def starts_of_padded_groups(inputs: DataParallelPart, target: Target) -> Outputs:
    """Read back from where rows would be if all groups were padded to the longest."""
    every = layer_of_all(inputs, gathered_by_sum(inputs, writes=writes(inputs)))
    start, count = group_of(inputs) * max(inputs.counts), inputs.counts[group_of(inputs)]
    found = every[start : start + count]
    own = torch.zeros_like(inputs.states)
    own[: len(found)] = found
    return outputs_of(inputs, own)


@mutant(
    gather_by_all_reduce,
    "sgl-project/sglang/pull/28487: rows behind a group's tokens are what memory holds",
    supports=_SPARE,
)
def padding_not_zeroed(inputs: DataParallelPart, target: Target) -> Outputs:
    """Copy the own rows into a buffer that nobody zeroed."""
    every = layer_of_all(inputs, gathered_by_sum(inputs, writes=writes(inputs)))
    own, count = inputs.states.clone(), inputs.counts[group_of(inputs)]
    own[:count] = scattered(inputs, every)[:count]
    return outputs_of(inputs, own)


@mutant(
    scatter_by_all_reduce,
    "sgl-project/sglang/pull/10414: rows of a buffer that is padded to the longest group begin at its multiples",
    supports=_GROUPS,
)
def starts_of_unpadded_groups(inputs: DataParallelPart, target: Target) -> Outputs:
    """Read back from where rows would be without padding."""
    slices = in_slices(inputs, inputs.states, leader=inputs.replicated)
    every = slices.new_empty(len(slices) * dist.get_world_size(), slices.shape[1])
    dist.all_gather_into_tensor(every, slices)
    start = sum(inputs.counts[: group_of(inputs)])
    return outputs_of(inputs, layer_of_all(inputs, every)[start : start + len(inputs.states)].clone())


@mutant(
    gather_by_all_gather,
    "sgl-project/sglang/pull/28216: of what is gathered as a list, the first tensor is taken",
    supports={**_GROUPS, "attention_ranks": (1,)},
)
def first_rank_of_a_list(inputs: DataParallelPart, target: Target) -> Outputs:
    """Take the first group's rows for those of all."""
    parts = [torch.empty_like(inputs.states) for _ in inputs.counts]
    dist.all_gather(parts, inputs.states)
    result = own_part(inputs, torch.cat(parts[:1] * len(parts)))
    own = torch.empty_like(inputs.states)
    dist.reduce_scatter_tensor(own, result)
    return outputs_of(inputs, own)


@mutant(
    chunks_of_the_group,
    "sgl-project/sglang/pull/9107: real rows of the whole group, where those of the rank's chunk belong",
    supports=_WIDE_GROUPS,
)
def real_rows_of_the_group(inputs: DataParallelPart, target: Target) -> Outputs:
    """Leave out where a chunk begins."""
    count, chunk = inputs.counts[group_of(inputs)], len(inputs.states) // inputs.attention_ranks
    real = min(count, chunk)
    return {**by_chunks(inputs, real), "real": torch.tensor([real], dtype=torch.int32)}


@mutant(
    chunks_of_the_group,
    "sglang srt/model_executor/forward_batch_info.py 374: chunks are of the padded length, not of the real one",
    supports=_WIDE_GROUPS,
)
def chunks_of_real_rows(inputs: DataParallelPart, target: Target) -> Outputs:
    """Divide real rows by ranks."""
    count = inputs.counts[group_of(inputs)]
    chunk = -(-count // inputs.attention_ranks)
    real = min(max(count - place_of(inputs) * chunk, 0), chunk)
    return {**by_chunks(inputs, real), "real": torch.tensor([real], dtype=torch.int32)}


@mutant(
    padded_over_data_ranks,
    "vllm-project/vllm-ascend/pull/1636: the longest group is looked for in what one rank knows, its own padding added",
    supports=_GROUPS,
)
def longest_of_the_own_group(inputs: DataParallelPart, target: Target) -> Outputs:
    """Pad to the own length."""
    count = inputs.counts[group_of(inputs)]
    own = summed_in_group(inputs, inputs.states[:count])
    every = own.new_empty(count * len(inputs.counts), own.shape[1])
    dist.all_gather_into_tensor(every, own, group=data_group(inputs))
    result = torch.empty_like(own)
    dist.reduce_scatter_tensor(result, own_part(inputs, every), group=data_group(inputs))
    return outputs_of(inputs, padded_to(result, len(inputs.states)))


@mutant(
    padded_over_data_ranks,
    "vllm-project/vllm-ascend/pull/9483: what data-parallel ranks have added up is not added up over their groups",
    supports=_WIDE_GROUPS,
)
def sum_over_data_ranks_alone(inputs: DataParallelPart, target: Target) -> Outputs:
    """Leave the last all-reduce out."""
    count, most = inputs.counts[group_of(inputs)], max(inputs.counts)
    own = padded_to(summed_in_group(inputs, inputs.states[:count]), most)
    every = own.new_empty(most * len(inputs.counts), own.shape[1])
    ranks = data_group(inputs)
    dist.all_gather_into_tensor(every, own, group=ranks)
    result = torch.empty_like(own)
    dist.reduce_scatter_tensor(result, own_part(inputs, every), group=ranks)
    return outputs_of(inputs, padded_to(result[:count], len(inputs.states)))


@mutant(
    unpadded_over_expert_ranks,
    "vllm-project/vllm-ascend/issues/6710: what is reduced already is reduced again",
    supports=_WIDE_GROUPS,
)
def added_up_again_in_the_group(inputs: DataParallelPart, target: Target) -> Outputs:
    """All-reduce over the group what reduce-scatter has added up."""
    outputs = dict(unpadded_over_expert_ranks(inputs, target))
    dist.all_reduce(outputs["output"], group=attention_group(inputs))
    return outputs


@mutant(
    unpadded_over_expert_ranks,
    "vllm-project/vllm/pull/43737: what is gathered is padded for each rank, and not behind all of them",
    supports=_GROUPS,
)
def padding_behind_all_groups(inputs: DataParallelPart, target: Target) -> Outputs:
    """Cut the padding of all groups behind the last one."""
    count, most = inputs.counts[group_of(inputs)], max(inputs.counts)
    length = -(-most // inputs.attention_ranks) * inputs.attention_ranks
    slices = in_slices(inputs, padded_to(inputs.states[:count], length), leader=inputs.replicated)
    every = slices.new_empty(length * len(inputs.counts), slices.shape[1])
    dist.all_gather_into_tensor(every, slices)
    result = own_part(inputs, every[: sum(inputs.counts)])
    blocks = [padded_to(block, length) for block in torch.split(result, list(inputs.counts))]
    own = torch.empty_like(slices)
    dist.reduce_scatter_tensor(own, torch.cat(blocks))
    return outputs_of(inputs, padded_to(whole_of_group(inputs, own)[:count], len(inputs.states)))
