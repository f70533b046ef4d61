"""Kimi's rule in vllm-ascend: Triton kernels for steps and for prompts, with decays of channels.

Nothing of vllm-ascend 182b75ea calls them but tests of its own, so that what they take is what those tests and the
kernels say: states ``[value_dim, key_dim]`` of any float dtype, blocks of which number 0 is nobody's, a state for each
token, logarithms of decays and no raw gates.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from vllm_ascend.ops.triton.kda import kda

from npudiff import Target, implementation
from npudiff.device.ascend.gated_delta import begun, put_back
from npudiff.device.backends.vllm_ascend.world import triton_found
from npudiff.model.constraints import Box
from npudiff.reference.gated_delta import GatedDeltaInputs

Outputs = dict[str, torch.Tensor]

_DIMS = (8, 16, 24, 32, 48, 64, 80, 96, 112, 128)
_RULE: Box = {"gates": ("channel", "none"), "chunked": (False,), "heads": range(1, 4), "batch": range(1, 4)}
"""Sizes are what an interpreter gets through; the kernels have no largest number of heads, and none of requests."""

_STEP: Box = {**_RULE, "kept": ("last",), "length": (1,), "fresh": (False,)}
_DRAFT: Box = {**_RULE, "kept": ("each",), "length": range(1, 7), "accepted": ("first",)}
_ROWS: Box = {**_RULE, "kept": ("last",), "length": range(10)}


def _alike(boxes: Sequence[Box]) -> tuple[Box, ...]:
    """Value heads that are key heads, and values as wide as keys: outputs are allocated like keys."""
    return tuple({**box, "group": (1,), "key_dim": (dim,), "value_dim": (dim,)} for box in boxes for dim in _DIMS)


_OTHERS: tuple[Box, ...] = tuple(
    {**_STEP, "group": (group,), "key_dim": (dim,), "value_dim": (dim // part,)}
    for group, part in ((1, 2), (2, 1), (2, 2))
    for dim in (16, 32, 64, 128)
)
"""Values of another shape than keys, which the kernel has addresses for."""


@contextlib.contextmanager
def _kernels() -> Iterator[None]:
    """Let Triton be there if the functions launch kernels of it.

    Raises
    ------
    StubCalled
        If it is not.
    """
    if not hasattr(kda, "triton"):
        yield
        return
    with triton_found():
        yield


def _given(inputs: GatedDeltaInputs) -> dict[str, torch.Tensor]:
    """Tokens of all requests behind each other; the kernels normalise keys, and take no sigmoid of beta."""
    tokens = sum(inputs.lengths)
    gate = inputs.channel_gate
    if gate is None:
        gate = inputs.value.new_zeros(*inputs.value.shape[:2], inputs.key.shape[2], dtype=torch.float32)
    beta = inputs.beta.float().sigmoid() if inputs.raw else inputs.beta
    named = {"q": inputs.query, "k": inputs.key, "v": inputs.value, "g": gate, "beta": beta}
    return {name: one[:tokens].unsqueeze(0) for name, one in named.items()}


def _starts(inputs: GatedDeltaInputs) -> torch.Tensor:
    return torch.tensor([0, *inputs.lengths]).cumsum(dim=0).to(inputs.value.device)


def _output(inputs: GatedDeltaInputs, answer: torch.Tensor) -> torch.Tensor:
    output = torch.zeros_like(inputs.value)
    output[: sum(inputs.lengths)] = answer.squeeze(0)
    return output


def _in_place(inputs: GatedDeltaInputs, table: torch.Tensor) -> Outputs:
    """Run the kernel on blocks with the null block in front; the table has the blocks of each request."""
    blocks = torch.cat([torch.zeros_like(inputs.states[:1]), inputs.states])
    with _kernels():
        answer, _ = kda.fused_recurrent_kda(
            **_given(inputs),
            scale=inputs.scale,
            initial_state=blocks,
            inplace_final_state=True,
            use_qk_l2norm_in_kernel=inputs.raw,
            cu_seqlens=_starts(inputs),
            ssm_state_indices=table.to(inputs.value.device),
        )
    return {"output": _output(inputs, answer), "states": blocks[1:]}


@implementation("gated_delta", name="fused_recurrent_kda", supports=_alike([_STEP]), on_device=True)
def steps(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """A token for each request, in its block."""
    return _in_place(inputs, inputs.slots[: len(inputs.lengths)].long() + 1)


@implementation("gated_delta", name="fused_recurrent_kda_of_other_values", supports=_OTHERS, on_device=True)
def steps_of_other_values(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """The same with fewer key heads than value heads, or narrower values."""
    return _in_place(inputs, inputs.slots[: len(inputs.lengths)].long() + 1)


@implementation("gated_delta", name="fused_recurrent_kda_of_drafts", supports=_alike([_DRAFT]), on_device=True)
def drafts(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Drafts, each token in a block of its own; the kernel can be told of accepted tokens, and its caller does not."""
    table = torch.zeros(len(inputs.lengths), max(inputs.lengths), dtype=torch.int64)
    start = 0
    for row, length in zip(table, inputs.lengths, strict=True):
        row[:length] = inputs.slots[start : start + length].cpu() + 1
        start += length
    return _in_place(inputs, table)


@implementation("gated_delta", name="fused_recurrent_kda_of_rows", supports=_alike([_ROWS]), on_device=True)
def states_of_rows(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Tokens with a state each: a request begins with that in its first token's row, and others are written."""
    tokens, starts = sum(inputs.lengths), _starts(inputs)
    taken = [place for place, length in enumerate(inputs.lengths) if length]
    if not taken:
        return {"output": torch.zeros_like(inputs.value), "states": inputs.states}
    states = inputs.states.new_zeros(tokens, *inputs.states.shape[1:])
    states[starts[taken]] = begun(inputs)[taken]
    with _kernels():
        answer, after = kda.fused_recurrent_kda(
            **_given(inputs),
            scale=inputs.scale,
            initial_state=states,
            inplace_final_state=False,
            use_qk_l2norm_in_kernel=inputs.raw,
            cu_seqlens=starts,
        )
    ends = starts[1:][taken] - 1
    inputs.states[inputs.slots[ends].long()] = after[ends]
    return {"output": _output(inputs, answer), "states": inputs.states}


_PROMPT: Box = {
    "gates": ("channel",), "chunked": (True,), "kept": ("last",), "raw": (False,), "group": (1,),
    "length": range(1, 200), "heads": range(1, 4), "batch": range(1, 4), "key_dim": range(8, 257, 8),
}  # fmt: skip
"""Requests have tokens, as everywhere in vllm-ascend, and keys length 1: keys that it normalises it rounds again."""


@implementation("gated_delta", name="chunk_kda", supports=_PROMPT, on_device=True)
def prompts(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Prompts in chunks of 64; values are a copy, since outputs are written over them, as the tests have it."""
    given = _given(inputs)
    with _kernels():
        answer, last = kda.chunk_kda(
            **{**given, "v": given["v"].clone()},
            scale=inputs.scale,
            initial_state=begun(inputs),
            output_final_state=True,
            cu_seqlens=_starts(inputs),
        )
    return {"output": _output(inputs, answer), "states": put_back(inputs, last, list(range(len(inputs.lengths))))}
