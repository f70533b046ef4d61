"""learnable_sink: an entry of the denominator without a value."""

import dataclasses
import math

import pytest
import torch

from npudiff.device import simulator


@pytest.fixture
def sink():
    return torch.tensor([-2.0, 0.0, 1.5, 6.0]).bfloat16()


def band(lab, mode):
    return {"sparse_mode": mode, "pre_tokens": 30, "next_tokens": 0, "atten_mask": lab.template()}


@pytest.mark.parametrize("block_size", [0, 128])
@pytest.mark.parametrize(("mode", "window"), [(3, 10**6), (4, 31)])
@pytest.mark.parametrize("dim", [64, 128])
def test_sink_is_a_logit_of_its_own(lab, sink, *, mode, window, dim, block_size):
    lengths, key_lengths = [3, 1, 140], [3, 600, 700]
    sequences = lab.ragged(lengths, key_lengths, dim=dim)
    arguments = lab.pack(sequences, "TND", block_size=block_size) | band(lab, mode) | {"learnable_sink": sink}
    output, lse = lab.call(arguments)
    parts, lses = lab.unpack(output, "TND", lengths), lab.unpack_lse(lse, "TND", lengths)
    for index, (rows, keys) in enumerate(zip(lengths, key_lengths, strict=True)):
        position = torch.arange(rows)[:, None] + keys - rows
        key = torch.arange(keys)[None]
        seen = (key <= position) & (key > position - window)
        expected, bound, expected_lse = lab.exact(
            sequences.queries[index],
            sequences.keys[index],
            sequences.values[index],
            seen,
            scale=sequences.scale,
            sink=sink,
        )
        assert ((parts[index].double() - expected).abs() <= bound).all()
        torch.testing.assert_close(lses[index].double(), expected_lse, rtol=1e-5, atol=2e-5)


def test_sink_is_not_scaled(sink):
    """One key with score 0: the weight of its value is 1 / (1 + exp(sink)), whatever the scale."""
    query, value = torch.zeros(1, 4, 64).bfloat16(), torch.ones(1, 4, 64).bfloat16()
    for scale in (1.0, 0.125):
        output, _ = torch.ops.npu.npu_fused_infer_attention_score_v2(
            query,
            query,
            value,
            num_query_heads=4,
            input_layout="TND",
            actual_seq_qlen=[1],
            actual_seq_kvlen=[1],
            learnable_sink=sink,
            softmax_scale=scale,
        )
        expected = 1 / (1 + sink.double().exp())
        torch.testing.assert_close(output[0, :, 0].double(), expected, rtol=2**-8, atol=0)


@pytest.mark.parametrize(("profile", "included"), [("8.5", True), ("9.0", True), ("pessimistic", False)])
def test_lse_with_a_sink_is_a_choice(lab, sink, profile, included):
    sequences = lab.ragged([2], [9], dim=128)
    arguments = lab.pack(sequences, "TND") | band(lab, 3)
    with simulator.use_profile(profile):
        _, without = lab.call(arguments)
        _, with_sink = lab.call(arguments | {"learnable_sink": sink})
    together = torch.logaddexp(without.double(), sink.double()[None, :, None])
    expected = together if included else without.double()
    torch.testing.assert_close(with_sink.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_row_without_keys_stays_empty(lab, sink):
    arguments = lab.pack(lab.ragged([1, 1], [9, 9]), "TND", block_size=128)
    output, lse = lab.call(arguments | {"actual_seq_kvlen": [9, 0], "learnable_sink": sink})
    assert (output[1] == 0).all()
    assert (lse[1] == math.inf).all()


def test_float16_sinks_are_a_choice(lab, sink):
    sequences = lab.ragged([2], [9], dtype=torch.float16)
    arguments = lab.pack(sequences, "TND") | {"learnable_sink": sink.half()}
    lenient = dataclasses.replace(
        simulator.PROFILES["8.5"], tnd_float16="accepted", sink_dtypes=("bfloat16", "float16")
    )
    with simulator.use_profile(lenient):
        assert lab.call(arguments)[0].isfinite().all()
    with (
        simulator.use_profile(dataclasses.replace(lenient, sink_dtypes=("bfloat16",))),
        pytest.raises(simulator.OperatorRejected, match=r"learnable_sink was torch\.float16"),
    ):
        lab.call(arguments)
