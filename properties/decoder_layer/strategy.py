"""Drawing cases of a decoder layer: small, with requests of different lengths, and steps that cross pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from hypothesis import strategies as st

from npudiff.draw.cases import Chooser, assume, chosen, within
from npudiff.model.constraints import Box, Constraints, allows, least
from npudiff.properties.decoder_layer.case import (
    FLAGS,
    FORMS,
    KINDS,
    LIMITS,
    ROTARY,
    DecoderLayerCase,
    LayerRequest,
)

FIXED: Mapping[str, Mapping[str, object]] = {
    "step-3.5": {"query_rank": 32},
    "deepseek": {"window": None, "kv_heads": 1, "limit": None, "shared_limit": None, "rotary": "whole", "head_dim": 64},
}
"""What the layers of a kind have in common; axes that say nothing of a kind are there as well."""

FAR_PREFIX_SHARE = 10
"""In one of so many cases, requests have two whole pages of prefix more often than not."""

MOST_HEADS, MOST_KV_HEADS = 40, 17
"""Query heads per KV head, and KV heads, up to which a layer has more than it must."""

_UNUSED = {"step-3.5": ("query_rank",), "deepseek": ("rotary", "head_dim")}


def cases(constraints: Constraints) -> st.SearchStrategy[DecoderLayerCase]:
    """Return a strategy of cases that lie within the constraints."""
    return chosen(partial(_draw_case, constraints.boxes))


def _draw_case(boxes: Sequence[Box], choose: Chooser) -> DecoderLayerCase:
    choose.draw_outlier_axis(DecoderLayerCase.axes(), "group", "kv_heads", "batch", "experts")
    box = choose.pick(boxes)
    kinds = [kind for kind in within(KINDS, box.get("kind")) if _fits(box, kind)]
    assume(kinds)
    kind = choose.pick(kinds)
    far_prefix = choose.pick(range(FAR_PREFIX_SHARE)) == FAR_PREFIX_SHARE - 1 and not choose.far
    page_size = choose.value(box, "page_size", (16, 32) if far_prefix or choose.far else (16, 32, 128))
    top_k = choose.value(box, "top_k", (1, 2, 3))
    groups = 1 if kind == "step-3.5" else choose.value(box, "groups", (1, 2))
    experts = choose.pick(_experts(choose.options(box, "experts", (4, 8, 16)), groups, top_k))
    choices = {
        "decode_steps": choose.value(box, "decode_steps", (0, 1) if choose.far == "batch" else (0, 1, 2, 3)),
        "window": choose.value(box, "window", (None, 1, 2, 5, 15, 17)),
        "hidden_size": choose.value(box, "hidden_size", (64, 96, 128)),
        "query_rank": choose.value(box, "query_rank", (32, 64)),
        "kv_heads": choose.pick(_few(choose.options(box, "kv_heads", (1, 2)), MOST_KV_HEADS)),
        "group": choose.pick(_few(choose.options(box, "group", (1, 2, 4)), MOST_HEADS)),
        "head_dim": choose.value(box, "head_dim", (64, 128)),
        "rotary": choose.value(box, "rotary", ROTARY),
        "width": choose.value(box, "width", (16, 32)),
        "form": choose.value(box, "form", FORMS),
        "limit": choose.value(box, "limit", (None, *LIMITS)),
        "shared_limit": choose.value(box, "shared_limit", (None, *LIMITS)),
        **{flag: choose.value(box, flag, (False, True)) for flag in FLAGS},
    }
    return DecoderLayerCase(
        **{**choices, **FIXED[kind]},
        requests=choose.draw_list(box, "batch", (1, 2, 3), lambda: _draw_request(choose, box, page_size, far_prefix)),
        kind=kind,
        top_k=top_k,
        groups=groups,
        experts=experts,
        page_size=page_size,
        seed=choose.pick(range(1024)),
    )


def _few(allowed: Sequence[int], most: int) -> Sequence[int]:
    return [count for count in allowed if count <= most] or [least(allowed)]


def _experts(allowed: Sequence[int], groups: int, top_k: int) -> Sequence[int]:
    """Numbers of experts: in groups, of more than two each, as the operator asks, and enough in half of the groups."""
    fitting = [
        count
        for count in allowed
        if top_k <= count and (groups == 1 or (count % groups == 0 and count > 2 * groups and top_k <= count // 2))
    ]
    assume(fitting)
    return fitting


def _fits(box: Box, kind: str) -> bool:
    """Whether a layer of a kind can be within the box."""
    told = {axis: value for axis, value in FIXED[kind].items() if axis not in _UNUSED[kind]}
    if kind == "step-3.5":
        told["groups"] = 1
    return all(axis not in box or allows(box[axis], value) for axis, value in told.items())


def _draw_request(choose: Chooser, box: Box, page_size: int, far_prefix: bool) -> LayerRequest:
    small = min(page_size, 16)
    prefixes = [0, 0, 1, 3, small]
    if far_prefix:
        prefixes += [page_size + 1, 2 * page_size, 2 * page_size + 1, 3 * page_size - 1] * 3
    return LayerRequest(
        prefix=choose.value(box, "prefix", prefixes),
        prefill=choose.value(box, "prefill", (1, 2, 3, 5, small - 1, small + 1)),
    )
