"""Wrong acceptance of drafts."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.draft_acceptance import (
    Outputs,
    all_at_once,
    request_by_request,
    side_by_side,
    walked,
)
from npudiff.reference.draft_acceptance import DraftAcceptanceInputs

_SEVERAL = range(2, 2**12 + 1)
_RANDOM = {"greedy": ("none",)}
_MODEL = {**_RANDOM, "drafts": ("probabilities",)}


@mutant(
    all_at_once,
    "vllm-project/vllm-ascend/pull/5131: the bonus is in the last column, whatever the length of a draft is",
    supports={"length": range(8), "spare": range(1, 32)},
)
def bonus_in_the_last_column(inputs: DraftAcceptanceInputs, target: Target) -> Outputs:
    """Put the bonus where the longest draft has it."""
    tokens = side_by_side(inputs)["tokens"]
    for request, length in enumerate(inputs.lengths):
        if int(tokens[request, length]) >= 0 and length < inputs.room:
            tokens[request, inputs.room] = tokens[request, length]
            tokens[request, length] = -1
    return {"tokens": tokens}


@mutant(
    all_at_once,
    "vllm-project/vllm-ascend/pull/5131: requests without a draft get nothing",
    supports={"length": range(33)},
)
def nothing_without_a_draft(inputs: DraftAcceptanceInputs, target: Target) -> Outputs:
    """Leave rows of requests without a draft as they are."""
    tokens = side_by_side(inputs)["tokens"]
    tokens[torch.tensor(inputs.lengths) == 0] = -1
    return {"tokens": tokens}


@perturbed(
    all_at_once,
    "vllm-project/vllm-ascend/pull/13470: all random numbers are 0",
    supports={**_RANDOM, "uniforms": ("even", "large"), "likeness": ("near", "far"), "length": range(1, 33)},
)
def uniform_is_zero(inputs: DraftAcceptanceInputs) -> DraftAcceptanceInputs:
    """Accept whatever the target may have."""
    return replace(inputs, uniform=torch.full_like(inputs.uniform, 1e-30))


@perturbed(
    request_by_request,
    "vllm_ascend/sample/rejection_sampler.py 1458: what is recovered comes from what the draft is short of",
    supports={**_MODEL, "likeness": ("far",), "uniforms": ("large",), "length": range(1, 33)},
)
def recovered_from_the_target(inputs: DraftAcceptanceInputs) -> DraftAcceptanceInputs:
    """Draw a recovered token from the target itself."""
    if inputs.draft is None:
        return inputs
    masses = torch.zeros_like(inputs.draft)
    places = inputs.draft_tokens.long().clamp(min=0).unsqueeze(1)
    return replace(inputs, draft=masses.scatter(1, places, inputs.draft.gather(1, places)))


@mutant(
    all_at_once,
    "vllm_ascend/sample/rejection_sampler.py 1451: a token that was rejected is not drawn again",
    supports={**_RANDOM, "drafts": ("tokens",), "uniforms": ("large",), "length": range(1, 33)},
)
def rejected_token_is_recovered(inputs: DraftAcceptanceInputs, target: Target) -> Outputs:
    """Give the drafted token its mass where n-grams draft."""
    outputs = side_by_side(inputs)
    zero = torch.zeros_like(inputs.target)
    other = side_by_side(replace(inputs, draft=zero))["tokens"]
    first = (outputs["tokens"] >= 0).sum(dim=1) == 1
    tokens = torch.where(first.unsqueeze(1) & (other >= 0), other, outputs["tokens"])
    return {"tokens": tokens}


@mutant(
    all_at_once,
    "vllm_ascend/sample/rejection_sampler.py 1265: nothing behind the first rejection is kept",
    supports={"length": range(2, 33)},
)
def goes_on_behind_a_rejection(inputs: DraftAcceptanceInputs, target: Target) -> Outputs:
    """Fill what is left of a draft with drafted tokens."""
    tokens = side_by_side(inputs)["tokens"]
    start = 0
    for request, length in enumerate(inputs.lengths):
        count = int((tokens[request] >= 0).sum())
        if 0 < count < length:
            tokens[request, count:length] = inputs.draft_tokens[start + count : start + length]
        start += length
    return {"tokens": tokens}


@perturbed(
    all_at_once,
    "sgl-project/sglang/issues/32495: requests of a mixed batch are all taken for greedy ones",
    supports={"greedy": ("some",), "requests": _SEVERAL, "length": range(1, 33)},
)
def all_are_greedy(inputs: DraftAcceptanceInputs) -> DraftAcceptanceInputs:
    """Take the most likely tokens for every request."""
    return replace(inputs, greedy=torch.ones_like(inputs.greedy))


@perturbed(
    all_at_once,
    "vllm_ascend/sample/rejection_sampler.py 1194: what was not drafted is no token",
    supports={"missing": ("last", "some"), **_RANDOM, "length": range(1, 33)},
)
def missing_token_is_the_last_one(inputs: DraftAcceptanceInputs) -> DraftAcceptanceInputs:
    """Take -1 for the last token of the vocabulary, which the target likes."""
    last = inputs.target.shape[1] - 1
    missing = inputs.draft_tokens < 0
    uniform = torch.where(missing, torch.full_like(inputs.uniform, 1e-30), inputs.uniform)
    return replace(inputs, draft_tokens=torch.where(missing, last, inputs.draft_tokens), uniform=uniform)


@mutant(
    request_by_request,
    "vllm_ascend/sample/rejection_sampler.py 1112: the first token that differs is the target's own, and shown",
    supports={"greedy": ("all",), "length": range(1, 33)},
)
def token_that_differs_is_left_out(inputs: DraftAcceptanceInputs, target: Target) -> Outputs:
    """End a greedy row before the first token that was not drafted."""
    tokens, start = walked(inputs)["tokens"], 0
    for request, length in enumerate(inputs.lengths):
        count = int((tokens[request] >= 0).sum())
        if 0 < count <= length and int(tokens[request, count - 1]) != int(inputs.draft_tokens[start + count - 1]):
            tokens[request, count - 1] = -1
        start += length
    return {"tokens": tokens}


@perturbed(
    all_at_once,
    "vllm-project/vllm-ascend/pull/16396: places among candidates are taken for tokens of the vocabulary",
    supports={"greedy": ("all",), "length": range(1, 33)},
)
def place_among_candidates(inputs: DraftAcceptanceInputs) -> DraftAcceptanceInputs:
    """Order the target's probabilities, the largest first."""
    return replace(inputs, target=inputs.target.sort(dim=1, descending=True).values)


