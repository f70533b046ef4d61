"""vllm-ascend's linear layers over ranks: ``ops/linear.py`` and ``linear_op.py`` with their loaders.

The exchange of weights is that of ``quantization/tp_weight_switch.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from vllm.distributed import parallel_state
from vllm_ascend import utils
from vllm_ascend.distributed import parallel_state as own_state
from vllm_ascend.ops import linear
from vllm_ascend.ops.activation import AscendSiluAndMul
from vllm_ascend.ops.layernorm import AscendRMSNorm
from vllm_ascend.quantization.modelslim_config import AscendModelSlimConfig

from npudiff import Target, implementation
from npudiff.device.ascend.parallel_linear import given
from npudiff.device.ascend.tensor_parallel import own_rows, padded
from npudiff.device.backends.parallel_layers import (
    Layers,
    Outputs,
    description_of,
    heads_of,
    model_slim,
    packed_modules,
    prefix_of,
    projections_of,
    run,
)
from npudiff.device.backends.rank_group import RankGroup
from npudiff.device.backends.vllm_ascend.rms_norm import norm_module
from npudiff.device.backends.vllm_ascend.world import ascend_configuration, engine, engine_config
from npudiff.model.constraints import Box
from npudiff.reference.sharded_linear import LinearCheckpoint
from npudiff.reference.tensor_parallel import TensorParallelPart

FORMATS: tuple[Box, ...] = (
    {"format": ("float", "w8a8_static")},
    {"format": ("w8a8_dynamic",), "dtype": ("bfloat16",), "scale_dtype": ("states",)},
)
"""Dynamic layers do not run in float16, which is told of ``quant_matmul``. Of integers of four bits beside int8 there
are experts alone (``W4A8_DYNAMIC`` is registered for ``moe``)."""

O_PROJ = "model.layers.0.self_attn.o_proj"


def _sizes(form: str, ranks: int) -> SimpleNamespace:
    """What is told of layers with groups of their own; 0 where there is none."""
    return SimpleNamespace(
        mlp_tensor_parallel_size=ranks if form == "sequence" else 0,
        oproj_tensor_parallel_size=ranks if form == "own_tokens" else 0,
        olora_tensor_parallel_size=0, lmhead_tensor_parallel_size=0, embedding_tensor_parallel_size=0,
    )  # fmt: skip


@contextlib.contextmanager
def engine_of(part: TensorParallelPart, *, own_groups: bool = True, **values: object) -> Iterator[RankGroup]:
    """Be one of the ranks of a case, with the groups and the configuration of its form, and other values of this."""
    dtype = part.states.dtype
    config = engine_config(dtype)
    config.model_config.hf_config = SimpleNamespace(model_type="qwen3")
    config.model_config.hf_text_config = SimpleNamespace()
    sizes = _sizes(part.form if own_groups else "whole", part.ranks)
    usual = {"enable_shared_expert_dp": False, "multistream_overlap_shared_expert": False}
    ascend = ascend_configuration(finegrained_tp_config=sizes, **{**usual, **values})
    group = RankGroup()
    with (
        mock.patch.object(parallel_state, "_TP", group),
        mock.patch.object(own_state, "_MLP_TP", RankGroup(name="mlptp:0")),
        mock.patch.object(own_state, "_OTP", RankGroup(name="otp:0")),
        mock.patch.object(utils, "_CUSTOM_OP_ENABLED", False),
        engine(config, ascend),
    ):
        yield group


def _quantization(layer: LinearCheckpoint, prefix: str) -> Any:  # noqa: ANN401 - vllm-ascend's
    if layer.format == "float":
        return None
    config: Any = AscendModelSlimConfig(description_of(layer, prefix))
    config.packed_modules_mapping = packed_modules()
    return config


@dataclass(frozen=True)
class Linear:
    """Layers as vllm-ascend makes them for a rank, and loads them."""

    part: TensorParallelPart
    fused: bool = False
    """Whether a checkpoint has all projections of a matrix in one tensor."""
    folder: str = ""
    """Where a model has its layers, if not where one of dense layers has them."""

    def columns(self, layer: LinearCheckpoint, states: torch.Tensor) -> torch.Tensor:
        """Multiply with a layer whose columns are divided."""
        output: torch.Tensor = self.column(layer)(states)[0]
        return output

    def column(self, layer: LinearCheckpoint) -> Any:  # noqa: ANN401 - vllm-ascend's layer
        """Make such a layer, and load it."""
        prefix, dtype = self._moved(prefix_of(layer)), self.part.states.dtype
        common = {"bias": layer.bias is not None, "params_dtype": dtype, "prefix": prefix,
                  "quant_config": _quantization(layer, prefix)}  # fmt: skip
        made: Any
        with torch.device(self.part.states.device):
            if len(layer.projections) == 3:
                made = linear.AscendQKVParallelLinear(layer.inner, *heads_of(layer, self.part.ranks), **common)
            elif len(layer.projections) == 2:
                made = linear.AscendMergedColumnParallelLinear(layer.inner, list(layer.projections), **common)
            else:
                made = linear.AscendColumnParallelLinear(layer.inner, len(layer.weight), **common)
        return self._loaded(made, layer)

    def _moved(self, prefix: str) -> str:
        return f"{self.folder}.{prefix.rpartition('.')[2]}" if self.folder else prefix

    def inner(self, layer: LinearCheckpoint, states: torch.Tensor) -> torch.Tensor:
        """Multiply with a layer whose inner axis is divided; each rank has as many tokens where they are divided."""
        rows = padded(self.part, states) if self.part.form == "sequence" else states
        output: torch.Tensor = self.row(layer)(rows)[0]
        return output

    def row(self, layer: LinearCheckpoint, *, reduce_results: bool = True) -> Any:  # noqa: ANN401 - vllm-ascend's layer
        """Make such a layer, and load it."""
        prefix = O_PROJ if self.part.form == "own_tokens" else self._moved(prefix_of(layer, inner=True))
        with torch.device(self.part.states.device):
            made = linear.AscendRowParallelLinear(
                layer.inner, len(layer.weight), bias=layer.bias is not None, params_dtype=self.part.states.dtype,
                prefix=prefix, quant_config=_quantization(layer, prefix), reduce_results=reduce_results,
            )  # fmt: skip
        return self._loaded(made, layer)

    def _loaded(self, made: Any, layer: LinearCheckpoint) -> Any:  # noqa: ANN401 - vllm-ascend's layer
        """Load a checkpoint as models do, one tensor after the other, and let the quantisation process it."""
        parameters: dict[str, Any] = dict(made.named_parameters())
        for shard, one in [(None, layer)] if self.fused else projections_of(layer):
            for name, tensor in model_slim(one).items():
                parameter = parameters[name]
                parameter.weight_loader(parameter, tensor, *([] if shard is None else [shard]))
        made.quant_method.process_weights_after_loading(made)
        return made

    def layers(self) -> Layers:
        """Return what a model runs."""
        whole = self.part.form == "whole"
        return Layers(
            self.columns, self.inner, activated, _normed, lambda rows: rows if whole else own_rows(self.part, rows)
        )


def activated(rows: torch.Tensor) -> torch.Tensor:
    """Combine gates and ups."""
    combined: torch.Tensor = AscendSiluAndMul.forward_oot(None, rows)
    return combined


def _normed(part: TensorParallelPart, rows: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    norm = norm_module(AscendRMSNorm, given(part.norm_weight), part.epsilon)
    answer: tuple[torch.Tensor, torch.Tensor] = norm.forward_oot(rows, residual)
    return answer


@implementation(
    "tensor_parallel",
    name="AscendParallelLinear",
    supports=[{**box, "form": ("whole",)} for box in FORMATS],
    on_device=True,
)
def separate(inputs: TensorParallelPart, target: Target) -> Outputs:
    """AscendColumnParallelLinear and those of several projections, and AscendRowParallelLinear."""
    with engine_of(inputs):
        return run(inputs, Linear(inputs).layers())


@implementation(
    "tensor_parallel",
    name="AscendParallelLinear_fused",
    supports=[{**box, "form": ("whole",), "layer": ("column", "column_row", "row_norm_column"),
               "projections": ("gate_up", "qkv", "shared_kv")} for box in FORMATS],
    on_device=True,
)  # fmt: skip
def of_fused(inputs: TensorParallelPart, target: Target) -> Outputs:
    """The same of checkpoints that have gates and ups, or queries, keys and values, in one tensor."""
    with engine_of(inputs):
        return run(inputs, Linear(inputs, fused=True).layers())


@implementation(
    "tensor_parallel",
    name="MLPRowParallelOp",
    supports=[
        *({**box, "form": ("sequence",), "layer": ("row",)} for box in FORMATS),
        *({**box, "form": ("sequence",), "layer": ("column", "column_row", "row_norm_column"),
           "projections": ("gate_up",)} for box in FORMATS),
    ],
    on_device=True,
)  # fmt: skip
def of_sequences(inputs: TensorParallelPart, target: Target) -> Outputs:
    """MLPColumnParallelOp and MLPRowParallelOp, as with ``mlp_tensor_parallel_size``: gather, and reduce-scatter."""
    with engine_of(inputs):
        return run(inputs, Linear(inputs).layers())


@implementation(
    "tensor_parallel",
    name="OProjRowParallelOp",
    supports=[{**box, "form": ("own_tokens",)} for box in FORMATS],
    on_device=True,
)
def of_own_tokens(inputs: TensorParallelPart, target: Target) -> Outputs:
    """OProjRowParallelOp, as with ``oproj_tensor_parallel_size``: all-to-all, product, and reduce-scatter."""
    with engine_of(inputs):
        return run(inputs, Linear(inputs).layers())


@implementation(
    "tensor_parallel",
    name="TPWeightSwitchMixin",
    supports=[
        {"form": ("own_tokens",), "ranks": (2, 3, 4, 8), "format": ("float",), "biased": (False,)},
        {"form": ("own_tokens",), "ranks": (2, 3, 4, 8), "format": ("w8a8_static",)},
    ],
    on_device=True,
)
def of_gathered_weights(inputs: TensorParallelPart, target: Target) -> Outputs:
    """TPWeightSwitchMixin: ranks gather the weight of a layer, as of ``o_proj`` where DSA is context-parallel.

    The layer has no bias of its own there (``AscendSFADSACPImpl._apply_o_proj_full_weight``). A whole row is quantised
    at once, which is another number than its parts would be where that is by the largest element.
    """
    with engine_of(inputs, own_groups=False) as group, torch.no_grad():
        layer = Linear(inputs).row(inputs.first)
        method = getattr(layer.quant_method, "quant_method", layer.quant_method)
        state = method.enable_tp_weight_switch(layer, group.world_size, pool={}, pool_key_prefix="o_proj")
        method.all_gather_tp_weight(state, group)
        method.wait_tp_weight_all_gather(state)
        method.switch_tp_weight(layer, state, use_full_weight=True)
        output = method.apply(layer, inputs.states)
    return {"output": output, "residual": output.new_empty(0, 1)}
