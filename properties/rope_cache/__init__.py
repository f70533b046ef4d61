"""Tables of cosines and sines of rotary embedding: their cases, data, and what must hold."""

from npudiff.model.component import Component
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties.rope_cache.case import AXES, RopeCacheCase, check_case, describe, features, values
from npudiff.properties.rope_cache.inputs import build_inputs, coordinates
from npudiff.properties.rope_cache.relations import RELATIONS
from npudiff.properties.rope_cache.strategy import cases
from npudiff.reference.rope_cache import rope_cache

component = Component(
    name="rope_cache",
    summary="cosines and sines of rotary embedding under every scaling, and the softmax scale",
    case_type=RopeCacheCase,
    outputs=("cos", "sin", "table", "softmax_scale"),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=rope_cache,
    values=values,
    features=features,
    describe=describe,
    check_case=check_case,
    coordinates=coordinates,
    highlighted_region="beyond max positions",
    relations=RELATIONS,
    profiles={
        "step-3.5-flash": {"kind": ("base",), "dims": ("64/128", "128"), "dtype": ("bfloat16",)},
        "deepseek-v3": {
            "kind": ("deepseek_yarn",),
            "dims": ("64/192",),
            "base": (10_000.0,),
            "factor": (40.0,),
            "max_positions": (4096,),
            "betas": ("32/1",),
            "mscales": ("1/1",),
            "extrapolation_factor": (1.0,),
            "attention_factor": (1.0,),
            "rows": range(1, 163_841),
        },
        "gpt-oss-120b": {
            "kind": ("yarn",),
            "dims": ("64",),
            "base": (150_000.0,),
            "factor": (32.0,),
            "max_positions": (4096,),
            "betas": ("32/1",),
            "truncate": (False,),
            "mscales": ("none",),
            "extrapolation_factor": (1.0,),
            "attention_factor": (1.0,),
            "rows": range(1, 131_073),
        },
        "mimo-v2-flash": {"kind": ("base",), "dims": ("64/192",)},
        "qwen3-30b-a3b": {"kind": ("base",), "dims": ("128",), "base": (1_000_000.0,), "dtype": ("bfloat16",)},
    },
    baselines=BASELINES["rope_cache"],
)
