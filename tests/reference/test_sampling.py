"""The reference of filters of logits, against transformers, by hand, and with sorts in float32."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from npudiff.draw.data import Stream
from npudiff.judge.compare import compare
from npudiff.reference.sampling import SamplingInputs, sampling

ROWS, VOCABULARY = 6, 300


def logits(scale=2.0, name="logits"):
    return Stream(7, name).normal((ROWS, VOCABULARY), torch.float32) * scale


def left(values):
    kept = values > -torch.inf
    return {"kept": kept.to(torch.int8), "logits": values.masked_fill(~kept, 0.0), "count": kept.sum(dim=1)}


def agrees(inputs, values):
    """Whether logits are right; most of what is expected is said exactly."""
    expected = sampling(inputs)
    assert float(expected["kept"].bound.isinf().float().mean()) < 0.01
    return compare(expected, left(values)).holds


def each(value, dtype=torch.float32):
    return torch.full((ROWS,), value, dtype=dtype)


def test_filters_by_hand():
    rows = torch.tensor([[0.6, 0.3, 0.05, 0.05]]).log()
    kept = [0, 1]
    for given in (
        {"top_k": torch.tensor([2], dtype=torch.int32)},
        {"top_p": torch.tensor([0.8])},  # the second is needed: 0.6 is less than 0.8
        {"top_p": torch.tensor([0.61])},
        {"min_p": torch.tensor([0.4])},  # 0.24 of all
    ):
        expected = sampling(SamplingInputs(rows, **given))
        assert expected["kept"].value[0].nonzero().flatten().tolist() == kept
        assert not bool(expected["kept"].bound.any())
        assert float(expected["count"].value) == 2
    first = sampling(SamplingInputs(rows, top_p=torch.tensor([0.59])))
    assert first["kept"].value.tolist() == [[1, 0, 0, 0]]
    none = sampling(SamplingInputs(rows, top_p=torch.tensor([0.0])))
    assert none["kept"].value.tolist() == [[1, 0, 0, 0]]


def test_a_share_is_of_what_is_left_or_of_all():
    rows = torch.tensor([[0.3, 0.2, 0.1, 0.4]]).log()
    given = SamplingInputs(rows, top_k=torch.tensor([3], dtype=torch.int32), top_p=torch.tensor([0.75]))
    # Of 0.9 that three have together, 0.7 is more than three quarters.
    assert sampling(given)["kept"].value.tolist() == [[1, 0, 0, 1]]
    assert sampling(replace(given, mass="all"))["kept"].value.tolist() == [[1, 1, 0, 1]]


def test_penalties_by_hand():
    rows = torch.tensor([[2.0, -2.0, 0.0, 1.0, 3.0]])
    given = SamplingInputs(
        rows,
        prompt=torch.tensor([[0, 5, 5]]),
        output=torch.tensor([[1, 3, 3]]),
        repetition=torch.tensor([2.0]),
        frequency=torch.tensor([0.5]),
        presence=torch.tensor([0.25]),
        temperature=torch.tensor([2.0]),
    )
    right = [1.0 / 2, (-4.0 - 0.5 - 0.25) / 2, 0.0, (0.5 - 1.0 - 0.25) / 2, 1.5]
    assert sampling(given)["logits"].value[0].tolist() == pytest.approx(right)
    cold = sampling(replace(given, temperature=torch.tensor([0.0])))["logits"].value[0]
    assert cold.tolist() == pytest.approx([2 * one for one in right])


def test_a_mask_has_a_bit_for_each_token_and_the_highest_is_one():
    bits = [0, 31, 32, 40]
    words = [sum(1 << bit for bit in bits if bit < 32), sum(1 << bit - 32 for bit in bits if bit >= 32)]
    signed = [word - 2**32 if word >= 2**31 else word for word in words]
    expected = sampling(SamplingInputs(torch.zeros(1, 41), bitmask=torch.tensor([signed], dtype=torch.int32)))
    assert expected["kept"].value[0].nonzero().flatten().tolist() == bits


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("scale", [0.02, 2.0, 6.0])
def test_transformers_filters_alike(share, scale):
    rows = logits(scale)
    assert agrees(SamplingInputs(rows, top_p=each(share)), TopPLogitsWarper(share)(None, rows))
    assert agrees(SamplingInputs(rows, min_p=each(share)), MinPLogitsWarper(share)(None, rows))
    for count in (1, 7, VOCABULARY):
        given = SamplingInputs(rows, top_k=each(count, torch.int32))
        assert agrees(given, TopKLogitsWarper(count)(None, rows))
        both = TopPLogitsWarper(share)(None, TopKLogitsWarper(count)(None, rows))
        assert agrees(replace(given, top_p=each(share)), both)


def test_transformers_penalises_and_divides_alike():
    rows = logits()
    tokens = torch.from_numpy((Stream(7, "tokens").random_uint64(ROWS * 20) >> 40).astype("int64")).reshape(ROWS, 20)
    tokens %= VOCABULARY
    given = SamplingInputs(rows, prompt=tokens[:, :8], output=tokens[:, 8:], repetition=each(1.3))
    values = RepetitionPenaltyLogitsProcessor(1.3)(tokens, rows)
    assert agrees(given, values)
    assert agrees(replace(given, temperature=each(0.7)), TemperatureLogitsWarper(0.7)(None, values))
    assert not agrees(replace(given, temperature=each(0.7)), TemperatureLogitsWarper(0.7001)(None, values))
    assert not agrees(given, rows)


def test_what_is_as_likely_as_the_last_may_stay_or_go_but_not_all_of_it():
    rows = torch.tensor([[3.0, 1.0, 1.0, 1.0, 0.0]])
    given = SamplingInputs(rows, top_k=torch.tensor([2], dtype=torch.int32))
    gone = -torch.inf
    for right in ([3.0, 1.0, 1.0, 1.0, gone], [3.0, gone, 1.0, gone, gone], [3.0, 1.0, gone, gone, gone]):
        assert compare(sampling(given), left(torch.tensor([right]))).holds
    for wrong in ([3.0, gone, gone, gone, gone], [gone, 1.0, 1.0, gone, gone], [3.0, 1.0, 1.0, 1.0, 0.0]):
        assert not compare(sampling(given), left(torch.tensor([wrong]))).holds


def test_a_limit_that_rounding_hides_says_nothing_and_its_neighbours_do():
    rows = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    expected = sampling(SamplingInputs(rows, top_p=torch.tensor([0.75])))["kept"]
    assert expected.bound.tolist() == [[0.0, 0.0, math.inf, math.inf]]
    assert expected.value.tolist() == [[1.0, 1.0, 0.0, 0.0]]
    near = sampling(SamplingInputs(rows, top_p=torch.tensor([0.7499])))["kept"]
    assert not bool(near.bound.any())


def test_nobody_is_accused_of_tokens_that_cannot_be_drawn():
    rows = torch.tensor([[0.0, -80.0, -90.0, -200.0]])
    assert sampling(SamplingInputs(rows))["kept"].bound.isinf().tolist() == [[False, False, True, True]]


@pytest.mark.parametrize(
    "changed",
    [{"mass": "some"}, {"top_p": torch.ones(2)}, {"bitmask": torch.zeros(ROWS, 9, dtype=torch.int32)},
     {"output": torch.full((ROWS, 1), VOCABULARY + 1)}, {"prompt": torch.full((ROWS, 1), -1)}],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(changed):
    with pytest.raises(ValueError, match=next(iter(changed))):
        sampling(SamplingInputs(logits(), **changed))


def test_a_bad_word_is_not_completed():
    """Tokens of which the last would complete it are gone, if those before are the end of the output."""
    words = ((0,), (7, 8, 1), (8, 7, 2), (7, 8, 9, 3), (9, 7, 8, 4), (6, 9, 7, 8, 5))
    inputs = SamplingInputs(
        logits=torch.zeros(1, 10),
        output=torch.tensor([[9, 7, 8, 10, 10]]),
        prompt=torch.tensor([[6]]),
        bad_words=(words,),
    )
    assert sampling(inputs)["kept"].value.tolist() == [[0, 0, 1, 1, 0, 1, 1, 1, 1, 1]]
    nothing_yet = replace(inputs, output=None, prompt=None)
    assert sampling(nothing_yet)["kept"].value.tolist() == [[0, *[1] * 9]]


def test_a_drawn_token_has_its_probability():
    """By Hoeffding a right one is further off in one of a billion runs; the seed is fixed."""
    count, weights = 60_000, torch.tensor([0.5, 0.3, 0.15, 0.05])
    noise = torch.empty(count, 4).exponential_(generator=torch.Generator().manual_seed(4))
    drawn = sampling(SamplingInputs(logits=weights.log().expand(count, -1), exponential=noise))["token"]
    assert float((drawn.bound > 0).double().mean()) < 0.01
    share = torch.bincount(drawn.value.long(), minlength=4) / count
    assert float((share - weights).abs().max()) < math.sqrt(math.log(2 * 4 / 1e-9) / (2 * count)) + 0.01


def test_a_request_without_temperature_takes_its_most_likely_token():
    logits = torch.tensor([[0.0, 2.0, 1.0]] * 2)
    noise = torch.tensor([[1e-6, 5.0, 5.0]] * 2)
    given = SamplingInputs(logits=logits, temperature=torch.tensor([0.0, 1.0]), exponential=noise)
    assert sampling(given)["token"].value.tolist() == [1, 0]


def test_a_token_is_open_where_another_one_is_as_near():
    given = SamplingInputs(logits=torch.tensor([[1.0, 1.0, 0.0]]), exponential=torch.tensor([[2.0, 2.0, 1.0]]))
    assert sampling(given)["token"].bound.isinf().all()
    assert not sampling(replace(given, exponential=torch.tensor([[2.0, 2.001, 1.0]])))["token"].bound.any()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"exponential": torch.ones(1, 3)}, "exponential must be"),
        ({"bad_words": (((1,),),) * 2}, "there are bad words of 2 of 1"),
        ({"bad_words": (((),),)}, "a bad word has a token"),
        ({"bad_words": (((5,),),)}, "a bad word has a token"),
    ],
)
def test_what_makes_no_sense_of_words_and_numbers_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        sampling(SamplingInputs(logits=torch.zeros(1, 4), **changes))
