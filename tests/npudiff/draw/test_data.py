from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter

import pytest
import torch

from npudiff.draw.data import Stream

RECORDED = {
    torch.bfloat16: "3a9cbbd6549bdabf2027cdbf5cb476b95d97304075142a753549f8d8a22bbaa7",
    torch.float16: "0603002e8b56ded1d9ce757bf7bb0a4fa6c46a1500470df23ff2374445cdfe84",
    torch.float32: "b222cb5c31a6c5a6080a61c41c60ebf4b81f7d257f566f789c111eca6eb1e8ec",
}


WORDS = [11884852416756087958, 11565382015342090171]
INTEGERS = [9, 2, 7, 0, 1, 8, 7, 5]
PERMUTATION = [0, 5, 3, 7, 1, 8, 2, 6, 4]


def digest(tensor):
    size = tensor.element_size()
    bits = tensor.contiguous().view({2: torch.int16, 4: torch.int32}[size]).numpy()
    return hashlib.sha256(bits.astype(f"<i{size}").tobytes()).hexdigest()


@pytest.mark.parametrize("dtype", list(RECORDED))
def test_normal_values_have_the_recorded_bits(dtype):
    assert digest(Stream(7, "key").normal((5, 3, 67), dtype)) == RECORDED[dtype]


def test_words_integers_and_permutations_have_the_recorded_values():
    assert Stream(0, "a").random_uint64(2).tolist() == WORDS
    assert Stream(1, "b").integers(-3, 10, 8) == INTEGERS
    assert Stream(2, "c").permutation(9) == PERMUTATION


@pytest.mark.slow
def test_another_process_draws_the_same():
    script = "from npudiff.draw.data import Stream; print(Stream(1, 'b').integers(-3, 10, 8))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(INTEGERS)


def test_the_values_are_standard_normal_and_bounded():
    values = Stream(3, "x").normal((200_000,), torch.float32)
    assert abs(float(values.mean())) < 0.01
    assert abs(float(values.std()) - 1) < 0.01
    assert float(values.abs().max()) < 3.75
    assert len(values.unique()) > 2000


def test_streams_of_other_names_and_seeds_are_independent():
    streams = [Stream(0, "key"), Stream(0, "value"), Stream(1, "key"), Stream(0, "key "), Stream(10, "key")]
    values = torch.stack([stream.normal((50_000,), torch.float32) for stream in streams])
    correlation = torch.corrcoef(values) - torch.eye(len(streams))
    assert float(correlation.abs().max()) < 0.03


def test_a_seed_and_a_name_are_not_run_together():
    assert Stream(1, "1:a").random_uint64(1).tolist() != Stream(11, "a").random_uint64(1).tolist()
    assert Stream(1, "2").random_uint64(1).tolist() != Stream(12, "").random_uint64(1).tolist()


def test_a_stream_goes_on_and_does_not_repeat():
    stream = Stream(0, "a")
    assert [*stream.random_uint64(3).tolist(), *stream.random_uint64(3).tolist()] == Stream(0, "a").random_uint64(
        6
    ).tolist()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-5, -2), (0, 7), (10**6, 10**6 + 3)])
def test_integers_fill_their_range_and_stay_in_it(low, high):
    drawn = Counter(Stream(4, "x").integers(low, high, 3000))
    assert set(drawn) == set(range(low, high))
    expected = 3000 / (high - low)
    assert all(abs(count - expected) < 6 * expected**0.5 for count in drawn.values())


@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_a_permutation_has_every_index_once(count):
    assert sorted(Stream(5, "p").permutation(count)) == list(range(count))


def test_a_permutation_permutes():
    assert len({tuple(Stream(seed, "p").permutation(4)) for seed in range(400)}) == 24


@pytest.mark.parametrize("shape", [(0,), (0, 4), (1,), (3, 0, 2), ()])
def test_empty_and_tiny_shapes_can_be_drawn(shape):
    assert Stream(0, "x").normal(shape, torch.bfloat16).shape == shape
