"""sglang's linear layers over ranks: ``layers/linear.py`` with its loaders, plain and under sequence parallelism."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.layers import layernorm_sp
from sglang.srt.layers.activation import SiluAndMul
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from sglang.srt.layers.quantization.awq.awq import AWQConfig
from sglang.srt.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig
from sglang.srt.layers.quantization.gptq.gptq import GPTQAscendConfig
from sglang.srt.layers.quantization.modelslim.modelslim import ModelSlimConfig
from sglang.srt.runtime_context import get_forward

from npudiff import Target, implementation
from npudiff.device.ascend.parallel_linear import given
from npudiff.device.backends.parallel_layers import (
    Layers,
    OnDisk,
    Outputs,
    compressed_tensors,
    description_of,
    heads_of,
    model_slim,
    packed_modules,
    prefix_of,
    projections_of,
    run,
)
from npudiff.device.backends.sglang.rank_world import all_ranks
from npudiff.device.backends.sglang.weight_quant_matmul import ORDER_OF_AWQ, ZERO, words
from npudiff.device.backends.sglang.world import filled
from npudiff.model.constraints import Box
from npudiff.reference.sharded_linear import LinearCheckpoint
from npudiff.reference.tensor_parallel import TensorParallelPart

MODEL_SLIM: tuple[Box, ...] = (
    {"form": ("whole",), "format": ("float", "w8a8_static")},
    {"form": ("whole",), "format": ("w8a8_dynamic",), "dtype": ("bfloat16",), "scale_dtype": ("states",)},
)
"""Dynamic layers do not run in float16, which is told of ``quant_matmul``. Of integers of four bits beside int8 there
are experts alone (``ModelSlimConfig.get_linear_scheme``)."""


def _of_model_slim(layer: LinearCheckpoint, prefix: str) -> Any:  # noqa: ANN401 - sglang's
    if layer.format == "float":
        return None
    config = ModelSlimConfig(description_of(layer, prefix))
    config.update_packed_modules_mapping({"model": packed_modules()})
    return config


@dataclass(frozen=True)
class _Linear:
    """Layers as sglang makes them for a rank, and loads them."""

    ranks: int
    config: Callable[[LinearCheckpoint, str], Any] = _of_model_slim
    """The quantisation of a layer, and its prefix."""
    read: Callable[[LinearCheckpoint], OnDisk] = model_slim
    """Tensors of a checkpoint."""
    fused: bool = False
    """Whether a checkpoint has all projections of a matrix in one tensor."""
    group: str | None = None
    """Over whose ranks layers are divided; None for what a model has that does not say."""

    def columns(self, layer: LinearCheckpoint, states: torch.Tensor) -> torch.Tensor:
        """Multiply with a layer whose columns are divided."""
        prefix = prefix_of(layer)
        common = {"bias": layer.bias is not None, "params_dtype": states.dtype, "prefix": prefix,
                  "quant_config": self.config(layer, prefix), "parallel_group": self.group}  # fmt: skip
        made: Any
        with torch.device(states.device):
            if len(layer.projections) == 3:
                made = QKVParallelLinear(layer.inner, *heads_of(layer, self.ranks), **common)
            elif len(layer.projections) == 2:
                made = MergedColumnParallelLinear(layer.inner, list(layer.projections), **common)
            else:
                made = ColumnParallelLinear(layer.inner, len(layer.weight), **common)
        output: torch.Tensor = self._loaded(made, layer)(states)[0]
        return output

    def inner(self, layer: LinearCheckpoint, states: torch.Tensor) -> torch.Tensor:
        """Multiply with a layer whose inner axis is divided."""
        prefix = prefix_of(layer, inner=True)
        with torch.device(states.device):
            made: Any = RowParallelLinear(
                layer.inner, len(layer.weight), bias=layer.bias is not None, params_dtype=states.dtype, prefix=prefix,
                quant_config=self.config(layer, prefix), parallel_group=self.group,
                use_dp_attention_reduce=self.group == "attn_tp",
            )  # fmt: skip
        output: torch.Tensor = self._loaded(made, layer)(states)[0]
        return output

    def _loaded(self, made: Any, layer: LinearCheckpoint) -> Any:  # noqa: ANN401 - sglang's layer
        """Load a checkpoint as models do, one tensor after the other, and let the quantisation process it."""
        parameters = dict(made.named_parameters())
        for shard, one in [(None, layer)] if self.fused else projections_of(layer):
            for name, tensor in self.read(one).items():
                filled(parameters[name], tensor, *([] if shard is None else [shard]))
        made.quant_method.process_weights_after_loading(made)
        return made


def _activated(rows: torch.Tensor) -> torch.Tensor:
    activated: torch.Tensor = SiluAndMul().forward_npu(rows)
    return activated


def _normed(part: TensorParallelPart, rows: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    norm: Any = RMSNorm(rows.shape[1], part.epsilon).to(rows.device, rows.dtype)
    filled(norm.weight, given(part.norm_weight))
    answer: tuple[torch.Tensor, torch.Tensor] = norm.forward_npu(rows, residual)
    return answer


def _whole(inputs: TensorParallelPart, linear: _Linear) -> Outputs:
    with all_ranks():
        return run(inputs, Layers(linear.columns, linear.inner, _activated, _normed, own=lambda rows: rows))


@implementation("tensor_parallel", name="ParallelLinear", supports=MODEL_SLIM, on_device=True)
def separate(inputs: TensorParallelPart, target: Target) -> Outputs:
    """ColumnParallelLinear, MergedColumnParallelLinear, QKVParallelLinear and RowParallelLinear."""
    return _whole(inputs, _Linear(inputs.ranks))


@implementation(
    "tensor_parallel",
    name="ParallelLinear_fused",
    supports=[{**box, "layer": ("column", "column_row", "row_norm_column"),
               "projections": ("gate_up", "qkv", "shared_kv")} for box in MODEL_SLIM],
    on_device=True,
)  # fmt: skip
def of_fused(inputs: TensorParallelPart, target: Target) -> Outputs:
    """The same of checkpoints that have gates and ups, or queries, keys and values, in one tensor."""
    return _whole(inputs, _Linear(inputs.ranks, fused=True))


SEQUENCES: tuple[Box, ...] = tuple({**box, "form": ("sequence",), "ranks": (2, 3, 4, 8)} for box in MODEL_SLIM)


@implementation("tensor_parallel", name="layernorm_sp", supports=SEQUENCES, on_device=True)
def of_sequences(inputs: TensorParallelPart, target: Target) -> Outputs:
    """The same under sequence parallelism, as with ``--enable-layernorm-sp``: layernorm_sp around the products."""
    linear = _Linear(inputs.ranks)
    with all_ranks(), get_forward().scoped(sp_active=True):
        layernorm_sp.set_sp_num_tokens(inputs.tokens)  # as at the entry of a model
        return run(inputs, Layers(linear.columns, linear.inner, _activated, _normed, own=layernorm_sp.sp_entry_scatter))


@implementation(
    "tensor_parallel",
    name="ParallelLinear_attn_tp",
    supports=[{**box, "layer": ("column", "row", "row_norm_column")} for box in MODEL_SLIM],
    on_device=True,
)
def of_attention(inputs: TensorParallelPart, target: Target) -> Outputs:
    """The same over the ranks of a data-parallel group, as of attention: ``parallel_group="attn_tp"``."""
    return _whole(inputs, _Linear(inputs.ranks, group="attn_tp"))


def _of_compressed_tensors(layer: LinearCheckpoint, prefix: str) -> Any:  # noqa: ANN401 - sglang's
    whole = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**whole, "strategy": "channel", "dynamic": False},
        "input_activations": {**whole, "strategy": "token", "dynamic": True},
    }
    return CompressedTensorsConfig.from_config({
        "format": "int-quantized", "quant_method": "compressed-tensors", "ignore": [],
        "config_groups": {"group_0": group}, "packed_modules_mapping": packed_modules(),
    })  # fmt: skip


@implementation(
    "tensor_parallel",
    name="CompressedTensorsLinearMethod",
    supports={"form": ("whole",), "format": ("w8a8_dynamic",)},
    on_device=True,
)
def of_compressed_tensors(inputs: TensorParallelPart, target: Target) -> Outputs:
    """The same with weights of compressed-tensors, whose scales stay float32."""
    return _whole(inputs, _Linear(inputs.ranks, _of_compressed_tensors, compressed_tensors))


GROUPS: tuple[Box, ...] = tuple(
    {"form": ("whole",), "format": ("w4a16",), "scales": ("group",), "tail": (0,), "layer": layers, "hidden": hidden}
    for layers, hidden in ((("row",), range(8, 2**14, 8)),
                           (("column", "column_row", "row_norm_column"), range(64, 2**14, 32)))
)  # fmt: skip
"""Both want whole groups on each rank, and say so. AWQ has no layers with one scale per column, and those of GPTQ do
not run, which is told of ``weight_quant_matmul``."""

GROUP = 32


def _awq(layer: LinearCheckpoint) -> OnDisk:
    """Unsigned integers, eight neighbouring columns in a word in an order of its own, and what is worth nothing."""
    scales = _scales(layer)
    zeros = torch.full_like(scales, ZERO, dtype=torch.int32)
    values = (layer.weight.t() + ZERO).contiguous()
    found = {"qweight": words(values, ORDER_OF_AWQ), "qzeros": words(zeros, ORDER_OF_AWQ), "scales": scales}
    return found if layer.bias is None else {**found, "bias": layer.bias}


def _gptq(layer: LinearCheckpoint) -> OnDisk:
    """The same with words along the inner axis, the group of each row, and what is worth nothing less 1."""
    scales, order = _scales(layer), tuple(range(8))
    zeros = torch.full_like(scales, ZERO - 1, dtype=torch.int32)
    rows = torch.arange(layer.inner, dtype=torch.int32, device=scales.device) // GROUP
    found = {
        "qweight": words(layer.weight + ZERO, order).t().contiguous(),
        "qzeros": words(zeros, order),
        "scales": scales,
        "g_idx": rows,
    }
    return found if layer.bias is None else {**found, "bias": layer.bias}


def _scales(layer: LinearCheckpoint) -> torch.Tensor:
    return given(layer.scale).t().contiguous()


@implementation("tensor_parallel", name="AWQLinearMethod", supports=GROUPS, on_device=True)
def of_awq(inputs: TensorParallelPart, target: Target) -> Outputs:
    """The same with weights of AWQ: AWQAscendLinearScheme."""
    return _whole(inputs, _Linear(inputs.ranks, lambda *_: AWQConfig(4, GROUP, zero_point=True), _awq))


@implementation("tensor_parallel", name="GPTQLinearMethod", supports=GROUPS, on_device=True)
def of_gptq(inputs: TensorParallelPart, target: Target) -> Outputs:
    """The same with weights of GPTQ: GPTQAscendLinearScheme."""
    config = GPTQAscendConfig(4, GROUP, desc_act=False, lm_head_quantized=False, dynamic={}, checkpoint_format="gptq")
    return _whole(inputs, _Linear(inputs.ranks, lambda *_: config, _gptq))
