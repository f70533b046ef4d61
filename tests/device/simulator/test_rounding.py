"""Where the kernel rounds, and how."""

import math
from types import SimpleNamespace

import pytest
import torch

from npudiff.device.simulator.fused_attention import flash
from npudiff.device.simulator.fused_attention.rounding import narrow
from npudiff.device.simulator.fused_attention.visibility import Visibility


def test_float16_rounds_half_away_from_zero():
    step = 2.0**-10
    ties = torch.tensor([1 + step / 2, 1 + 3 * step / 2, -1 - step / 2])
    assert narrow(ties, torch.float16).tolist() == [1 + step, 1 + 2 * step, -1 - step]
    assert ties.half().tolist() == [1.0, 1 + 2 * step, -1.0]


def test_bfloat16_rounds_half_to_even():
    step = 2.0**-7
    ties = torch.tensor([1 + step / 2, 1 + 3 * step / 2])
    assert narrow(ties, torch.bfloat16).tolist() == [1.0, 1 + 2 * step]


def test_float16_subnormals_round_half_away_from_zero():
    step = 2.0**-24
    values = torch.tensor([0.5, 0.49, 1.5, -2.5, 1023.5]) * step
    assert (narrow(values, torch.float16).double() / step).tolist() == [1, 0, 2, -3, 1024]


def test_float16_is_the_usual_rounding_away_from_ties():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(10_000, generator=generator) * 10 ** torch.linspace(-9, 4, 10_000)
    assert torch.equal(narrow(values, torch.float16), values.half())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_special_values_stay(dtype):
    values = torch.tensor([0.0, math.inf, -math.inf, math.nan, 65504.0, -0.0])
    narrowed = narrow(values, dtype)
    assert torch.equal(narrowed, values.to(dtype)) or narrowed.isnan().tolist() == values.isnan().tolist()
    assert narrowed[[0, 1, 2, 5]].tolist() == [0, math.inf, -math.inf, 0]
    # A NaN with all fraction bits set must not overflow into a zero.
    assert narrow(torch.tensor([2**31 - 1], dtype=torch.int32).view(torch.float32), dtype).isnan().all()


def attend(scores, values, **more):
    """Attend one query to keys with given scores and values, one head, head dim 16."""
    query = torch.zeros(1, 1, 1, 16, dtype=torch.bfloat16)
    query[..., 0] = 1
    key = torch.zeros(1, 1, len(scores), 16, dtype=torch.bfloat16)
    key[0, 0, :, 0] = torch.tensor(scores)
    value = torch.tensor(values).bfloat16().view(1, 1, -1, 1).expand(1, 1, len(scores), 16).contiguous()
    output, lse = torch.ops.npu.npu_fused_infer_attention_score_v2(
        query, key, value, input_layout="BNSD", return_softmax_lse=True, **more
    )
    return output[0, 0, 0, 0].item(), lse.item()


# A bfloat16 number whose exp is nearer to 1 than to the next bfloat16 below.
SMALL = 2.0**-10


def test_probabilities_are_rounded_before_the_product():
    output, _ = attend([0.0, -SMALL], [1.0, -1.0])
    assert output == 0.0  # unrounded: (1 - exp(-SMALL)) / 2, about 5e-4


def test_the_sum_is_of_unrounded_probabilities():
    _, lse = attend([0.0, -SMALL], [1.0, 1.0])
    assert lse == pytest.approx(math.log(1 + math.exp(-SMALL)), abs=1e-7)
    assert lse != pytest.approx(math.log(2), abs=1e-4)


def tiles(position, scores=(0.0, SMALL)):
    """Give a low and a high key at two neighbouring positions of a long row, all others far below."""
    row, values = [-1000.0] * 1100, [0.0] * 1100
    row[position], row[position + 1] = scores
    values[position], values[position + 1] = 1.0, -1.0
    return row, values


def test_probabilities_are_relative_to_the_maximum_of_the_tiles_so_far():
    output, _ = attend(*tiles(511))
    # The first is exactly 1 in its tile and rescaled in float32: the difference survives.
    assert output == pytest.approx((math.exp(-SMALL) - 1) / (math.exp(-SMALL) + 1), rel=0.01)


