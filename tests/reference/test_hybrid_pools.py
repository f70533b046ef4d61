"""The dictionary that remembers every token: against hand-worked histories, and attention against plain loops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from npudiff.reference.hybrid_pools import (
    Allocate,
    Decode,
    Evict,
    Extend,
    Fork,
    Free,
    HybridPoolsHistory,
    HybridPoolsInputs,
    HybridPoolsReference,
    PoolStorage,
    Preempt,
    Readmit,
    Share,
    TokenMemory,
    Tokens,
    TokenStates,
    hybrid_pools,
    new_tokens,
)

HEADS, KV_HEADS, DIM, VALUE_DIM = 4, 2, 8, 6


def inputs(page_size=4, full=8, sliding=8, window=3, requests=4, sharing=True):
    def storage(pages):
        shape = (1 + pages, page_size, KV_HEADS)
        return PoolStorage(torch.zeros(*shape, DIM, dtype=torch.bfloat16), torch.zeros(*shape, VALUE_DIM).bfloat16())

    return HybridPoolsInputs(storage(full), storage(sliding), HEADS, window, 0.3, requests, sharing)


def tokens(first, count):
    """Tokens with numbers from ``first`` on: token n has n in the first element of everything."""
    generator = torch.Generator().manual_seed(first)

    def rows(heads, dim):
        made = torch.randn(count, heads, dim, generator=generator)
        made[:, :, 0] = torch.arange(first, first + count).unsqueeze(1) / 64
        return made.bfloat16()

    states = TokenStates(
        *(rows(KV_HEADS, dim) for dim in (DIM, VALUE_DIM, DIM, VALUE_DIM)),
    )
    return Tokens(rows(HEADS, DIM), states)


def history(*steps, **sizes):
    """Take steps with tokens that are numbered as they come."""
    count, pairs = 0, []
    for step in steps:
        new = sum(new_tokens(step).values())
        pairs.append((step, tokens(count, new)))
        count += new
    return HybridPoolsHistory(inputs(**sizes), tuple(pairs))


def taken(*steps, **sizes):
    made = history(*steps, **sizes)
    reference = HybridPoolsReference(made.pools)
    return reference, [reference.take(step, new) for step, new in made.steps]


def remembered(reference):
    """Live request to the numbers of its tokens, which all five tensors agree on."""
    found = {}
    for request, kept in reference.memory.live.items():
        states = kept.states
        parts = (kept.query, states.full_key, states.full_value, states.sliding_key, states.sliding_value)
        numbers = [[round(64 * float(row[0, 0])) for row in part] for part in parts]
        assert all(one == numbers[0] for one in numbers)
        found[request] = numbers[0]
    return found


def test_tokens_are_remembered_in_their_order():
    reference, answers = taken(Allocate(0, 3), Allocate(1, 2), Extend(0, 2), Decode((1, 0)), Evict((0,)))
    assert remembered(reference) == {0: [0, 1, 2, 5, 6, 8], 1: [3, 4, 7]}
    assert answers == [True] * 5


def test_a_fork_goes_its_own_way():
    reference, _ = taken(Allocate(0, 3), Fork(0, 1), Decode((0, 1)), Free(0), Decode((1,)))
    assert remembered(reference) == {1: [0, 1, 2, 4, 5]}


def test_a_shared_prefix_is_whole_pages_and_then_its_own_tokens():
    reference, _ = taken(Allocate(0, 9), Share(0, 1, 2, 3), Extend(0, 1))
    assert remembered(reference) == {0: [*range(9), 12], 1: [*range(8), 9, 10, 11]}


def test_a_preempted_request_comes_back_as_it_was():
    reference, _ = taken(Allocate(0, 3), Decode((0,)), Preempt(0), Allocate(1, 1), Readmit(0), Decode((0,)))
    assert remembered(reference) == {0: [0, 1, 2, 3, 5], 1: [4]}


def test_a_step_for_which_there_are_no_pages_is_forgotten():
    reference, answers = taken(Allocate(0, 5), Extend(0, 8), Allocate(1, 5), Decode((0,)), full=2)
    assert answers == [True, False, False, True]
    assert remembered(reference) == {0: [0, 1, 2, 3, 4, 18]}
    assert reference.rows == {0: 1}
    assert taken(Allocate(0, 5), Extend(0, 8), full=2)[0].rows == {0: 1}


def test_new_tokens_attend_as_in_a_prefill_and_else_the_last_one():
    reference, _ = taken(Allocate(0, 5), Allocate(1, 3))
    assert reference.rows == {0: 1, 1: 3}
    reference.take(Decode((0, 1)), tokens(8, 2))
    assert reference.rows == {0: 1, 1: 1}
    reference.take(Extend(0, 4), tokens(10, 4))
    assert reference.rows == {0: 4, 1: 1}
    reference.take(Preempt(0), tokens(0, 0))
    reference.take(Readmit(0), tokens(0, 0))
    assert reference.rows == {1: 1, 0: 1}


def test_a_step_that_makes_no_sense_is_refused():
    reference, _ = taken(Allocate(0, 5))
    with pytest.raises(ValueError, match="allocate a 1: request 0 is there already"):
        reference.take(Allocate(0, 1), tokens(5, 1))


def plain(kept, rows, key, value, window, scale):
    """Attention of the last rows, key by key."""
    found = torch.zeros(rows, HEADS, VALUE_DIM, dtype=torch.float64)
    for row in range(rows):
        position = len(kept) - rows + row
        seen = [one for one in range(position + 1) if window is None or one > position - window]
        for head in range(HEADS):
            query = kept.query[position, head].double()
            kv_head = head // (HEADS // KV_HEADS)
            weights = [math.exp(scale * float(query @ key[one, kv_head].double())) for one in seen]
            total = sum(weights)
            for one, weight in zip(seen, weights, strict=True):
                found[row, head] += weight / total * value[one, kv_head].double()
    return found


def test_attention_is_that_over_the_remembered_tokens():
    reference, _ = taken(Allocate(0, 9), Evict((0,)), Share(0, 1, 2, 3), Decode((0,)), Allocate(2, 1), Extend(1, 2))
    expected = reference.attention()
    for name, window in (("full", None), ("sliding", 3)):
        parts = []
        for request, rows in reference.rows.items():
            kept = reference.memory.live[request]
            states = kept.states
            key, value = getattr(states, f"{name}_key"), getattr(states, f"{name}_value")
            parts.append(plain(kept, rows, key, value, window, 0.3))
        torch.testing.assert_close(expected[name].value, torch.cat(parts), rtol=1e-12, atol=1e-12)
        assert expected[name].bound.shape == expected[name].value.shape
        assert 0 < float(expected[name].bound.max()) < 0.1
        assert expected[name].dtype == torch.bfloat16


def test_both_layers_differ_and_so_do_both_windows():
    one = hybrid_pools(history(Allocate(0, 9), Decode((0,))))
    other = hybrid_pools(history(Allocate(0, 9), Decode((0,)), window=4))
    assert not torch.equal(one["full"].value, one["sliding"].value)
    assert torch.equal(one["full"].value, other["full"].value)
    assert not torch.equal(one["sliding"].value, other["sliding"].value)


def test_attention_does_not_depend_on_how_the_tokens_came():
    """One prompt, the same in chunks, and the same preempted in between; the last row is compared."""
    whole = taken(Allocate(0, 6))[0].memory.live[0]
    reference = HybridPoolsReference(inputs())
    reference.take(Allocate(0, 2), whole.part(0, 2))
    reference.take(Extend(0, 3), whole.part(2, 5))
    reference.take(Preempt(0), whole.part(0, 0))
    reference.take(Readmit(0), whole.part(0, 0))
    reference.take(Decode((0,)), whole.part(5, 6))
    memory = TokenMemory(inputs())
    memory.take(Allocate(0, 6), whole)
    for name, expected in memory.attention({0: 1}).items():
        assert torch.equal(expected.value, reference.attention()[name].value)


def same_rows(ones, others):
    """Rows of one and the same tokens: a CPU may multiply another number of rows with other code, which rounds last
    bits otherwise."""
    torch.testing.assert_close(ones, others, rtol=1e-12, atol=1e-12)


def test_what_is_known_is_not_computed_again_and_never_mixed_up():
    reference, _ = taken(Allocate(0, 5), Allocate(1, 5))
    first = reference.attention()
    again = reference.memory.attention(reference.rows)
    assert torch.equal(first["full"].value, again["full"].value)
    assert reference.memory.attention({1: 5})["full"].value.shape[0] == 5
    swapped = reference.memory.attention({1: 5, 0: 1})
    same_rows(swapped["full"].value[5:], first["full"].value[:1])
    reference.take(Free(0), tokens(0, 0))
    reference.take(Allocate(0, 5), tokens(40, 5))
    assert not torch.allclose(reference.attention()["full"].value[1:], first["full"].value[:1].expand(5, -1, -1))
    memory = reference.memory
    same_rows(memory.attention({0: 1})["full"].value, reference.attention()["full"].value[-1:])


def test_nobody_live_is_no_rows():
    for made in (history(), history(Allocate(0, 3), Free(0))):
        expected = hybrid_pools(made)
        assert expected["full"].value.shape == (0, HEADS, VALUE_DIM)
        assert expected["sliding"].dtype == torch.bfloat16


def test_inputs_on_a_device_have_storage_of_their_own():
    given = inputs()
    copied = given.to("cpu")
    copied.full.key.fill_(1)
    copied.sliding.value.fill_(1)
    assert not given.full.key.any()
    assert not given.sliding.value.any()
    assert replace(copied, full=given.full, sliding=given.sliding) == given
    states = tokens(0, 2).states
    states.copy().full_key.fill_(7)
    assert not bool((states.full_key == 7).any())
