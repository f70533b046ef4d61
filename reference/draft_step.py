"""What a draft model is given behind a step of the target, and what the target is given to verify its drafts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.bounds import Expected
from npudiff.reference.views import moved_inputs

NOTHING = -1
"""What stands behind the last token of a request, and the slot of a token that is not written."""


@dataclass(frozen=True)
class DraftStepInputs:
    """A step of the target model over a batch, what was sampled behind it, and drafts; every tensor is int64.

    A request is in a step with one of: a last token and drafts, a token without drafts, or a piece of its prompt.
    """

    tokens: torch.Tensor
    """``[rows]``: tokens of the step, those of a request one after the other."""
    positions: torch.Tensor
    """``[rows]``: their positions; of a request they follow each other."""
    sampled: torch.Tensor
    """``[requests, steps + 1]``: accepted drafts, which are tokens of the step, and the token behind them, filled with
    -1; of a piece of a prompt that is not the last, nothing but -1."""
    known: torch.Tensor
    """``[requests]``: the token that follows where none was sampled, as of a prompt."""
    proposed: torch.Tensor
    """``[requests, steps]``: drafts that the target verifies next."""
    lengths: torch.Tensor
    """``[requests]``: tokens of a request, all of this step included, those that were rejected too."""
    block_table: torch.Tensor
    """``[requests, width]``: page of each stretch of tokens."""
    rows: tuple[int, ...]
    """Rows of each request in the step, at least one."""
    drafts: tuple[int, ...]
    """How many of them are drafts; 0 of a request that has none."""
    page_size: int
    limit: int
    """Tokens that a request may have."""

    @property
    def steps(self) -> int:
        """Passes of the draft model: the first over the rows of the step, each other one over a token per request."""
        return self.proposed.shape[1]

    def to(self, device: str | torch.device) -> DraftStepInputs:
        """Return the same inputs on ``device``."""
        return moved_inputs(self, device, copies=())


def draft_step(inputs: DraftStepInputs) -> dict[str, Expected]:
    """Return what follows from which drafts were accepted: whole numbers, of which none may be off.

    The first pass of a draft model has the rows of the step, each with the token that followed it: those of its own
    request, shifted by one, and in the row of the last token that counts the one that was sampled behind it. Rows of
    rejected drafts stay behind that as padding. The pass ``s`` has one token of each request, whose position is ``s``
    beyond the last that counts, and which is written there; where it is at the limit it has position 0, length 1, and
    no slot. (Facts: vllm-ascend 182b75ea, ``spec_decode/llm_base_proposer.py`` 1340-1760 and 1927-2000; the tokens to
    verify as ``npu_advance_step_flashattn`` documents them.)

    Returns
    -------
    dict
        int64. ``next_token`` and ``rejected`` ``[requests]``: the token behind the last that counts, and drafts that do
        not. ``sample_row`` ``[requests]``: the row of that last one. ``first_tokens`` ``[rows]``: tokens of the first
        pass. ``step_positions``, ``step_lengths``, ``step_slots`` ``[steps - 1, requests]``: of the other passes.
        ``verify_tokens``, ``verify_positions``, ``verify_slots`` ``[requests, steps + 1]``: the next token and the
        drafts, for the target.

    Raises
    ------
    ValueError
        If shapes contradict each other, or a request has more tokens than a step gave it.

    Notes
    -----
    Nothing is said of tokens in rows of padding, nor of what would be verified at the limit or beyond.
    """
    _validate(inputs)
    steps, requests = inputs.steps, len(inputs.rows)
    value = {
        "next_token": torch.zeros(requests), "rejected": torch.zeros(requests), "sample_row": torch.zeros(requests),
        "first_tokens": torch.zeros(len(inputs.tokens)), "step_positions": torch.zeros(steps - 1, requests),
        "step_lengths": torch.zeros(steps - 1, requests), "step_slots": torch.zeros(steps - 1, requests),
        "verify_tokens": torch.zeros(requests, steps + 1), "verify_positions": torch.zeros(requests, steps + 1),
        "verify_slots": torch.zeros(requests, steps + 1),
    }  # fmt: skip
    value = {name: tensor.to(torch.float64) for name, tensor in value.items()}
    bound = {name: torch.zeros_like(tensor) for name, tensor in value.items()}
    first = 0
    for request, rows in enumerate(inputs.rows):
        taken = [token for token in inputs.sampled[request].tolist() if token != NOTHING]
        following = taken[-1] if taken else int(inputs.known[request])
        rejected = inputs.drafts[request] + 1 - len(taken) if inputs.drafts[request] else 0
        last = first + rows - 1 - rejected
        value["next_token"][request], value["rejected"][request] = following, rejected
        value["sample_row"][request] = last
        value["first_tokens"][first:last] = inputs.tokens[first + 1 : last + 1].to(torch.float64)
        value["first_tokens"][last] = following
        bound["first_tokens"][last + 1 : first + rows] = torch.inf
        length = int(inputs.lengths[request]) - rejected
        _passes(inputs, value, request, length)
        _verified(inputs, value, bound, request, following, length)
        first += rows
    return {name: Expected(tensor, bound[name], torch.int64) for name, tensor in value.items()}


def _passes(inputs: DraftStepInputs, value: dict[str, torch.Tensor], request: int, length: int) -> None:
    """Passes of the draft model behind the first; the last token that counts is at ``length - 1``."""
    for number in range(inputs.steps - 1):
        position = length + number
        fits = position < inputs.limit
        value["step_positions"][number, request] = position if fits else 0
        value["step_lengths"][number, request] = position + 1 if fits else 1
        value["step_slots"][number, request] = _slot(inputs, request, position) if fits else NOTHING


def _verified(
    inputs: DraftStepInputs,
    value: dict[str, torch.Tensor],
    bound: dict[str, torch.Tensor],
    request: int,
    following: int,
    length: int,
) -> None:
    tokens = [following, *inputs.proposed[request].tolist()]
    for place, token in enumerate(tokens):
        position = length + place
        value["verify_tokens"][request, place] = token
        if position >= inputs.limit:
            for name in ("verify_positions", "verify_slots"):
                bound[name][request, place] = torch.inf
            continue
        value["verify_positions"][request, place] = position
        value["verify_slots"][request, place] = _slot(inputs, request, position)


def _slot(inputs: DraftStepInputs, request: int, position: int) -> int:
    page = int(inputs.block_table[request, position // inputs.page_size])
    return page * inputs.page_size + position % inputs.page_size


def _validate(inputs: DraftStepInputs) -> None:
    requests, rows = len(inputs.rows), len(inputs.tokens)
    wanted = {
        "positions": (rows,), "sampled": (requests, inputs.steps + 1), "known": (requests,),
        "proposed": (requests, inputs.steps), "lengths": (requests,),
        "block_table": (requests, inputs.block_table.shape[1]),
    }  # fmt: skip
    for name, shape in wanted.items():
        if tuple(getattr(inputs, name).shape) != shape:
            raise ValueError(f"{name} must be {shape}, got {tuple(getattr(inputs, name).shape)}")
    if sum(inputs.rows) != rows or len(inputs.drafts) != requests or min(inputs.rows) < 1:
        raise ValueError(f"{inputs.rows} rows with {inputs.drafts} drafts are not {rows} rows of {requests} requests")
    if any(drafts not in (0, count - 1) for drafts, count in zip(inputs.drafts, inputs.rows, strict=True)):
        raise ValueError(f"rows {inputs.rows} are a token and its drafts {inputs.drafts}, or none of them is a draft")
    counts = (inputs.sampled != NOTHING).sum(dim=1).tolist()
    if any(count > drafts + 1 or (drafts and not count) for count, drafts in zip(counts, inputs.drafts, strict=True)):
        raise ValueError(f"{counts} tokens were sampled behind {inputs.drafts} drafts")
    lengths, most = inputs.lengths.tolist(), inputs.block_table.shape[1] * inputs.page_size
    if any(not count <= length <= inputs.limit for length, count in zip(lengths, inputs.rows, strict=True)):
        raise ValueError(f"requests of {lengths} tokens, {inputs.rows} of them new, have a limit of {inputs.limit}")
    if min(inputs.limit, max(lengths) + inputs.steps + 1) > most:
        raise ValueError(f"the block table has room for {most} tokens")
