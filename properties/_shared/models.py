"""Models whose sizes a run can be narrowed to, and what each component makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from npudiff.model.constraints import Box
from npudiff.model.profiles import Boxes, Profiles
from npudiff.properties._shared.configuration import Layer, Model, Rope, model_of
from npudiff.properties._shared.head_dims import join_head_dims

__all__ = ["FEW", "MODELS", "PAGE_SIZE", "Model", "of_experts", "of_models", "rope_boxes", "rotary_boxes"]

PAGE_SIZE = 128
"""Tokens per page, as backends have it on Ascend."""

FEW = range(1, 9)
"""Tokens of a case: enough, where its width is that of a model."""

STEP_WINDOW = 512
"""Visible keys of Step-3.5's layers with a window: what backends take for granted."""

MIMO_WINDOWS = (128, 129)
"""Visible keys of MiMo-V2's layers with a window. Its configuration says 128; whether the query's own is one of them is
disputed, so that both are drawn."""

STEP_ROPE = Rope("llama3", 128, 128, 5_000_000.0, factor=2.0, max_positions=131_072, low=1.0, high=32.0)
"""Step-3.5's full layers. That they are smoothed between 1 and 32 is known; base, factor and length are a choice."""

MODELS: Mapping[str, Model] = {
    "step-3.5-flash": Model(
        4096,
        (Layer("128", 8, 8), Layer("128", 8, 12, (STEP_WINDOW,))),
        288, 8, 1280, 1280, "sigmoid", router_bias=True, scaling=3.0,
        limit=7.0, shared_limit=16.0, norm="gemma", epsilon=1e-5,
        ropes=(STEP_ROPE, Rope("base", 128, 128, 10_000.0), Rope("base", 64, 128, 10_000.0)),
    ),
    "deepseek-v3": Model(
        7168, (Layer("512/64", 1, 128),), 256, 8, 2048, 2048, "sigmoid", router_bias=True, scaling=2.5,
        router_groups=8, kept_groups=4, latent=True, epsilon=1e-6, query_rank=1536,
        ropes=(Rope("deepseek_yarn", 64, 192, 10_000.0, factor=40.0, max_positions=4096, fast=32, slow=1,
                    mscale=1.0, mscale_all_dim=1.0),),
    ),
    "gpt-oss-120b": Model(
        2880, (Layer("64", 8, 8, sinks=True), Layer("64", 8, 8, (128,), sinks=True)),
        128, 4, 2880, 0, "softmax", activation="swiglu_oai", limit=7.0, epsilon=1e-5,
        ropes=(Rope("yarn", 64, 64, 150_000.0, factor=32.0, max_positions=4096, fast=32, slow=1, truncate=False),),
    ),
    "qwen3-30b-a3b": Model(
        2048, (Layer("128", 4, 8),), 128, 8, 768, 0, "softmax", epsilon=1e-6, ropes=(Rope("base", 128, 128, 1e6),),
    ),
    "mimo-v2-flash": Model(
        4096, (Layer("192/128", 4, 16), Layer("192/128", 8, 8, MIMO_WINDOWS, sinks=True)),
        256, 8, 2048, 0, "sigmoid", router_bias=True, epsilon=1e-5,
        ropes=(Rope("base", 64, 192, 5_000_000.0), Rope("base", 64, 192, 10_000.0)),
    ),
}  # fmt: skip
"""By the name that ``--model`` takes; any other model is taken by its ``config.json``. Limits and the window of
Step-3.5 are what backends take for granted; a configuration may have others."""


def of_models(boxes: Callable[[Model], Boxes | None]) -> Profiles:
    """Return what a component is narrowed to for each model, but for those of which it has nothing to say."""
    named = {name: chosen for name, model in MODELS.items() if (chosen := boxes(model)) is not None}
    return Profiles(named, tuple(MODELS), lambda configuration: boxes(model_of(configuration)))


def of_experts(boxes: Callable[[Model], Boxes | None]) -> Profiles:
    """Return the same of a component that only models with experts have."""
    return of_models(lambda model: boxes(model) if model.experts else None)


def _dims(rope: Rope) -> str:
    """``64/192``, or ``128`` where all of a head is rotated."""
    return join_head_dims(rope.rotary, rope.head_dim)


def rope_boxes(model: Model) -> Boxes | None:
    """Return the tables of a model, for ``rope_cache``."""
    return [_rope_box(rope) for rope in model.ropes] or None


def _rope_box(rope: Rope) -> Box:
    box: dict[str, tuple[object, ...]] = {
        "kind": (rope.kind,), "dims": (_dims(rope),), "base": (rope.base,), "other": ("none",), "sections": (1,),
    }  # fmt: skip
    if rope.kind != "base":
        box |= {"factor": (rope.factor,), "max_positions": (rope.max_positions,)}
    if rope.kind == "llama3":
        box["smoothing"] = (f"{rope.low:g}/{rope.high:g}",)
    if rope.kind.endswith("yarn"):
        mscales = "none" if rope.mscale is None else f"{rope.mscale:g}/{rope.mscale_all_dim:g}"
        box |= {"betas": (f"{rope.fast:g}/{rope.slow:g}",), "mscales": (mscales,), "extrapolation_factor": (1.0,),
                "attention_factor": (1.0,), "truncate": (rope.truncate,)}  # fmt: skip
    return box


def rotary_boxes(model: Model) -> Boxes | None:
    """Return the rotations of a model, for ``rotary``: of MLA the rope part alone, whose elements are neighbours."""
    style = ("interleaved", "interleaved_to_half") if model.latent else ("half",)
    dims = {str(rope.rotary) if model.latent else _dims(rope) for rope in model.ropes}
    sections = {"sections": (model.rope_sections,)} if model.rope_sections else {}
    return {"dims": tuple(sorted(dims)), "style": style, "dtype": ("bfloat16",), **sections} if dims else None
