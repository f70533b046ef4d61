from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from npudiff.judge.compare import compare
from npudiff.properties.expert_parallel.case import ExpertParallelCase
from npudiff.properties.expert_parallel.inputs import build_inputs, placed, slots_of_ranks
from npudiff.reference.expert_parallel import Layout, expert_parallel, rank_part, rows_of_ranks
from npudiff.reference.moe_experts import MoeExpertsInputs, moe_experts

PLAIN = ExpertParallelCase(5, ranks=3, experts=6, top_k=2)
APART = ExpertParallelCase(3, ranks=4, hidden=64, experts=4, top_k=2, shared_ranks=2, shared_width=32)


def linear(rows, weights, index):
    """Rows of float64, or int8 rows with a scale, times a matrix, by ``F.linear``."""
    matrix = weights.values[index].double()
    if weights.scale is None:
        return F.linear(rows, matrix.T)
    largest = rows.abs().amax(dim=1, keepdim=True)
    scale = torch.where(largest == 0, 1.0, largest / 127)
    return F.linear((rows / scale).round(), matrix.T) * weights.scale[index].double() * scale


def expert(states, experts, index):
    """A gated MLP as models write it."""
    gate, up = linear(states, experts.up, index).chunk(2, dim=1)
    return linear(F.silu(gate) * up, experts.down, index)


def dense(inputs):
    """All experts on all tokens, one token after the other in a loop, whatever rank they are on."""
    states = inputs.states.double()
    of_all = torch.stack([expert(states, inputs.routed, index) for index in range(inputs.routed.up.experts)])
    output = torch.zeros_like(states)
    for token, (ids, weights) in enumerate(zip(inputs.topk_ids.tolist(), inputs.weights.double(), strict=True)):
        for copy, (number, weight) in enumerate(zip(ids, weights, strict=True)):
            mask = inputs.mask
            taken = mask is None or bool(mask[token] if mask.dim() == 1 else mask[token, copy])
            if number >= 0 and taken:
                output[token] += weight * of_all[number, token]
    for index in range(0 if inputs.shared is None else inputs.shared.up.experts):
        output += expert(states, inputs.shared, index)
    return output


def cases():
    yield from (replace(PLAIN, load=load, seed=3) for load in ("random", "one expert", "one rank", "same"))
    yield replace(PLAIN, spread="some without", global_rows=True, shared_width=16)
    yield replace(PLAIN, redundant=3, table_rows=3, placement="anywhere")
    yield replace(PLAIN, experts=4, spread="one alone", global_rows=True)
    yield from (replace(PLAIN, padding=padding, spread="ragged", poison="nan")
                for padding in ("mask", "zero weight", "minus one", "mask of copies"))  # fmt: skip
    yield from (replace(APART, shared_experts=count, padding="mask", spread="ragged") for count in (1, 2))


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.describe())
def test_it_is_what_a_model_computes_on_one_device(case):
    case.check()
    inputs = build_inputs(case)
    expected = expert_parallel(inputs)["output"]
    real = inputs.real
    assert torch.allclose(expected.value[real], dense(inputs)[real], atol=1e-10, rtol=0)
    assert bool(expected.bound[real].isfinite().all())
    assert bool(expected.bound[~real].isposinf().all())


@pytest.mark.parametrize("shared_width", [0, 32])
def test_int8_rows_stay_within_what_their_integers_leave_open(shared_width):
    """The plain loop quantises by one chain of roundings; where it leaves an integer open, the bound has both."""
    inputs = build_inputs(replace(PLAIN, form="w8a8", shared_width=shared_width, hidden=64))
    expected = expert_parallel(inputs)["output"]
    assert float(((dense(inputs) - expected.value).abs() / expected.bound).max()) < 0.5


@pytest.mark.parametrize("form", ["float", "w8a8"])
def test_it_is_the_component_of_one_device_where_there_is_one_rank(form):
    inputs = build_inputs(replace(PLAIN, ranks=1, form=form, shared_width=32))
    here = torch.arange(inputs.routed.up.experts)
    one = MoeExpertsInputs(inputs.states, inputs.topk_ids, inputs.weights, here, inputs.routed, inputs.shared)
    alone = moe_experts(one)["output"]
    expected = expert_parallel(inputs)["output"]
    assert torch.equal(expected.value, alone.value)
    assert torch.equal(expected.bound, alone.bound)


def test_counts_by_hand():
    """Expert 0 is in slots 0 and 2; row r of rank p sends to replica (r + p + 0) % 2."""
    case = ExpertParallelCase(2, ranks=2, experts=2, top_k=1, redundant=2, table_rows=2)
    inputs = replace(build_inputs(case), topk_ids=torch.tensor([[0], [0], [0], [1]], dtype=torch.int32))
    assert inputs.placement.tolist() == [0, 1, 0, 1]
    assert inputs.table.tolist() == [[[0, 3], [2, 1]], [[2, 1], [0, 3]]]
    assert expert_parallel(inputs)["counts"].value.tolist() == [1, 0, 2, 1]


def test_shared_experts_count_the_tokens_of_the_ranks_that_they_serve():
    """Four ranks of shared experts, two of each: tokens of even ranks, and of odd ones, that are not masked."""
    case = replace(APART, ranks=6, shared_ranks=4, shared_experts=2, padding="mask")
    mask = torch.arange(3).repeat(6) < torch.tensor([3, 2, 1, 0, 3, 1]).repeat_interleave(3)
    inputs = replace(build_inputs(case), mask=mask, real=mask)
    counts = expert_parallel(inputs)["counts"].value
    assert counts[:4].tolist() == [3 + 1 + 3, 2 + 0 + 1] * 2
    assert int(counts[4:].sum()) == 2 * int(mask.sum())


