"""Sizes of the experts of models, of which a run draws a few tokens."""

from npudiff.constraints import Box

FEW = range(1, 9)
"""Tokens of a case: what is looked at is the matrices of those experts that are chosen."""

MODELS: dict[str, Box] = {
    "step-3.5-flash": {
        "tokens": FEW,
        "hidden": (4096,),
        "width": (1280,),
        "experts": (288,),
        "top_k": (8,),
        "here": ("chosen",),
        "activation": ("silu",),
        "limit": (7.0, None),
        "shared_width": (1280,),
        "dtype": ("bfloat16",),
    },
    "deepseek-v3": {
        "tokens": FEW,
        "hidden": (7168,),
        "width": (2048,),
        "experts": (256,),
        "top_k": (8,),
        "here": ("chosen",),
        "activation": ("silu",),
        "limit": (None,),
        "shared_width": (2048,),
        "form": ("w8a8", "w4a8"),
        "groups": (1,),
        "dtype": ("bfloat16",),
    },
    "gpt-oss-120b": {
        "tokens": FEW,
        "hidden": (2880,),
        "width": (2880,),
        "experts": (128,),
        "top_k": (4,),
        "here": ("chosen",),
        "activation": ("swiglu_oai",),
        "limit": (7.0,),
        "layout": ("interleaved",),
        "form": ("float",),
        "biased": (True,),
        "shared_width": (0,),
        "dtype": ("bfloat16",),
    },
    "qwen3-30b-a3b": {
        "tokens": FEW,
        "hidden": (2048,),
        "width": (768,),
        "experts": (128,),
        "top_k": (8,),
        "here": ("chosen",),
        "activation": ("silu",),
        "limit": (None,),
        "shared_width": (0,),
        "dtype": ("bfloat16",),
    },
    "mimo-v2-flash": {
        "tokens": FEW,
        "hidden": (4096,),
        "width": (2048,),
        "experts": (256,),
        "top_k": (8,),
        "here": ("chosen",),
        "activation": ("silu",),
        "limit": (None,),
        "shared_width": (0,),
        "dtype": ("bfloat16",),
    },
}
