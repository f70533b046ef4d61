"""Tables of cosines and sines of rotary embedding: their cases, data, and what must hold."""

from npudiff.model.component import Component
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import of_models, rope_boxes
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
    profiles=of_models(rope_boxes),
    baselines=BASELINES["rope_cache"],
)
