"""Filters of logits of sglang: ``layers/sampler.py``."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from sglang.srt.layers.sampler import (
    top_k_top_p_min_p_sampling_from_logits_ascend,
    top_k_top_p_min_p_sampling_from_probs_torch,
)
from sglang.srt.sampling.sampling_params import TOP_K_ALL

from npudiff import Target, implementation
from npudiff.model.constraints import Box, Numbers
from npudiff.reference.sampling import SamplingInputs

Outputs = dict[str, torch.Tensor]

_FILTERS: Box = {
    "dtype": ("float32",),
    "penalties": ("none",),
    "grammar": ("none",),
    "bad_words": ("none",),
    "temperature": (1.0,),
    "top_p": Numbers(0.0, 0.9999),
}
"""What comes before is done elsewhere: penalties, masks and temperatures have changed the logits already. Every request
has a p: of 1, which leaves all, a rounded sum of all probabilities may leave out a tail that nobody ever draws."""

MOST_K = 1024
"""What ``SamplingBatchInfo`` takes the operator for: batches of which each request has a k from 1 to this."""


def _asked(inputs: SamplingInputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]:
    """What a batch asks for, as sglang has it: a k, a p and a min-p for each, and whether any has a min-p."""
    requests, vocabulary = inputs.logits.shape
    device = inputs.logits.device
    k = torch.full((requests,), TOP_K_ALL, dtype=torch.int32, device=device)
    if inputs.top_k is not None:
        k = inputs.top_k.masked_fill(inputs.top_k == vocabulary, TOP_K_ALL)
    p = torch.ones(requests, device=device) if inputs.top_p is None else inputs.top_p
    least = torch.zeros(requests, device=device) if inputs.min_p is None else inputs.min_p
    return k, p, least, bool((least > 0).any())


def _left(inputs: SamplingInputs, weights: torch.Tensor) -> Outputs:
    """Which tokens may be drawn by their weights, and their logits."""
    kept = weights > 0
    logits = inputs.logits.masked_fill(~kept, 0.0)
    return {"kept": kept.to(torch.int8), "logits": logits, "count": kept.sum(dim=1)}


def _by_token(inputs: SamplingInputs, weights: torch.Tensor, *, ranked: bool) -> torch.Tensor:
    """Weights by token, of those that are by rank: a sort of the same numbers has the same order."""
    if not ranked:
        return weights
    order = inputs.logits.softmax(dim=-1).sort(dim=-1, descending=True).indices
    return torch.zeros_like(weights).scatter(1, order, weights)


class _Drawn:
    """Stands for ``torch.multinomial``, and keeps what is drawn from."""

    def __init__(self) -> None:
        self.weights = torch.empty(0)

    def __call__(self, weights: torch.Tensor, **_: Any) -> torch.Tensor:  # noqa: ANN401 - as torch
        """Return the most likely of each row."""
        self.weights = weights.clone()
        return weights.argmax(dim=1, keepdim=True)


def _from_logits(inputs: SamplingInputs) -> Outputs:
    """Ask the sampler for Ascend: with the operator if each request's k allows it, as SamplingBatchInfo decides."""
    k, p, least, any_least = _asked(inputs)
    eligible = bool(((k >= 1) & (k <= MOST_K)).all())
    drawn = _Drawn()
    with mock.patch.object(torch, "multinomial", drawn):
        top_k_top_p_min_p_sampling_from_logits_ascend(
            inputs.logits.clone(), k, p, least, any_least, None, k, npu_top_k_top_p_eligible=eligible
        )
    return _left(inputs, _by_token(inputs, drawn.weights, ranked=not eligible))


@implementation(
    "sampling",
    name="top_k_top_p_min_p_sampling_from_logits_ascend",
    supports={**_FILTERS, "mass": ("top-k",), "top_k": range(1, MOST_K + 1), "mixed": (False,)},
    on_device=True,
)
def from_logits(inputs: SamplingInputs, target: Target) -> Outputs:
    """The sampler for Ascend, for batches that its operator takes."""
    return _from_logits(inputs)


@implementation(
    "sampling",
    name="top_k_top_p_min_p_sampling_from_logits_ascend_of_any_k",
    supports=[
        {**_FILTERS, "mass": ("top-k",), "top_k": (0,)},
        {**_FILTERS, "mass": ("top-k",), "top_k": range(MOST_K + 1, 2**18 + 1)},
    ],
    on_device=True,
)
def from_logits_of_any_k(inputs: SamplingInputs, target: Target) -> Outputs:
    """The sampler for Ascend, for batches with a request that its operator does not take."""
    return _from_logits(inputs)


@implementation(
    "sampling",
    name="top_k_top_p_min_p_sampling_from_probs_torch",
    supports={**_FILTERS, "mass": ("all",)},
    on_device=True,
    native=True,
)
def from_probabilities(inputs: SamplingInputs, target: Target) -> Outputs:
    """The sampler in plain torch, which other devices take."""
    k, p, least, any_least = _asked(inputs)
    drawn = _Drawn()
    with mock.patch.object(torch, "multinomial", drawn):
        top_k_top_p_min_p_sampling_from_probs_torch(inputs.logits.softmax(dim=-1), k, p, least, any_least, None, k)
    return _left(inputs, _by_token(inputs, drawn.weights, ranked=True))
