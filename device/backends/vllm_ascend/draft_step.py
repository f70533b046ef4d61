"""Steps of drafts on vllm-ascend: ``spec_decode/llm_base_proposer.py``, and what its runner verifies next."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from npudiff import Target, implementation
from npudiff.device.backends.vllm_ascend.draft_world import PROMPT, READ, SCHEDULING, Buffer, Drafter
from npudiff.device.backends.vllm_ascend.world import TRITON, options_of, patched, triton
from npudiff.reference.draft_step import DraftStepInputs

Outputs = dict[str, torch.Tensor]

VERIFIED = {"kind": ("draft", "token", "prompt"), "room_left": (None,)}
"""Requests that have drafts in the next step, and room for them: a prompt that goes on has none."""


@implementation("draft_step", name="prepare_next_token_ids_padded", supports={}, options=PROMPT, on_device=True)
def next_tokens(inputs: DraftStepInputs, target: Target) -> Outputs:
    """``prepare_next_token_ids_padded``: tokens behind the last that counts, or of prompts that go on."""
    following, _ = Drafter(inputs).next_tokens()
    return {"next_token": following.long()}


@implementation("draft_step", name="prepare_inputs_padded", supports={}, options=TRITON, on_device=True)
def padded(inputs: DraftStepInputs, target: Target) -> Outputs:
    """``prepare_inputs_padded``, and what a batch without drafts has in its place."""
    drafter = Drafter(inputs)
    _, counts = drafter.next_tokens()
    with triton(inputs):
        _, rows, rejected = drafter.padded(counts)
    if rows is None or rejected is None:
        rows, rejected = drafter.metadata().query_start_loc[1:] - 1, torch.zeros_like(counts)
    return {"sample_row": rows.long(), "rejected": rejected.long()}


def _places(drafter: Drafter, others: Sequence[Mapping[str, Any]]) -> Outputs:
    """Positions and slots of passes behind the first."""
    count = len(drafter.inputs.rows)
    none = drafter.inputs.lengths.new_zeros(0, count)
    positions = [one["positions"][:count].long() for one in others]
    slots = [one["metadata"].slot_mapping[:count].long() for one in others]
    return {
        "step_positions": torch.stack(positions) if others else none,
        "step_slots": torch.stack(slots) if others else none,
    }


def _lengths(drafter: Drafter, others: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """How many keys attention is told of in passes behind the first."""
    count = len(drafter.inputs.rows)
    name = "seq_lens" if options_of(drafter.inputs)["seq_lens"] == "device" else "_seq_lens_cpu"
    found = [getattr(one["metadata"], name)[:count].to(drafter.device).long() for one in others]
    return torch.stack(found) if found else drafter.inputs.lengths.new_zeros(0, count)


@implementation("draft_step", name="_propose", supports={}, options=SCHEDULING, on_device=True)
def proposed(inputs: DraftStepInputs, target: Target) -> Outputs:
    """``_propose``: what its model is given in each pass, and where the pass writes."""
    drafter = Drafter(inputs)
    first, *others = drafter.passes()
    return {"first_tokens": first["tokens"].long(), **_places(drafter, others)}


@implementation(
    "draft_step", name="_propose_lengths", supports={"steps": range(2, 65)}, options={**SCHEDULING, **READ},
    on_device=True,
)  # fmt: skip
def lengths(inputs: DraftStepInputs, target: Target) -> Outputs:
    """``_propose``: how many keys attention is told of in the passes behind the first."""
    drafter = Drafter(inputs)
    _, *others = drafter.passes()
    return {"step_lengths": _lengths(drafter, others)}


@implementation("draft_step", name="prepare_inputs", supports={}, options=PROMPT, on_device=True)
def unpadded(inputs: DraftStepInputs, target: Target) -> Outputs:
    """``prepare_inputs`` and ``_propose``, where ``disable_padded_drafter_batch`` leaves rejected rows out."""
    drafter = Drafter(inputs)
    following, kept, (first, *others) = drafter.passes_without_padding()
    ends = first["metadata"].query_start_loc[1:].long() - 1
    tokens = torch.zeros_like(inputs.tokens)
    tokens[kept] = first["tokens"].long()
    return {
        "next_token": following.long(),
        "sample_row": kept[ends].long(),
        "first_tokens": tokens,
        **_places(drafter, others),
    }


@implementation(
    "draft_step", name="prepare_inputs_lengths", supports={"steps": range(2, 65)}, options=READ, on_device=True
)
def unpadded_lengths(inputs: DraftStepInputs, target: Target) -> Outputs:
    """The same: how many keys attention is told of in the passes behind the first."""
    drafter = Drafter(inputs)
    _, _, (_, *others) = drafter.passes_without_padding()
    return {"step_lengths": _lengths(drafter, others)}


@implementation("draft_step", name="_prepare_input_ids", supports=VERIFIED, on_device=True)
def verified_tokens(inputs: DraftStepInputs, target: Target) -> Outputs:
    """``_prepare_input_ids`` of the model runner, where drafts stay on the device (asynchronous scheduling)."""
    from vllm_ascend.worker.model_runner_v1 import NPUModelRunner  # noqa: PLC0415 - half of vllm-ascend

    drafter, each = Drafter(inputs), inputs.steps + 1
    count = len(inputs.rows)
    following, _ = drafter.next_tokens()
    batch = drafter.batch(())
    batch.prev_sampled_token_ids = following.unsqueeze(1)
    before = Buffer(count, drafter.device)
    before.cpu.copy_(torch.arange(count))
    runner = SimpleNamespace(
        input_batch=batch, prev_positions=before, input_ids=Buffer(count * each, drafter.device), device=drafter.device,
        enable_prompt_embeds=False, prev_num_spec_tokens=inputs.steps, _draft_token_ids=inputs.proposed,
    )  # fmt: skip
    scheduled = SimpleNamespace(scheduled_spec_decode_tokens=dict.fromkeys(batch.req_ids, [-1] * inputs.steps))
    ends = torch.arange(1, count + 1).mul(each).numpy()
    NPUModelRunner._prepare_input_ids(runner, scheduled, count, count * each, ends)
    return {"verify_tokens": runner.input_ids.gpu.view(count, each).long()}


@implementation(
    "draft_step", name="compute_slot_mapping", supports=VERIFIED, options={"triton": ("1",)}, on_device=True
)
def verified_slots(inputs: DraftStepInputs, target: Target) -> Outputs:
    """``BlockTable.compute_slot_mapping``, behind the numbers of computed tokens that the runner corrects."""
    from vllm.v1.spec_decode.utils import update_num_computed_tokens_for_batch_change  # noqa: PLC0415 - as above
    from vllm_ascend.worker import block_table  # noqa: PLC0415 - as above

    drafter, each = Drafter(inputs), inputs.steps + 1
    count = len(inputs.rows)
    _, counts = drafter.next_tokens()
    known = drafter.on_device([one.num_computed_tokens for one in drafter.requests.values()])
    corrected = inspect.unwrap(update_num_computed_tokens_for_batch_change)  # compiled as it is on an NPU: not at all
    corrected(
        known, drafter.on_device([1] * count), drafter.on_device(range(count)).long(), counts,
        drafter.on_device(inputs.drafts), inputs.lengths.to(torch.int32),
    )  # fmt: skip
    positions = known.long().unsqueeze(1) + torch.arange(each, device=drafter.device)
    with (
        triton(inputs),
        patched(block_table, {"get_dcp_group": lambda: SimpleNamespace(world_size=1, rank_in_group=0)}),
    ):
        table = block_table.BlockTable(
            inputs.page_size, count, inputs.block_table.shape[1], count * each, False, drafter.device,
            num_speculative_tokens=inputs.steps,
        )  # fmt: skip
        for row, pages in enumerate(inputs.block_table.tolist()):
            table.add_row(pages, row)
        table.commit_block_table(count)
        starts = drafter.on_device(range(0, count * each + 1, each))
        table.compute_slot_mapping(count, starts, positions.flatten())
        slots = table.slot_mapping.gpu[: count * each].long()
    return {"verify_positions": positions, "verify_slots": slots.view(count, each)}
