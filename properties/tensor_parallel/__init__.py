"""Linear layers that are divided among ranks: their cases, data, and what must hold."""

from npudiff.model.component import Component
from npudiff.model.ranks import Ranks
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties.tensor_parallel.case import TensorParallelCase
from npudiff.properties.tensor_parallel.coordinates import coordinates
from npudiff.properties.tensor_parallel.inputs import build_inputs
from npudiff.properties.tensor_parallel.relations import RELATIONS
from npudiff.reference.tensor_parallel import rank_part, rows_of_ranks, tensor_parallel

component = Component(
    name="tensor_parallel",
    summary="linear layers whose columns or inner axis are divided among ranks, alone and one after the other",
    case_type=TensorParallelCase,
    outputs=("output", "residual"),
    inputs=build_inputs,
    reference=tensor_parallel,
    ranks=Ranks(count=lambda inputs: inputs.ranks, part=rank_part, rows=rows_of_ranks),
    coordinates=coordinates,
    highlighted_region="several ranks",
    relations=tuple(RELATIONS),
    example_ratio=0.15,
    baselines=BASELINES["tensor_parallel"],
)
