"""Filters of logits of vllm-ascend: ``sample/sampler.py`` and ``sample/penalties.py``."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from vllm_ascend.sample.sampler import (
    AscendSampler,
    _apply_top_k_top_p_pytorch,
    _apply_top_k_top_p_torch_npu,
)

from npudiff import Target, implementation
from npudiff.device.ascend.sampling import allowed, before_filters, filtered_by_sort, left, scaled, without_unlikely
from npudiff.device.backends.vllm_ascend.world import TRITON, ascend_configuration, engine, engine_config, triton
from npudiff.model.constraints import Numbers
from npudiff.reference.sampling import SamplingInputs

Outputs = dict[str, torch.Tensor]


def _filtered(function: Callable[..., torch.Tensor], inputs: SamplingInputs) -> Outputs:
    """Have a function filter what vllm's own steps before it leave."""
    logits = before_filters(inputs).clone()
    with engine(engine_config(torch.float32), ascend_configuration(enable_reduce_sample=False)):
        return left(function(logits, inputs.top_k, inputs.top_p))


@implementation("sampling", name="_apply_top_k_top_p_torch_npu", supports={"mass": ("survivors",)}, on_device=True)
def by_operator(inputs: SamplingInputs, target: Target) -> Outputs:
    """What AscendTopKTopPSampler takes on A2 and A3."""
    return _filtered(_apply_top_k_top_p_torch_npu, inputs)


@implementation(
    "sampling",
    name="_apply_top_k_top_p_pytorch",
    supports=[{"mass": ("survivors",), "top_k": (0,)}, {"mass": ("survivors",), "top_p": (1.0,)}],
    on_device=True,
)
def by_torch(inputs: SamplingInputs, target: Target) -> Outputs:
    """What AscendTopKTopPSampler takes elsewhere, of one of both filters."""
    return _filtered(_apply_top_k_top_p_pytorch, inputs)


@implementation(
    "sampling",
    name="_apply_top_k_top_p_pytorch_of_both",
    supports={"mass": ("survivors",), "top_k": range(1, 2**18 + 1), "top_p": Numbers(0.0, 0.9999)},
    on_device=True,
)
def both_by_torch(inputs: SamplingInputs, target: Target) -> Outputs:
    """The same, of requests with top-k and top-p."""
    return _filtered(_apply_top_k_top_p_pytorch, inputs)


@implementation(
    "sampling",
    name="AscendSampler.apply_penalties",
    supports={
        "mass": ("survivors",),
        "penalties": ("repetition", "frequency", "presence", "all"),
        "requests": range(1, 65),
    },
    options=TRITON,
    on_device=True,
)
def with_penalties(inputs: SamplingInputs, target: Target) -> Outputs:
    """The Triton kernels of penalties, or vllm's own; filters are not its."""
    logits = allowed(inputs).clone()
    with engine(engine_config(torch.float32), ascend_configuration()), triton(inputs):
        logits = AscendSampler.apply_penalties(logits, _metadata(inputs, logits), _lists(inputs, logits.shape[1]))
    return left(filtered_by_sort(inputs, without_unlikely(inputs, scaled(inputs, logits))))


def _metadata(inputs: SamplingInputs, logits: torch.Tensor) -> Any:  # noqa: ANN401 - what SamplingMetadata has of it
    """What a batch asks for, as vllm's runner has it: a penalty for each request as soon as one has any."""
    plain = torch.zeros(len(logits), device=logits.device)
    return SimpleNamespace(
        no_penalties=False,
        prompt_token_ids=inputs.prompt,
        presence_penalties=plain if inputs.presence is None else inputs.presence,
        frequency_penalties=plain if inputs.frequency is None else inputs.frequency,
        repetition_penalties=plain + 1 if inputs.repetition is None else inputs.repetition,
    )


def _lists(inputs: SamplingInputs, vocabulary: int) -> list[list[int]]:
    """The generated tokens of each request, without what fills their rows."""
    rows = [] if inputs.output is None else inputs.output.tolist()
    return [[token for token in row if token < vocabulary] for row in rows]
