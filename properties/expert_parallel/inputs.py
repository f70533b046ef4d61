"""Experts over ranks: what all ranks have, from a case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from npudiff.draw.data import Stream
from npudiff.properties._shared import expert_weights, magnitudes
from npudiff.properties._shared.expert_weights import Shape
from npudiff.properties.expert_parallel.case import DTYPES, POISONS, ExpertParallelCase
from npudiff.reference.expert_parallel import LEFT_OUT, ExpertParallelInputs, Layout
from npudiff.reference.expert_weights import ExpertWeights
from npudiff.reference.moe_experts import Experts


def build_inputs(case: ExpertParallelCase) -> ExpertParallelInputs:
    """Build the inputs of a case; the matrices of an expert depend on its number and the seed alone."""
    real_rows = _real_rows(case)
    rows = [case.tokens] * case.ranks if case.padding != "none" else real_rows
    real = torch.cat([torch.arange(count) < there for count, there in zip(rows, real_rows, strict=True)])
    placement, table = placed(case)
    weights = (0.1 + Stream(case.seed, "weights").normal((len(real), case.top_k), torch.float32).abs()) / case.top_k
    if case.padding == "zero weight":
        weights[~real] = 0.0
    layout = Layout(
        rows=tuple(rows),
        slots=slots_of_ranks(case.slots, case.ranks, case.shared_ranks),
        shared_experts=case.shared_experts if case.shared_ranks else 1,
        global_rows=max(rows) * case.ranks if case.global_rows else 0,
    )
    return ExpertParallelInputs(
        states=_states(case, real),
        topk_ids=_chosen(case, real, placement, layout),
        weights=weights.to(DTYPES[case.dtype]),
        mask=_mask(case, real),
        real=real,
        placement=placement,
        table=table,
        routed=_experts(case, "routed", case.experts, case.width),
        shared=_experts(case, "shared", layout.shared_experts, case.shared_width) if case.shared_width else None,
        layout=layout,
    )


def slots_of_ranks(slots: int, ranks: int, apart: int) -> tuple[int, ...]:
    """Return how many experts each rank has: the first ones have one more where they cannot be divided."""
    each, more = divmod(slots, ranks - apart)
    return (*[0] * apart, *[each + 1] * more, *[each] * (ranks - apart - more))


def placed(case: ExpertParallelCase) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the expert of each slot, no two of a rank the same, and the slots to which ranks send copies.

    Row r of rank p sends those of expert e to the replica ``(r + p + e) mod replicas`` of it.
    """
    placement = torch.arange(case.slots) % case.experts
    stream = Stream(case.seed, "placement")
    if case.placement == "anywhere":
        placement = torch.tensor(stream.permutation(case.experts))[placement]
        slots = slots_of_ranks(case.slots, case.ranks, case.shared_ranks)
        parts = torch.split(placement, list(slots))
        placement = torch.cat([part[torch.tensor(stream.permutation(len(part)), dtype=torch.long)] for part in parts])
    replicas = [(placement == expert).nonzero().flatten() for expert in range(case.experts)]
    rows = case.table_rows if case.redundant else 1
    turn = torch.arange(case.ranks).unsqueeze(1) + torch.arange(rows)
    columns = [slots[(turn + expert) % len(slots)] for expert, slots in enumerate(replicas)]
    return placement, torch.stack(columns, dim=2).to(torch.int32)


