"""Attention whose history is split over ranks: its cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from npudiff.model.component import Component
from npudiff.model.illegal import constant, wrong_element
from npudiff.model.ranks import Ranks
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties.context_parallel.case import ContextParallelCase
from npudiff.properties.context_parallel.inputs import build_inputs
from npudiff.properties.context_parallel.relations import RELATIONS
from npudiff.reference.context_parallel import (
    ContextParallelInputs,
    context_parallel,
    history_lengths,
    part_of_rank,
    rows_of_ranks,
)


def coordinates(inputs: ContextParallelInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output: rank, request, position, head and element."""
    tokens, heads = len(inputs.query), inputs.query.shape[1] // (inputs.ranks if inputs.sharded else 1)
    request = torch.repeat_interleave(torch.arange(len(inputs.query_lengths)), torch.tensor(inputs.query_lengths))
    position = torch.cat([
        torch.arange(start, start + new)
        for start, new in zip(history_lengths(inputs), inputs.query_lengths, strict=True)
    ])  # fmt: skip
    rank = torch.arange(inputs.ranks).repeat_interleave(tokens)[:, None]
    first = rank * heads if inputs.sharded else 0
    found = {
        "rank": rank,
        "request": request.repeat(inputs.ranks)[:, None],
        "position": position.repeat(inputs.ranks)[:, None],
        "head": torch.arange(heads)[None, :] + first,
    }
    if output == "lse":
        return found
    element = torch.arange(inputs.query.shape[2])[None, None, :]
    return {**{name: place[..., None] for name, place in found.items()}, "element": element}


component = Component(
    name="context_parallel",
    summary="attention whose history is split over ranks: decode over shards of a cache, prefill in head-tail chunks",
    case_type=ContextParallelCase,
    outputs=("output", "lse"),
    inputs=build_inputs,
    reference=context_parallel,
    ranks=Ranks(count=lambda inputs: inputs.ranks, part=part_of_rank, rows=rows_of_ranks),
    illegal=(
        wrong_element("a negative length", "kv_lengths", constant(-1)),
        wrong_element("a negative number of new tokens", "query_lengths", constant(-1)),
        wrong_element("more new tokens than rows", "query_lengths", lambda inputs: len(inputs.query) + 1),
    ),
    coordinates=coordinates,
    highlighted_region="several ranks",
    relations=RELATIONS,
    example_ratio=0.1,
    baselines=BASELINES["context_parallel"],
)
