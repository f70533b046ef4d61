"""Actual lengths, empty tensors, rows that see nothing, and the log-sum-exp."""

import dataclasses
import math

import pytest
import torch

from npudiff.device import simulator

INF = math.inf


@pytest.mark.parametrize("layout", ["BSH", "BSND", "BNSD"])
def test_rows_beyond_the_query_length_are_0_and_minus_infinity(lab, layout):
    sequences = lab.ragged([2, 5], [4, 9])
    output, lse = lab.call(lab.pack(sequences, layout))
    rows = output if layout == "BNSD" else output.reshape(2, 5, 4, 64).transpose(1, 2)
    assert (rows[0, :, 2:] == 0).all()
    assert (lse[0, :, 2:] == -INF).all()
    assert rows[0, :, :2].abs().min() > 0
    assert lse[:, :, :2].isfinite().all()


def test_lengths_may_be_left_out(lab):
    sequences = lab.ragged([5, 5], [9, 9])
    arguments = lab.pack(sequences, "BSND")
    expected, _ = lab.call(arguments)
    arguments |= {"actual_seq_qlen": None, "actual_seq_kvlen": None}
    assert torch.equal(lab.call(arguments)[0], expected)


@pytest.mark.parametrize("block_size", [0, 128])
def test_one_length_serves_every_sequence(lab, block_size):
    sequences = lab.ragged([5, 5], [9, 9])
    arguments = lab.pack(sequences, "BSND", block_size=block_size, fill=9.0)
    longer, _ = lab.call(arguments | {"actual_seq_qlen": [3, 3], "actual_seq_kvlen": [7, 7]})
    shared, _ = lab.call(arguments | {"actual_seq_qlen": [3], "actual_seq_kvlen": [7]})
    spare, _ = lab.call(arguments | {"actual_seq_qlen": [3, 3, 99], "actual_seq_kvlen": [7, 7, -1]})
    assert torch.equal(longer, shared)
    assert torch.equal(longer, spare)


def test_tnd_key_lengths_are_cumulative_only_without_pages(lab):
    sequences = lab.ragged([2, 3], [40, 90])
    plain, paged = lab.pack(sequences, "TND"), lab.pack(sequences, "TND", block_size=128)
    assert (plain["actual_seq_kvlen"], paged["actual_seq_kvlen"]) == ([40, 130], [40, 90])
    torch.testing.assert_close(lab.call(plain)[0], lab.call(paged)[0], rtol=0, atol=0)


@pytest.mark.parametrize("layout", ["TND", "BSND"])
@pytest.mark.parametrize("mode", [0, 3, 4])
def test_a_sequence_without_keys_gives_0_and_plus_infinity(lab, layout, mode):
    """Graph replay pads with sequences of key length 0."""
    sequences = lab.ragged([1, 1, 2], [30, 30, 30])
    arguments = lab.pack(sequences, layout, block_size=128, fill=math.nan)
    arguments |= {"actual_seq_kvlen": [30, 0, 0], "sparse_mode": mode, "pre_tokens": 5, "next_tokens": 0}
    arguments |= {"atten_mask": lab.template()} if mode else {}
    output, lse = lab.call(arguments)
    outputs = lab.unpack(output, layout, [1, 1, 2])
    lses = lab.unpack_lse(lse, layout, [1, 1, 2])
    assert lses[0].isfinite().all()
    for part, part_lse in zip(outputs[1:], lses[1:], strict=True):
        assert (part == 0).all()
        assert (part_lse == INF).all()