@pytest.mark.parametrize("position", [510, 512, 513, 767])
def test_tiles_are_512_keys_aligned_to_position_0(position):
    output, _ = attend(*tiles(position))
    assert output == 0.0  # one tile: the smaller probability rounds to 1


def test_tiles_stay_aligned_when_a_window_begins_inside_one():
    # Keys 300 to 811 are a window of 512; 511 and 512 still lie in two tiles.
    row, values = tiles(511)
    query, key = torch.zeros(1, 1, 128).bfloat16(), torch.zeros(1100, 1, 128).bfloat16()
    query[..., 0], key[:, 0, 0] = 1, torch.tensor(row)
    value = torch.tensor(values).bfloat16().view(-1, 1, 1).expand(-1, 1, 128).contiguous()
    output, _ = torch.ops.npu.npu_fused_infer_attention_score_v2(
        query,
        key[:812],
        value[:812],
        input_layout="TND",
        actual_seq_qlen=[1],
        actual_seq_kvlen=[812],
        sparse_mode=4,
        pre_tokens=511,
        next_tokens=0,
        atten_mask=torch.ones(2048, 2048).triu(1).bool(),
    )
    assert output[0, 0, 0].item() == pytest.approx((math.exp(-SMALL) - 1) / (math.exp(-SMALL) + 1), rel=0.01)


def test_scores_are_scaled_in_float32():
    output, lse = attend([3.0, 5.0], [1.0, 2.0], softmax_scale=0.1)
    low, high = math.exp(0.3), math.exp(0.5)
    assert lse == pytest.approx(math.log(low + high), abs=1e-6)
    assert output == pytest.approx((low + 2 * high) / (low + high), rel=2**-8)


def test_a_hidden_key_weighs_nothing_however_low_the_visible_scores_are():
    hidden = torch.tensor([[False, True, False]])
    low = -(2.0**26)
    output, lse = attend([low, 5.0, low], [2.0, 100.0, 4.0], atten_mask=hidden)
    assert output == 3.0
    assert lse == pytest.approx(low)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_probabilities_are_narrowed_before_they_are_multiplied_and_not_before_they_are_added(dtype):
    """Two keys: the first has score 0 and value 0, the second any score and value 1."""
    scores = -torch.rand(400, generator=torch.Generator().manual_seed(1)) * 5
    queries, keys = torch.zeros(1, 400, 16, dtype=dtype), torch.zeros(1, 2, 16, dtype=dtype)
    queries[0, :, 0], keys[0, 1, 0] = scores.to(dtype), 1
    values = torch.zeros(1, 2, 16, dtype=dtype)
    values[0, 1] = 1
    source = SimpleNamespace(load=lambda start, end: (keys[:, start:end], values[:, start:end]))
    output = torch.full((1, 400, 16), 7, dtype=dtype)
    flash.attend(
        queries, source, Visibility(400, 2, range(400)), flash.Softmax(1.0), kv_heads=1, output=output, lse=None
    )
    exponential = torch.exp(queries[0, :, 0].float())
    expected = narrow(narrow(exponential, dtype).float() / (1 + exponential), dtype)
    assert torch.equal(output[0], expected.unsqueeze(1).expand(400, 16))
    assert not torch.equal(expected, narrow(exponential / (1 + exponential), dtype))


def test_rows_that_are_not_computed_become_zero_whatever_lay_there():
    tensors = torch.ones(2, 5, 16, dtype=torch.bfloat16)
    source = SimpleNamespace(load=lambda start, end: (tensors[:, start:end], tensors[:, start:end]))
    output, lse = torch.full_like(tensors, 7), torch.full((2, 5), 7.0)
    flash.attend(tensors, source, Visibility(5, 5, range(2, 4)), flash.Softmax(1.0), kv_heads=2, output=output, lse=lse)
    assert output[0, :, 0].tolist() == [0, 0, 1, 1, 0]
    assert lse[0].isposinf().tolist() == [True, True, False, False, True]