def test_every_real_copy_is_counted_once():
    for case in cases():
        inputs = build_inputs(case)
        counts = expert_parallel(inputs)["counts"].value
        taking = inputs.topk_ids >= 0
        if inputs.mask is not None:
            taking &= inputs.mask if inputs.mask.dim() == 2 else inputs.mask.unsqueeze(1)
        assert int(counts[inputs.layout.shared_ranks :].sum()) == int(taking.sum())


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_parts_of_ranks_may_be_rounded_and_added_in_any_order(order):
    """What each rank says is rounded to bfloat16, and so are sums of two: what an all-reduce of bfloat16 does."""
    inputs = build_inputs(replace(PLAIN, tokens=40, experts=9, top_k=6, hidden=64))
    states = inputs.states
    parts = []
    for rank in range(3):
        total = torch.zeros(states.shape)
        for slot in range(9)[inputs.layout.experts(rank)]:
            number = int(inputs.placement[slot])
            weight = (inputs.weights.float() * (inputs.topk_ids == number)).sum(dim=1, keepdim=True)
            gate, up = (states.float() @ inputs.routed.up.values[number].float()).bfloat16().chunk(2, dim=1)
            between = (F.silu(gate.float()) * up.float()).bfloat16()
            said = (between.float() @ inputs.routed.down.values[number].float()).bfloat16()
            total += weight * said.float()
        parts.append(total.bfloat16())
    one, other, last = (parts[rank] for rank in order)
    found = compare(expert_parallel(inputs), {"output": (one + other) + last})
    assert 0.15 < found.worst <= 1


def test_one_rank_more_costs_two_roundings_at_most():
    """Bounds do not grow with ranks that have no expert of a token."""
    few, many = (expert_parallel(build_inputs(replace(PLAIN, ranks=ranks, experts=8, tokens=2, load="same")))["output"]
                 for ranks in (1, 8))  # fmt: skip
    assert float((many.bound[:2] / few.bound[:2]).max()) < 2


def test_a_rank_has_its_own_tokens_and_the_experts_in_its_slots():
    inputs = build_inputs(replace(PLAIN, redundant=3, placement="anywhere", spread="ragged", global_rows=True))
    parts = [rank_part(inputs, rank) for rank in range(3)]
    assert torch.equal(torch.cat([part.states for part in parts]), inputs.states)
    assert torch.equal(torch.cat([part.local.up.values for part in parts]), inputs.routed.up.values[inputs.placement])
    assert [len(part.topk_ids) for part in parts] == list(inputs.layout.rows) == list(rows_of_ranks(inputs, "output"))
    assert rows_of_ranks(inputs, "counts") == (3, 3, 3)


def test_ranks_with_shared_experts_have_nothing_else():
    inputs = build_inputs(replace(APART, shared_experts=2))
    parts = [rank_part(inputs, rank) for rank in range(4)]
    assert [part.local.up.experts for part in parts] == [1, 1, 2, 2]
    for number in range(2):
        assert torch.equal(parts[number].local.up.values[0], inputs.shared.up.values[number])
    assert all(part.shared is None for part in parts)
    assert rows_of_ranks(inputs, "counts") == (1, 1, 2, 2)


def test_experts_that_cannot_be_divided_are_one_more_on_the_first_ranks():
    assert slots_of_ranks(7, 4, 1) == (0, 3, 2, 2)
    assert Layout((1,) * 4, (0, 3, 2, 2)).shared_ranks == 1
    assert Layout((1,) * 4, (2, 2, 2, 1)).shared_ranks == 0


@pytest.mark.parametrize("placement", ["in order", "anywhere"])
@pytest.mark.parametrize("redundant", [0, 2, 6])
def test_every_expert_has_a_slot_and_no_rank_has_one_twice(placement, redundant):
    case = replace(PLAIN, experts=4, ranks=3, redundant=redundant, placement=placement, seed=5)
    slots, table = placed(case)
    assert set(slots.tolist()) == set(range(4))
    for part in torch.split(slots, list(slots_of_ranks(4 + redundant, 3, 0))):
        assert len(set(part.tolist())) == len(part)
    assert bool((slots[table.long()] == torch.arange(4)).all())


GIVEN = build_inputs(PLAIN)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weights": GIVEN.weights[:, :1]}, r"topk_ids and weights must be \[15, k\], got \[15, 2\] and \[15, 1\]"),
        ({"layout": replace(GIVEN.layout, rows=(5, 5, 4))}, r"rows \(5, 5, 4\) and slots \(2, 2, 2\) are not those of"),
        ({"layout": replace(GIVEN.layout, slots=(2, 2, 1))}, r"\(2, 2, 1\) slots are not the 6 of the placement"),
        ({"topk_ids": GIVEN.topk_ids + 1}, r"ids must lie in -1\.\.5"),
        ({"topk_ids": GIVEN.topk_ids - 2}, r"ids must lie in -1\.\.5"),
        ({"table": GIVEN.table[:2]}, r"table must be \[3, rows, 6\], got \[2, 1, 6\]"),
        ({"placement": GIVEN.placement.flip(0)}, "the table names a slot that has another expert"),
    ],
)
def test_what_contradicts_itself_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        expert_parallel(replace(GIVEN, **changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shared": None}, "2 ranks cannot have 1 shared experts alike"),
        ({"mask": torch.ones(12, 2, dtype=torch.bool)}, "a mask of copies says nothing of tokens that go to ranks"),
        ({"mask": torch.zeros(12, dtype=torch.bool)}, "masked goes to no rank with shared experts: it cannot be real"),
    ],
)
def test_what_contradicts_shared_experts_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        expert_parallel(replace(build_inputs(APART), **changed))
