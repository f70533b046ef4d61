"""Experts over ranks: their cases, data, and what must hold."""

from npudiff.model.component import Component
from npudiff.model.constraints import Box
from npudiff.model.illegal import wrong_element
from npudiff.model.ranks import Ranks
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import FEW, Model, of_experts
from npudiff.properties.expert_parallel.case import ExpertParallelCase
from npudiff.properties.expert_parallel.inputs import build_inputs, coordinates
from npudiff.properties.expert_parallel.relations import RELATIONS
from npudiff.reference.expert_parallel import ExpertParallelInputs, expert_parallel, rank_part, rows_of_ranks


def _sizes(model: Model) -> Box | None:
    """Hidden size and experts per token; as few experts as these, and narrow ones, since each rank has all of its."""
    return {
        "tokens": FEW,
        "hidden": (model.hidden,),
        "top_k": (model.top_k,),
        "experts": (model.top_k, 2 * model.top_k),
        "redundant": range(9),
        "width": (32,),
        "shared_width": (32,) if model.shared_width else (0,),
        "dtype": ("bfloat16",),
    }


def _first_real(inputs: ExpertParallelInputs) -> tuple[int, int] | None:
    """The first copy of the first real token that takes part; None where there is none."""
    taking = inputs.real.unsqueeze(1) & (inputs.topk_ids >= 0)
    if inputs.mask is not None:
        taking = taking & (inputs.mask if inputs.mask.dim() == 2 else inputs.mask.unsqueeze(1))
    places: list[list[int]] = taking.nonzero()[:1].tolist()
    return (places[0][0], places[0][1]) if places else None


component = Component(
    name="expert_parallel",
    summary="experts over ranks: dispatch of tokens, the experts, and the weighted sum that comes back",
    case_type=ExpertParallelCase,
    outputs=("output", "counts"),
    inputs=build_inputs,
    reference=expert_parallel,
    illegal=(
        wrong_element("an expert that there is not", "topk_ids", lambda inputs: inputs.routed.up.experts, _first_real),
    ),
    coordinates=coordinates,
    highlighted_region="a rank without tokens",
    relations=RELATIONS,
    example_ratio=0.1,
    profiles=of_experts(_sizes),
    baselines=BASELINES["expert_parallel"],
    ranks=Ranks(count=lambda inputs: inputs.layout.ranks, part=rank_part, rows=rows_of_ranks),
)