@perturbed(
    all_at_once,
    "vllm_ascend/sample/rejection_sampler.py 1462: random numbers are of the request",
    supports={**_RANDOM, "requests": _SEVERAL, "uniforms": ("large",), "likeness": ("far",), "length": range(1, 33)},
)
def randomness_of_another_request(inputs: DraftAcceptanceInputs) -> DraftAcceptanceInputs:
    """Recover tokens with the numbers of the request before."""
    return replace(inputs, exponential=inputs.exponential.roll(1, 0))


@mutant(
    all_at_once,
    "vllm_ascend/sample/rejection_sampler.py 1080: drafts are of unequal lengths",
    supports={"requests": _SEVERAL},
)
def drafts_of_one_length(inputs: DraftAcceptanceInputs, target: Target) -> Outputs:
    """Read the draft of a request where it would be if all were as long as the first one."""
    tokens = side_by_side(inputs)["tokens"]
    if len(set(inputs.lengths)) == 1:
        return {"tokens": tokens}
    first = max(inputs.lengths)
    for request, length in enumerate(inputs.lengths):
        count = int((tokens[request] >= 0).sum())
        if request and count > 1 and length:
            place = min(request * first, len(inputs.draft_tokens) - 1)
            tokens[request, 0] = inputs.draft_tokens[place]
    return {"tokens": tokens}
