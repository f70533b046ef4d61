"""Wrong kernels of draft_step; TWIN=1 in the environment runs them without the mistakes."""

import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))


def slots_of(inputs, positions):
    """Slots of positions ``[requests, any]``."""
    pages = inputs.block_table.gather(1, positions // inputs.page_size)
    return pages * inputs.page_size + positions % inputs.page_size


def placed(inputs, positions, slots):
    """Positions, lengths and slots, at the limit 0, 1 and -1."""
    beyond = positions >= inputs.limit
    inside = positions.masked_fill(beyond, 0)
    return inside, inside + 1, slots(inputs, inside).masked_fill(beyond, -1)


def step(inputs, known_of=None, slots=slots_of):
    """All outputs; ``known_of``: requests whose next token is the known one; ``slots``: those of tokens to verify."""
    device, requests = inputs.tokens.device, len(inputs.rows)
    drafts = torch.tensor(inputs.drafts, dtype=torch.int64, device=device)
    taken = (inputs.sampled >= 0).sum(dim=1)
    rejected = torch.where(drafts > 0, drafts + 1 - taken, 0)
    ends = torch.tensor(inputs.rows, dtype=torch.int64, device=device).cumsum(0)
    last = ends - 1 - rejected
    of_sample = inputs.sampled.gather(1, (taken - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
    following = torch.where(taken == 0 if known_of is None else known_of, inputs.known, of_sample)
    first = torch.cat([inputs.tokens[1:], inputs.tokens[:1]])
    first[last] = following
    length = (inputs.lengths - rejected).unsqueeze(1)
    number = torch.arange(inputs.steps + 1, device=device)
    passes = placed(inputs, length + number[: inputs.steps - 1], slots_of)
    verified = placed(inputs, length + number, slots)
    return {
        "next_token": following, "rejected": rejected, "sample_row": last, "first_tokens": first,
        "step_positions": passes[0].t(), "step_lengths": passes[1].t(), "step_slots": passes[2].t(),
        "verify_tokens": torch.cat([following.view(requests, 1), inputs.proposed], dim=1),
        "verify_positions": verified[0], "verify_slots": verified[2],
    }  # fmt: skip


@npudiff.implementation("draft_step", name="h_draft_step_01_slots_counted_on", on_device=True)
def slots_counted_on(inputs, target):
    """Slots of tokens to verify are counted on from the first; shows where they go on in another page."""

    def counted_on(inputs, positions):
        return slots_of(inputs, positions[:, :1]) + positions - positions[:, :1]

    return step(inputs, slots=slots_of if TWIN else counted_on)


@npudiff.implementation("draft_step", name="h_draft_step_02_known_behind_every_piece", on_device=True)
def known_behind_every_piece(inputs, target):
    """The known token follows every piece of a prompt, the last one too, behind which one was sampled."""
    rows, drafts = (torch.tensor(one, device=inputs.tokens.device) for one in (inputs.rows, inputs.drafts))
    none = (inputs.sampled < 0).all(dim=1)
    return step(inputs, none if TWIN else none | ((rows > 1) & (drafts == 0)))
