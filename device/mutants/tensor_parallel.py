"""Wrong divisions of linear layers among ranks."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist

from npudiff import Target, mutant
from npudiff.device.ascend.parallel_linear import given
from npudiff.device.ascend.shard_loading import columns_of, inner_cut, inner_of, projection_cuts, with_rows
from npudiff.device.ascend.tensor_parallel import (
    LAYERS,
    Outputs,
    add_norm,
    padded,
    parallel_linear_layers,
    run,
    summed,
)
from npudiff.model.constraints import Box
from npudiff.reference.sharded_linear import LinearCheckpoint
from npudiff.reference.tensor_parallel import TensorParallelPart

SEVERAL = (2, 3, 4, 8)
SUMS = ("row", "column_row", "row_norm_column")
"""Layers that are summed over ranks."""
MORE: Box = {"ranks": SEVERAL}
SUMMED: Box = {"ranks": SEVERAL, "layer": SUMS}
FLOAT_BIAS: Box = {"biased": (True,), "format": ("float", "w8a8_dynamic", "w4a8", "w4a16")}
STATIC: Box = {"format": ("w8a8_static",)}
WITH_OFFSET: Box = {**STATIC, "offset": (*range(-100, 0), *range(1, 101))}
GROUPED: Box = {"scales": ("group",)}


@mutant(
    parallel_linear_layers,
    "QNT-14 huggingface/text-generation-inference/issues/1036: every rank adds the bias, and then they are summed",
    supports={**SUMMED, **FLOAT_BIAS},
)
def bias_of_every_rank(inputs: TensorParallelPart, target: Target) -> Outputs:
    """Add the bias on all ranks."""
    return run(inputs, replace(LAYERS, has_bias=lambda _: True))


@mutant(
    parallel_linear_layers,
    "vllm-project/vllm-ascend/issues/891: why the integer bias is given on the first rank only",
    supports={**SUMMED, **WITH_OFFSET},
)
def quant_bias_of_every_rank(inputs: TensorParallelPart, target: Target) -> Outputs:
    """Add the integer bias on all ranks."""
    return run(inputs, replace(LAYERS, has_quant_bias=lambda _: True))


@mutant(
    parallel_linear_layers,
    "QNT-14 vllm-project/vllm-ascend/pull/14018: added behind the reduce-scatter, and on the first rank only",
    supports={"ranks": SEVERAL, "layer": ("row", "column_row"), "form": ("sequence",), **WITH_OFFSET},
)
def quant_bias_of_the_first_tokens(inputs: TensorParallelPart, target: Target) -> Outputs:
    """Add the integer bias to what the first rank has of the sum."""

    def behind(part: TensorParallelPart, rows: torch.Tensor) -> torch.Tensor:
        total = summed(part, rows)
        layer = part.first if part.second is None else part.second
        if part.rank:
            return total
        return (total.float() + given(layer.quant_bias) * given(layer.deq_scale)).to(rows.dtype)

    return run(inputs, replace(LAYERS, has_quant_bias=lambda _: False, sum=behind))


@mutant(
    parallel_linear_layers,
    "QNT-01 vllm-project/vllm-ascend/issues/3152: what sums over all of the inner axis is computed of a rank's part",
    supports={**SUMMED, **WITH_OFFSET},
)
def quant_bias_of_the_part(inputs: TensorParallelPart, target: Target) -> Outputs:
    """Take what the offset adds from the part of the first rank alone."""

    def load(layer: LinearCheckpoint, rank: int, ranks: int) -> LinearCheckpoint:
        loaded, offset = inner_of(layer, rank, ranks), int(given(layer.input_offset))
        others = layer.weight.sum(dim=1, dtype=torch.int32) - loaded.weight.sum(dim=1, dtype=torch.int32)
        return replace(loaded, quant_bias=given(layer.quant_bias) + offset * others)

    return run(inputs, replace(LAYERS, load_inner=load))


@mutant(
    parallel_linear_layers,
    "QNT-13 vllm-project/vllm-ascend/pull/8220: the bias is given on the first rank only, where columns are divided",
    supports={"ranks": SEVERAL, "layer": ("column", "row_norm_column"), **WITH_OFFSET},
)
def quant_bias_of_the_first_columns(inputs: TensorParallelPart, target: Target) -> Outputs:
    """Leave the integer bias out on other ranks than the first."""

    def load(layer: LinearCheckpoint, rank: int, ranks: int) -> LinearCheckpoint:
        loaded = columns_of(layer, rank, ranks)
        return replace(loaded, quant_bias=None) if rank else loaded

    return run(inputs, replace(LAYERS, load_columns=load))


@mutant(
    parallel_linear_layers,
    "ModelTC/LightX2V/pull/1453: tensors with one axis were not divided among ranks",
    supports={"ranks": SEVERAL, "layer": ("column", "column_row", "row_norm_column"), **FLOAT_BIAS},
)
def bias_of_the_first_columns(inputs: TensorParallelPart, target: Target) -> Outputs:
    """Give every rank the first elements of the bias."""

    def load(layer: LinearCheckpoint, rank: int, ranks: int) -> LinearCheckpoint:
        loaded = columns_of(layer, rank, ranks)
        return replace(loaded, bias=given(layer.bias)[: len(loaded.weight)])

    return run(inputs, replace(LAYERS, load_columns=load))


@mutant(
    parallel_linear_layers,
    "MOE-14 vllm-project/vllm-ascend/pull/9389: what is summed over ranks already is summed again",
    supports={"ranks": SEVERAL, "layer": ("row", "column_row"), "form": ("whole",)},
)
def summed_over_ranks_twice(inputs: TensorParallelPart, target: Target) -> Outputs:
    """Sum over ranks a second time."""
    return run(inputs, replace(LAYERS, sum=lambda part, rows: summed(part, summed(part, rows))))


@mutant(
    parallel_linear_layers,
    "vllm-project/vllm/pull/48763: what a rank has of a sum is multiplied by the number of ranks, and not summed",
    supports={**SUMMED, "form": ("whole",)},
)
def multiplied_by_ranks(inputs: TensorParallelPart, target: Target) -> Outputs:
    """Take what this rank has for what each one has."""
    return run(inputs, replace(LAYERS, sum=lambda part, rows: rows * part.ranks))


@mutant(
    parallel_linear_layers,
    "vllm-project/vllm/pull/33088: a fused product and reduce-scatter takes the mean over ranks",
    supports={**SUMMED, "form": ("sequence",)},
)
def averaged_over_ranks(inputs: TensorParallelPart, target: Target) -> Outputs:
    """Take the mean over ranks."""

    def mean(part: TensorParallelPart, rows: torch.Tensor) -> torch.Tensor:
        own = rows.new_empty(part.share, rows.shape[1])
        dist.reduce_scatter_tensor(own, padded(part, rows).contiguous(), op=dist.ReduceOp.AVG)
        return own

    return run(inputs, replace(LAYERS, sum=mean))


@mutant(
    parallel_linear_layers,
    "mirage-project/mirage/pull/722: the residual is added on every rank before the sum over ranks",
    supports={"ranks": SEVERAL, "layer": ("row_norm_column",), "form": ("whole",)},
)
def residual_of_every_rank(inputs: TensorParallelPart, target: Target) -> Outputs:
    """Add the residual to what each rank has of the sum."""

    def norm(part: TensorParallelPart, rows: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return add_norm(part, rows, torch.zeros_like(residual))

    def together(part: TensorParallelPart, rows: torch.Tensor) -> torch.Tensor:
        return summed(part, rows + given(part.residual))

    return run(inputs, replace(LAYERS, sum=together, norm=norm))


@mutant(
    parallel_linear_layers,
    "vllm-project/vllm-ascend/pull/10951: the residual is cut with chunk, which knows no rows behind the last token",
    supports={"ranks": SEVERAL, "layer": ("row_norm_column",), "form": ("sequence",)},
)
def residual_in_chunks(inputs: TensorParallelPart, target: Target) -> Outputs:
    """Take a rank's chunk of the residual."""

    def chunk(part: TensorParallelPart, rows: torch.Tensor) -> torch.Tensor:
        return rows.chunk(part.ranks, dim=0)[part.rank].contiguous()

    return run(inputs, replace(LAYERS, own=chunk))


