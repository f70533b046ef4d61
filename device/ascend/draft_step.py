"""Steps of a draft model: as vllm-ascend computes them without Triton, request by request, and by two operators."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

import torch

from npudiff import Target, implementation
from npudiff.reference.draft_step import DraftStepInputs

Outputs = dict[str, torch.Tensor]

_NO_SLOT = -1

DRAFTED = {"kind": ("draft",), "uniform": (True,), "room_left": (None,)}
"""Batches of npu_advance_step_flashattn: every request has as many drafts, and room for more."""


@implementation("draft_step", supports={}, on_device=True)
def step_by_request(inputs: DraftStepInputs, target: Target) -> Outputs:
    """A loop over requests on the host."""
    return walked(inputs)


def walked(inputs: DraftStepInputs) -> Outputs:
    """Go through the requests, and collect what each gives."""
    found: dict[str, list[object]] = {name: [] for name in ("next_token", "rejected", "sample_row", "first_tokens")}
    passes: list[list[tuple[int, int, int]]] = []
    verified: list[list[tuple[int, int, int]]] = []
    tokens, sampled = inputs.tokens.tolist(), inputs.sampled.tolist()
    start = 0
    for request, rows in enumerate(inputs.rows):
        count = rows if inputs.drafts[request] == 0 else sum(token >= 0 for token in sampled[request])
        chosen = [token for token in sampled[request] if token >= 0] or [int(inputs.known[request])]
        found["next_token"].append(chosen[-1])
        found["rejected"].append(rows - count)
        found["sample_row"].append(start + count - 1)
        shifted = tokens[start + 1 : start + count] + chosen[-1:]
        found["first_tokens"].extend(shifted + [0] * (rows - count))
        length = int(inputs.lengths[request]) - (rows - count)
        passes.append([at(inputs, request, length + step) for step in range(inputs.steps - 1)])
        places = [at(inputs, request, length + place) for place in range(inputs.steps + 1)]
        news = [chosen[-1], *inputs.proposed[request].tolist()]
        verified.append([(token, place[0], place[2]) for token, place in zip(news, places, strict=True)])
        start += rows
    new = inputs.lengths.new_tensor
    steps = new(passes).reshape(len(passes), inputs.steps - 1, 3).permute(2, 1, 0)
    places_of = new(verified).permute(2, 0, 1)
    return {
        **{name: new(values) for name, values in found.items()},
        **dict(zip(("step_positions", "step_lengths", "step_slots"), steps, strict=True)),
        **dict(zip(("verify_tokens", "verify_positions", "verify_slots"), places_of, strict=True)),
    }


def at(inputs: DraftStepInputs, request: int, position: int) -> tuple[int, int, int]:
    """Position, length and slot of a token; at the limit nothing is written, and one token is attended to."""
    if position >= inputs.limit:
        return 0, 1, _NO_SLOT
    page, offset = divmod(position, inputs.page_size)
    return position, position + 1, int(inputs.block_table[request, page]) * inputs.page_size + offset


@implementation("draft_step", supports={}, on_device=True, graph=True)
def steps_at_once(inputs: DraftStepInputs, target: Target) -> Outputs:
    """All requests side by side: counts, a shift of the whole step, and a gather of pages for each pass."""
    return side_by_side(inputs)


def side_by_side(inputs: DraftStepInputs) -> Outputs:
    """Compute the outputs of all requests, as vllm-ascend does where there is no Triton."""
    rejected, sample_row = rejections(inputs)
    chosen = next_tokens(inputs)
    first = inputs.tokens.roll(-1)
    first[sample_row] = chosen
    last = inputs.positions[sample_row]
    passes = [placed(inputs, last + step) for step in range(1, inputs.steps)]
    return {
        "next_token": chosen,
        "rejected": rejected,
        "sample_row": sample_row,
        "first_tokens": first,
        **stacked(inputs, passes),
        **verified(inputs, chosen, last),
    }


def rejections(inputs: DraftStepInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Drafts of each request that were not accepted, and the row of its last token that counts."""
    drafts = constants(inputs, inputs.drafts)
    taken = (inputs.sampled >= 0).sum(dim=1)
    rejected = torch.where(drafts > 0, drafts + 1 - taken, 0)
    return rejected, constants(inputs, accumulate(inputs.rows)) - 1 - rejected