def _real_rows(case: ExpertParallelCase) -> list[int]:
    """Tokens of each rank that are real; at least one rank has as many as there are rows."""
    stream = Stream(case.seed, "spread")
    order = stream.permutation(case.ranks)
    if case.spread == "equal":
        return [case.tokens] * case.ranks
    rows = stream.integers(1, case.tokens + 1, case.ranks)
    empty = {"ragged": 0, "some without": case.ranks // 2, "one alone": case.ranks - 1}[case.spread]
    for rank in order[:empty]:
        rows[rank] = 0
    rows[order[-1]] = case.tokens
    return rows


def _chosen(case: ExpertParallelCase, real: torch.Tensor, placement: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Experts of each token, all different; those of masked tokens are 0, as backends fill up."""
    stream, count = Stream(case.seed, "chosen"), len(real)
    orders = torch.from_numpy(stream.permutations(1 if case.load == "same" else count, case.experts))
    if case.load == "one expert":
        common = orders[:1, :1]
        others = orders[orders != common].view(count, case.experts - 1)
        place = torch.from_numpy(stream.integer_array(0, case.top_k, count))
        orders = torch.cat([common.expand(count, 1), others], dim=1)[:, : case.top_k]
        orders = orders[torch.arange(count).unsqueeze(1), (torch.arange(case.top_k) + place.unsqueeze(1)) % case.top_k]
    if case.load == "one rank":
        rank = stream.integers(layout.shared_ranks, layout.ranks, 1)[0]
        orders = _of_one_rank(orders, placement[layout.experts(rank)])
    chosen = orders[:, : case.top_k].to(torch.int32).expand(count, case.top_k).contiguous()
    if case.padding in ("mask", "mask of copies"):
        chosen[~real] = 0
    if case.padding == "minus one":
        chosen[~real] = LEFT_OUT
    return chosen


def _of_one_rank(orders: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """Of each permutation, those that are on a rank, in its order."""
    return orders[torch.isin(orders, there)].view(len(orders), len(there))


def _mask(case: ExpertParallelCase, real: torch.Tensor) -> torch.Tensor | None:
    if case.padding == "mask":
        return real.clone()
    if case.padding != "mask of copies":
        return None
    stream = Stream(case.seed, "mask")
    taking = torch.from_numpy(stream.integer_array(0, 4, len(real) * case.top_k)).view(len(real), -1) > 0
    kept = torch.from_numpy(stream.integer_array(0, case.top_k, len(real)))
    taking[torch.arange(len(real)), kept] = True  # what is written of a token without any copy, no source says
    return taking & real.unsqueeze(1)


def _experts(case: ExpertParallelCase, name: str, count: int, width: int) -> Experts:
    return Experts(
        _matrices(case, f"{name} up", count, case.hidden, 2 * width),
        _matrices(case, f"{name} down", count, width, case.hidden),
    )


def _matrices(case: ExpertParallelCase, name: str, count: int, inner: int, columns: int) -> ExpertWeights:
    dtype = DTYPES[case.dtype]
    weights = expert_weights.build(Shape(range(count), inner, columns, case.form, 1, dtype), case.seed, name)
    if weights.scale is not None and case.dtype == "bfloat16":
        return replace(weights, scale=weights.scale.to(dtype))
    return weights


def _states(case: ExpertParallelCase, real: torch.Tensor) -> torch.Tensor:
    stream = Stream(case.seed, "states")
    states = stream.normal((len(real), case.hidden), torch.float32)
    if case.recipe == "outlier":
        states[magnitudes.places_of_largest(stream, case.hidden, len(real))] *= 64
    if case.recipe == "zero rows":
        states[::2] = 0.0
    states[~real] = POISONS[case.poison]
    return states.to(DTYPES[case.dtype])


def coordinates(inputs: ExpertParallelInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output: rank, token and column, or rank and its expert."""
    layout = inputs.layout
    if output == "counts":
        apart = layout.shared_ranks
        each = [1] * apart + list(layout.slots[apart:])
        return {"rank": _rank_of(each), "its expert": torch.cat([torch.arange(count) for count in each])}
    hidden = inputs.states.shape[1]
    tokens = torch.cat([torch.arange(count) for count in layout.rows])
    return {
        "rank": _rank_of(list(layout.rows)).unsqueeze(1),
        "its token": tokens.unsqueeze(1),
        "column": torch.arange(hidden).unsqueeze(0),
    }


def _rank_of(each: list[int]) -> torch.Tensor:
    return torch.arange(len(each)).repeat_interleave(torch.tensor(each))
