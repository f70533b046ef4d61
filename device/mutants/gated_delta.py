"""Wrong gated delta rules."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.gated_delta import (
    KimiTokens,
    Outputs,
    chunks,
    decayed_products,
    in_chunks,
    in_chunks_of_channels,
    kimi_chunks,
    kimi_state,
    narrow,
    npu_chunk_gated_delta_rule,
    npu_recurrent_gated_delta_rule,
    recurrence,
    recurrent_gated_delta_rule,
    token_by_token,
    with_chunk_operator,
    with_recurrent_operator,
)
from npudiff.reference.gated_delta import GatedDeltaInputs

_SEVERAL = range(2, 2**17 + 1)
_DRAFTS = {"kept": ("each",), "length": range(2, 9), "accepted": ("last", "any")}
_PROMPT = {"kept": ("last",), "length": _SEVERAL}


def _last_slots(inputs: GatedDeltaInputs) -> torch.Tensor:
    """The slot of the last token of each request; -1 of one without tokens."""
    ends = torch.tensor(inputs.lengths).cumsum(dim=0) - 1
    there = torch.tensor(inputs.lengths) > 0
    return torch.where(there, inputs.slots[ends.clamp(min=0)], -1).to(torch.int32)


@mutant(
    token_by_token,
    "vllm-project/vllm-ascend/pull/7506: what has no slot is written before the pool, or at its end",
    supports=_PROMPT,
)
def no_slot_is_a_slot(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Write the state behind the first token that is not kept into the last slot, unless somebody has it."""
    outputs = recurrence(inputs)
    last = len(inputs.states) - 1
    unkept = (inputs.slots[: sum(inputs.lengths)] < 0).nonzero().flatten().tolist()
    if not unkept or last in inputs.slots.tolist() or last in inputs.initial.tolist():
        return outputs
    slots = torch.full_like(inputs.slots, -1)
    slots[unkept[0]] = last
    outputs["states"][last] = recurrence(replace(inputs, slots=slots))["states"][last]
    return outputs


@perturbed(
    token_by_token,
    "sgl-project/sgl-kernel-npu/pull/640: states lie the other way round, which no shape shows",
    supports={"key_dim": (32,), "value_dim": (32,)},
)
def states_lie_the_other_way(inputs: GatedDeltaInputs) -> GatedDeltaInputs:
    """Begin with states whose rows and columns have changed places."""
    return replace(inputs, states=inputs.states.transpose(2, 3).contiguous())


@perturbed(
    npu_chunk_gated_delta_rule,
    "vllm-project/vllm-ascend/pull/10558: whether there is a state to begin with is not looked at",
    supports={"fresh": (True,)},
)
def slot_is_not_cleared(inputs: GatedDeltaInputs) -> GatedDeltaInputs:
    """Begin with whatever the slot of a new request holds."""
    return replace(inputs, initial=torch.where(inputs.initial < 0, _last_slots(inputs), inputs.initial))


@perturbed(
    token_by_token,
    "vllm-project/vllm/issues/40738: the state is not that of the last token that was accepted",
    supports=_DRAFTS,
)
def accepted_tokens_not_counted(inputs: GatedDeltaInputs) -> GatedDeltaInputs:
    """Begin with the state in the first slot of a request."""
    starts = torch.tensor([0, *inputs.lengths]).cumsum(dim=0)[:-1].clamp(max=len(inputs.slots) - 1)
    return replace(inputs, initial=torch.where(inputs.initial < 0, -1, inputs.slots[starts]).to(torch.int32))


