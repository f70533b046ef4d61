from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from npudiff.draw.data import Stream
from npudiff.judge.compare import compare
from npudiff.reference.vocabulary_parallel import (
    VocabularyParallelInputs,
    dense_table,
    even_counts,
    ids_that_may_be_most_likely,
    places_of_ids,
    rank_part,
    rows_of_ranks,
    sharded,
    vocabulary_parallel,
)

TABLE = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [-1.0, 3.0], [5.0, 5.0]])
"""Three ids of the model, and two that were added."""


def given(table=TABLE, vocabulary=3, multiple=2, ranks=2, ids=(0, 3, 2, 4), filler=torch.nan, **more):
    states = Stream(3, "states").normal((len(ids), table.shape[1]), torch.float32).to(table.dtype)
    return VocabularyParallelInputs(
        shards=sharded(table, vocabulary, multiple, ranks, filler), ids=torch.tensor(ids),
        states=more.pop("states", states), vocabulary=vocabulary, added=len(table) - vocabulary, multiple=multiple,
        counts=more.pop("counts", even_counts(len(ids), ranks)), **more,
    )  # fmt: skip


def drawn(dtype, tokens=20, vocabulary=200, added=9, hidden=96, ranks=4):
    table = Stream(1, "table").normal((vocabulary + added, hidden), torch.float32).to(dtype)
    ids = Stream(1, "ids").integers(0, vocabulary + added, tokens)
    return given(table, vocabulary, 64, ranks, tuple(ids))


def test_rows_of_two_ranks_by_hand():
    shards = given().shards
    assert shards[0][:2].tolist() == TABLE[:2].tolist()
    assert shards[0][2].tolist() == TABLE[3].tolist()
    assert shards[1][0].tolist() == TABLE[2].tolist()
    assert shards[1][2].tolist() == TABLE[4].tolist()
    assert bool(shards[1][1].isnan().all())


def test_the_example_of_backends():
    """1,010 ids and 16 more, padded to 64, on two ranks, as sglang's and vLLM's docstrings draw it."""
    rank, row = places_of_ids(1010, 16, 64, 2)
    assert (int(rank[511]), int(row[511])) == (0, 511)
    assert (int(rank[512]), int(row[512])) == (1, 0)
    assert (int(rank[1009]), int(row[1009])) == (1, 497)
    assert [(int(rank[at]), int(row[at])) for at in (1010, 1025)] == [(0, 512), (0, 527)]
    assert sharded(torch.zeros(1026, 1), 1010, 64, 2, 0.0).shape == (2, 544, 1)


@pytest.mark.parametrize(("ranks", "multiple"), [(1, 1), (2, 2), (3, 3), (4, 8), (8, 64)])
@pytest.mark.parametrize(("vocabulary", "added"), [(1, 0), (7, 5), (64, 1), (65, 0), (1, 9)])
def test_every_id_has_one_row(vocabulary, added, ranks, multiple):
    table = torch.arange(vocabulary + added, dtype=torch.float64).unsqueeze(1)
    shards = sharded(table, vocabulary, multiple, ranks, -1.0)
    assert sorted(shards[shards >= 0].tolist()) == table.flatten().tolist()
    inputs = given(table, vocabulary, multiple, ranks, (0,), filler=-1.0)
    assert torch.equal(dense_table(inputs), table)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_it_is_the_dense_embedding_and_the_dense_product(dtype):
    inputs = drawn(dtype)
    table = dense_table(inputs)
    expected = vocabulary_parallel(inputs)
    embedded = torch.nn.functional.embedding(inputs.ids, table)
    logits = torch.nn.functional.linear(inputs.states.double(), table.double())
    assert torch.equal(expected["embedded"].value, embedded.double().repeat(4, 1))
    assert not bool(expected["embedded"].bound.any())
    assert torch.allclose(expected["logits"].value, logits.repeat(4, 1), rtol=0, atol=1e-12)
    actual = torch.nn.functional.linear(inputs.states.float(), table.float()).to(dtype)
    answer = {"logits": actual.repeat(4, 1), "tokens": actual.argmax(dim=1).repeat(4)}
    assert 0.02 < compare(expected, answer).worst <= 1


