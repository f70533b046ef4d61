from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from npudiff.model.constraints import Constraints
from npudiff.properties.swa_mask import SwaMaskCase, build_inputs
from npudiff.reference.swa_mask import SwaMaskInputs, swa_mask

cases = SwaMaskCase.strategy

DRAWN = settings(
    max_examples=100, derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
SMALL = Constraints.of({"kv_length": range(200), "batch": (1, 2, 3, 4)})


def visible_keys(length, window, capacity=None):
    """What the mask of one request shows, as a list of key indices."""
    capacity = max(length, 1) if capacity is None else capacity
    inputs = SwaMaskInputs(torch.tensor([length], dtype=torch.int32), capacity, window)
    mask = swa_mask(inputs)["mask"].value
    return (~mask[0, 0]).nonzero().flatten().tolist()


def causal_window(length, window):
    """Per-element rule of a prompt of ``length`` tokens: which key each row sees."""
    return [
        [j <= i and (window is None or i - j < window) for j in range(length)]
        for i in range(length)
    ]  # fmt: skip


@DRAWN
@given(cases(SMALL))
def test_every_cell_follows_the_predicate(case):
    mask = swa_mask(build_inputs(case))["mask"].value
    for row, length in enumerate(case.kv_lengths):
        hidden = [j >= length or (case.window is not None and j < length - case.window) for j in range(case.capacity)]
        assert mask[row, 0].tolist() == hidden


@DRAWN
@given(cases(Constraints.of({"kv_length": range(1, 60), "batch": (1,)})))
def test_a_request_sees_what_the_last_row_of_its_prompt_sees(case):
    (length,) = case.kv_lengths
    mask = swa_mask(build_inputs(case))["mask"].value[0, 0, :length]
    assert (~mask).tolist() == causal_window(length, case.window)[-1]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6, 9])
@pytest.mark.parametrize("window", [1, 2, 4, 5, None])
def test_a_prompt_row_of_the_attention_reference_sees_what_the_mask_of_its_length_shows(length, window):
    from npudiff.reference.paged_kv import PagedKV
    from npudiff.reference.sliding_attention import SlidingAttentionInputs, sliding_attention

    # One-hot values and equal scores: an output is positive exactly at the keys that are seen.
    pool = PagedKV(
        torch.zeros(1, length, 1, 1, dtype=torch.float16),
        torch.eye(length, dtype=torch.float16).reshape(1, length, 1, length),
        torch.zeros(1, 1, dtype=torch.int32),
    )
    query = torch.zeros(length, 1, 1, dtype=torch.float16)
    inputs = SlidingAttentionInputs(query, pool, None, (length,), (length,), window, 1.0, None)
    seen = sliding_attention(inputs)["output"].value[:, 0]
    for row in range(length):
        assert (seen[row] > 0).nonzero().flatten().tolist() == visible_keys(row + 1, window)


def test_output_is_one_bool_row_per_request_and_exact():
    expected = swa_mask(SwaMaskInputs(torch.tensor([[3], [0]]), 5, 2))["mask"]
    assert expected.value.shape == expected.bound.shape == (2, 1, 5)
    assert expected.value.dtype == expected.dtype == torch.bool
    assert not expected.bound.any()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_column_and_vector_of_lengths_give_the_same_mask(dtype):
    lengths = torch.tensor([7, 1, 0, 9], dtype=dtype)
    flat = swa_mask(SwaMaskInputs(lengths, 12, 3))["mask"].value
    column = swa_mask(SwaMaskInputs(lengths.unsqueeze(1), 12, 3))["mask"].value
    assert torch.equal(flat, column)


@pytest.mark.parametrize("window", [10, 11, 4096, 2**31 - 1])
def test_a_window_of_the_length_or_more_is_a_plain_padding_mask(window):
    assert visible_keys(10, window, capacity=16) == list(range(10))
    assert visible_keys(10, None, capacity=16) == list(range(10))


@pytest.mark.parametrize("window", [1, 4, None])
def test_a_request_without_tokens_hides_every_key(window):
    assert visible_keys(0, window, capacity=8) == []


def test_columns_beyond_the_length_are_hidden():
    assert visible_keys(6, 4, capacity=64) == [2, 3, 4, 5]


def test_literal_table_of_window_4_and_length_10():
    assert visible_keys(1, 4) == [0]
    assert visible_keys(4, 4) == [0, 1, 2, 3]
    assert visible_keys(5, 4) == [1, 2, 3, 4]
    assert visible_keys(10, 4) == [6, 7, 8, 9]
    mask = swa_mask(SwaMaskInputs(torch.tensor([10]), 12, 4))["mask"].value
    assert mask[0, 0].int().tolist() == [1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("page_size", [16, 128])
@pytest.mark.parametrize("window", [2, 4, 15, 16, 17, 128])
def test_conventions_agree_at_the_borders_of_window_and_page(window, page_size):
    lengths = {1, window - 1, window, window + 1, window + 2, page_size - 1, page_size, page_size + 1}
    for length in sorted(lengths):
        own = length - 1
        hugging_face = [j for j in range(length) if own - window < j <= own]  # sliding_window = W
        pre_tokens = window - 1
        band = [j for j in range(length) if own - pre_tokens <= j <= own + 0]  # sparse mode 4, next_tokens = 0
        left_context = window
        builder = list(range(max(0, length - left_context), length))  # get_swa_mask
        assert visible_keys(length, window, capacity=2 * page_size + window) == hugging_face == band == builder


def test_pre_tokens_equal_to_the_window_differs_first_at_window_plus_one():
    window = 4
    for length in range(1, 12):
        band = [j for j in range(length) if length - 1 - window <= j]
        assert (band == visible_keys(length, window)) == (length <= window)


@pytest.mark.parametrize(("length", "capacity", "window"), [(3, 2, 1), (-1, 2, 1), (1, 2, 0), (1, 2, -1)])
def test_what_cannot_be_is_refused(length, capacity, window):
    inputs = SwaMaskInputs(torch.tensor([length]), capacity, window)
    with pytest.raises(ValueError, match=r"window|kv_lengths"):
        swa_mask(inputs)


def test_inputs_move_to_a_device_without_change():
    inputs = SwaMaskInputs(torch.tensor([3]), 4, 2)
    moved = inputs.to("cpu")
    assert torch.equal(moved.kv_lengths, inputs.kv_lengths)
    assert replace(moved, kv_lengths=inputs.kv_lengths) == inputs
