"""Linear layers that are divided among ranks as vllm-ascend and sglang run them on Ascend.

Sources: vllm, ``model_executor/layers/linear.py``; vllm-ascend, ``ops/linear_op.py`` (o_proj and MLP groups of their
own), ``ops/register_custom_ops.py`` (tokens that are padded, gathered and reduced under sequence parallelism); sglang
0.5.23, ``srt/layers/linear.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch.nn import functional

from npudiff import Target, implementation
from npudiff.device.ascend import parallel_linear, shard_loading
from npudiff.device.ascend.grouped_matmul import whole_sums
from npudiff.device.ascend.parallel_linear import given
from npudiff.reference.sharded_linear import LinearCheckpoint
from npudiff.reference.tensor_parallel import TensorParallelPart

Outputs = dict[str, torch.Tensor]
Load = Callable[[LinearCheckpoint, int, int], LinearCheckpoint]
"""What a checkpoint has, a rank and the number of ranks to what the rank loads."""
Product = Callable[[LinearCheckpoint, torch.Tensor, "torch.Tensor | None", "torch.Tensor | None"], torch.Tensor]
"""What was loaded, states, bias and int32 bias to a product."""
Exchange = Callable[[TensorParallelPart, torch.Tensor], torch.Tensor]
Norm = Callable[[TensorParallelPart, torch.Tensor, torch.Tensor], "tuple[torch.Tensor, torch.Tensor]"]


def is_first(rank: int) -> bool:
    """Whether a rank is the first."""
    return rank == 0


def gathered(part: TensorParallelPart, rows: torch.Tensor) -> torch.Tensor:
    """All tokens, where each rank has a part of them."""
    everything = rows.new_empty(part.share * part.ranks, rows.shape[1])
    dist.all_gather_into_tensor(everything, rows.contiguous())
    return everything[: part.tokens]


def padded(part: TensorParallelPart, rows: torch.Tensor) -> torch.Tensor:
    """Rows with zeros behind the last token, so that they divide."""
    return functional.pad(rows, (0, 0, 0, part.share * part.ranks - len(rows)))


def summed(part: TensorParallelPart, rows: torch.Tensor) -> torch.Tensor:
    """The sum over ranks: of all tokens, or of this rank's."""
    if part.form == "whole":
        total = rows.contiguous()
        dist.all_reduce(total)
        return total
    own = rows.new_empty(part.share, rows.shape[1])
    dist.reduce_scatter_tensor(own, padded(part, rows).contiguous())
    return own


def own_rows(part: TensorParallelPart, rows: torch.Tensor) -> torch.Tensor:
    """A rank's rows."""
    return padded(part, rows)[part.rank * part.share : (part.rank + 1) * part.share]


def add_norm(part: TensorParallelPart, rows: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Add a residual and normalise."""
    normed, _, total = torch.ops.npu.npu_add_rms_norm(rows, residual, given(part.norm_weight), part.epsilon)
    return normed, total


def own_inner_of_all(part: TensorParallelPart) -> torch.Tensor:
    """A rank's part of the inner axis of all tokens, where each rank has whole rows of its own tokens."""
    sent = part.states.view(len(part.states), part.ranks, -1).transpose(0, 1).contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received.view(-1), sent.view(-1))
    return received.view(part.share * part.ranks, -1)


@dataclass(frozen=True)
class Steps:
    """The steps of a layer on one rank, each of which a call path or a mutant may do in another way."""

    load_columns: Load = shard_loading.columns_of
    load_inner: Load = shard_loading.inner_of
    """A rank's part of a checkpoint: columns, or the inner axis."""
    product: Product = parallel_linear.product
    partial: Product = parallel_linear.product
    """The product of columns, and what a rank has of a sum."""
    has_bias: Callable[[int], bool] = is_first
    has_quant_bias: Callable[[int], bool] = is_first
    """Whether a rank adds the bias of a layer whose inner axis is divided, before the sum over ranks."""
    bias_behind: bool = False
    """Whether the bias is added behind that sum instead."""
    gather: Exchange = gathered
    """The rows of all ranks, without those behind the last token."""
    sum: Exchange = summed
    """The sum over ranks, of all tokens or of a rank's."""
    own: Exchange = own_rows
    """A rank's rows of what every rank has whole."""
    norm: Norm = add_norm
    """Rows and their residual to normalised rows and the sum."""


def run(part: TensorParallelPart, steps: Steps) -> Outputs:
    """Run the layers of a case on one rank."""
    divided, none = part.form != "whole", part.states.new_empty(0, 1)
    if part.layer in ("column", "column_row"):
        states = steps.gather(part, part.states) if divided else part.states
        output = by_columns(part, part.first, states, steps)
        if part.layer == "column_row":
            output = by_inner(part, second(part), between(part, output), steps)
        return {"output": output, "residual": none}
    states = own_inner_of_all(part) if part.form == "own_tokens" else part.states
    total = by_inner(part, part.first, states, steps)
    if part.layer == "row":
        return {"output": total, "residual": none}
    residual = given(part.residual)
    normed, residual = steps.norm(part, total, steps.own(part, residual) if divided else residual)
    states = steps.gather(part, normed) if divided else normed
    return {"output": by_columns(part, second(part), states, steps), "residual": residual}


