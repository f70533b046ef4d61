"""What must hold between runs: how tokens are dealt to ranks changes the path, not the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from npudiff.draw.data import Stream
from npudiff.judge.relations import Changed, relation, same
from npudiff.model.component import NotApplicable
from npudiff.properties.context_parallel.case import ContextParallelCase
from npudiff.properties.context_parallel.inputs import dealt, whole_of
from npudiff.reference.context_parallel import ContextParallelInputs

Outputs = Mapping[str, torch.Tensor]


def _one_rank(inputs: ContextParallelInputs, case: ContextParallelCase) -> Changed[ContextParallelInputs]:
    """The same tokens on one rank, before they are dealt."""
    alone = replace(case, ranks=1, own_heads=case.heads)
    return Changed(inputs, _for_ranks(case), case=alone, before=dealt(whole_of(inputs, case), alone))


def _for_ranks(case: ContextParallelCase) -> Callable[[Outputs], Outputs]:
    """Turn the outputs of one rank into those that all return."""

    def changed(outputs: Outputs) -> Outputs:
        parts = {
            name: whole.tensor_split(case.ranks, dim=1) if case.sharded else [whole] * case.ranks
            for name, whole in outputs.items()
        }
        return {name: torch.cat(list(part)) for name, part in parts.items()}

    return changed


def _other_interleave(inputs: ContextParallelInputs, case: ContextParallelCase) -> Changed[ContextParallelInputs]:
    """The same tokens in stretches of another length."""
    sizes = [size for size in range(1, case.page_size + 1) if case.page_size % size == 0 and size != case.interleave]
    if not sizes:
        raise NotApplicable("a page of one token has stretches of one token")
    other = replace(case, interleave=sizes[Stream(case.seed, "interleave").integers(0, len(sizes), 1)[0]])
    return Changed(dealt(whole_of(inputs, case), other), case=other)


def _other_pages(inputs: ContextParallelInputs, case: ContextParallelCase) -> Changed[ContextParallelInputs]:
    """Pages of each rank at other places of its pool; page 0 stays."""
    key, value, table = inputs.key_cache.clone(), inputs.value_cache.clone(), inputs.block_table.clone()
    for rank in range(inputs.ranks):
        order = [0, *(1 + page for page in Stream(case.seed, f"moved {rank}").permutation(key.shape[1] - 1))]
        moved_to = torch.argsort(torch.tensor(order)).to(torch.int32)
        key[rank], value[rank] = inputs.key_cache[rank][order], inputs.value_cache[rank][order]
        table[rank] = moved_to[inputs.block_table[rank].long()]
    return Changed(replace(inputs, key_cache=key, value_cache=value, block_table=table), same, case=case)


RELATIONS = (
    relation("number_of_ranks", "any number of ranks gives what one gives", _one_rank,
             within={"ranks": range(2, 17)}, needs={"ranks": (1,)}),
    relation("interleave_size", "how many tokens follow each other on a rank does not matter", _other_interleave,
             within={"ranks": range(2, 17), "stage": ("decode",)}),
    relation("place_of_pages", "where the pages of each rank lie does not matter", _other_pages, bits=True),
)  # fmt: skip