@mutant(
    parallel_linear_layers,
    "vllm-project/vllm-ascend/pull/7897: the residual stays whole where rows are divided, and each rank adds its start",
    supports={"ranks": SEVERAL, "layer": ("row_norm_column",), "form": ("sequence",), "tokens": range(2, 2**17)},
)
def residual_not_divided(inputs: TensorParallelPart, target: Target) -> Outputs:
    """Add the first tokens' residual on every rank."""
    return run(inputs, replace(LAYERS, own=lambda part, rows: padded(part, rows)[: part.share]))


@mutant(
    parallel_linear_layers,
    "vllm-project/vllm-ascend/pull/8133: rows behind the last token are taken for a request",
    supports={"ranks": SEVERAL, "layer": ("column", "row_norm_column"), "form": ("sequence",)},
)
def padded_rows_kept(inputs: TensorParallelPart, target: Target) -> Outputs:
    """Go on with rows that are no tokens."""

    def gather(part: TensorParallelPart, rows: torch.Tensor) -> torch.Tensor:
        everything = rows.new_empty(part.share * part.ranks, rows.shape[1])
        dist.all_gather_into_tensor(everything, rows.contiguous())
        return everything

    return run(inputs, replace(LAYERS, gather=gather))


@mutant(
    parallel_linear_layers,
    "ByteDance-Seed/VeOmni/pull/1139: tokens are divided with the remainder left out",
    supports={"ranks": SEVERAL, "layer": ("row", "column_row"), "form": ("sequence",)},
)
def remainder_left_out(inputs: TensorParallelPart, target: Target) -> Outputs:
    """Leave out tokens that do not divide, and have zeros in their place."""

    def sum_of_whole(part: TensorParallelPart, rows: torch.Tensor) -> torch.Tensor:
        whole = rows.clone()
        whole[len(rows) // part.ranks * part.ranks :] = 0
        return summed(part, whole)

    return run(inputs, replace(LAYERS, sum=sum_of_whole))


@mutant(
    parallel_linear_layers,
    "xLLM-AI/xllm/pull/1616: a fused gate and up is cut as one matrix, so that the first ranks have gates only",
    supports={"ranks": SEVERAL, "layer": ("column", "column_row", "row_norm_column"), "projections": ("gate_up",)},
)
def projections_cut_as_one(inputs: TensorParallelPart, target: Target) -> Outputs:
    """Cut all projections together."""

    def load(layer: LinearCheckpoint, rank: int, ranks: int) -> LinearCheckpoint:
        size = len(layer.weight) // ranks
        return with_rows(layer, [(rank * size, size)])

    return run(inputs, replace(LAYERS, load_columns=load))


@mutant(
    parallel_linear_layers,
    "vllm-project/vllm-gguf-plugin/issues/103: merged projections are loaded for rank 0 on every rank",
    supports={
        "ranks": SEVERAL,
        "layer": ("column", "column_row", "row_norm_column"),
        "projections": ("gate_up", "qkv"),
    },
)
def first_columns_on_every_rank(inputs: TensorParallelPart, target: Target) -> Outputs:
    """Load the first part of each projection."""
    return run(inputs, replace(LAYERS, load_columns=lambda layer, _, ranks: columns_of(layer, 0, ranks)))


@mutant(
    parallel_linear_layers,
    "NVIDIA/TensorRT-LLM/pull/6447: heads of keys and values that several ranks have are given to others than those",
    supports={"ranks": (4, 8), "layer": ("column", "row_norm_column"), "projections": ("shared_kv",)},
)
def heads_in_turn(inputs: TensorParallelPart, target: Target) -> Outputs:
    """Give ranks the heads of keys and values in turn, so that ranks in a row have different ones."""

    def load(layer: LinearCheckpoint, rank: int, ranks: int) -> LinearCheckpoint:
        cuts, offset = [], 0
        sizes = (size for _, size in projection_cuts(layer, rank, ranks))
        for width, replicas, size in zip(layer.projections, layer.copies, sizes, strict=True):
            cuts.append((offset + rank % (ranks // replicas) * size, size))
            offset += width
        return with_rows(layer, cuts)

    return run(inputs, replace(LAYERS, load_columns=load))


@mutant(
    parallel_linear_layers,
    "vllm-project/vllm-omni/pull/5761: scales of groups are not divided along the inner axis",
    supports={**SUMMED, **GROUPED},
)
def scales_of_the_first_groups(inputs: TensorParallelPart, target: Target) -> Outputs:
    """Give every rank the scales of the first groups."""

    def load(layer: LinearCheckpoint, rank: int, ranks: int) -> LinearCheckpoint:
        loaded = inner_of(layer, rank, ranks)
        return replace(loaded, scale=given(layer.scale)[:, : given(loaded.scale).shape[1]].contiguous())

    return run(inputs, replace(LAYERS, load_inner=load))


@mutant(
    parallel_linear_layers,
    "vllm-project/vllm-ascend/pull/12201: groups are counted by a division that leaves the last one out",
    supports={"layer": ("row",), "format": ("w4a16",), "tail": (8, 72), **GROUPED},
)
def last_group_left_out(inputs: TensorParallelPart, target: Target) -> Outputs:
    """Load as many scales as there are whole groups."""

    def load(layer: LinearCheckpoint, rank: int, ranks: int) -> LinearCheckpoint:
        loaded, (_, size) = inner_of(layer, rank, ranks), inner_cut(layer, rank, ranks)
        return replace(loaded, scale=given(loaded.scale)[:, : size // layer.group_size])

    return run(inputs, replace(LAYERS, load_inner=load))


@mutant(
    parallel_linear_layers,
    "QNT-01 vllm-project/vllm-ascend/issues/3152: what makes up for halves of int8 is that of all ranks, on each",
    supports={**SUMMED, "format": ("w4a8",)},
)
def scale_bias_of_all_ranks(inputs: TensorParallelPart, target: Target) -> Outputs:
    """Add up all parts of ``scale_bias``."""

    def load(layer: LinearCheckpoint, rank: int, ranks: int) -> LinearCheckpoint:
        return replace(inner_of(layer, rank, ranks), scale_bias=layer.scale_bias)

    return run(inputs, replace(LAYERS, load_inner=load))
