"""vllm-ascend's shared experts over ranks: ``ops/fused_moe/shared_experts.py``, under sequence parallelism or not."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from vllm.forward_context import override_forward_context
from vllm_ascend.ops.fused_moe.shared_experts import AscendSharedExperts, FusedMoEEvents
from vllm_ascend.quantization.quant_type import QuantType

from npudiff import Target, implementation
from npudiff.device.backends.parallel_layers import Outputs
from npudiff.device.backends.vllm_ascend.tensor_parallel import Linear, activated, engine_of
from npudiff.model.constraints import Box
from npudiff.reference.tensor_parallel import TensorParallelPart

FOLDER = "model.layers.0.mlp.shared_experts"
"""Where models have them."""

SHARED: Box = {"layer": ("column_row",), "projections": ("gate_up",), "biased": (False,)}
"""The second layer sums later, and refuses a bias of its own then."""


def _shared(inputs: TensorParallelPart, *, replicated: bool) -> Outputs:
    """Run an MLP as shared experts of a layer.

    Parameters
    ----------
    inputs : TensorParallelPart
        Two layers, with gates and ups.
    replicated : bool
        Whether each rank has both layers whole.
    """
    if inputs.second is None:
        raise ValueError("shared experts have two layers")
    with engine_of(replace(inputs, form="whole"), enable_shared_expert_dp=replicated) as group, torch.no_grad():
        linear = Linear(inputs, folder=FOLDER)
        layer = SimpleNamespace(
            gate_up_proj=linear.column(inputs.first), act_fn=activated,
            down_proj=linear.row(inputs.second, reduce_results=False),
        )  # fmt: skip
        config: Any = SimpleNamespace(
            hidden_dim=inputs.first.inner, in_dtype=inputs.states.dtype, tp_group=group, swiglu_limit=None,
            swiglu_alpha=None, swiglu_beta=None, is_sequence_parallel=inputs.form == "sequence",
        )  # fmt: skip
        form = QuantType.W8A8 if inputs.first.format == "w8a8_dynamic" else QuantType.NONE
        experts: Any = AscendSharedExperts(layer, config, form, quant_method=None)
        with override_forward_context(SimpleNamespace(num_tokens=inputs.tokens, additional_kwargs={})):
            output = experts.forward(inputs.states, FusedMoEEvents(before_routed_experts=_recorded()))
    return {"output": output, "residual": output.new_empty(0, 1)}


def _recorded() -> Any:  # noqa: ANN401 - an event of the device
    """Record an event before routed experts, where the device has any."""
    npu: Any = getattr(torch, "npu", None)
    return None if npu is None else npu.current_stream().record_event()


@implementation(
    "tensor_parallel",
    name="AscendSharedExperts",
    supports=[
        {**SHARED, "form": ("sequence",), "ranks": (2, 3, 4, 8), "format": ("float",)},
        {**SHARED, "form": ("sequence",), "ranks": (2, 3, 4, 8), "format": ("w8a8_dynamic",), "dtype": ("bfloat16",),
         "scale_dtype": ("states",)},
    ],
    on_device=True,
)  # fmt: skip
def of_sequences(inputs: TensorParallelPart, target: Target) -> Outputs:
    """AscendSharedExperts.forward under sequence parallelism: gather, MLP of a rank, reduce-scatter."""
    return _shared(inputs, replicated=False)


@implementation(
    "tensor_parallel",
    name="AscendSharedExperts_replicated",
    supports={**SHARED, "form": ("whole", "sequence"), "ranks": (2, 3, 4, 8), "format": ("float",)},
    on_device=True,
)
def replicated(inputs: TensorParallelPart, target: Target) -> Outputs:
    """The same with whole layers on each rank (``enable_shared_expert_dp``), of own tokens or of a part of all.

    A whole row is quantised at once there, which is another number than its parts would be: floats alone.
    """
    return _shared(inputs, replicated=True)
