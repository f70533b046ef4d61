"""Rotary position embedding: its cases, data, and what must hold."""

from npudiff.model.component import Component
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties.rotary.case import AXES, DATA, RotaryCase, check_case, describe, features, values
from npudiff.properties.rotary.inputs import build_inputs, coordinates
from npudiff.properties.rotary.relations import RELATIONS
from npudiff.properties.rotary.strategy import cases
from npudiff.reference.rotary import rotary

__all__ = ["DATA", "RotaryCase", "build_inputs", "cases", "check_case", "component"]

component = Component(
    name="rotary",
    summary="rotary position embedding of queries and keys, from a table of cosines and sines",
    case_type=RotaryCase,
    outputs=("query", "key"),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=rotary,
    values=values,
    features=features,
    describe=describe,
    check_case=check_case,
    coordinates=coordinates,
    highlighted_region="partial rotary",
    relations=RELATIONS,
    example_ratio=0.6,
    profiles={
        "step-3.5-flash": {"dims": ("64/128", "128"), "style": ("half",), "dtype": ("bfloat16",)},
        "gpt-oss-120b": {"dims": ("64",), "style": ("half",), "dtype": ("bfloat16",)},
        "qwen3-30b-a3b": {"dims": ("128",), "style": ("half",), "dtype": ("bfloat16",)},
        "mimo-v2-flash": {"dims": ("64/192",), "style": ("half",), "dtype": ("bfloat16",)},
        "deepseek-v3": {"dims": ("64",), "style": ("interleaved", "interleaved_to_half"), "dtype": ("bfloat16",)},
    },
    baselines=BASELINES["rotary"],
)  # fmt: skip
