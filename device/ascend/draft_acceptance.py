"""Acceptance of drafts in plain torch: request by request, and all at once as vllm-ascend has it without Triton."""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.reference.draft_acceptance import DraftAcceptanceInputs

Outputs = dict[str, torch.Tensor]


@implementation("draft_acceptance", supports={}, on_device=True)
def request_by_request(inputs: DraftAcceptanceInputs, target: Target) -> Outputs:
    """A loop over requests and their tokens."""
    return walked(inputs)


def accepts(inputs: DraftAcceptanceInputs, row: int, token: int) -> bool:
    """Whether the target accepts a drafted token."""
    if token < 0:
        return False
    share = inputs.target[row, token]
    if inputs.draft is None:
        return bool(share >= inputs.uniform[row])
    return bool(inputs.draft[row, token] > 0) and bool(share / inputs.draft[row, token] >= inputs.uniform[row])


def recovered(inputs: DraftAcceptanceInputs, row: int, request: int, token: int) -> int:
    """What comes in place of a token that is rejected."""
    left = inputs.target[row].clone()
    if inputs.draft is not None:
        left = (left - inputs.draft[row]).clamp(min=0)
    elif token >= 0:
        left[token] = 0
    return int((left / inputs.exponential[request]).argmax())


def walked(inputs: DraftAcceptanceInputs) -> Outputs:
    """Go through the tokens of each request until one is rejected."""
    tokens = torch.full((len(inputs.lengths), inputs.room + 1), -1, dtype=torch.int32)
    row = 0
    for request, length in enumerate(inputs.lengths):
        for place in range(length):
            token, here = int(inputs.draft_tokens[row + place]), row + place
            if bool(inputs.greedy[request]):
                tokens[request, place] = int(inputs.target[here].argmax())
                if int(tokens[request, place]) != token:
                    break
            elif accepts(inputs, here, token):
                tokens[request, place] = token
            else:
                tokens[request, place] = recovered(inputs, here, request, token)
                break
        else:
            tokens[request, length] = inputs.bonus[request]
        row += length
    return {"tokens": tokens}


@implementation("draft_acceptance", supports={}, on_device=True)
def all_at_once(inputs: DraftAcceptanceInputs, target: Target) -> Outputs:
    """Tokens of all requests side by side, with masks."""
    return side_by_side(inputs)


def side_by_side(inputs: DraftAcceptanceInputs) -> Outputs:
    """Put rows of requests into a table, and find the first rejection of each."""
    device = inputs.target.device
    lengths = torch.tensor(inputs.lengths, device=device)
    requests, rows = len(lengths), int(lengths.sum())
    tokens = torch.full((requests, inputs.room + 1), -1, dtype=torch.int32, device=device)
    request = torch.repeat_interleave(torch.arange(requests, device=device), lengths)
    place = torch.arange(rows, device=device) - (lengths.cumsum(0) - lengths)[request]
    drafted = inputs.draft_tokens.long()
    safe = drafted.clamp(min=0).unsqueeze(1)
    share = inputs.target.gather(1, safe).squeeze(1)
    mass = torch.ones_like(share) if inputs.draft is None else inputs.draft.gather(1, safe).squeeze(1)
    taken = (mass > 0) & (share / mass >= inputs.uniform) & (drafted >= 0)
    left = inputs.target.clone() if inputs.draft is None else (inputs.target - inputs.draft).clamp(min=0)
    if inputs.draft is None:
        there = drafted >= 0
        left[there.nonzero().flatten(), drafted[there]] = 0
    spare = (left / inputs.exponential[request]).argmax(dim=1) if rows else drafted
    greedy = inputs.greedy[request]
    best = inputs.target.argmax(dim=1) if rows else drafted
    good = torch.where(greedy, best == drafted, taken)
    emitted = torch.where(greedy, best, torch.where(taken, drafted, spare))
    never = torch.full((requests,), inputs.room + 1, device=device)
    bad_at = never.scatter_reduce(0, request, torch.where(good, inputs.room + 1, place), "amin")
    shown = place <= bad_at[request]
    tokens[request[shown], place[shown]] = emitted[shown].to(torch.int32)
    whole = bad_at > inputs.room
    tokens[whole, lengths[whole]] = inputs.bonus[whole]
    return {"tokens": tokens}


@implementation("draft_acceptance", supports={"rule": ("any",), "greedy": ("none",)}, on_device=True)
def block_by_block(inputs: DraftAcceptanceInputs, target: Target) -> Outputs:
    """Whole blocks are verified at once (Sun et al., 2024, algorithm 2), so that more drafts are accepted."""
    tokens = torch.full((len(inputs.lengths), inputs.room + 1), -1, dtype=torch.int32, device=inputs.target.device)
    start = 0
    for request, length in enumerate(inputs.lengths):
        rows = slice(start, start + length)
        prefixes, residuals = blocks(inputs, rows)
        accepted = 0
        for place in range(1, length + 1):
            share = prefixes[place]
            if place < length:
                left = residuals[place].sum()
                share = left / (left + 1 - share) if left > 0 or share < 1 else share
            if bool(inputs.uniform[start + place - 1] <= share):
                accepted = place
        tokens[request, :accepted] = inputs.draft_tokens[start : start + accepted]
        last = inputs.bonus[request]
        if accepted < length:
            last = (residuals[accepted] / inputs.exponential[request]).argmax().to(torch.int32)
        tokens[request, accepted] = last
        start += length
    return {"tokens": tokens}


def blocks(inputs: DraftAcceptanceInputs, rows: slice) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return how likely each beginning of a draft is kept, and what the target has more of than the draft behind it."""
    prefixes, residuals = [inputs.target.new_ones(())], []
    for row in range(rows.start, rows.stop):
        target, token = inputs.target[row], int(inputs.draft_tokens[row])
        draft = torch.zeros_like(target) if inputs.draft is None else inputs.draft[row]
        if inputs.draft is None and token >= 0:
            draft[token] = 1
        residuals.append((prefixes[-1] * target - draft).clamp(min=0))
        mass = draft[token] if token >= 0 else draft.new_zeros(())
        ratio = target[token] / mass if bool(mass > 0) else mass
        prefixes.append((prefixes[-1] * ratio).clamp(max=1))
    return prefixes, residuals
