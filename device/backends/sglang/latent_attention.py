"""Latent attention of sglang's Ascend backend: extend with a prefix or without, decode, verification of drafts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from npudiff import Implementation, Target, implementation
from npudiff.device.backends.paged_attention import PAGE
from npudiff.device.backends.sglang.draft_world import Drafted, drafted_rows
from npudiff.device.backends.sglang.graph_world import Recorded, graph_runner
from npudiff.device.backends.sglang.latent_world import Flags, LatentWorld
from npudiff.device.backends.sglang.pool_world import NZ
from npudiff.device.backends.sglang.world import options_of
from npudiff.model.constraints import Box
from npudiff.reference.latent_attention import LatentAttentionInputs

FIA = "ASCEND_USE_FIA"
OPTIONS = {FIA: ("1", "0"), NZ: ("0", "1")}

_PAGES: Box = {
    "page_size": (PAGE,), "rows": ("contiguous",), "poison": ("large",), "fully_masked_rows": ("none",),
    "rank": (512,), "rope_dim": (64,), "heads": range(1, 129),
}  # fmt: skip
"""Pages of 128 tokens, as sglang's server has them on Ascend, and requests that a scheduler makes."""

_ORDERS: tuple[Box, ...] = (
    {FIA: ("1",), NZ: ("0",), "layout": ("PA_BSND",)},
    {FIA: ("1",), NZ: ("1",), "layout": ("PA_NZ",)},
)

_ABSORBED: Box = {**_PAGES, "form": ("absorbed",), "padded_rows": (0,)}
_EXPANDED: Box = {
    **_PAGES, "form": ("expanded",), "nope_dim": (128,), "value_dim": (128,), "merges": (1,), "dtype": ("bfloat16",),
    "prefix": ("none", "whole pages"), "query_length": range(1, 2**20),
}  # fmt: skip
"""Prefixes are whole pages, since sglang's radix cache and its chunks are made of them."""

Function = Callable[[LatentAttentionInputs, Target], torch.Tensor]


BEFORE, POISON = "replayed_before", 1e4
"""Whether a graph was replayed before, with a full bucket of longer requests; and what lies where it has to write."""


def _attention(
    name: str, *boxes: Box, more: Mapping[str, tuple[str, ...]] | None = None
) -> Callable[[Function], Implementation]:
    options = {**OPTIONS, **(more or {})}
    return implementation("latent_attention", name=name, supports=boxes, options=options, on_device=True)


def _by_heads(inputs: LatentAttentionInputs, answer: torch.Tensor) -> torch.Tensor:
    """Return ``[tokens, heads, value_dim]`` of an answer in whatever shape, with zeros for padding."""
    tokens, heads, _ = inputs.query.shape
    real = sum(inputs.query_lengths)
    output = answer.reshape(-1, heads, inputs.value_dim)[:real]
    return torch.nn.functional.pad(output, (0, 0, 0, 0, 0, tokens - real))


@_attention("forward_extend_mla", *({**_EXPANDED, **order} for order in _ORDERS))
def forward_extend(inputs: LatentAttentionInputs, target: Target) -> torch.Tensor:
    """AscendAttnBackend.forward_extend of heads, merged with prefixes whose pages it gathers and projects."""
    with Flags(inputs):
        world = LatentWorld(inputs, ForwardMode.EXTEND)
        return _by_heads(inputs, world.backend.forward_extend(**world.expanded(target)))


@_attention(
    "forward_decode_mla",
    *({**_ABSORBED, **order, "query_length": (1,)} for order in _ORDERS),
    {**_ABSORBED, "query_length": (1,), FIA: ("0",), NZ: ("0",), "layout": ("PA_BSND",)},
)
def forward_decode(inputs: LatentAttentionInputs, target: Target) -> torch.Tensor:
    """AscendAttnBackend.forward_decode over latents, eagerly; ATB's kernel without FIA or with fewer than 8 heads."""
    with Flags(inputs):
        world = LatentWorld(inputs, ForwardMode.DECODE)
        return _by_heads(inputs, world.backend.forward_decode(**world.absorbed()))


@_attention(
    "target_verify_mla",
    *({**_ABSORBED, **order, "query_length": range(2, 9), "ragged": (False,), "dtype": ("bfloat16",)}
      for order in _ORDERS),
)  # fmt: skip
def target_verify(inputs: LatentAttentionInputs, target: Target) -> torch.Tensor:
    """AscendAttnBackend.forward_extend over latents where drafts are verified."""
    with Flags(inputs):
        drafts = inputs.query_lengths[0]
        world = LatentWorld(inputs, ForwardMode.TARGET_VERIFY, drafts=drafts)
        return _by_heads(inputs, world.backend.forward_extend(**world.absorbed()))


def _replayed(inputs: LatentAttentionInputs, mode: ForwardMode, drafts: int | None) -> torch.Tensor:
    """Capture the layer at a bucket, and replay it with the requests of the case, whose new tokens it writes."""
    with Flags(inputs):
        world = LatentWorld(inputs, mode, drafts=drafts)
        runner = graph_runner(Recorded(world, mode, drafts or 1, "DeepseekV3ForCausalLM", early_stage=False))
        absorbed = world.absorbed()
        states = {"q": absorbed["q"], "q_rope": absorbed["q_rope"], **world.taken_out(POISON)}
        if options_of(inputs)[BEFORE] == "longer":
            runner.run_before(POISON)
        return _by_heads(inputs, runner.run(world.batch, states))


_REPLAYED = {BEFORE: ("never", "longer")}


@_attention(
    "forward_decode_mla_replayed", *({**_ABSORBED, **order, "query_length": (1,)} for order in _ORDERS), more=_REPLAYED
)
def forward_decode_replayed(inputs: LatentAttentionInputs, target: Target) -> torch.Tensor:
    """AscendAttnBackend.forward_decode over latents in a graph that NPUGraphRunner captures, updates and replays."""
    return _replayed(inputs, ForwardMode.DECODE, None)


@_attention(
    "target_verify_mla_replayed",
    *({**_ABSORBED, **order, "query_length": range(2, 9), "ragged": (False,), "dtype": ("bfloat16",)}
      for order in _ORDERS),
    more=_REPLAYED,
)  # fmt: skip
def target_verify_replayed(inputs: LatentAttentionInputs, target: Target) -> torch.Tensor:
    """AscendAttnBackend.forward_extend of drafts over latents in a graph that NPUGraphRunner replays."""
    return _replayed(inputs, ForwardMode.TARGET_VERIFY, inputs.query_lengths[0])


STEPS, LAYERS = "speculative_num_steps", "draft_layers"
_DRAFTING = {STEPS: ("2", "3"), LAYERS: ("1", "2")}
"""Of a model that drafts: its steps, of which the last is no pass, and its layers."""


@_attention(
    "draft_decode_mla_replayed",
    *({**_ABSORBED, **order, "query_length": (1,), "kv_length": range(3, 2**20)} for order in _ORDERS),
    more=_DRAFTING,
)
def draft_decode_replayed(inputs: LatentAttentionInputs, target: Target) -> torch.Tensor:
    """AscendAttnMultiStepDraftBackend over latents, in a graph that EAGLEDraftNpuGraphRunner updates and replays."""
    with Flags(inputs):
        options = options_of(inputs)
        world = LatentWorld(inputs, ForwardMode.DECODE)
        drafted = Drafted(world, int(options[STEPS]), int(options[LAYERS]))
        return _by_heads(inputs, drafted_rows(drafted, POISON))
