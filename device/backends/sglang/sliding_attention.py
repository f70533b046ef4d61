"""Attention of sglang's Ascend backend: extend, decode eagerly and as graphs have it, and verification of drafts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from npudiff import Implementation, Target, implementation
from npudiff.device.backends.paged_attention import PAGES, real_rows
from npudiff.device.backends.sglang.attention_world import attention_world
from npudiff.device.backends.sglang.draft_world import Drafted, drafted_rows
from npudiff.device.backends.sglang.graph_world import Recorded, graph_runner
from npudiff.device.backends.sglang.world import options_of
from npudiff.model.constraints import Box
from npudiff.reference.sliding_attention import SlidingAttentionInputs

_TND: tuple[Box, ...] = (
    {**PAGES, "head_dims": ("128", "192/128")},
    {**PAGES, "head_dims": ("192", "256"), "sinks": (False,)},
)
"""Head dims that go to the operator without padding; a sink goes with values of 128 elements at most."""

_BSND: Box = {**PAGES, "head_dims": ("64",)}
_ONE_ROW: Box = {**PAGES, "query_length": (1,), "head_dims": ("64", "128"), "padded_rows": (0,)}
_DRAFTS: tuple[Box, ...] = tuple({**box, "query_length": range(2, 9), "ragged": (False,)} for box in _TND)

POISON = 1e4
"""What lies where a graph has to write its new tokens."""

Function = Callable[[SlidingAttentionInputs, Target], torch.Tensor]

WINDOW, POOL, FIA = "window_convention", "window_pool", "ASCEND_USE_FIA"
OPTIONS = {WINDOW: ("inclusive", "exclusive"), POOL: ("own", "shared"), FIA: ("1", "0")}
"""Whether a layer's ``sliding_window_size`` is the number of visible keys, as configurations of Step-3.5 have it, or
one less, without the query's own, as in GPT-OSS and Gemma 3; and whether layers with a window have a pool of their own,
or share that of the others (``--disable-hybrid-swa-memory``)."""

_POOLS: tuple[Box, ...] = (
    {POOL: ("own",), "hybrid": (True,)},
    {POOL: ("own",), "window": (None,), WINDOW: ("inclusive",)},
    {POOL: ("shared",), "hybrid": (False,), "window": range(1, 2**31)},
)


def _size(inputs: SlidingAttentionInputs) -> int:
    if inputs.window is None:
        return -1
    return inputs.window - (options_of(inputs)[WINDOW] == "exclusive")


_WITHOUT_FIA: tuple[Box, ...] = (
    {FIA: ("0",), POOL: ("own",), "hybrid": (False,), "window": (None,), WINDOW: ("inclusive",), "sinks": (False,)},
    {
        FIA: ("0",), POOL: ("own",), "hybrid": (True,), "sinks": (True,), "rows": ("contiguous",),
        "kv_length": range(1, 1025),
    },
)  # fmt: skip
"""Models of one pool go to operators of ATB, those with sinks to Triton kernels, whose interpreter wants short
histories. sglang says that other models with windows need the flag."""


def _attention(name: str, *boxes: Box, without_fia: Sequence[Box] = ()) -> Callable[[Function], Implementation]:
    supports = [{FIA: ("1",), **box, **pool} for box in boxes for pool in _POOLS]
    supports += [{**box, **pool} for box in without_fia for pool in _WITHOUT_FIA]
    return implementation("sliding_attention", name=name, supports=supports, options=OPTIONS, on_device=True)


_SMALL: Box = {**PAGES, "head_dims": ("64", "128")}


@_attention("forward_extend", *_TND, _BSND, without_fia=[_SMALL])
def forward_extend(inputs: SlidingAttentionInputs, target: Target) -> torch.Tensor:
    """AscendAttnBackend.forward_extend."""
    world = attention_world(inputs, ForwardMode.EXTEND, _size(inputs))
    world.backend.init_forward_metadata(world.batch)
    return real_rows(world.backend.forward_extend(**world.arguments), inputs)


@_attention("forward_decode", _ONE_ROW, without_fia=[_ONE_ROW])
def forward_decode(inputs: SlidingAttentionInputs, target: Target) -> torch.Tensor:
    """AscendAttnBackend.forward_decode, eagerly."""
    world = attention_world(inputs, ForwardMode.DECODE, _size(inputs))
    world.backend.init_forward_metadata(world.batch)
    return real_rows(world.backend.forward_decode(**world.arguments), inputs)


@_attention("forward_decode_graph", _ONE_ROW, without_fia=[_ONE_ROW])
def forward_decode_graph(inputs: SlidingAttentionInputs, target: Target) -> torch.Tensor:
    """AscendAttnBackend.forward_decode with the metadata of a capture, not captured."""
    world = attention_world(inputs, ForwardMode.DECODE, _size(inputs))
    world.backend.init_cuda_graph_state(len(inputs.kv_lengths), inputs.query.shape[0])
    world.backend.init_forward_metadata_out_graph(world.batch, in_capture=True)
    return real_rows(world.backend.forward_decode(**world.arguments), inputs)


@_attention("target_verify", *_DRAFTS)
def target_verify(inputs: SlidingAttentionInputs, target: Target) -> torch.Tensor:
    """AscendAttnBackend.forward_extend where drafts are verified."""
    drafts = inputs.query_lengths[0]
    world = attention_world(inputs, ForwardMode.TARGET_VERIFY, _size(inputs), drafts=drafts)
    world.backend.init_forward_metadata(world.batch)
    return real_rows(world.backend.forward_extend(**world.arguments), inputs)


STAGE, BEFORE = "pipeline_stage", "replayed_before"
_GRAPH_OPTIONS = {**OPTIONS, STAGE: ("last", "earlier"), BEFORE: ("never", "longer")}
"""Whether a rank hands on logits or hidden states; and whether the graph was replayed before, with a full bucket of
longer requests."""

_ARCHITECTURES = {"inclusive": "Step3p5ForCausalLM", "exclusive": "GptOssForCausalLM"}
"""A model with windows of each convention; one without any has neither."""


def _replayed(inputs: SlidingAttentionInputs, mode: ForwardMode, drafts: int | None) -> torch.Tensor:
    """Capture the layer at a bucket, and replay it with the requests of the case, whose new tokens it writes."""
    options = options_of(inputs)
    world = attention_world(inputs, mode, _size(inputs), drafts=drafts)
    windows = inputs.sliding is not None or inputs.window is not None or inputs.sinks is not None
    architecture = _ARCHITECTURES[options[WINDOW]] if windows else "LlamaForCausalLM"
    runner = graph_runner(Recorded(world, mode, drafts or 1, architecture, options[STAGE] == "earlier"))
    states = {"q": world.arguments["q"], **world.taken_out(POISON)}
    if options[BEFORE] == "longer":
        runner.run_before(POISON)
    return real_rows(runner.run(world.batch, states), inputs)


def _captured(name: str, *boxes: Box) -> Callable[[Function], Implementation]:
    supports = [{FIA: ("1",), **box, **pool, "padded_rows": (0,)} for box in boxes for pool in _POOLS]
    return implementation("sliding_attention", name=name, supports=supports, options=_GRAPH_OPTIONS, on_device=True)


@_captured("forward_decode_replayed", _ONE_ROW)
def forward_decode_replayed(inputs: SlidingAttentionInputs, target: Target) -> torch.Tensor:
    """AscendAttnBackend.forward_decode in a graph that NPUGraphRunner captures, updates and replays."""
    return _replayed(inputs, ForwardMode.DECODE, None)


@_captured("target_verify_replayed", *_DRAFTS)
def target_verify_replayed(inputs: SlidingAttentionInputs, target: Target) -> torch.Tensor:
    """AscendAttnBackend.forward_extend of drafts in a graph that NPUGraphRunner captures, updates and replays."""
    return _replayed(inputs, ForwardMode.TARGET_VERIFY, inputs.query_lengths[0])


STEPS, LAYERS = "speculative_num_steps", "draft_layers"
"""Of a model that drafts: its steps, of which the last is no pass, and its layers."""


@implementation(
    "sliding_attention",
    name="draft_decode_replayed",
    supports={
        **_ONE_ROW, "hybrid": (False,), "window": (None,), "sinks": (False,), "kv_length": range(3, 2**20), FIA: ("1",),
    },
    options={FIA: ("1",), STEPS: ("2", "3"), LAYERS: ("1", "2")},
    on_device=True,
)  # fmt: skip
def draft_decode_replayed(inputs: SlidingAttentionInputs, target: Target) -> torch.Tensor:
    """AscendAttnMultiStepDraftBackend in a graph that EAGLEDraftNpuGraphRunner updates and replays."""
    options = options_of(inputs)
    world = attention_world(inputs, ForwardMode.DECODE, -1)
    drafted = Drafted(world, int(options[STEPS]), int(options[LAYERS]))
    return real_rows(drafted_rows(drafted, POISON), inputs)
