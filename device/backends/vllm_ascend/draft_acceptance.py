"""Acceptance of drafts in vllm-ascend: the forms of ``sample/rejection_sampler.py`` that need no Triton."""

from __future__ import annotations

import torch
from vllm_ascend.sample.rejection_sampler import (
    rejection_greedy_sample_pytorch,
    rejection_greedy_sample_spec_len_1_pytorch,
    rejection_random_sample_block_verify_pytorch,
    rejection_random_sample_pytorch,
    sample_recovered_tokens_blockwise_pytorch,
    sample_recovered_tokens_pytorch,
)

from npudiff import Target, implementation
from npudiff.device.backends.vllm_ascend.world import ascend_configuration, engine, engine_config
from npudiff.reference.draft_acceptance import DraftAcceptanceInputs

Outputs = dict[str, torch.Tensor]

_SOME = range(1, 33)


def _empty(inputs: DraftAcceptanceInputs) -> torch.Tensor:
    """What ``rejection_sample`` fills."""
    return torch.full((len(inputs.lengths), inputs.room + 1), -1, dtype=torch.int32, device=inputs.target.device)


def _ends(inputs: DraftAcceptanceInputs) -> torch.Tensor:
    """Where the rows of each request end, as vllm's runner has it."""
    return torch.tensor(inputs.lengths, device=inputs.target.device).cumsum(dim=0).to(torch.int32)


def _greedy(inputs: DraftAcceptanceInputs, tokens: torch.Tensor) -> None:
    best = inputs.target.argmax(dim=-1)
    rejection_greedy_sample_pytorch(
        tokens, _ends(inputs), inputs.draft_tokens, best, inputs.bonus.unsqueeze(1), list(inputs.lengths), inputs.room,
        inputs.greedy,
    )  # fmt: skip


@implementation(
    "draft_acceptance", name="rejection_greedy_sample_pytorch", supports={"greedy": ("all",)}, on_device=True
)
def greedily(inputs: DraftAcceptanceInputs, target: Target) -> Outputs:
    """What a batch of greedy requests takes."""
    tokens = _empty(inputs)
    with engine(engine_config(torch.float32), ascend_configuration()):
        _greedy(inputs, tokens)
    return {"tokens": tokens}


@implementation(
    "draft_acceptance",
    name="rejection_greedy_sample_spec_len_1_pytorch",
    supports={"greedy": ("all",), "length": (1,), "spare": (0,)},
    on_device=True,
)
def greedily_of_one(inputs: DraftAcceptanceInputs, target: Target) -> Outputs:
    """What it takes where one token is drafted for each."""
    tokens = _empty(inputs)
    with engine(engine_config(torch.float32), ascend_configuration()):
        rejection_greedy_sample_spec_len_1_pytorch(
            tokens, inputs.draft_tokens, inputs.target.argmax(dim=-1), inputs.bonus.unsqueeze(1)
        )
    return {"tokens": tokens}


@implementation(
    "draft_acceptance",
    name="rejection_random_sample_pytorch",
    supports=[{"length": _SOME}, {"greedy": ("some",)}],
    on_device=True,
)
def by_rejection(inputs: DraftAcceptanceInputs, target: Target) -> Outputs:
    """What a batch takes that is not all greedy: first its greedy requests, then the others."""
    tokens, ends = _empty(inputs), _ends(inputs)
    vocabulary, of_tokens = inputs.target.shape[1], inputs.draft is None
    probabilities = inputs.target.contiguous()
    draft = None if inputs.draft is None else inputs.draft.contiguous()
    with engine(engine_config(torch.float32), ascend_configuration()):
        if bool(inputs.greedy.any()):
            _greedy(inputs, tokens)
        if not len(probabilities):
            tokens[:, 0] = inputs.bonus  # vllm-ascend does not come here without a draft
            return {"tokens": tokens}
        recovered = torch.empty_like(inputs.draft_tokens)
        sample_recovered_tokens_pytorch(
            recovered,
            ends,
            inputs.draft_tokens,
            draft,
            probabilities,
            inputs.exponential,
            vocabulary,
            IS_NGRAM=of_tokens,
        )
        rejection_random_sample_pytorch(
            tokens, ends, inputs.draft_tokens, draft, probabilities, inputs.bonus.unsqueeze(1), recovered,
            inputs.uniform, inputs.greedy, inputs.room, vocabulary, IS_NGRAM=of_tokens,
        )  # fmt: skip
    return {"tokens": tokens}


@implementation(
    "draft_acceptance",
    name="rejection_random_sample_block_verify_pytorch",
    supports={"greedy": ("none",), "rule": ("any",), "length": range(3, 33)},
    on_device=True,
)
def by_blocks(inputs: DraftAcceptanceInputs, target: Target) -> Outputs:
    """What it takes with ``enable_block_verify``, of three drafts or more."""
    tokens, ends = _empty(inputs), _ends(inputs)
    vocabulary, of_tokens = inputs.target.shape[1], inputs.draft is None
    probabilities = inputs.target.contiguous()
    draft = None if inputs.draft is None else inputs.draft.contiguous()
    recovered = torch.empty_like(inputs.draft_tokens)
    with engine(engine_config(torch.float32), ascend_configuration()):
        sample_recovered_tokens_blockwise_pytorch(
            recovered, ends, inputs.draft_tokens, draft, probabilities, inputs.exponential, vocabulary,
            IS_NGRAM=of_tokens,
        )  # fmt: skip
        rejection_random_sample_block_verify_pytorch(
            tokens, ends, inputs.draft_tokens, draft, probabilities, inputs.bonus.unsqueeze(1), recovered,
            inputs.uniform, inputs.greedy, inputs.room, vocabulary, IS_NGRAM=of_tokens,
        )  # fmt: skip
    return {"tokens": tokens}