def test_sequences_without_queries_are_stepped_over(lab):
    sequences = lab.ragged([2, 0, 3], [40, 20, 90])
    output, _ = lab.call(lab.pack(sequences, "TND", block_size=128))
    alone = lab.ragged([2, 0, 3], [40, 20, 90])
    expected, bound, _ = lab.exact(
        alone.queries[2], alone.keys[2], alone.values[2], torch.ones(3, 90).bool(), scale=alone.scale
    )
    assert ((output[2:].transpose(0, 1).double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("layout", ["BSH", "BSND", "BNSD"])
def test_no_keys_at_all(lab, layout):
    sequences = lab.ragged([3, 3], [0, 0])
    output, lse = lab.call(lab.pack(sequences, layout) | {"actual_seq_qlen": [3, 1]})
    assert (output == 0).all()
    assert (lse == INF).all()


@pytest.mark.parametrize(("layout", "shape"), [("TND", (0, 4, 64)), ("BSND", (2, 0, 4, 64)), ("BSND", (0, 3, 4, 64))])
def test_no_queries_at_all(layout, shape):
    query = torch.empty(shape, dtype=torch.bfloat16)
    output, lse = torch.ops.npu.npu_fused_infer_attention_score_v2(
        query, query, query, num_query_heads=4, input_layout=layout, return_softmax_lse=True
    )
    assert tuple(output.shape) == shape
    assert lse.numel() == 0


def test_rows_outside_the_band_are_0_and_plus_infinity(lab):
    """More queries than keys, right-down: the first rows end before key 0."""
    arguments = lab.pack(lab.ragged([9], [4]), "BSND")
    arguments |= {"atten_mask": lab.template(), "pre_tokens": 2, "next_tokens": 0}
    for mode in (3, 4):
        output, lse = lab.call(arguments | {"sparse_mode": mode})
        assert (output[0, :5] == 0).all()
        assert (lse[0, :, :5] == INF).all()
        assert lse[0, :, 5:].isfinite().all()
    _, lse = lab.call(arguments | {"sparse_mode": 2})
    assert lse.isfinite().all()


def test_rows_after_the_last_key_of_a_band_are_forced_empty(lab):
    """pre_tokens below zero: the last rows begin after the last key."""
    sequences = lab.ragged([6], [10])
    band = {"sparse_mode": 4, "pre_tokens": -2, "next_tokens": 3, "atten_mask": lab.template()}
    output, lse = lab.call(lab.pack(sequences, "BSND") | band)
    assert (lse[0, :, 4:] == INF).all()
    assert (output[0, 4:] == 0).all()
    seen = torch.ones(6, 10).triu(4 + 2).tril(4 + 3).bool()[:4]
    expected, bound, _ = lab.exact(
        sequences.queries[0][:, :4], sequences.keys[0], sequences.values[0], seen, scale=sequences.scale
    )
    assert ((output[0, :4].transpose(0, 1).double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("pre", [-3, 2])
def test_rows_outside_the_band_of_mode_0(lab, pre):
    sequences = lab.ragged([9], [4])
    nothing = torch.zeros(1, 9, 4, dtype=torch.bool)
    arguments = lab.pack(sequences, "BSND") | {"atten_mask": nothing, "pre_tokens": pre, "next_tokens": 3}
    _, lse = lab.call(arguments)
    first_empty = 4 + pre
    assert (lse[0, :, first_empty:] == INF).all()
    assert lse[0, :, :first_empty].isfinite().all()


def fully_hidden(lab, **more):
    """Hide every key from row 1, by the caller's mask."""
    sequences = lab.ragged([3], [700])
    mask = torch.zeros(1, 3, 700, dtype=torch.bool)
    mask[0, 1] = True
    output, lse = lab.call(lab.pack(sequences, "BSND") | {"atten_mask": mask} | more)
    mean = sequences.values[0].float().mean(1).repeat_interleave(2, 0)
    return output[0, 1], lse[0, :, 1], mean


@pytest.mark.parametrize("inner_precise", [0, 1])
@pytest.mark.parametrize("mode", [0, 1])
def test_a_row_that_the_mask_hides_entirely_averages(lab, mode, inner_precise):
    row, lse, mean = fully_hidden(lab, sparse_mode=mode, inner_precise=inner_precise)
    torch.testing.assert_close(row.float(), mean, rtol=2**-7, atol=2**-10)
    assert lse.isfinite().all()


@pytest.mark.parametrize("inner_precise", [2, 3])
@pytest.mark.parametrize("mode", [0, 1])
def test_row_invalid_correction_zeroes_it(lab, mode, inner_precise):
    row, lse, _ = fully_hidden(lab, sparse_mode=mode, inner_precise=inner_precise)
    assert (row == 0).all()
    assert (lse == INF).all()


def test_a_profile_may_zero_hidden_rows_without_correction(lab):
    profile = dataclasses.replace(simulator.PROFILES["8.5"], fully_hidden_row="zero")
    with simulator.use_profile(profile):
        row, lse, _ = fully_hidden(lab)
    assert (row == 0).all()
    assert (lse == INF).all()


def test_lse_placeholder(lab):
    arguments = lab.pack(lab.ragged([2], [9]), "TND")
    _, lse = lab.call(arguments, lse=False)
    assert (tuple(lse.shape), lse.dtype) == ((0,), torch.float32)
    with simulator.use_profile(dataclasses.replace(simulator.PROFILES["8.5"], lse_placeholder="one_zero")):
        _, lse = lab.call(arguments, lse=False)
    assert lse.tolist() == [0.0]
