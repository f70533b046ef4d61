"""Linear attention of Kimi in sglang, ``AscendKDAAttnBackend``: its convolution, and the rule of drafts.

Decays of channels, which a Triton kernel makes of a layer's rows, are handed in. The rule of prompts is an operator of
which nothing is documented (``chunk_kda_fwd``), and that of single tokens has its decays computed inside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import torch
from sglang.srt.hardware_backend.npu.attention import ascend_kda_backend
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from npudiff import Target, implementation
from npudiff.device.backends.sglang.delta_world import (
    MOST_DRAFT,
    Convolved,
    DeltaWorld,
    Sizes,
    convolved_already,
    delta_world,
    leave,
)
from npudiff.model.constraints import Box
from npudiff.reference.causal_conv import CausalConvInputs
from npudiff.reference.gated_delta import GatedDeltaInputs

Outputs = dict[str, torch.Tensor]

_WIDTH = 4
_CONVOLUTION: Box = {
    "padded": (False,), "length": range(1, 2**17), "activation": (True,), "rounding": ("stages",),
    "width": range(2, 5), "spare_rows": (0,),
}  # fmt: skip
_DRAFTS: tuple[Box, ...] = tuple(
    {**_CONVOLUTION, "mode": ("draft",), "length": (length,)} for length in range(2, MOST_DRAFT + 1)
)
_RULE: tuple[Box, ...] = tuple(
    {
        "gates": ("channel", "none"), "length": (length,), "chunked": (False,), "kept": ("each",), "raw": (True,),
        "group": (1,), "key_dim": range(8, 257, 8), "value_dim": range(8, 257, 8),
    }
    for length in range(2, MOST_DRAFT + 1)
)  # fmt: skip


@contextlib.contextmanager
def _handed_in(gate: torch.Tensor) -> Iterator[None]:
    """Let a layer find logarithms of decays, ``[tokens, heads, key_dim]``."""
    with mock.patch.object(ascend_kda_backend, "fused_kda_gate_npu", return_value=gate):
        yield


def _run(world: DeltaWorld, mixed: torch.Tensor, gate: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """Return what the layer makes of rows."""
    backend, layer, batch = world.backend, world.layer, world.batch
    _, heads, dim = gate.shape
    layer.A_log, layer.dt_bias = gate.new_zeros(heads), gate.new_zeros(heads * dim)
    forward = backend.forward_decode if batch.forward_mode == ForwardMode.DECODE else backend.forward_extend
    backend.init_forward_metadata(batch)
    with _handed_in(gate):
        answer: torch.Tensor = forward(layer, batch, mixed, gate.to(mixed.dtype), beta)
    return answer


def _convolved(
    inputs: CausalConvInputs, mode: ForwardMode, lines: torch.Tensor, drafts: int | None = None
) -> torch.Tensor:
    """Run the layer on lines that have slot 0 in front, and leave it behind its convolution."""
    tokens, channels, batch = sum(inputs.lengths), inputs.x.shape[1], len(inputs.lengths)
    history = [True] * batch if inputs.has_history is None else inputs.has_history.tolist()
    slots = (inputs.line_of + 1).tolist()
    requests = [(length, int(known), slot) for length, known, slot in zip(inputs.lengths, history, slots, strict=True)]
    states = lines.new_zeros(len(lines), 1, channels // 2, channels // 4)
    each = [] if drafts is None else [states.new_zeros(batch, drafts, *states.shape[1:])]
    world = delta_world(
        mode, Sizes(1, 1, channels // 4, channels // 2), inputs.weight, inputs.bias, (lines, states, *each), requests,
        drafts=drafts, of=ascend_kda_backend.AscendKDAAttnBackend,
    )  # fmt: skip
    left = {"decode": lambda q, k, v, **_: leave(q, k, v), "extend": lambda *, q, k, v, **_: leave(q, k, v)}
    world.backend.kernel_dispatcher = SimpleNamespace(supports_packed_decode=False, **left)
    nothing = inputs.x.new_zeros(tokens, 1, channels // 4)
    verified = mock.patch.object(ascend_kda_backend, "kda_target_verify_npu", lambda *, q, k, v, **_: leave(q, k, v))
    with verified:
        try:
            _run(world, inputs.x[:tokens].contiguous(), nothing.float(), nothing[..., 0])
        except Convolved as done:
            return done.rows
    raise ValueError("the layer did not come to what is behind its convolution")


def _output(inputs: CausalConvInputs, rows: torch.Tensor) -> torch.Tensor:
    output = torch.zeros_like(inputs.x)
    output[: len(rows)] = rows
    return output


def _with_slot_0(lines: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros_like(lines[:1]), lines])


@implementation(
    "causal_conv", name="AscendKDAAttnBackend.forward_extend", supports={**_CONVOLUTION, "mode": ("prompt",)},
    on_device=True,
)  # fmt: skip
def convolution_of_prompts(inputs: CausalConvInputs, target: Target) -> Outputs:
    """Prompts, with a cached prefix or without."""
    lines = _with_slot_0(inputs.lines)
    rows = _convolved(inputs, ForwardMode.EXTEND, lines)
    return {"output": _output(inputs, rows), "lines": lines[1:]}


@implementation(
    "causal_conv", name="AscendKDAAttnBackend.forward_decode",
    supports={**_CONVOLUTION, "mode": ("step",), "length": (1,)}, on_device=True,
)  # fmt: skip
def convolution_of_steps(inputs: CausalConvInputs, target: Target) -> Outputs:
    """A token for each request."""
    lines = _with_slot_0(inputs.lines)
    rows = _convolved(inputs, ForwardMode.DECODE, lines)
    return {"output": _output(inputs, rows), "lines": lines[1:]}


@implementation(
    "causal_conv", name="AscendKDAAttnBackend.target_verify", supports=_DRAFTS, on_device=True,
)  # fmt: skip
def convolution_of_drafts(inputs: CausalConvInputs, target: Target) -> Outputs:
    """Drafts, as many for each request, behind lines that were rolled back: history is in their last rows."""
    length, before = inputs.lengths[0], inputs.width - 1
    kept = before - 1 + length
    lines = inputs.lines.new_zeros(1 + len(inputs.lines), kept, inputs.lines.shape[2])
    accepted = [] if inputs.accepted is None else inputs.accepted.tolist()
    for line, first in zip(inputs.line_of.tolist(), accepted, strict=True):
        lines[1 + line, -before:] = inputs.lines[line, first - 1 : first - 1 + before]
    rows = _convolved(inputs, ForwardMode.TARGET_VERIFY, lines, length)
    for line in inputs.line_of.tolist():
        inputs.lines[line, :kept] = lines[1 + line]
    return {"output": _output(inputs, rows), "lines": inputs.lines}


@implementation("gated_delta", name="AscendKDAAttnBackend.target_verify", supports=_RULE, on_device=True)
def rule_of_drafts(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Drafts, as many for each request, by the Triton kernel of sgl-kernel-npu."""
    length, batch, tokens = inputs.lengths[0], len(inputs.lengths), sum(inputs.lengths)
    heads, value_dim = inputs.value.shape[1:]
    key_heads, key_dim = inputs.key.shape[1:]
    states = torch.cat([torch.zeros_like(inputs.states[:1]), inputs.states])
    each = states.new_zeros(batch, length, *states.shape[1:])
    mixed = torch.cat([one[:tokens].flatten(1) for one in (inputs.query, inputs.key, inputs.value)], dim=1)
    lines = mixed.new_zeros(len(states), _WIDTH - 1 + length - 1, mixed.shape[1])
    requests = list(zip(inputs.lengths, [1] * batch, (inputs.initial + 1).tolist(), strict=True))
    world = delta_world(
        ForwardMode.TARGET_VERIFY, Sizes(key_heads, heads, key_dim, value_dim),
        mixed.new_zeros(_WIDTH, mixed.shape[1]), None, (lines, states, each), requests, drafts=length,
        of=ascend_kda_backend.AscendKDAAttnBackend,
    )  # fmt: skip
    gate = inputs.beta.new_zeros(tokens, heads, key_dim, dtype=torch.float32)
    if inputs.channel_gate is not None:
        gate = inputs.channel_gate[:tokens].contiguous()
    with convolved_already():
        answer = _run(world, mixed, gate, inputs.beta[:tokens].contiguous())
    output, after = torch.zeros_like(inputs.value), inputs.states.clone()
    output[:tokens] = answer.reshape(tokens, heads, value_dim)
    after[inputs.slots[:tokens].long()] = each.flatten(0, 1)
    return {"output": output, "states": after}
