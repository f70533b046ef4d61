"""Inputs of experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from npudiff.draw.data import Stream
from npudiff.properties._shared import expert_weights, rows
from npudiff.properties._shared.expert_weights import Shape
from npudiff.properties.moe_experts.case import DTYPES, LIMITS, MoeExpertsCase
from npudiff.reference.expert_weights import ExpertWeights
from npudiff.reference.moe_experts import Experts, Gate, MoeExpertsInputs
from npudiff.reference.swiglu import Activation


def build_inputs(case: MoeExpertsCase) -> MoeExpertsInputs:
    """Build the inputs of a case; matrices of an expert depend on its number and the seed alone."""
    chosen = _chosen(case)
    here = torch.arange(case.experts)
    if case.here == "chosen":
        here = torch.unique(chosen).long()
    if case.here == "local":
        here = here[case.experts // 2 :]
    shared = None
    if case.shared_width:
        shared = _experts(case, "shared", torch.zeros(1, dtype=torch.int64), case.shared_width, case.shared_limit)
    spread = Stream(case.seed, "weights").normal((case.tokens, case.top_k), torch.float32)
    weights = (0.1 + spread.abs()) / case.top_k
    return MoeExpertsInputs(
        states=rows.with_row_stride(_states(case), case.rows),
        chosen=chosen,
        weights=weights.to(DTYPES[case.dtype]),
        here=here,
        routed=_experts(case, "routed", here, case.width, case.limit),
        shared=shared,
    )


def _chosen(case: MoeExpertsCase) -> torch.Tensor:
    stream = Stream(case.seed, "chosen")
    orders = [stream.permutation(case.experts)[: case.top_k] for _ in range(1 if case.load == "same" else case.tokens)]
    return torch.tensor(orders, dtype=torch.int32).expand(case.tokens, case.top_k).contiguous()


def _experts(case: MoeExpertsCase, name: str, numbers: torch.Tensor, width: int, limit: float | None) -> Experts:
    dtype = DTYPES[case.dtype]
    up = Shape(numbers.tolist(), case.hidden, 2 * width, case.form, case.groups, dtype)
    down = Shape(numbers.tolist(), width, case.hidden, case.form, 1, dtype)
    gate = Gate(Activation(case.activation), limit, layout=case.layout)
    return Experts(_matrices(case, f"{name} up", up), _matrices(case, f"{name} down", down), gate)


def _matrices(case: MoeExpertsCase, name: str, shape: Shape) -> ExpertWeights:
    weights = expert_weights.build(shape, case.seed, name)
    if case.form == "w8a8" and weights.scale is not None and case.dtype == "bfloat16":
        weights = replace(weights, scale=weights.scale.to(torch.bfloat16))
    if not case.biased:
        return weights
    size = (len(shape.experts), shape.columns)
    bias = Stream(case.seed, f"{name} bias").normal(size, torch.float32) / 2
    return replace(weights, bias=bias.to(torch.float16 if case.dtype == "float16" else torch.float32))


def _states(case: MoeExpertsCase) -> torch.Tensor:
    stream = Stream(case.seed, "states")
    states = stream.normal((case.tokens, case.hidden), torch.float32)
    if case.recipe == "at limit":
        states *= case.limit or LIMITS[0]
    if case.recipe == "outlier":
        states[range(case.tokens), stream.integers(0, case.hidden, case.tokens)] *= 64
    if case.recipe == "zero rows":
        states[::2] = 0.0
    return states.to(DTYPES[case.dtype])


def coordinates(inputs: MoeExpertsInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to the output: token, column, and how many of its copies are left out."""
    del output  # there is one
    tokens, hidden = inputs.states.shape
    places = {"token": torch.arange(tokens).unsqueeze(1), "column": torch.arange(hidden).unsqueeze(0)}
    elsewhere = (~torch.isin(inputs.chosen, inputs.here)).sum(dim=1, keepdim=True)
    return places | ({"experts elsewhere": elsewhere} if bool(elsewhere.any()) else {})
