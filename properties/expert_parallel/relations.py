"""Experts over ranks: what must hold besides equivalence with the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from npudiff.draw.data import Stream
from npudiff.judge.relations import Changed, Outputs, relation
from npudiff.model.component import NotApplicable, Property
from npudiff.properties.expert_parallel.case import POISONS, ExpertParallelCase
from npudiff.properties.expert_parallel.inputs import placed, slots_of_ranks
from npudiff.reference.expert_parallel import ExpertParallelInputs, Layout

_EVEN_ROWS = {"padding": ("none",), "shared_ranks": (0,)}


def _of_experts(placement: torch.Tensor, apart: int) -> Callable[[Outputs], Outputs]:
    """Return what has counts of experts as the router knows them, in place of those of slots."""

    def outputs(given: Outputs) -> Outputs:
        found = dict(given)
        if "counts" in found:
            counts = found["counts"][apart:]
            total = counts.new_zeros(int(placement.max()) + 1)
            found["counts"] = total.index_add(0, placement.to(counts.device), counts)
        return found

    return outputs


def _over(inputs: ExpertParallelInputs, case: ExpertParallelCase, ranks: int) -> Changed[ExpertParallelInputs]:
    """The same tokens and experts over another number of ranks, with an expert in one slot each."""
    count = len(inputs.states)
    if min(count, case.experts) < ranks:
        raise NotApplicable("there are fewer tokens or experts than ranks")
    each, more = divmod(count, ranks)
    rows = tuple(each + (rank < more) for rank in range(ranks))
    spread = "equal" if not more else "ragged"
    other = replace(
        case, ranks=ranks, tokens=max(rows), redundant=0, table_rows=1, placement="in order", spread=spread,
        load="random", global_rows=bool(more) or case.global_rows,
    )  # fmt: skip
    placement, table = placed(other)
    slots = slots_of_ranks(case.experts, ranks, 0)
    total = max(rows) * ranks if other.global_rows else 0
    changed = replace(
        inputs, placement=placement, table=table, layout=Layout(rows, slots, inputs.layout.shared_experts, total)
    )
    before, after = _of_experts(inputs.placement, 0), _of_experts(placement, 0)
    return Changed(changed, outputs=before, part=after, case=other)


def _on_one_rank(inputs: ExpertParallelInputs, case: ExpertParallelCase) -> Changed[ExpertParallelInputs]:
    return _over(inputs, case, 1)


def _on_other_ranks(inputs: ExpertParallelInputs, case: ExpertParallelCase) -> Changed[ExpertParallelInputs]:
    return _over(inputs, case, 3 if case.ranks == 2 else 2)


def _tokens_on_other_ranks(inputs: ExpertParallelInputs, case: ExpertParallelCase) -> Changed[ExpertParallelInputs]:
    """Tokens change places, over all ranks; each keeps what it has, and experts have as many copies."""
    order = torch.tensor(Stream(case.seed, "order").permutation(len(inputs.states)))
    changed = replace(
        inputs, states=inputs.states[order], topk_ids=inputs.topk_ids[order], weights=inputs.weights[order]
    )
    counts = _of_experts(inputs.placement, 0)

    def outputs(given: Outputs) -> Outputs:
        found = dict(counts(given))
        return {**found, "output": found["output"][order]} if "output" in found else found

    return Changed(changed, outputs=outputs, part=counts)


def _slots_elsewhere(inputs: ExpertParallelInputs, case: ExpertParallelCase) -> Changed[ExpertParallelInputs]:
    """Experts are in other slots, and ranks know it."""
    other = replace(case, placement="in order" if case.placement == "anywhere" else "anywhere", load="random")
    placement, table = placed(other)
    changed = replace(inputs, placement=placement, table=table)
    before, after = (_of_experts(one, case.shared_ranks) for one in (inputs.placement, placement))
    return Changed(changed, outputs=before, part=after, case=other)


def _other_padding(inputs: ExpertParallelInputs, case: ExpertParallelCase) -> Changed[ExpertParallelInputs]:
    """Tokens that are not real hold something else that is finite: large numbers of the other sign."""
    padding = (~inputs.real).unsqueeze(1)
    large = -POISONS["large"] if case.poison == "large" else POISONS["large"]
    return Changed(replace(inputs, states=inputs.states.masked_fill(padding, large)))


RELATIONS: tuple[Property[ExpertParallelCase], ...] = (
    relation("as_on_one_rank", "any number of ranks gives what one gives", _on_one_rank,
             within=_EVEN_ROWS, needs={"ranks": (1,)}, example_ratio=0.2),
    relation("as_on_other_ranks", "another number of ranks gives the same", _on_other_ranks,
             within={**_EVEN_ROWS, "tokens": range(2, 513), "experts": range(3, 257)}, needs={"ranks": (2, 3)}),
    relation("tokens_on_other_ranks", "a token has the same result on any rank, whatever its company",
             _tokens_on_other_ranks, within=_EVEN_ROWS),
    relation("slots_elsewhere", "which slots and ranks have which experts does not matter", _slots_elsewhere,
             within={"experts": range(2, 257)}),
    relation("other_padding", "what fills up a batch reaches no result", _other_padding,
             within={"padding": ("mask", "zero weight", "minus one", "mask of copies")}),
)  # fmt: skip
