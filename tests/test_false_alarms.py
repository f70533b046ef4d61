"""Correct implementations are never accused, however long one looks."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from npudiff.judge.drift import SYSTEMATIC
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.component import Subject
from npudiff.model.constraints import Constraints
from npudiff.model.implementation import Implementation
from npudiff.model.job import Budget, Job, Verdict
from npudiff.run.discovery import load_component, load_target
from npudiff.run.engine import run_job
from npudiff.run.plan import Request, make_plan


@pytest.mark.slow
@pytest.mark.parametrize("cann", ["8.5", "9.0"])  # the pessimistic profile refuses calls that the adapters make
def test_no_false_alarm_in_10_000_cases(cann, record_property):
    plan = make_plan(Request(target="sim", cann=cann, examples=500, seed=10))
    outcomes = [run_job(job, plan.budget(job)) for job in plan.jobs]
    accused = [outcome.job.name for outcome in outcomes if outcome.found]
    worst = max(outcomes, key=lambda outcome: outcome.worst_ratio)
    record_property("worst_ratio", worst.worst_ratio)
    print(f"CANN {cann}: {sum(outcome.cases for outcome in outcomes)} cases, worst {worst.worst_ratio:.3f}"
          f" of {worst.job.name}: {worst.worst_case}")  # fmt: skip
    assert not accused
    assert sum(outcome.cases for outcome in outcomes) >= 10_000


def attention(inputs, weigh):
    """Attention of one request after the other over its visible keys, in float32; ``weigh`` makes sums of weights."""
    output = torch.zeros(*inputs.query.shape[:2], inputs.kv.value_head_dim, dtype=torch.float32)
    start = 0
    for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        if not new or not total:
            start += new
            continue
        keys, values = (part.float().transpose(0, 1) for part in inputs.kv.read(request, 0, total))
        heads = inputs.query.shape[1] // len(keys)
        query = inputs.query[start : start + new].float().transpose(0, 1)
        scores = query @ keys.repeat_interleave(heads, 0).transpose(1, 2) * inputs.scale
        distance = torch.arange(total - new, total)[:, None] - torch.arange(total)
        hidden = (distance < 0) | (distance >= (inputs.window or 2**31))
        seen = ~hidden.all(dim=-1)
        weighted = weigh(scores.masked_fill(hidden, -math.inf), values.repeat_interleave(heads, 0), inputs)
        output[start : start + new] = weighted.transpose(0, 1).masked_fill(~seen[:, None, None], 0.0)
        start += new
    return output.to(inputs.query.dtype)


def softmax(scores, values, inputs):
    """Normalised weights in the dtype of the values, as models that are written in torch have them."""
    dtype = inputs.query.dtype
    return scores.softmax(-1).to(dtype).float() @ values


def online(scores, values, inputs):
    """Tiles of 16 keys and float32 weights, as fused kernels without a cast of the weights have them."""
    largest, total, result = scores.new_full(scores.shape[:2], -math.inf), 0.0, 0.0
    for first in range(0, scores.shape[2], 16):
        tile = scores[..., first : first + 16]
        risen = torch.maximum(largest, tile.amax(-1))
        finite = risen.masked_fill(risen.isneginf(), 0.0)
        kept, weights = torch.exp(largest - finite), torch.exp(tile - finite[..., None])
        total, largest = total * kept + weights.sum(-1), risen
        result = result * kept[..., None] + weights @ values[:, first : first + 16]
    return result / total[..., None]


def llama_norm(inputs, target):
    """The norm of transformers."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    norm = LlamaRMSNorm(inputs.hidden.shape[1], inputs.epsilon).to(inputs.hidden.dtype)
    norm.weight.data = inputs.weight
    states = inputs.hidden if inputs.residual is None else inputs.hidden + inputs.residual
    return norm(states).detach()


def torch_norm(inputs, target):
    """The norm of torch."""
    states = inputs.hidden if inputs.residual is None else inputs.hidden + inputs.residual
    return functional.rms_norm(states, states.shape[-1:], inputs.weight, inputs.epsilon)


def torch_swiglu(inputs, target):
    """Silu and a product in the dtype of the states, by torch."""
    gate, up = inputs.states.chunk(2, dim=-1)
    return functional.silu(gate) * up


def summed_backwards(inputs, target):
    """Copies of a token in float32, the last first."""
    total = torch.zeros(len(inputs.src_to_dst_row), inputs.expanded_rows.shape[1])
    if inputs.residual is not None:
        total += inputs.residual.float()
    for copy in reversed(range(inputs.src_to_dst_row.shape[1])):
        place, weight = inputs.src_to_dst_row[:, copy], inputs.weights[:, copy].float()
        rows = inputs.expanded_rows[place.clamp(min=0)].float() * weight[:, None]
        total += rows.masked_fill((place < 0)[:, None], 0.0)
    return total.to(inputs.expanded_rows.dtype)


BF16 = {"dtype": ("bfloat16",)}
PLAIN = {**BF16, "sinks": (False,), "poison": ("large",), "layout": ("PA_BSND",)}
OTHERS = {
    "weights in bfloat16": ("sliding_attention", lambda inputs, target: attention(inputs, softmax), PLAIN),
    "online softmax": ("sliding_attention", lambda inputs, target: attention(inputs, online), PLAIN),
    "norm of transformers": ("rms_norm", llama_norm, {**BF16, "kind": ("plain",)}),
    "norm of torch": ("rms_norm", torch_norm, {**BF16, "kind": ("plain",)}),
    "swiglu of torch": (
        "swiglu",
        torch_swiglu,
        {**BF16, "limited": (False,), "activation": ("silu",), "rounding": ("stages",), "layout": ("halves",)},
    ),
    "sum backwards": ("moe_finalize", summed_backwards, BF16),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_correct_kernels_of_others_do_not_drift(name, record_property):
    component, function, supports = OTHERS[name]
    constraints = Constraints.of(supports)
    item = Implementation(component, name, function, constraints)
    job = Job(Subject(load_component(component), item, load_target("sim", None)), EQUIVALENCE, constraints)
    outcome = run_job(job, Budget(examples=100, seed=3))
    assert outcome.failure is None
    assert outcome.verdict is Verdict.HOLDS
    record_property("drifts", [(one.direction, one.size, one.score) for one in outcome.drifts])
    assert outcome.drifts
    assert all(one.score < 0 for one in outcome.drifts), outcome.drifts
    assert all(abs(one.size) < SYSTEMATIC for one in outcome.drifts), outcome.drifts
