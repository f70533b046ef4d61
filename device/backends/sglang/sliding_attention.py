"""Attention of sglang's Ascend backend: extend, decode eagerly and as graphs have it, and verification of drafts.

``sliding_window_size`` of a layer is the number of the model's configuration in Step-3.5 and MiMo-V2, and that less one
in GPT-OSS and Gemma 3: both conventions are implementations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from npudiff import Target, implementation
from npudiff.device.backends.sglang.attention_world import attention_world
from npudiff.device.backends.sglang.world import PAGE
from npudiff.model.constraints import Box
from npudiff.reference.sliding_attention import SlidingAttentionInputs

_PAGES: Box = {
    "layout": ("PA_BSND",),
    "page_size": (PAGE,),
    "rows": ("contiguous",),
    "group": range(1, 65),
    "poison": ("large",),
    "fully_masked_rows": ("none",),
    "far_pool": (False,),
}
_WIDE: Box = {**_PAGES, "head_dims": ("192", "256", "192/128"), "sinks": (False,)}
_TND: tuple[Box, ...] = ({**_PAGES, "head_dims": ("128",)}, _WIDE)
_BSND: Box = {**_PAGES, "head_dims": ("64",), "sinks": (False,)}
_ONE_ROW: Box = {**_PAGES, "query_length": (1,), "head_dims": ("64", "128"), "sinks": (False,), "padded_rows": (0,)}
_DRAFTS: tuple[Box, ...] = tuple({**box, "query_length": range(2, 9), "ragged": (False,)} for box in _TND)

_HYBRID: tuple[Box, ...] = ({"hybrid": (True,)}, {"window": (None,)})
_ONE_POOL: tuple[Box, ...] = ({"hybrid": (False,), "window": range(1, 2**31)},)
POOLS: dict[str, tuple[Box, ...]] = {"": _HYBRID, "_one_pool": _ONE_POOL}
"""Whether layers with a window have a pool of their own, or share that of the others (``--disable-hybrid-swa-memory``);
by the end of an implementation's name."""

WINDOWS: dict[str, Callable[[int], int]] = {"": lambda window: window, "_exclusive": lambda window: window - 1}
"""What a layer is told for a window of so many visible keys, by the end of an implementation's name."""

Function = Callable[[SlidingAttentionInputs, Target], torch.Tensor]


def _size(inputs: SlidingAttentionInputs, convention: str) -> int:
    return -1 if inputs.window is None else WINDOWS[convention](inputs.window)


def _extend(convention: str) -> Function:
    def forward_extend(inputs: SlidingAttentionInputs, target: Target) -> torch.Tensor:
        """AscendAttnBackend.forward_extend."""
        world = attention_world(inputs, ForwardMode.EXTEND, _size(inputs, convention))
        world.backend.init_forward_metadata(world.batch)
        return world.rows(world.backend.forward_extend(**world.arguments))

    return forward_extend


def _decode(convention: str) -> Function:
    def forward_decode(inputs: SlidingAttentionInputs, target: Target) -> torch.Tensor:
        """AscendAttnBackend.forward_decode, eagerly."""
        world = attention_world(inputs, ForwardMode.DECODE, _size(inputs, convention))
        world.backend.init_forward_metadata(world.batch)
        return world.rows(world.backend.forward_decode(**world.arguments))

    return forward_decode


def _graph_decode(convention: str) -> Function:
    def forward_decode_graph(inputs: SlidingAttentionInputs, target: Target) -> torch.Tensor:
        """AscendAttnBackend.forward_decode with the metadata of a capture, not captured."""
        world = attention_world(inputs, ForwardMode.DECODE, _size(inputs, convention))
        world.backend.init_cuda_graph_state(len(inputs.kv_lengths), inputs.query.shape[0])
        world.backend.init_forward_metadata_out_graph(world.batch, in_capture=True)
        return world.rows(world.backend.forward_decode(**world.arguments))

    return forward_decode_graph


def _verify(convention: str) -> Function:
    def target_verify(inputs: SlidingAttentionInputs, target: Target) -> torch.Tensor:
        """AscendAttnBackend.forward_extend where drafts are verified."""
        drafts = inputs.query_lengths[0]
        world = attention_world(inputs, ForwardMode.TARGET_VERIFY, _size(inputs, convention), drafts=drafts)
        world.backend.init_forward_metadata(world.batch)
        return world.rows(world.backend.forward_extend(**world.arguments))

    return target_verify


_PATHS: dict[str, tuple[Callable[[str], Function], tuple[Box, ...]]] = {
    "forward_extend": (_extend, (*_TND, _BSND)),
    "forward_decode": (_decode, (_ONE_ROW,)),
    "forward_decode_graph": (_graph_decode, (_ONE_ROW,)),
    "target_verify": (_verify, _DRAFTS),
}

PATHS = [
    implementation(
        "sliding_attention",
        name=path + pools + convention,
        supports=[{**box, **pool} for box in boxes for pool in POOLS[pools]],
        on_device=True,
    )(make(convention))
    for path, (make, boxes) in _PATHS.items()
    for pools in POOLS
    for convention in WINDOWS
]