@mutant(
    npu_recurrent_gated_delta_rule,
    "vllm-project/vllm-ascend/issues/15885: accepted tokens are taken for the tokens of this call",
    supports={"kept": ("each",), "length": range(2, 9), "accepted": ("first",)},
)
def rest_of_the_draft_is_left_out(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Compute no row behind the accepted ones of the step before."""
    outputs = with_recurrent_operator(inputs)
    start = 0
    for length in inputs.lengths:
        outputs["output"][start + 1 : start + length] = 0
        start += length
    return outputs


@mutant(
    recurrent_gated_delta_rule,
    "sgl_kernel_npu/fla/fused_sigmoid_gating_recurrent.py 207: heads are taken by twos",
    supports={"heads": range(1, 64, 2)},
)
def last_of_odd_heads_is_left_out(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Compute an even number of heads."""
    before = inputs.states[:, -1].clone()
    outputs = recurrence(inputs)
    if inputs.value.shape[1] % 2:
        outputs["output"][:, -1], outputs["states"][:, -1] = 0, before
    return outputs


@mutant(
    token_by_token,
    "singlecard_ops/test_recurrent_gated_delta_rule.py 73: the state decays before it is read",
    supports={"gates": ("head",)},
)
def decay_comes_last(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Let the state decay behind the token, of whose output it is no part."""
    if inputs.gate is None:
        return recurrence(inputs)
    starts = torch.tensor([0, *inputs.lengths]).cumsum(dim=0)[:-1]
    later = inputs.gate.roll(1, 0)
    later[starts[starts < len(later)]] = 0.0
    return recurrence(replace(inputs, gate=later))


@mutant(
    token_by_token,
    "singlecard_ops/test_recurrent_gated_delta_rule.py 79: outputs are of the new state",
)
def output_of_the_old_state(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Read queries from the state before the token is in it."""
    outputs = recurrence(inputs)
    # Each token twice: first as one that adds nothing, of which the output is taken.
    twice = torch.arange(len(inputs.value)).repeat_interleave(2)
    names = ("query", "key", "value", "beta", "slots", "gate", "channel_gate")
    parts = {name: one[twice].clone() for name in names if (one := getattr(inputs, name)) is not None}
    parts["beta"][::2], parts["slots"][::2] = -torch.inf if inputs.raw else 0, -1
    for name in ("gate", "channel_gate"):
        if name in parts:
            parts[name][1::2] = 0
    doubled = replace(inputs, lengths=tuple(2 * one for one in inputs.lengths), **parts)
    outputs["output"] = recurrence(doubled)["output"][::2].contiguous()
    return outputs


@mutant(
    in_chunks,
    "tenstorrent/tt-metal/issues/56550: a quotient of exponentials is 0 / 0 once a chunk decays far enough",
    supports={"decays": ("strong", "some"), "gates": ("head",), "length": range(33, 2**17 + 1)},
)
def quotient_of_exponentials(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Give rows that are not numbers where the decays of a chunk are beyond the range of float32."""
    outputs = chunks(inputs, 64)
    if inputs.gate is None:
        return outputs
    start = 0
    for length in inputs.lengths:
        for first in range(start, start + length, 64):
            rows = slice(first, min(first + 64, start + length))
            gone = inputs.gate[rows].cumsum(dim=0).exp() == 0
            outputs["output"][rows] = outputs["output"][rows].masked_fill(gone.unsqueeze(-1), torch.nan)
        start += length
    return outputs


@perturbed(
    recurrent_gated_delta_rule,
    "sglang/srt/hardware_backend/npu/attention/ascend_gdn_backend.py 261: the operator takes the sigmoid of beta",
)
def sigmoid_twice(inputs: GatedDeltaInputs) -> GatedDeltaInputs:
    """Take the sigmoid of beta before the call, which takes it again."""
    return replace(inputs, beta=torch.sigmoid(inputs.beta.float()).to(inputs.beta.dtype))


@perturbed(
    token_by_token,
    "sgl_kernel_npu/fla/fused_sigmoid_gating_recurrent.py 131: an epsilon beside the root, not under it",
    supports={"raw": (True,), "keys": ("tiny",)},
)
def epsilon_beside_the_root(inputs: GatedDeltaInputs) -> GatedDeltaInputs:
    """Divide by the length of a key plus epsilon."""

    def unit(rows: torch.Tensor) -> torch.Tensor:
        wide = rows.float()
        lengths = wide.square().sum(dim=-1, keepdim=True).sqrt()
        return (wide / (lengths + 1e-6)).to(rows.dtype)

    beta = torch.sigmoid(inputs.beta.float()).to(inputs.beta.dtype)
    return replace(inputs, query=unit(inputs.query), key=unit(inputs.key), beta=beta, raw=False)


@perturbed(
    npu_chunk_gated_delta_rule,
    "vllm_ascend/ops/gdn.py 145: a scale that is not given is 1",
    supports={"key_dim": range(2, 129)},
)
def no_scale(inputs: GatedDeltaInputs) -> GatedDeltaInputs:
    """Leave out the factor of queries."""
    return replace(inputs, scale=1.0)


@mutant(
    in_chunks,
    "singlecard_ops/test_recurrent_gated_delta_rule.py 68: which key head goes with a value head",
    supports={"key_heads": range(2, 65), "group": range(2, 65)},
)
def key_heads_in_turn(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Give value heads the key heads in turn, and not in blocks."""
    heads, key_heads = inputs.value.shape[1], inputs.key.shape[1]
    turn = torch.arange(heads) % key_heads
    return chunks(replace(inputs, query=inputs.query[:, turn], key=inputs.key[:, turn]), 64)


@mutant(
    npu_recurrent_gated_delta_rule,
    "singlecard_ops/test_recurrent_gated_delta_rule.py 138: the first length is that of what is skipped",
    supports={"batch": range(2, 4097), "length": range(1, 9)},
)
def first_length_is_skipped(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Skip the tokens of the first request."""
    outputs = with_recurrent_operator(replace(inputs, states=inputs.states.clone()))
    first = inputs.lengths[0]
    outputs["output"][:first] = 0
    written = inputs.slots[:first].long()
    outputs["states"][written] = inputs.states[written]
    return outputs


@perturbed(
    token_by_token,
    "fla-org/flash-linear-attention/issues/1090: key dims that do not fill a tile",
    supports={"key_dim": (8, 24, 40, 48, 72, 80, 96, 112)},
)
def last_channels_are_not_read(inputs: GatedDeltaInputs) -> GatedDeltaInputs:
    """Take nothing from the channels of keys beyond the last whole tile of 64, or the second half of them."""
    dim = inputs.key.shape[-1]
    kept = dim // 64 * 64 or dim // 2
    key = inputs.key.clone()
    key[..., kept:] = 0
    return replace(inputs, key=key)


@perturbed(
    token_by_token,
    "sgl_kernel_npu/fla/fused_sigmoid_gating_recurrent.py 99: gates of channels are read with the stride of heads",
    supports={"gates": ("channel",)},
)
def gate_of_the_first_channel(inputs: GatedDeltaInputs) -> GatedDeltaInputs:
    """Let all channels decay as the first does."""
    gate = inputs.channel_gate
    return inputs if gate is None else replace(inputs, channel_gate=gate[..., :1].expand_as(gate).contiguous())


@mutant(
    token_by_token,
    "sgl_kernel_npu/fla/fused_sigmoid_gating_recurrent.py 137: decays of channels are of columns, not of rows",
    supports={"gates": ("channel",), "key_dim": (32,), "value_dim": (32,)},
)
def rows_decay(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Let the rows of a state decay."""

    def by_rows(given: GatedDeltaInputs, state: torch.Tensor, token: int) -> torch.Tensor:
        return state if given.channel_gate is None else state * given.channel_gate[token].exp().unsqueeze(-1)

    return recurrence(inputs, by_rows)


@perturbed(
    npu_chunk_gated_delta_rule,
    "sgl-project/sglang/issues/33515: what comes behind a whole chunk goes on from an older state",
    supports={"length": range(65, 2**17 + 1)},
)
def state_of_the_chunk_before(inputs: GatedDeltaInputs) -> GatedDeltaInputs:
    """Add nothing to the state with the last token of the first chunk."""
    beta, start = inputs.beta.clone(), 0
    for length in inputs.lengths:
        if length > 64:
            beta[start + 63] = 0
        start += length
    return replace(inputs, beta=beta)


@mutant(
    npu_chunk_gated_delta_rule,
    "vllm-project/vllm-ascend/pull/11408: requests without tokens are left out of lengths, and not of states",
    supports={"length": range(2**17 + 1), "batch": range(2, 4097), "fresh": (False,)},
)
def states_of_other_requests(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Give requests with tokens the first states of the batch."""
    taken = [place for place, length in enumerate(inputs.lengths) if length]
    initial = inputs.initial.clone()
    initial[taken] = inputs.initial[: len(taken)]
    return with_chunk_operator(replace(inputs, initial=initial), torch.ops.npu.npu_chunk_gated_delta_rule)


@mutant(
    token_by_token,
    "sgl-project/sglang/issues/25587: only the last state of a draft is kept",
    supports={"kept": ("each",), "length": range(2, 9)},
)
def states_within_a_draft_are_lost(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Keep the state behind the last token of a draft in all of its slots."""
    outputs = recurrence(inputs)
    start = 0
    for length in inputs.lengths:
        slots = inputs.slots[start : start + length].long()
        if length:
            outputs["states"][slots] = outputs["states"][slots[-1]].clone()
        start += length
    return outputs


_PARTIAL = (*range(1, 64), *range(65, 128), *range(129, 192))
"""Lengths whose last chunk is not whole."""


@perturbed(
    in_chunks_of_channels,
    "vllm_ascend/ops/triton/kda/cumsum.py 153: sums of decays go up to a token, its own included",
)
def own_decay_of_a_chunk_is_left_out(inputs: GatedDeltaInputs) -> GatedDeltaInputs:
    """Let what a token reads decay as far as the token before it, and nothing before the first token of a chunk."""
    if inputs.channel_gate is None:
        return inputs
    gate, start = inputs.channel_gate.roll(1, 0), 0
    for length in inputs.lengths:
        gate[start : start + length : 64] = 0
        start += length
    return replace(inputs, channel_gate=gate)


@mutant(
    in_chunks_of_channels,
    "vllm_ascend/ops/triton/kda/kda.py 526: keys decay to the first row of the queries' part of a chunk",
    supports={"length": range(17, 2**17 + 1)},
)
def keys_decay_to_their_own_part(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Let keys decay as far as the first row of the part behind their own, whatever part reads them."""

    def products(rows: torch.Tensor, tokens: KimiTokens) -> torch.Tensor:
        found, length = decayed_products(rows, tokens), rows.shape[1]
        for first in range(32, length, 16):
            part, anchor = slice(first, first + 16), tokens.total[:, first : first + 1]
            later = narrow(rows[:, part] * (tokens.total[:, part] - anchor).exp())
            for before in range(0, first - 16, 16):
                own, behind = slice(before, before + 16), tokens.total[:, before + 16 : before + 17]
                keys = narrow(tokens.key[:, own] * (behind - tokens.total[:, own]).exp())
                found[:, part, own] = later @ keys.mT
        return found

    return kimi_chunks(inputs, products)


@mutant(
    in_chunks_of_channels,
    "vllm_ascend/ops/triton/kda/chunk_delta_h.py 187: the last row of a chunk is the request's last one at most",
    supports={"length": _PARTIAL, "batch": range(2, 4097)},
)
def last_chunk_decays_by_another_request(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Let a state decay by the sum in row 64 of a chunk, which is another request's where the chunk is not whole."""
    sums = torch.zeros_like(inputs.key[:1].float())
    if inputs.channel_gate is not None:
        sums, start = inputs.channel_gate.clone(), 0
        for length in inputs.lengths:
            for first in range(start, start + length, 64):
                rows = slice(first, min(first + 64, start + length))
                sums[rows] = sums[rows].cumsum(dim=0)
            start += length

    def after(state: torch.Tensor, tokens: KimiTokens, added: torch.Tensor) -> torch.Tensor:
        row = min(tokens.rows.start + 63, sum(inputs.lengths) - 1)
        gone = sums[row].unsqueeze(1) - tokens.total[:, -1:]
        return narrow(kimi_state(state * gone.exp(), tokens, added))

    return kimi_chunks(inputs, after=after)


@mutant(
    in_chunks_of_channels,
    "vllm_ascend/ops/triton/kda/chunk_delta_h.py 158: rows of a chunk that is not whole are masked",
    supports={"length": _PARTIAL},
)
def padded_rows_of_a_chunk_decay(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Fill a chunk up to 64 rows with its last one, and let the state and keys decay by all of them."""

    def after(state: torch.Tensor, tokens: KimiTokens, added: torch.Tensor) -> torch.Tensor:
        before = tokens.total[:, -2:-1] if tokens.total.shape[1] > 1 else torch.zeros_like(tokens.total[:, -1:])
        more = (64 - tokens.total.shape[1]) * (tokens.total[:, -1:] - before)
        return narrow(kimi_state(state, tokens, added) * more.exp())

    return kimi_chunks(inputs, after=after)


@mutant(
    in_chunks_of_channels,
    "vllm_ascend/ops/triton/kda/kda.py 887: what a token adds decays from it to the end of a chunk",
    supports={"length": range(2, 2**17 + 1)},
)
def keys_of_a_state_decay_from_its_start(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Let what tokens add to a state decay by what is before them in a chunk, and not behind."""

    def after(state: torch.Tensor, tokens: KimiTokens, added: torch.Tensor) -> torch.Tensor:
        kept = narrow(state * tokens.total[:, -1:].exp())
        return narrow(kept + narrow(added.mT @ narrow(tokens.key * tokens.total.exp())))

    return kimi_chunks(inputs, after=after)


@mutant(
    in_chunks_of_channels,
    "vllm_ascend/ops/triton/kda/kda.py 535: exponents that are not positive, by parts of a chunk",
    supports={"decays": ("strong", "some"), "length": range(33, 2**17 + 1)},
)
def decays_of_a_whole_chunk_are_divided_by(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Multiply keys by exponentials of what has decayed up to them, which float32 does not hold."""

    def products(rows: torch.Tensor, tokens: KimiTokens) -> torch.Tensor:
        return (rows * tokens.total.exp()) @ (tokens.key * (-tokens.total).exp()).mT

    return kimi_chunks(inputs, products)