def test_an_id_that_is_none_has_zeros():
    embedded = vocabulary_parallel(given(ids=(-1, 5, 2**31 - 1, 4)))["embedded"].value[:4]
    assert embedded.tolist() == [[0, 0], [0, 0], [0, 0], [5, 5]]


def test_chunks_are_returned_once():
    inputs = given(returned="chunks", given="chunks", counts=(1, 3))
    assert rows_of_ranks(inputs, "tokens") == [1, 3]
    assert len(vocabulary_parallel(inputs)["tokens"].value) == 4
    assert rank_part(inputs, 1).ids.tolist() == [3, 2, 4]
    assert rank_part(replace(inputs, given="whole"), 1).ids.tolist() == [0, 3, 2, 4]
    assert even_counts(7, 4) == (2, 2, 2, 1)
    assert even_counts(2, 4) == (1, 1, 0, 0)


def test_of_integers_the_lowest_id_of_the_largest_logits_is_the_token():
    table = torch.tensor([[1.0], [2.0], [2.0], [-2.0], [2.0]])
    expected = vocabulary_parallel(given(table, states=torch.tensor([[1.0], [-1.0], [0.0], [3.0]])))
    assert expected["tokens"].value.tolist() == [1, 3, 0, 1] * 2
    assert not bool(expected["tokens"].bound.any())
    assert not bool(expected["logits"].bound.any())


def test_a_token_is_free_among_logits_that_are_nearer_than_their_bounds():
    table = torch.tensor([[0.5], [1.25], [-8.0], [1.25 + 2.0**-21], [1.0]])
    tokens = vocabulary_parallel(given(table, states=torch.full((4, 1), 1.1)))["tokens"]
    assert (tokens.value - tokens.bound).tolist()[:4] == [1] * 4
    assert (tokens.value + tokens.bound).tolist()[:4] == [3] * 4
    assert vocabulary_parallel(given(table, states=torch.full((4, 1), -1.1)))["tokens"].value.tolist() == [2] * 8


def test_integers_that_a_dtype_does_not_hold_are_rounded():
    table = torch.tensor([[256.0], [1.0], [3.0], [2.0], [0.0]]).to(torch.bfloat16)
    logits = vocabulary_parallel(given(table, states=torch.full((4, 1), 3.0).to(torch.bfloat16)))["logits"]
    assert (logits.bound[0] == 0).tolist() == [True] * 5  # 768 has three bits
    logits = vocabulary_parallel(given(table + 1, states=torch.full((4, 1), 3.0).to(torch.bfloat16)))["logits"]
    assert (logits.bound[0] == 0).tolist() == [True] * 5  # 257 is 256 in bfloat16 already
    wide = torch.tensor([[129.0], [1.0], [3.0], [2.0], [0.0]]).to(torch.bfloat16)
    logits = vocabulary_parallel(given(wide, states=torch.full((4, 1), 3.0).to(torch.bfloat16)))["logits"]
    assert (logits.bound[0] == 0).tolist() == [False, True, True, True, True]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"multiple": 3}, "a multiple of 3 cannot be split over 2 ranks"),
        ({"vocabulary": 5}, "a rank must have 4 rows, got 3"),
        ({"states": torch.zeros(3, 2)}, r"states must be \[4, 2\], got \[3, 2\]"),
        ({"given": "some"}, "given must be one of"),
        ({"returned": "some"}, "returned must be one of"),
        ({"counts": (1, 2)}, r"counts \(1, 2\) are not of 4 tokens on 2 ranks"),
        ({"counts": (5, -1)}, "are not of 4 tokens"),
    ],
)
def test_what_contradicts_itself_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        vocabulary_parallel(replace(given(), **changed))


def test_ids_that_may_be_most_likely_are_a_set():
    table = torch.tensor([[0.5], [1.25], [-8.0], [1.25 + 2.0**-21], [1.0]])
    near = ids_that_may_be_most_likely(given(table, states=torch.full((4, 1), 1.1)))
    assert near.tolist() == [[False, True, False, True, False]] * 4
    whole = torch.tensor([[1.0], [2.0], [2.0], [-2.0], [2.0]])
    ties = ids_that_may_be_most_likely(given(whole, states=torch.ones(4, 1)))
    assert ties.tolist() == [[False, True, False, False, False]] * 4
