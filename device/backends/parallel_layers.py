"""Linear layers over ranks as both backends have them: what is on disk, and one layer after the other.

Backends make a layer, and its loaders cut tensors of a checkpoint; here is what those tensors are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from npudiff.device.ascend.parallel_linear import given
from npudiff.device.ascend.shard_loading import with_rows
from npudiff.reference.sharded_linear import LinearCheckpoint
from npudiff.reference.tensor_parallel import TensorParallelPart

Outputs = dict[str, torch.Tensor]
OnDisk = dict[str, torch.Tensor]
"""Tensors of a checkpoint, by the names of parameters of a layer."""
Apply = Callable[[LinearCheckpoint, torch.Tensor], torch.Tensor]
"""A layer, whole, and states of a rank to what its rank has of the product."""

Shard = str | int | None
"""How loaders call a projection of a matrix that holds several."""

PROJECTIONS: dict[int, dict[Shard, str]] = {
    1: {None: ""},
    2: {0: "gate_proj", 1: "up_proj"},
    3: {"q": "q_proj", "k": "k_proj", "v": "v_proj"},
}
"""How backends call projections of one matrix: to their loaders, and in a checkpoint."""

SCHEMES = {"w8a8_static": "W8A8", "w8a8_dynamic": "W8A8_DYNAMIC"}
"""How msModelSlim calls formats of linear layers."""

MULTIPLE = 8
"""Columns of a head of keys, where ranks have several."""


@dataclass(frozen=True)
class Layers:
    """What a backend has of a model."""

    columns: Apply
    """A layer whose columns are divided."""
    inner: Apply
    """A layer whose inner axis is divided, summed over ranks."""
    activated: Callable[[torch.Tensor], torch.Tensor]
    normed: Callable[[TensorParallelPart, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    """Rows and a residual to normalised rows and the sum."""
    own: Callable[[torch.Tensor], torch.Tensor]
    """All tokens to those that a rank has between layers."""


def run(part: TensorParallelPart, layers: Layers) -> Outputs:
    """Run the layers of a case on one rank."""
    nothing = part.states.new_empty(0, 1)
    second = part.first if part.second is None else part.second
    with torch.no_grad():
        if part.layer == "column":
            return {"output": layers.columns(part.first, part.states)[: part.tokens], "residual": nothing}
        if part.layer == "row":
            return {"output": layers.inner(part.first, part.states), "residual": nothing}
        if part.layer == "column_row":
            between = layers.columns(part.first, part.states)
            rows = layers.activated(between) if part.gated else between
            return {"output": layers.inner(second, rows), "residual": nothing}
        total = layers.inner(part.first, part.states)
        normed, residual = layers.normed(part, total, layers.own(given(part.residual)))
        return {"output": layers.columns(second, normed)[: part.tokens], "residual": residual}


def projections_of(layer: LinearCheckpoint) -> Iterator[tuple[Shard, LinearCheckpoint]]:
    """Yield what stands in one matrix as a checkpoint has it that is not fused, with how loaders call it."""
    start = 0
    for name, width in zip(PROJECTIONS[len(layer.projections)], layer.projections, strict=True):
        yield name, with_rows(layer, [(start, width)])
        start += width


def heads_of(layer: LinearCheckpoint, ranks: int) -> tuple[int, int, int]:
    """Return the size of a head, and how many there are of queries, and of keys.

    Ranks have several heads of keys each, where none is held more than once.
    """
    queries, keys, _ = layer.projections
    copies = layer.copies[1]
    size = MULTIPLE if copies == 1 else keys * copies // ranks
    return size, queries // size, keys // size


def model_slim(layer: LinearCheckpoint) -> OnDisk:
    """Tensors of a layer as msModelSlim writes them: scales of static layers in float16 are 64 bits wide."""
    if layer.format == "float":
        return _present({"weight": layer.weight, "bias": layer.bias})
    found = {
        "weight": layer.weight,
        "weight_scale": given(layer.scale),
        "weight_offset": torch.zeros_like(given(layer.scale)),
        "bias": layer.bias,
        "input_scale": layer.input_scale,
        "input_offset": layer.input_offset,
        "quant_bias": layer.quant_bias,
        "deq_scale": layer.deq_scale,
    }
    if layer.deq_scale is not None and layer.input_scale is not None and layer.input_scale.dtype == torch.float16:
        found["deq_scale"] = torch.ops.npu.npu_trans_quant_param(layer.deq_scale)
    return _present(found)


def compressed_tensors(layer: LinearCheckpoint) -> OnDisk:
    """Tensors of a layer as compressed-tensors has them, whose states are quantised row by row."""
    return _present({"weight": layer.weight, "weight_scale": layer.scale, "bias": layer.bias})


def _present(tensors: dict[str, torch.Tensor | None]) -> OnDisk:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def prefix_of(layer: LinearCheckpoint, *, inner: bool = False) -> str:
    """Return the name of a layer as models of dense layers have it."""
    if inner:
        return "model.layers.0.mlp.down_proj"
    names = {1: "mlp.up_proj", 2: "mlp.gate_up_proj", 3: "self_attn.qkv_proj"}
    return f"model.layers.0.{names[len(layer.projections)]}"


def packed_modules() -> dict[str, list[str]]:
    """Return what models say of matrices that hold several projections."""
    return {"gate_up_proj": [*PROJECTIONS[2].values()], "qkv_proj": [*PROJECTIONS[3].values()]}


def description_of(layer: LinearCheckpoint, prefix: str) -> dict[str, str]:
    """Return what msModelSlim writes beside a checkpoint: the format of each weight."""
    folder, _, name = prefix.rpartition(".")
    found = PROJECTIONS[len(layer.projections)].values()
    return {f"{folder}.{one or name}.weight": SCHEMES[layer.format] for one in found}