def constants(inputs: DraftStepInputs, values: Iterable[int]) -> torch.Tensor:
    """Numbers of a batch, filled in on the device: a copy from the host is waited for, which no capture takes."""
    return torch.cat([inputs.lengths.new_full((1,), value) for value in values])


def next_tokens(inputs: DraftStepInputs) -> torch.Tensor:
    """The last token that was sampled for each request, or the one that is known."""
    taken = (inputs.sampled >= 0).sum(dim=1)
    last = inputs.sampled.gather(1, (taken - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
    return torch.where(taken > 0, last, inputs.known)


def placed(inputs: DraftStepInputs, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Positions of a token of each request, lengths, and slots; at the limit nothing is written."""
    beyond = positions >= inputs.limit
    inside = positions.masked_fill(beyond, 0)
    return inside, inside + 1, slots(inputs, inside).masked_fill(beyond, _NO_SLOT)


def slots(inputs: DraftStepInputs, positions: torch.Tensor) -> torch.Tensor:
    """Where a token of each request is written."""
    pages = inputs.block_table.gather(1, (positions // inputs.page_size).unsqueeze(1)).squeeze(1)
    return pages * inputs.page_size + positions % inputs.page_size


def stacked(inputs: DraftStepInputs, passes: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> Outputs:
    """Outputs of the passes behind the first."""
    none = inputs.lengths.new_zeros(0, len(inputs.rows))
    columns = [torch.stack(column) for column in zip(*passes, strict=True)] or [none] * 3
    return dict(zip(("step_positions", "step_lengths", "step_slots"), columns, strict=True))


def verified(inputs: DraftStepInputs, chosen: torch.Tensor, last: torch.Tensor) -> Outputs:
    """The next token and the drafts of each request, for the target."""
    places = [placed(inputs, last + 1 + place) for place in range(inputs.steps + 1)]
    return {
        "verify_tokens": torch.cat([chosen.unsqueeze(1), inputs.proposed], dim=1),
        "verify_positions": torch.stack([position for position, _, _ in places], dim=1),
        "verify_slots": torch.stack([slot for _, _, slot in places], dim=1),
    }


@implementation("draft_step", supports=DRAFTED, on_device=True, graph=True)
def npu_advance_step_flashattn(inputs: DraftStepInputs, target: Target) -> Outputs:
    """npu_advance_step_flashattn with drafts: what the target verifies next, written in place."""
    requests, each = len(inputs.rows), inputs.steps + 1
    tokens, positions = inputs.tokens.clone(), inputs.positions.clone()
    lengths, places = torch.zeros_like(tokens), torch.zeros_like(tokens)
    torch.ops.npu.npu_advance_step_flashattn(
        tokens,
        inputs.sampled,
        positions,
        lengths,
        places,
        inputs.block_table,
        requests,
        requests,
        inputs.page_size,
        spec_token=inputs.proposed,
        accepted_num=(inputs.sampled >= 0).sum(dim=1) - 1,
    )
    written = {"verify_tokens": tokens, "verify_positions": positions, "verify_slots": places}
    return {name: tensor.view(requests, each) for name, tensor in written.items()}


@implementation("draft_step", supports={"steps": range(1, 16), "room_left": (None,)}, on_device=True, graph=True)
def cache_loc_update(inputs: DraftStepInputs, target: Target) -> Outputs:
    """cache_loc_update of sgl-kernel-npu: slots that the target writes next, out of the slots of all tokens."""
    rejected, _ = rejections(inputs)
    starts = inputs.lengths - rejected
    offsets = torch.arange(inputs.page_size, device=starts.device)
    pool = (inputs.block_table.unsqueeze(-1) * inputs.page_size + offsets).flatten(1).to(torch.int32)
    requests, each = len(inputs.rows), inputs.steps + 1
    found = torch.ops.npu.cache_loc_update(
        torch.arange(requests, device=starts.device), pool, starts, starts + each, pool.new_zeros(requests * each)
    )
    return {"verify_slots": found.to(torch.int64).view(requests, each)}
