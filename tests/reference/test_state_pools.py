"""The reference of state pools: against transformers over all tokens, by hand, and against histories cut otherwise."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

from npudiff.properties.state_pools.case import StatePoolsCase
from npudiff.properties.state_pools.inputs import build_inputs, open_inputs, tokens_of
from npudiff.reference.gated_delta import GatedDeltaInputs, gated_delta
from npudiff.reference.state_pools import (
    Decode,
    Evict,
    Extend,
    Fork,
    Free,
    LayerTokens,
    Restore,
    Roster,
    StatePoolsHistory,
    StatePoolsReference,
    Verify,
    in_words,
    new_rows,
    state_pools,
)
from npudiff.reference.state_pools.history import coordinates_of

CASE = StatePoolsCase(4, 3, key_heads=2, group=2, key_dim=16, value_dim=24, state_dtype="float32", biased=True, seed=5)


def taken(*steps, case=CASE):
    """What can be seen after some steps."""
    return state_pools(build_inputs(replace(case, steps=steps)))


def joined(parts):
    """Tokens of several pieces, one after the other."""
    names = [name for name, one in vars(parts[0]).items() if one is not None]
    return LayerTokens(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def walked(pieces, case=CASE, verified=()):
    """One request whose tokens come in pieces; of a piece with a number in ``verified`` as many are accepted."""
    reference, convolved, outputs = StatePoolsReference(open_inputs(case)), [], []
    for number, piece in enumerate(pieces):
        count = len(piece.mixed)
        step = Verify((0,), (dict(verified)[number],)) if number in dict(verified) else Extend((0,), (count,))
        found = reference.begin(step, piece).value.to(torch.bfloat16)
        convolved.append(found)
        outputs.append(reference.finish(step, piece, found))
        reference.observe(reference.states()["states"].value.to(open_inputs(case).state_dtype))
    return reference.states(), convolved, outputs


def close(one, other, error=2e-6):
    assert torch.equal(one["lines"].value, other["lines"].value)
    difference = (one["states"].value.double() - other["states"].value.double()).abs().max()
    assert float(difference) < error * float(other["states"].value.abs().max())


@pytest.mark.parametrize("raw", [False, True])
def test_transformers_agrees_over_all_tokens_that_were_kept(raw):
    case = replace(CASE, raw=raw)
    inputs, kept = open_inputs(case), [tokens_of(case, 0, 7), tokens_of(case, 1, 3), tokens_of(case, 2, 4)]
    pieces = [kept[0], kept[1], kept[2].taken(slice(1)), kept[2].taken(slice(1, 4))]
    states, convolved, outputs = walked(pieces, case, verified=((1, 2),))
    convolved[1], outputs = convolved[1][:2], [outputs[0], outputs[2], outputs[3]]
    rows = joined([kept[0], kept[1].taken(slice(2)), kept[2]])
    z = torch.cat([torch.zeros(case.width - 1, case.channels), rows.mixed.float()]).double()
    sums = torch.nn.functional.conv1d(
        z.mT[None], inputs.weight.double().mT[:, None], inputs.bias.double(), groups=case.channels
    )
    right = torch.nn.functional.silu(sums[0].mT)
    assert float((torch.cat(convolved).double() - right).abs().max()) < 2**-8 * float(right.abs().max())
    assert torch.equal(states["lines"].value[0], rows.mixed[-3:])
    query, key, value = inputs.split(torch.cat(convolved).float())
    query, key = (one.repeat_interleave(2, 1)[None] for one in (query, key))
    beta = rows.beta.float()
    output, last = torch_recurrent_gated_delta_rule(
        query, key, value[None], rows.gate[None], (beta.sigmoid() if raw else beta)[None],
        initial_state=None, output_final_state=True, use_qk_l2norm_in_kernel=raw,
    )  # fmt: skip
    assert float((last[0].mT.double() - states["states"].value[0]).abs().max()) < 1e-6
    behind = torch.cat([output[0, :7], output[0, 9:]]).double() - torch.cat([one.value for one in outputs])
    assert float(behind.abs().max()) < 1e-6


@pytest.mark.parametrize("cuts", [(1,) * 9, (2, 7), (5, 1, 3), (8, 1)])
@pytest.mark.parametrize("gates", ["head", "none", "channel"])
def test_any_chunking_leaves_the_same_states(cuts, gates):
    case = replace(CASE, gates=gates)
    whole = tokens_of(case, 0, 9)
    ends = torch.tensor([0, *cuts]).cumsum(0).tolist()
    pieces = [whole.taken(slice(first, last)) for first, last in pairwise(ends)]
    close(walked(pieces, case)[0], walked([whole], case)[0])


@pytest.mark.parametrize("accepted", [1, 2, 3])
def test_drafts_that_are_taken_back_were_never_there(accepted):
    prompt, drafts, rest = tokens_of(CASE, 0, 5), tokens_of(CASE, 1, 3), tokens_of(CASE, 2, 3)
    one = walked([prompt, drafts, rest], verified=((1, accepted), (2, 1)))
    other = walked([prompt, drafts.taken(slice(accepted)), rest.taken(slice(1))])
    close(one[0], other[0])
    assert float((one[2][1].value[:accepted] - other[2][1].value).abs().max()) < 1e-6


def test_of_drafts_of_which_nothing_is_accepted_nothing_is_left():
    prompt, drafts = tokens_of(CASE, 0, 5), tokens_of(CASE, 1, 3)
    before, after = walked([prompt])[0], walked([prompt, drafts], verified=((1, 0),))[0]
    assert torch.equal(before["lines"].value, after["lines"].value)
    assert torch.equal(before["states"].value.float(), after["states"].value)
    assert not after["states"].bound.any()


def test_requests_in_one_batch_are_as_each_alone():
    steps = (Extend((0, 1, 2), (3, 1, 4)), Verify((2, 0), (1, 3), 1))
    history = build_inputs(replace(CASE, steps=steps))
    together = state_pools(history)
    (_, prompt), (_, drafts) = history.steps
    for request, rows, place, count in ((0, slice(0, 3), 1, 3), (2, slice(4, 8), 0, 1)):
        alone = state_pools(
            StatePoolsHistory(
                history.pools,
                (
                    (Extend((0,), (rows.stop - rows.start,)), prompt.taken(rows)),
                    (Verify((0,), (count,)), drafts.taken(slice(3 * place, 3 * place + 3))),
                ),
            )
        )
        mine = slice(3 * place, 3 * place + 3)
        for one, other in ((together["output"], alone["output"]), (together["convolved"], alone["convolved"])):
            torch.testing.assert_close(one.value[mine], other.value, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(one.bound[mine], other.bound, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(together["states"].value[request], alone["states"].value[0], rtol=1e-9, atol=1e-12)
        assert torch.equal(together["lines"].value[request], alone["lines"].value[0])


def test_a_step_is_the_rule_of_one_token():
    history = build_inputs(replace(CASE, steps=(Extend((0,), (5,)), Decode((0,)))))
    before = state_pools(replace(history, steps=history.steps[:1]))
    after = state_pools(history)
    new = history.steps[1][1]
    query, key, value = history.pools.split(after["convolved"].value.bfloat16())
    right = gated_delta(
        GatedDeltaInputs(
            query, key, value, new.beta, before["states"].value.float(), (1,), torch.tensor([0], dtype=torch.int32),
            torch.tensor([0], dtype=torch.int32), history.pools.scale, new.gate,
        )
    )  # fmt: skip
    for name in ("output", "states"):
        torch.testing.assert_close(after[name].value, right[name].value, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(after[name].bound, right[name].bound, rtol=1e-9, atol=1e-15)


def test_nothing_is_said_of_padded_rows_and_everything_of_others():
    found = taken(Extend((0, 1), (2, 2)), Decode((1,), 2))
    for name in ("convolved", "output"):
        assert found[name].bound.isfinite().flatten(1).all(1).tolist() == [True, False, False]
    assert found["states"].bound.flatten(1).any(1).tolist() == [False, True]
    nobody = taken(Extend((0,), (2,)), Decode((), 1))
    assert nobody["output"].bound.isinf().all()
    assert not nobody["states"].bound.any()


def test_what_a_step_does_not_touch_has_to_keep_its_bits():
    reference = StatePoolsReference(open_inputs(CASE))
    for step in (Extend((0, 1), (3, 2)), Fork(0, 2), Evict(1), Decode((0,))):
        new = tokens_of(CASE, 0, new_rows(step, 3))
        reference.finish(step, new, reference.begin(step, new).value.to(torch.bfloat16))
        states = reference.states()
        reference.observe(states["states"].value.float())
    assert list(reference.roster.live) == [0, 2]
    assert states["states"].bound.flatten(1).any(1).tolist() == [True, False]
    before = states["states"].value[1].clone()
    for step in (Restore(1), Free(0)):
        reference.finish(step, new, new.mixed)
    assert list(reference.roster.live) == [2, 1]
    assert torch.equal(reference.states()["states"].value[0], before.float())


def test_a_request_that_comes_again_begins_with_zeros():
    tail = (Extend((0,), (2,)),)
    again = build_inputs(replace(CASE, steps=(Extend((0,), (5,)), Free(0), *tail)))
    fresh = replace(again, steps=again.steps[2:])
    one, other = state_pools(again), state_pools(fresh)
    assert torch.equal(one["states"].value, other["states"].value)
    assert torch.equal(one["lines"].value, other["lines"].value)
    assert not one["lines"].value[0, 0].any()


def test_it_goes_on_from_what_a_device_says_that_it_has():
    reference = StatePoolsReference(open_inputs(CASE))
    step, new = Extend((0,), (3,)), tokens_of(CASE, 0, 3)
    reference.finish(step, new, new.mixed)
    reference.observe(torch.zeros(1, 4, 24, 16))
    assert not reference.states()["states"].value.any()


@pytest.mark.parametrize("state_dtype", ["bfloat16", "float32"])
def test_bounds_do_not_grow_with_the_number_of_steps(state_dtype):
    case = replace(CASE, state_dtype=state_dtype, decays="weak")
    pieces = [tokens_of(case, number, 1) for number in range(150)]
    _, _, outputs = walked(pieces, case)
    sizes = [float(one.bound.max()) for one in outputs]
    assert max(sizes[-20:]) < 3 * max(sizes[10:30])


def test_chunks_of_prompts_have_wider_bounds_and_steps_have_not():
    for step, wider in ((Extend((0,), (1,)), True), (Decode((0,)), False)):
        narrow, wide = (
            taken(Extend((0,), (1,)), step, case=replace(CASE, state_dtype="bfloat16", chunked=chunked))
            for chunked in (False, True)
        )
        assert bool((wide["output"].bound > 1.5 * narrow["output"].bound).any()) is wider


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Extend((), ()), "requests that are not evicted"),
        (Extend((0, 0), (1, 1)), "each once"),
        (Extend((2,), (1,)), "not evicted"),
        (Extend((0,), (0,)), "at least one token"),
        (Extend((0,), (1, 1)), "at least one token"),
        (Extend((3, 4, 5), (1, 1, 1)), "more than 4 requests"),
        (Decode((3,)), "not live: d"),
        (Decode(()), "at least one row"),
        (Decode((0, 0)), "twice"),
        (Verify((0,), (4,)), "of 3 tokens each"),
        (Verify((0,), ()), "of 3 tokens each"),
        (Verify((), ()), "at least one row"),
        (Fork(0, 1), "there already"),
        (Fork(3, 4), "not live: d"),
        (Fork(0, 2), "there already"),
        (Free(2), "not live: c"),
        (Restore(0), "a was not evicted"),
    ],
    ids=lambda value: in_words(value) if not isinstance(value, str) else "",
)
def test_steps_that_make_no_sense_are_refused(step, words):
    roster = Roster(4, 3)
    for before in (Extend((0, 1, 2), (1, 1, 1)), Evict(2)):
        assert roster.reason_against(before) is None
        roster.take(before)
    assert words in roster.reason_against(step)
    with pytest.raises(ValueError, match="not live: b"):
        taken(Extend((0,), (1,)), Decode((1,)))


def test_a_request_that_comes_back_needs_room():
    roster = Roster(1, 1)
    for step in (Extend((0,), (1,)), Evict(0), Extend((1,), (1,))):
        roster.take(step)
    assert roster.reason_against(Restore(0)) == "more than 1 requests"
    assert roster.slots_used == 2


def test_rows_are_counted_and_named():
    steps = (Extend((0, 1), (2, 1)), Verify((1, 0), (0, 3), 1), Decode((0,), 1))
    assert [new_rows(step, 3) for step in (*steps, Free(0))] == [3, 9, 2, 0]
    assert [in_words(step) for step in (*steps, Fork(0, 27), Restore(2))] == [
        "extend a 2 b 1", "verify b 0 a 3 + 1 padded", "decode a + 1 padded", "fork a b1", "restore c",
    ]  # fmt: skip
    history = build_inputs(replace(CASE, steps=steps[:2]))
    rows, live = coordinates_of(history)
    assert (list(rows), list(live)) == ([(1, 1), (1, 2), (1, 3), (0, 2), (0, 3), (0, 4), *[(-1, -1)] * 3], [0, 1])
