"""Wrong steps of a draft model."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.draft_step import (
    Outputs,
    next_tokens,
    placed,
    rejections,
    side_by_side,
    slots,
    stacked,
    steps_at_once,
    verified,
)
from npudiff.reference.draft_step import DraftStepInputs

_DRAFTS = {"kind": ("draft", "token", "prompt", "piece"), "steps": range(2, 65)}
_PROPOSER = "vllm-ascend spec_decode/llm_base_proposer.py"


def _passes_from(inputs: DraftStepInputs, last: torch.Tensor) -> Outputs:
    """The passes behind the first, where the last token that counts is somewhere else."""
    return stacked(inputs, [placed(inputs, last + step) for step in range(1, inputs.steps)])


@mutant(
    steps_at_once,
    "vllm-project/vllm-ascend/pull/14883: rejected drafts are not taken from the lengths of later passes",
    supports=_DRAFTS,
)
def rejected_drafts_are_attended_to(inputs: DraftStepInputs, target: Target) -> Outputs:
    """Count rejected drafts among the tokens that are attended to."""
    outputs, (rejected, _) = side_by_side(inputs), rejections(inputs)
    beyond = outputs["step_slots"] < 0
    return {**outputs, "step_lengths": torch.where(beyond, 1, outputs["step_lengths"] + rejected)}


@mutant(
    steps_at_once,
    "GRF-08 sgl-project/sglang/pull/21255: every pass has the length of the first",
    supports={**_DRAFTS, "steps": range(3, 65)},
)
def lengths_of_the_first_pass(inputs: DraftStepInputs, target: Target) -> Outputs:
    """Leave lengths as they are from pass to pass."""
    outputs = side_by_side(inputs)
    return {**outputs, "step_lengths": outputs["step_lengths"][:1].expand_as(outputs["step_lengths"])}


@mutant(
    steps_at_once,
    "vllm-project/vllm-ascend/pull/8230: passes go on behind all drafts, whatever was rejected",
    supports=_DRAFTS,
)
def passes_behind_all_drafts(inputs: DraftStepInputs, target: Target) -> Outputs:
    """Begin behind the last row of a request."""
    ends = inputs.lengths.new_tensor(inputs.rows).cumsum(0) - 1
    return {**side_by_side(inputs), **_passes_from(inputs, inputs.positions[ends])}


@mutant(steps_at_once, f"{_PROPOSER} 1970: requests without drafts have rejected theirs as well")
def rejected_without_drafts(inputs: DraftStepInputs, target: Target) -> Outputs:
    """Subtract what was sampled from drafts and one, whether there were drafts or not."""
    right, (rejected, sample_row) = side_by_side(inputs), rejections(inputs)
    taken = (inputs.sampled >= 0).sum(dim=1)
    wrong = inputs.lengths.new_tensor(inputs.drafts) + 1 - taken
    return {**right, "rejected": wrong, "sample_row": sample_row + rejected - wrong}


@mutant(steps_at_once, f"{_PROPOSER} 1962: the sums of drafts are taken for those without the request's own")
def drafts_of_the_next_request(inputs: DraftStepInputs, target: Target) -> Outputs:
    """Read the number of drafts one request too far."""
    drafts = (*inputs.drafts[1:], 0)
    moved, _ = rejections(replace(inputs, drafts=drafts))
    return {**side_by_side(inputs), "rejected": moved}


@mutant(steps_at_once, f"{_PROPOSER} 1975: the row to sample from is the last one, also where drafts were rejected")
def sampled_at_the_end(inputs: DraftStepInputs, target: Target) -> Outputs:
    """Put the next token into the last row, and sample there."""
    ends = inputs.lengths.new_tensor(inputs.rows).cumsum(0) - 1
    first = inputs.tokens.roll(-1)
    first[ends] = next_tokens(inputs)
    return {**side_by_side(inputs), "sample_row": ends, "first_tokens": first}


@mutant(steps_at_once, f"{_PROPOSER} 1364: tokens of the first pass are not shifted")
def first_pass_is_not_shifted(inputs: DraftStepInputs, target: Target) -> Outputs:
    """Give the draft model the tokens of the target."""
    first, (_, row) = inputs.tokens.clone(), rejections(inputs)
    first[row] = next_tokens(inputs)
    return {**side_by_side(inputs), "first_tokens": first}


@mutant(
    steps_at_once,
    f"{_PROPOSER} 1614: positions at the limit are left as they are",
    supports={**_DRAFTS, "room_left": range(64)},
)
def beyond_the_limit(inputs: DraftStepInputs, target: Target) -> Outputs:
    """Go on where no token may be; the table ends there, and its last page is taken."""
    outputs, (_, row) = side_by_side(inputs), rejections(inputs)
    last, most = inputs.positions[row], inputs.block_table.shape[1] * inputs.page_size - 1
    passes = [last + step for step in range(1, inputs.steps)]
    columns = [(one, one + 1, slots(inputs, one.clamp(max=most))) for one in passes]
    return {**outputs, **stacked(inputs, columns)}


@mutant(
    steps_at_once,
    f"{_PROPOSER} 1682: tokens at the limit are written where position 0 is",
    supports={**_DRAFTS, "room_left": range(64)},
)
def written_at_position_zero(inputs: DraftStepInputs, target: Target) -> Outputs:
    """Take the slot of the position that stands in for one at the limit."""
    outputs = side_by_side(inputs)
    first = slots(inputs, torch.zeros_like(inputs.lengths))
    written = outputs["step_slots"]
    return {**outputs, "step_slots": torch.where(written < 0, first, written)}


@mutant(
    steps_at_once,
    f"{_PROPOSER} 1677: later passes are written into the page of the first",
    supports=_DRAFTS,
)
def page_of_the_first_pass(inputs: DraftStepInputs, target: Target) -> Outputs:
    """Count slots on, over the end of a page too."""
    outputs = side_by_side(inputs)
    steps = torch.arange(inputs.steps - 1, device=inputs.tokens.device).unsqueeze(1)
    written = outputs["step_slots"]
    return {**outputs, "step_slots": torch.where(written < 0, written, written[:1] + steps)}


@mutant(steps_at_once, f"{_PROPOSER} 1788: the next token of a piece of a prompt is whatever was sampled last")
def next_token_of_nothing(inputs: DraftStepInputs, target: Target) -> Outputs:
    """Take the last place of a row, also of one without tokens."""
    chosen = inputs.sampled.gather(1, ((inputs.sampled >= 0).sum(dim=1) - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
    return {**side_by_side(inputs), "next_token": chosen}


@mutant(steps_at_once, "sglang speculative/ngram_worker.py 378: the target verifies from the last token on")
def verified_from_the_last_token(inputs: DraftStepInputs, target: Target) -> Outputs:
    """Put the next token where the last one that counts is."""
    _, row = rejections(inputs)
    return {**side_by_side(inputs), **verified(inputs, next_tokens(inputs), inputs.positions[row] - 1)}


@perturbed(
    steps_at_once,
    "vllm-project/vllm-ascend/pull/10901: requests have the pages of the batch before",
    supports={"batch": range(2, 2**17)},
)
def pages_of_another_request(inputs: DraftStepInputs) -> DraftStepInputs:
    """Move the rows of the table by one."""
    return replace(inputs, block_table=inputs.block_table.roll(1, 0))
