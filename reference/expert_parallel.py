"""Experts over ranks: tokens go to the ranks of their experts, and what these say comes back and is summed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from npudiff.reference.bounds import Expected, exactly, underflow_step, unit_roundoff, unspecified
from npudiff.reference.expert_weights import ExpertProduct, ExpertWeights
from npudiff.reference.inexact import Inexact
from npudiff.reference.moe_experts import Experts, of_experts, one_expert
from npudiff.reference.moe_finalize import weighted_sum
from npudiff.reference.views import moved_inputs

LEFT_OUT = -1
"""Id of a copy that goes nowhere."""


@dataclass(frozen=True)
class Layout:
    """Which rank has what."""

    rows: tuple[int, ...]
    """Tokens of each rank, padding included; a rank may have none."""
    slots: tuple[int, ...]
    """Routed experts of each rank: 0 on the ranks that have shared experts alone, which come first."""
    shared_experts: int = 1
    """Shared experts. On ranks of their own each has as many ranks, one after the other."""
    global_rows: int = 0
    """What ``global_bs`` is: the rows of the fullest rank times the number of ranks, or 0 where all have as many."""

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return len(self.rows)

    @property
    def shared_ranks(self) -> int:
        """Ranks that have shared experts alone: those before the first that has routed ones."""
        return next((rank for rank, slots in enumerate(self.slots) if slots), 0)

    @property
    def copies_of_shared(self) -> int:
        """Ranks of each shared expert; tokens of rank r go to those whose number is r modulo this."""
        return self.shared_ranks // self.shared_experts

    def tokens(self, rank: int) -> slice:
        """Return where the tokens of a rank are among all."""
        start = sum(self.rows[:rank])
        return slice(start, start + self.rows[rank])

    def experts(self, rank: int) -> slice:
        """Return where the routed experts of a rank are among all."""
        start = sum(self.slots[:rank])
        return slice(start, start + self.slots[rank])


@dataclass(frozen=True)
class ExpertParallelInputs:
    """Tokens of all ranks, one rank after the other, and the experts of all ranks."""

    states: torch.Tensor
    """``[tokens, hidden]``, bfloat16 or float16. Rows of tokens that are not real may hold anything."""
    topk_ids: torch.Tensor
    """int32 ``[tokens, k]``: numbers of experts as the router knows them, all of a token different, or ``LEFT_OUT``.
    Tokens that are masked may have any that exist."""
    weights: torch.Tensor
    """``[tokens, k]`` of the dtype of ``states``."""
    mask: torch.Tensor | None
    """bool ``[tokens]``, in each rank those that are true first, or ``[tokens, k]``: what takes part."""
    real: torch.Tensor
    """bool ``[tokens]``: nothing is said of the result of others, which fill up a batch."""
    placement: torch.Tensor
    """int64 ``[slots]``: the expert in each slot of all ranks, one after the other. An expert may be in several."""
    table: torch.Tensor
    """int32 ``[ranks, rows, experts]``: the slot to which a rank sends copies of an expert. Token t of the rank uses
    row ``t % rows``."""
    routed: Experts
    """``[experts, ...]``: the matrices of each expert."""
    shared: Experts | None
    """``[shared experts, ...]``: every token has all of these, with weight 1."""
    layout: Layout
    """Which rank has which tokens and slots."""

    def to(self, device: str | torch.device) -> ExpertParallelInputs:
        """Return the same inputs on ``device``."""
        return moved_inputs(self, device, copies=())


@dataclass(frozen=True)
class ExpertParallelPart:
    """What one rank has."""

    states: torch.Tensor
    """``[tokens of this rank, hidden]``."""
    topk_ids: torch.Tensor
    """int32 ``[tokens of this rank, k]``."""
    weights: torch.Tensor
    """``[tokens of this rank, k]``."""
    mask: torch.Tensor | None
    """bool ``[tokens of this rank]`` or ``[tokens of this rank, k]``; see ``ExpertParallelInputs``."""
    placement: torch.Tensor
    """int64 ``[slots]``: the expert in each slot of all ranks."""
    table: torch.Tensor
    """int32 ``[rows, experts]``: the slot to which this rank sends the copies of an expert."""
    local: Experts
    """The matrices in the slots of this rank, or of its shared expert on a rank that has nothing else."""
    shared: Experts | None
    """Shared experts, where each rank has all of them for its own tokens."""
    layout: Layout
    """Which rank has which tokens and slots; the same on each rank."""
    rank: int
    """Which of them this is."""

    def to(self, device: str | torch.device) -> ExpertParallelPart:
        """Return the same inputs on ``device``."""
        return moved_inputs(self, device, copies=())


def rank_part(inputs: ExpertParallelInputs, rank: int) -> ExpertParallelPart:
    """Return what one rank has of the inputs of all."""
    layout, tokens = inputs.layout, inputs.layout.tokens(rank)
    shared, apart = inputs.shared, layout.shared_ranks > 0
    if rank < layout.shared_ranks and shared is not None:
        local = some_experts(shared, torch.tensor([rank // layout.copies_of_shared]))
    else:
        local = some_experts(inputs.routed, inputs.placement[layout.experts(rank)])
    return ExpertParallelPart(
        states=inputs.states[tokens].clone(),
        topk_ids=inputs.topk_ids[tokens].clone(),
        weights=inputs.weights[tokens].clone(),
        mask=None if inputs.mask is None else inputs.mask[tokens].clone(),
        placement=inputs.placement,
        table=inputs.table[rank].clone(),
        local=local,
        shared=None if apart else shared,
        layout=layout,
        rank=rank,
    )


def rows_of_ranks(inputs: ExpertParallelInputs, output: str) -> tuple[int, ...]:
    """Return how many rows of an output each rank has: its tokens, or the experts that it has."""
    if output == "output":
        return inputs.layout.rows
    apart = inputs.layout.shared_ranks
    return (*[1] * apart, *inputs.layout.slots[apart:])


def some_experts(experts: Experts, numbers: torch.Tensor) -> Experts:
    """Return the matrices of some experts, in another order or several times."""
    return replace(experts, up=_some(experts.up, numbers), down=_some(experts.down, numbers))


def _some(weights: ExpertWeights, numbers: torch.Tensor) -> ExpertWeights:
    parts = (weights.scale, weights.offset, weights.bias)
    scale, offset, bias = (None if part is None else part[numbers] for part in parts)
    return ExpertWeights(weights.values[numbers], weights.bits, scale, offset, bias)


def expert_parallel(inputs: ExpertParallelInputs) -> dict[str, Expected]:
    """Return what one device gives that has all tokens and experts, and how many copies each slot is given.

    ``sum_j weights[t, j] * expert(topk_ids[t, j])(states[t]) + sum_s shared_s(states[t])`` for each token (Lepikhin et
    al., "GShard", 2020, algorithm 1, without a capacity; experts as in ``reference.moe_experts``). Which rank has an
    expert, how many copies of it there are and how tokens are spread over ranks does not matter.

    Returns
    -------
    dict
        ``output``: ``[tokens, hidden]`` of the dtype of ``states``, nothing said of tokens that are not real.
        ``counts``: int64 ``[slots]``, those of one rank after the other; 1 for a rank with a shared expert, which
        counts the tokens that it is given.

    Raises
    ------
    ValueError
        If shapes contradict each other, or the table names a slot that has another expert.

    Notes
    -----
    Rows are quantised, where they are, by themselves: as a token that stays does it. A correct device sums what experts
    say in float32 where the token is, or on each rank for itself; then each rank rounds its part to the dtype of the
    states, and so does each of the additions that bring the parts together, in any order. Ranks that have no expert of
    a token add zeros, which round nothing.
    """
    _validate(inputs)
    dtype, real = inputs.states.dtype, inputs.real
    taking = _taking_part(inputs)
    ids = inputs.topk_ids.masked_fill(~taking | ~real.unsqueeze(1), LEFT_OUT)
    states = Inexact.exact(inputs.states.masked_fill(~real.unsqueeze(1), 0.0))
    here = torch.arange(inputs.routed.up.experts)
    rows = of_experts(states, ids, here, inputs.routed, dtype)
    weights = Inexact.exact(inputs.weights.masked_fill(ids < 0, 0.0))
    slots = _slots(inputs, taking)
    residual = _shared(states, inputs, dtype)
    own = Inexact(rows.value, rows.independent)
    result = weighted_sum(own, weights, residual, dtype, rows.brought, ids)
    error = result.error + _over_ranks(rows, weights, slots, inputs.layout, dtype)
    output = Expected(result.value, error, dtype)
    return {"output": unspecified(output, ~real), "counts": exactly(_counts(inputs, slots))}


def _taking_part(inputs: ExpertParallelInputs) -> torch.Tensor:
    """Which copies are sent anywhere, bool ``[tokens, k]``."""
    named = inputs.topk_ids != LEFT_OUT
    if inputs.mask is None:
        return named
    return named & (inputs.mask if inputs.mask.dim() == 2 else inputs.mask.unsqueeze(1))


def _slots(inputs: ExpertParallelInputs, taking: torch.Tensor) -> torch.Tensor:
    """The slot of each copy, int64 ``[tokens, k]``; ``LEFT_OUT`` for one that is not sent."""
    layout = inputs.layout
    found = torch.full(inputs.topk_ids.shape, LEFT_OUT, dtype=torch.int64)
    for rank, rows in enumerate(layout.rows):
        tokens = layout.tokens(rank)
        row = torch.arange(rows) % inputs.table.shape[1]
        found[tokens] = inputs.table[rank][row.unsqueeze(1), inputs.topk_ids[tokens].clamp(min=0).long()].long()
    return found.masked_fill(~taking, LEFT_OUT)


def _shared(states: Inexact, inputs: ExpertParallelInputs, dtype: torch.dtype) -> Inexact | None:
    """What shared experts say of each token, added one after the other to a sum that may be rounded each time."""
    if inputs.shared is None:
        return None
    parts = [one_expert(states, inputs.shared, number, dtype).inexact for number in range(inputs.shared.up.experts)]
    total = parts[0]
    for part in parts[1:]:
        total = total.plus(part).rounded(dtype)
    return total


def _over_ranks(
    rows: ExpertProduct, weights: Inexact, slots: torch.Tensor, layout: Layout, dtype: torch.dtype
) -> torch.Tensor:
    """What rounding the part of each rank costs, and each sum of two parts but the last, ``[tokens, hidden]``.

    The last is the rounding of the result, which ``weighted_sum`` has. A token whose experts all are on one rank has
    one part, which is that result.
    """
    ends = torch.tensor(layout.slots).cumsum(0)
    owner = torch.searchsorted(ends, slots.clamp(min=0), right=True).masked_fill(slots < 0, LEFT_OUT)
    wide = weights.value.unsqueeze(2)
    products, sizes = rows.value * wide, ((rows.independent + rows.brought) * wide.abs()).sum(dim=1)
    parts = torch.zeros(len(slots), 1, dtype=torch.int64)
    for rank in range(layout.ranks):
        here = owner == rank
        sizes = sizes + (products * here.unsqueeze(2)).sum(dim=1).abs()
        parts += here.any(dim=1, keepdim=True)
    roundings = torch.where(parts > 1, 1 + (parts - 2).clamp(min=0), 0)
    steps = torch.where(parts > 1, 2 * parts - 2, 0)
    error = roundings * sizes * unit_roundoff(dtype) + steps * underflow_step(dtype)
    return torch.where(parts > 1, error, 0.0).nan_to_num(nan=torch.inf, posinf=torch.inf)


def _counts(inputs: ExpertParallelInputs, slots: torch.Tensor) -> torch.Tensor:
    """Copies of each slot, and tokens of ranks with a shared expert."""
    layout = inputs.layout
    of_slots = torch.bincount(slots[slots >= 0].flatten(), minlength=len(inputs.placement))
    if not layout.shared_ranks:
        return of_slots
    taking = torch.ones(len(inputs.states), dtype=torch.bool) if inputs.mask is None else inputs.mask
    tokens = torch.tensor([int(taking[layout.tokens(rank)].sum()) for rank in range(layout.ranks)])
    copies = layout.copies_of_shared
    of_shared = torch.stack([tokens[rank % copies :: copies].sum() for rank in range(layout.shared_ranks)])
    return torch.cat([of_shared, of_slots])


def _validate(inputs: ExpertParallelInputs) -> None:
    layout, shape = inputs.layout, list(inputs.topk_ids.shape)
    if inputs.topk_ids.dim() != 2 or shape[0] != len(inputs.states) or inputs.weights.shape != inputs.topk_ids.shape:
        wanted = f"[{len(inputs.states)}, k]"
        raise ValueError(f"topk_ids and weights must be {wanted}, got {shape} and {list(inputs.weights.shape)}")
    if sum(layout.rows) != len(inputs.states) or len(layout.slots) != layout.ranks:
        found = f"rows {layout.rows} and slots {layout.slots}"
        raise ValueError(f"{found} are not those of {len(inputs.states)} tokens on as many ranks")
    if sum(layout.slots) != len(inputs.placement):
        raise ValueError(f"{layout.slots} slots are not the {len(inputs.placement)} of the placement")
    if layout.shared_ranks and (inputs.shared is None or layout.shared_ranks % layout.shared_experts):
        raise ValueError(f"{layout.shared_ranks} ranks cannot have {layout.shared_experts} shared experts alike")
    if inputs.shared is not None and inputs.shared.up.experts != layout.shared_experts:
        raise ValueError(f"there are {inputs.shared.up.experts} shared experts, not {layout.shared_experts}")
    if inputs.mask is not None and inputs.mask.dim() == 2 and layout.shared_ranks:
        raise ValueError("a mask of copies says nothing of tokens that go to ranks with shared experts")
    if inputs.mask is not None and layout.shared_ranks and bool((inputs.real & ~inputs.mask).any()):
        raise ValueError("a token that is masked goes to no rank with shared experts: it cannot be real")
    experts = inputs.routed.up.experts
    if inputs.topk_ids.numel() and not LEFT_OUT <= int(inputs.topk_ids.min()) <= int(inputs.topk_ids.max()) < experts:
        raise ValueError(f"ids must lie in {LEFT_OUT}..{experts - 1}")
    if list(inputs.table.shape[::2]) != [layout.ranks, experts]:
        raise ValueError(f"table must be [{layout.ranks}, rows, {experts}], got {list(inputs.table.shape)}")
    if bool((inputs.placement[inputs.table.long()] != torch.arange(experts)).any()):
        raise ValueError("the table names a slot that has another expert")