def second(part: TensorParallelPart) -> LinearCheckpoint:
    """The second layer of two."""
    if part.second is None:
        raise ValueError(f"{part.layer} has two layers")
    return part.second


def between(part: TensorParallelPart, states: torch.Tensor) -> torch.Tensor:
    """What comes between two layers of an MLP."""
    if not part.gated:
        return states
    activated: torch.Tensor = torch.ops.npu.npu_swiglu(states, dim=-1)
    return activated


def by_columns(part: TensorParallelPart, layer: LinearCheckpoint, states: torch.Tensor, steps: Steps) -> torch.Tensor:
    """A rank's columns of a layer: each rank adds what it has of the bias."""
    loaded = steps.load_columns(layer, part.rank, part.ranks)
    return steps.product(loaded, states, loaded.bias, loaded.quant_bias)


def by_inner(part: TensorParallelPart, layer: LinearCheckpoint, states: torch.Tensor, steps: Steps) -> torch.Tensor:
    """The sum over ranks of a layer whose inner axis is divided."""
    loaded = steps.load_inner(layer, part.rank, part.ranks)
    bias = loaded.bias if steps.has_bias(part.rank) and not steps.bias_behind else None
    quant_bias = loaded.quant_bias if steps.has_quant_bias(part.rank) else None
    total = steps.sum(part, steps.partial(loaded, states, bias, quant_bias))
    return total + loaded.bias if steps.bias_behind and loaded.bias is not None else total


def float_product(
    layer: LinearCheckpoint, states: torch.Tensor, bias: torch.Tensor | None, quant_bias: torch.Tensor | None
) -> torch.Tensor:
    """The product in float32; sums of integers are whole."""
    rows, weight = states.float(), layer.weight.transpose(0, 1)
    if layer.format == "float":
        result = rows @ weight.float()
    elif layer.format == "w4a16":
        result = rows @ (weight.float() * of_rows(layer, given(layer.scale).float().t()))
    elif layer.format == "w8a8_static":
        steps = (rows / given(layer.input_scale).float() + given(layer.input_offset).float()).round()
        sums = whole_sums(steps.clamp(-128, 127).to(torch.int8), weight)
        result = (sums if quant_bias is None else sums + quant_bias).float() * given(layer.deq_scale)
    else:
        size = rows.abs().amax(dim=1, keepdim=True) / 127
        steps = (rows / size.masked_fill(size == 0, 1.0)).round().to(torch.int8)
        scale = given(layer.scale).t()
        groups = zip(steps.chunk(len(scale), dim=1), weight.chunk(len(scale), dim=0), scale, strict=True)
        scaled = [whole_sums(part, of_group).float() * each for part, of_group, each in groups]
        result = torch.stack(scaled).sum(dim=0) * size
    return result if bias is None or layer.format == "w8a8_static" else result + bias.float()


def of_rows(layer: LinearCheckpoint, scale: torch.Tensor) -> torch.Tensor:
    """Scales of each row of a weight, ``[inner, columns]``."""
    return scale.repeat_interleave(layer.group_size or layer.weight.shape[1], dim=0)[: layer.weight.shape[1]]


def composed_product(
    layer: LinearCheckpoint, states: torch.Tensor, bias: torch.Tensor | None, quant_bias: torch.Tensor | None
) -> torch.Tensor:
    """The product of a layer whose columns are divided."""
    return float_product(layer, states, bias, quant_bias).to(states.dtype)


def summed_in_float32(part: TensorParallelPart, rows: torch.Tensor) -> torch.Tensor:
    """The sum over ranks, rounded once."""
    return summed(part, rows.float()).to(part.states.dtype)


def composed_norm(
    part: TensorParallelPart, rows: torch.Tensor, residual: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add and normalise in float32, what was added rounded before."""
    total = (rows.float() + residual.float()).to(rows.dtype)
    wide = total.float()
    scaled = wide * torch.rsqrt(wide.square().mean(dim=1, keepdim=True) + part.epsilon)
    return (scaled * given(part.norm_weight).float()).to(rows.dtype), total


LAYERS = Steps()
COMPOSED = Steps(product=composed_product, partial=float_product, sum=summed_in_float32, norm=composed_norm)


@implementation("tensor_parallel", on_device=True)
def parallel_linear_layers(inputs: TensorParallelPart, target: Target) -> Outputs:
    """ColumnParallelLinear and RowParallelLinear: the first rank adds the bias before the sum."""
    return run(inputs, LAYERS)


@implementation("tensor_parallel", on_device=True)
def bias_behind_the_sum(inputs: TensorParallelPart, target: Target) -> Outputs:
    """The same, with the bias added behind the sum over ranks, by each rank to what it has of it."""
    return run(inputs, replace(LAYERS, bias_behind=True))


@implementation("tensor_parallel", on_device=True)
def composed_layers(inputs: TensorParallelPart, target: Target) -> Outputs:
    """Composed of plain operators: products in float32, which are added over ranks in float32 and rounded once."""
    return run(inputs, COMPOSED)
